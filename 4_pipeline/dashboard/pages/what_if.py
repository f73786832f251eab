"""What if: the prediction for inputs set with sliders, and its response to each input."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import dash_bootstrap_components as dbc
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html
from forecast import problem
from forecast.problem import Slider
from forecast.show import figures
from forecast.table import features
from forecast.table.schema import FEATURES, TARGETS, UNITS
from forecast.terms import steps
from forecast.terms.errors import PipelineError

from .. import parts
from ..follower import Follower, Snapshot
from ..predictions import Champion, Prediction

PATH, TITLE = "/what-if", "What if"
RARE_SHARE = 0.005  # a value is rare if less than this share of the training rows are at least as extreme
SOLAR_CONSTANT, TWILIGHT = 1361, 60  # W/m²; TWILIGHT is a margin for parts of the region where the sun is higher
LIGHT = [each.name for each in problem.INPUTS if each.unit == "W/m²"]
POINTS = 33  # per curve; curves over time or a category have one point per value
SIMILARITY = 0.1  # in similar training rows, all other inputs differ by at most this share of the slider's range
TRIM_ROWS, TRIM_SHARE = 10, 0.01  # trim this many or this share of the similar rows at each end, whichever is more
COMMON_YEAR = 2015  # not a leap year
# Add a suffix to the name of a time slider if an input has the same name.
HOUR, DAY, YEAR = (f"{name}_utc" if name in FEATURES else name for name in ("hour", "day", "year"))
TIME = {} if steps.IS_DAY else {HOUR: "Hour of the day"}
WHEN = "the hour and the day" if TIME else "the day"
TIME |= {DAY: "Day of the year"}
LABELS = {each.name: each.meaning.capitalize() for each in problem.INPUTS} | TIME
AXES = {each.name: each.label for each in problem.INPUTS} | TIME | {HOUR: "Hour of the day, UTC"}
SLIDERS = {each.name: each.slider for each in problem.INPUTS}
SLIDERS |= {HOUR: Slider(0, 24 - steps.HOURS, steps.HOURS, 12)} if HOUR in TIME else {}
SLIDERS |= {DAY: Slider(1, 365, 1, 172), YEAR: Slider(0, 2100, 1, 0)}  # the year has no visible slider
IDS = {name: f"slider-{name}" for name in SLIDERS}
DEFAULTS = {name: slider.first for name, slider in SLIDERS.items()}
PRESETS: dict[str, dict[str, float | str]] = {"Reset": {}, **problem.PRESETS}
BUTTONS = {f"preset-button-{number}": name for number, name in enumerate(PRESETS)}


def page(snapshot: Snapshot, query: dict[str, str]) -> list:
    """Return the sliders, the prediction and the curves for the slider values in the query (keys: `SLIDERS`)."""
    values = within_range(query.get(name) for name in SLIDERS)
    presets = [parts.button(name, id_) for id_, name in BUTTONS.items()]
    sliders = [
        html.P(adjustments(query), className="error", role="status"),
        html.Div(prediction(snapshot, values), id="what-if-answers", **{"aria-live": "polite"}),
        html.Div(presets, className="group"),
        html.Div([_slider(name, values, snapshot) for name in LABELS], className="sliders"),
        dbc.Input(id=IDS[YEAR], type="hidden", value=values[YEAR]),
    ]
    label = f"Response of the prediction to each input at this {steps.NAME}"
    figure = parts.graph("what-if-curves", curves(snapshot, values), label, "chart tall")
    about = (
        f"The prediction when one input changes and the others stay the same; the dotted line marks your {steps.NAME}."
        f" The training range is shaded, and darker where the other inputs were similar (without extremes)."
        f"{' A line ends where more light is set than the sun can provide.' * bool(LIGHT)}"
    )
    panels = [
        parts.panel("what-if", "What if", hint(snapshot), sliders),
        parts.panel("curves", f"Response to each input at this {steps.NAME}", about, [figure]),
    ]
    return [
        dcc.Store(id="what-if-first", data=[*DEFAULTS.items()]),
        dcc.Store(id="what-if-rest"),  # set when the sliders rest, so that dragging does not redraw the curves
        html.Div(panels, className="columns narrow-first"),
    ]


def register(app: Dash, follower: Follower) -> None:
    """Register the callbacks that run when a slider moves or the snapshot is replaced."""
    sliders = [Input(IDS[name], "value") for name in SLIDERS]

    @app.callback(
        Output("what-if-answers", "children"),
        *(Output(f"{IDS[name]}-value", "value" if name in FEATURES else "children") for name in LABELS),
        *(Output(f"{IDS[name]}-range", "children") for name in FEATURES),
        *sliders,
        Input("shown", "data"),
        Input("revision", "data"),
    )
    def predict(*values: Any) -> tuple:
        """Predict from the sliders' values."""
        weather = within_range(values[:-2])
        snapshot = follower.now
        texts = (value_text(snapshot, name, weather) for name in LABELS)
        return prediction(snapshot, weather), *texts, *(range_note(snapshot, name, weather[name]) for name in FEATURES)

    @app.callback(
        *(Output(IDS[name], "value") for name in SLIDERS),
        *(Input(id_, "n_clicks") for id_ in BUTTONS),
    )
    def choose_preset(*_clicks: int) -> list[float]:
        """Set all sliders; a preset's date sets the day and the year."""
        values: dict[str, Any] = DEFAULTS | PRESETS.get(BUTTONS.get(ctx.triggered_id, ""), {})
        if "date" in values:
            date = datetime.fromisoformat(values["date"])
            values |= {DAY: int(f"{date.replace(year=COMMON_YEAR):%j}"), YEAR: date.year}
        return [values[name] for name in SLIDERS]

    app.clientside_callback(
        ClientsideFunction("address", "keep_sliders"),
        *sliders,
        State("what-if-first", "data"),
        prevent_initial_call=False,
    )

    @app.callback(
        Output("what-if-curves", "figure"),
        Output("what-if-hint", "children"),
        *(Output(IDS[name], "disabled") for name in TIME),
        *(Output(IDS[name], "style") for name in FEATURES),
        Input("what-if-rest", "data"),
        Input("shown", "data"),
        Input("revision", "data"),
        *(State(IDS[name], "value") for name in SLIDERS),
    )
    def draw_curves(_rest: object, _shown: object, _revision: object, *values: Any) -> tuple:
        """Draw the response of the prediction to each input, with the others at the sliders' values."""
        snapshot = follower.now
        ranges = (training_range(snapshot, name) for name in FEATURES)
        return curves(snapshot, within_range(values)), hint(snapshot), *[is_unused(snapshot)] * len(TIME), *ranges

    for name in FEATURES:
        app.clientside_callback(
            ClientsideFunction("figures", "take_typed"),
            Output(IDS[name], "value", allow_duplicate=True),
            Input(f"{IDS[name]}-value", "value"),
            State(IDS[name], "value"),
        )


def within_range(values: Iterable[Any]) -> dict[str, float]:
    """Return the sliders' values by name, clipped to their ranges; anything but a number becomes the default."""
    return {
        name: float(min(max(float(value), slider.low), slider.high) if _is_number(value) else slider.first)
        for (name, slider), value in zip(SLIDERS.items(), values, strict=True)
    }


def adjustments(query: dict[str, str]) -> str:
    """Return a note about query values that were ignored or clipped; empty if there are none."""
    requested = {name: query[name] for name in SLIDERS if name in query}
    ignored = [f"{name}={text[:40]}" for name, text in requested.items() if not _is_number(text)]
    clipped = [
        f"{name}={text[:40]} ({SLIDERS[name].low:g} to {SLIDERS[name].high:g})"
        for name, text in requested.items()
        if _is_number(text) and not SLIDERS[name].low <= float(text) <= SLIDERS[name].high
    ]
    notes = [f"Ignored, because not a number: {', '.join(ignored)}."] * bool(ignored)
    notes += [f"Set to the end of the slider's range: {', '.join(clipped)}."] * bool(clipped)
    return " ".join(notes)


def _is_number(value: Any) -> bool:
    try:
        return not math.isnan(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def value_text(snapshot: Snapshot, name: str, weather: dict[str, float]) -> str | float:
    """Return a slider's value for display: a day as a date, an hour in UTC and local time."""
    time = chosen_time(snapshot, weather)
    local = f", {time.astimezone(ZoneInfo(steps.ZONE)):%H:%M} in {steps.ZONE}" * (steps.ZONE != "UTC")
    return {DAY: f"{time:%d %b %Y}", HOUR: f"{time:%H:%M} UTC{local}"}.get(name, weather[name])


def prediction(snapshot: Snapshot, weather: dict[str, float]) -> list:
    """Return the prediction for the sliders' values, one tile per target, with notes on light and capacity."""
    hour = pd.DataFrame([{**weather, "utc_timestamp": chosen_time(snapshot, weather)}])
    try:
        predicted, band = _predict(snapshot.champion, hour) if snapshot.champion else (None, None)
    except PipelineError as error:
        return [parts.banner(f"No prediction for this {steps.NAME}:", error.what)]
    content = [html.Div(parts.prediction(snapshot, predicted, band), className="tiles")]
    light, limit = (float(values.iloc[0]) for values in _light(hour))
    if light > limit:
        text = f"Impossible {steps.NAME}: {light:.0f} W/m² of radiation are set, but at this time the sun gives at most"
        text += f" {limit - TWILIGHT:.0f} W/m², even without an atmosphere."
        content.append(html.P(text, className="error"))
    if snapshot.champion and (year_ends := snapshot.champion.year_ends):
        capacities = features.installed(hour, year_ends).iloc[0]
        targets = [each for each in problem.TARGETS if each.name in year_ends]
        values = ", ".join(f"{each.words} {capacities[each.name]:.1f} {each.unit}" for each in targets)
        text = f"Installed capacity on {hour['utc_timestamp'].iloc[0]:%d %b %Y}: {values}."
        content.append(html.P(text, className="hint"))
    return content


def _predict(champion: Champion, hours: pd.DataFrame) -> Prediction:
    """Return predictions and band; a daytime target is NaN if more light is set than the sun can provide."""
    predicted, band = champion.predict_with_band(hours)
    light, limit = _light(hours)
    if champion.model.takes_time:
        hidden = pd.DataFrame({target.name: (light > limit) & target.by_day for target in problem.TARGETS})
        predicted, band = predicted.mask(hidden), band and (band[0].mask(hidden), band[1].mask(hidden))
    return predicted, band


def _light(hours: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return each row's light in W/m², and the upper limit: extraterrestrial radiation plus `TWILIGHT`."""
    light = hours[LIGHT].sum(axis=1)
    elevation = features.sun_position(features.to_utc(hours["utc_timestamp"]))["elevation"]
    limit = SOLAR_CONSTANT * np.sin(np.radians(elevation.to_numpy())).clip(min=0)
    return light, pd.Series(limit + TWILIGHT, hours.index)


def range_note(snapshot: Snapshot, name: str, value: float) -> str:
    """Describe whether an input's value is outside the training range, within it, or within it but rare."""
    if snapshot.training_rows is None:
        return ""
    known = snapshot.training_rows[name]
    count, extreme = min(((known <= value).sum(), "low"), ((known >= value).sum(), "high"))
    if count >= RARE_SHARE * len(known):
        return "within the training range"
    rare = f"within the training range, but this {extreme} in only {count:,} of {len(known):,} {steps.NAMES}"
    return rare if count else "outside the training range"


def training_range(snapshot: Snapshot, name: str) -> dict[str, str]:
    """Return the ends of an input's training range as fractions of the slider's range, in CSS variables."""
    if snapshot.training_rows is None or name not in FEATURES:
        return {}
    slider, known = SLIDERS[name], snapshot.training_rows[name]
    shares = [(end - slider.low) / (slider.high - slider.low) for end in (known.min(), known.max())]
    return {f"--{end}": f"{min(max(share, 0), 1):.3f}" for end, share in zip(("from", "to"), shares, strict=True)}


def _similar_range(training_rows: pd.DataFrame, name: str, weather: dict[str, float]) -> list[float]:
    """Return an input's range, without extremes, in training rows whose other inputs are near the sliders' values."""
    others = [other for other in FEATURES if other != name]
    spans = pd.Series({other: SIMILARITY * (SLIDERS[other].high - SLIDERS[other].low) for other in others})
    is_similar = ((training_rows[others] - pd.Series(weather)[others]).abs() <= spans).all(axis=1)
    trim = max(TRIM_ROWS, round(TRIM_SHARE * is_similar.sum()))
    values = np.sort(training_rows.loc[is_similar, name].to_numpy())[trim:-trim]
    return [values[0], values[-1]] if len(values) else []


def curves(snapshot: Snapshot, weather: dict[str, float]) -> go.Figure:
    """Return the response to each input, with the others at the sliders' values; without a model, a message."""
    if snapshot.champion is None:
        return figures.empty(snapshot.missing("champion"))
    swept, year = [], chosen_time(snapshot, weather).year
    for name in LABELS if snapshot.champion.model.takes_time else FEATURES:
        slider, is_whole = SLIDERS[name], name in TIME or name in figures.CATEGORIES
        number = round((slider.high - slider.low) / slider.step) + 1 if is_whole else POINTS
        points = np.linspace(slider.low, slider.high, number)
        swept += [(name, value) for value in (np.unique(points.round()) if slider.step == 1 else points)]
    rows = [{**weather, YEAR: year, name: value} for name, value in swept]
    table = pd.DataFrame(rows).assign(utc_timestamp=[chosen_time(snapshot, row) for row in rows])
    try:
        table[TARGETS] = _predict(snapshot.champion, table)[0]
    except PipelineError as error:
        return figures.empty(error.what)
    names, values = zip(*swept, strict=True)
    table = table[TARGETS].assign(feature=names, value=values)
    ranges = {}
    if (known := snapshot.training_rows) is not None:
        for name in FEATURES:
            ranges[name] = [known[name].min(), *_similar_range(known, name, weather), known[name].max()]
    axes = AXES | {DAY: f"{AXES[DAY]} {year}"}
    figure = figures.responses(table, point=weather, names=axes, title=None, ranges=ranges)
    return figure.update_layout(margin_t=40, uirevision="same")


def hint(snapshot: Snapshot) -> str:
    """Return the hint above the sliders; it also names the sliders that the model ignores."""
    text = f"Set the inputs of {steps.ONE} to see the prediction. The coloured part of a track is the training range."
    return text + f" The model in production does not use {WHEN}." * is_unused(snapshot)


def is_unused(snapshot: Snapshot) -> bool:
    """Return whether the model in production ignores the hour and the day."""
    return snapshot.champion is not None and not snapshot.champion.model.takes_time


def chosen_time(snapshot: Snapshot, weather: dict[str, float]) -> datetime:
    """Return the time that the sliders set; a day of the year is the same date in every year, never 29 February.

    A year before 1900 means the last year of the data or the last year with a known capacity, whichever is earlier.
    """
    year, hours = round(weather[YEAR]), round(weather.get(HOUR, 0) / steps.HOURS) * steps.HOURS
    if year < 1900:
        year = features.last_year(snapshot.champion.model.year_ends if snapshot.champion else problem.CAPACITY)
        year = year if snapshot.frame is None else min(snapshot.frame["utc_timestamp"].iloc[-1].year, year)
    start = datetime(COMMON_YEAR, 1, 1, tzinfo=ZoneInfo(steps.CALENDAR))
    return (start + timedelta(days=round(weather[DAY]) - 1, hours=hours)).replace(year=year)


def _slider(name: str, values: dict[str, float], snapshot: Snapshot) -> html.Div:
    slider, id_, value = SLIDERS[name], IDS[name], values[name]
    ends = [html.Span(f"{slider.low:g}"), html.Span(f"{slider.high:g}")]
    limits = {"min": slider.low, "max": slider.high, "step": slider.step, "style": training_range(snapshot, name)}
    if name in FEATURES:
        ends.insert(1, html.Span(range_note(snapshot, name, value), id=f"{id_}-range"))
        typed = dbc.Input(id=f"{id_}-value", type="number", value=value, debounce=True, size="sm", step="any")
        hidden_label = html.Label(f"{LABELS[name]}, {UNITS[name]}", htmlFor=f"{id_}-value", className="visually-hidden")
        field = html.Span([hidden_label, typed, f" {UNITS[name]}"])
    else:
        field = html.Span(value_text(snapshot, name, values), id=f"{id_}-value")
    unused = name in TIME and is_unused(snapshot)
    return html.Div(
        [
            html.Div([html.Label(LABELS[name], htmlFor=id_), field], className="name"),
            # A native range input works with keyboards, screen readers and touch screens.
            dbc.Input(id=id_, type="range", value=value, className="form-range", disabled=unused, **limits),
            html.Div(ends, className="ends"),
        ],
        className="slider",
    )
