"""What if: the prediction for a step of time that the reader sets with sliders, and how it follows each input."""

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
SELDOM = 0.005  # of the training rows: a value as extreme in fewer is rare
SOLAR_CONSTANT, TWILIGHT = 1361, 60  # W/m²; what there may be more, as the sun is higher elsewhere in the region
LIGHT = [each.name for each in problem.INPUTS if each.unit == "W/m²"]
POINTS = 33  # values of an input that a curve is drawn through; of time and of a category it is each value
ALIKE = 0.1  # of a slider's range, by which the other inputs of hours like the chosen one differ at most
FEW, FEW_SHARE = 10, 0.01  # hours like that, or the share of them, beyond the dark part on either side
NO_LEAP_YEAR = 2015
# An input may have such a name, too. Not every model knows the time.
HOUR, DAY, YEAR = (f"{name}_utc" if name in FEATURES else name for name in ("hour", "day", "year"))
TIME = {} if steps.IS_DAY else {HOUR: "Hour of the day"}
WHEN = "hour and day" if TIME else "the day"
TIME |= {DAY: "Day of the year"}
LABELS = {each.name: each.meaning.capitalize() for each in problem.INPUTS} | TIME
AXES = {each.name: each.label for each in problem.INPUTS} | TIME | {HOUR: "Hour of the day, UTC"}
SLIDERS = {each.name: each.slider for each in problem.INPUTS}
SLIDERS |= {HOUR: Slider(0, 24 - steps.HOURS, steps.HOURS, 12)} if HOUR in TIME else {}
SLIDERS |= {DAY: Slider(1, 365, 1, 172), YEAR: Slider(0, 2100, 1, 0)}  # the year has no slider on the page
IDS = {name: f"slider-{name}" for name in SLIDERS}
FIRST = {name: slider.first for name, slider in SLIDERS.items()}
PRESETS: dict[str, dict[str, float | str]] = {"Reset": {}, **problem.PRESETS}
BUTTONS = {f"preset-button-{number}": name for number, name in enumerate(PRESETS)}


def page(snapshot: Snapshot, query: dict[str, str]) -> list:
    """Return sliders, prediction and curves for the values of the query, each by its input's name (`SLIDERS`)."""
    values = within_range(query.get(name) for name in SLIDERS)
    presets = [parts.button(name, id_) for id_, name in BUTTONS.items()]
    sliders = [
        html.P(adjusted(query), className="refused", role="status"),
        html.Div(answers(snapshot, values), id="what-if-answers", **{"aria-live": "polite"}),
        html.Div(presets, className="group"),
        html.Div([_slider(name, values, snapshot) for name in LABELS], className="sliders"),
        dbc.Input(id=IDS[YEAR], type="hidden", value=values[YEAR]),
    ]
    label = f"Predictions around this {steps.NAME}"
    figure = parts.graph("what-if-curves", curves(snapshot, values), label, "chart tall")
    about = (
        f"The prediction when one input changes and the others stay; the dotted line is the {steps.NAME} that you set."
        f" Shaded is the training range, and dark that of {steps.NAMES} with the others alike, without the outermost"
        f" {FEW}, or one in a hundred.{' A line ends where the sun gives less light than is set.' * bool(LIGHT)}"
    )
    panels = [
        parts.panel("what-if", "What if", hint(snapshot), sliders),
        parts.panel("curves", f"Around this {steps.NAME}", about, [figure]),
    ]
    return [
        dcc.Store(id="what-if-first", data=[*FIRST.items()]),
        dcc.Store(id="what-if-rest"),  # set when the sliders come to rest: no need to draw on the way
        html.Div(panels, className="columns narrow-first"),
    ]


def register(app: Dash, follower: Follower) -> None:
    """Answer to the sliders, and follow the snapshot."""
    sliders = [Input(IDS[name], "value") for name in SLIDERS]

    @app.callback(
        Output("what-if-answers", "children"),
        *(Output(f"{IDS[name]}-value", "value" if name in FEATURES else "children") for name in LABELS),
        *(Output(f"{IDS[name]}-seen", "children") for name in FEATURES),
        *sliders,
        Input("shown", "data"),
        Input("revision", "data"),
    )
    def answer(*values: Any) -> tuple:
        """Predict for the hour and the weather of the sliders."""
        weather = within_range(values[:-2])
        snapshot = follower.now
        readings = (reading(snapshot, name, weather) for name in LABELS)
        return answers(snapshot, weather), *readings, *(seen(snapshot, name, weather[name]) for name in FEATURES)

    @app.callback(
        *(Output(IDS[name], "value") for name in SLIDERS),
        *(Input(id_, "n_clicks") for id_ in BUTTONS),
    )
    def choose_preset(*_clicks: int) -> list[float]:
        """Set all sliders; a preset's date sets day and year."""
        values: dict[str, Any] = FIRST | PRESETS.get(BUTTONS.get(ctx.triggered_id, ""), {})
        if "date" in values:
            date = datetime.fromisoformat(values["date"])
            values |= {DAY: int(f"{date.replace(year=NO_LEAP_YEAR):%j}"), YEAR: date.year}
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
        """Draw how the prediction changes around the sliders' hour."""
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
    """Return the sliders' values by their inputs, each within its range; the first value for other than numbers."""
    return {
        name: float(min(max(float(value), slider.low), slider.high) if _is_number(value) else slider.first)
        for (name, slider), value in zip(SLIDERS.items(), values, strict=True)
    }


def adjusted(query: dict[str, str]) -> str:
    """Return which values of the query are not shown as they are, and why; empty if all are."""
    asked = {name: query[name] for name in SLIDERS if name in query}
    ignored = [f"{name}={text[:40]}" for name, text in asked.items() if not _is_number(text)]
    beyond = [
        f"{name}={text[:40]} ({SLIDERS[name].low:g} to {SLIDERS[name].high:g})"
        for name, text in asked.items()
        if _is_number(text) and not SLIDERS[name].low <= float(text) <= SLIDERS[name].high
    ]
    words = [f"Not a number, and ignored: {', '.join(ignored)}."] * bool(ignored)
    words += [f"Beyond the slider, and set to its end: {', '.join(beyond)}."] * bool(beyond)
    return " ".join(words)


def _is_number(value: Any) -> bool:
    try:
        return not math.isnan(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def reading(snapshot: Snapshot, name: str, weather: dict[str, float]) -> str | float:
    """Return a slider's value as its field shows it: a day of the year as a date, an hour as on the clocks."""
    time = hour_of_year(snapshot, weather)
    local = f", {time.astimezone(ZoneInfo(steps.ZONE)):%H:%M} in {steps.ZONE}" * (steps.ZONE != "UTC")
    return {DAY: f"{time:%d %b %Y}", HOUR: f"{time:%H:%M} UTC{local}"}.get(name, weather[name])


def answers(snapshot: Snapshot, weather: dict[str, float]) -> list:
    """Return the prediction for one hour of weather (`SLIDERS`), a tile a target, and notes on light and capacity."""
    hour = pd.DataFrame([{**weather, "utc_timestamp": hour_of_year(snapshot, weather)}])
    try:
        predicted, band = _predict(snapshot.champion, hour) if snapshot.champion else (None, None)
    except PipelineError as error:
        return [parts.banner(f"There is no prediction for this {steps.NAME}:", error.what)]
    content = [html.Div(parts.prediction(snapshot, predicted, band), className="tiles")]
    light, most = (float(values.iloc[0]) for values in _light(hour))
    if light > most:
        limit = f"at this time the sun gives at most {most - TWILIGHT:.0f} W/m², even without an atmosphere"
        text = f"There is no such {steps.NAME}: {light:.0f} W/m² of light are set, and {limit}."
        content.append(html.P(text, className="refused"))
    if snapshot.champion and (year_ends := snapshot.champion.year_ends):
        capacities = features.installed(hour, year_ends).iloc[0]
        targets = [each for each in problem.TARGETS if each.name in year_ends]
        known = ", ".join(f"{each.words} {capacities[each.name]:.1f} {each.unit}" for each in targets)
        text = f"With the capacity installed on {hour['utc_timestamp'].iloc[0]:%d %b %Y}: {known}."
        content.append(html.P(text, className="hint"))
    return content


def _predict(champion: Champion, hours: pd.DataFrame) -> Prediction:
    """Return predictions and their band; NaN of a target that follows the sun, where the sun cannot give the light."""
    predicted, band = champion.predict_with_band(hours)
    light, most = _light(hours)
    if champion.model.takes_time:
        hidden = pd.DataFrame({target.name: (light > most) & target.by_day for target in problem.TARGETS})
        predicted, band = predicted.mask(hidden), band and (band[0].mask(hidden), band[1].mask(hidden))
    return predicted, band


def _light(hours: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return the light of hours in W/m², and how much there can be: what the sun gives, and twilight."""
    light = hours[LIGHT].sum(axis=1)
    elevation = features.sun_position(features.to_utc(hours["utc_timestamp"]))["elevation"]
    most = SOLAR_CONSTANT * np.sin(np.radians(elevation.to_numpy())).clip(min=0)
    return light, pd.Series(most + TWILIGHT, hours.index)


def seen(snapshot: Snapshot, name: str, value: float) -> str:
    """Return whether a value of an input lies within the training range, and how few rows had one as extreme."""
    if snapshot.learned is None:
        return ""
    learned = snapshot.learned[name]
    times, extreme = min(((learned <= value).sum(), "low"), ((learned >= value).sum(), "high"))
    if times >= SELDOM * len(learned):
        return "within the training range"
    rare = f"within the training range, but this {extreme} in only {times:,} of {len(learned):,} {steps.NAMES}"
    return rare if times else "outside the training range"


def training_range(snapshot: Snapshot, name: str) -> dict[str, str]:
    """Return the ends of an input's training range as shares of its slider, for the style of the track."""
    if snapshot.learned is None or name not in FEATURES:
        return {}
    slider, learned = SLIDERS[name], snapshot.learned[name]
    shares = [(end - slider.low) / (slider.high - slider.low) for end in (learned.min(), learned.max())]
    return {f"--{end}": f"{min(max(share, 0), 1):.3f}" for end, share in zip(("from", "to"), shares, strict=True)}


def _learned_here(learned: pd.DataFrame, name: str, weather: dict[str, float]) -> list[float]:
    """Return the ends of the values of an input in learned hours like the chosen one, without the few outermost."""
    others = [other for other in FEATURES if other != name]
    spans = pd.Series({other: ALIKE * (SLIDERS[other].high - SLIDERS[other].low) for other in others})
    is_alike = ((learned[others] - pd.Series(weather)[others]).abs() <= spans).all(axis=1)
    few = max(FEW, round(FEW_SHARE * is_alike.sum()))
    values = np.sort(learned.loc[is_alike, name].to_numpy())[few:-few]
    return [values[0], values[-1]] if len(values) else []


def curves(snapshot: Snapshot, weather: dict[str, float]) -> go.Figure:
    """Return the figure of the predictions around one hour of weather (`SLIDERS`); it says so if there are none."""
    if snapshot.champion is None:
        return figures.empty(snapshot.missing("champion"))
    swept, year = [], hour_of_year(snapshot, weather).year
    for name in LABELS if snapshot.champion.model.takes_time else FEATURES:
        slider, is_whole = SLIDERS[name], name in TIME or name in figures.CATEGORIES
        number = round((slider.high - slider.low) / slider.step) + 1 if is_whole else POINTS
        points = np.linspace(slider.low, slider.high, number)
        swept += [(name, value) for value in (np.unique(points.round()) if slider.step == 1 else points)]
    rows = [{**weather, YEAR: year, name: value} for name, value in swept]
    table = pd.DataFrame(rows).assign(utc_timestamp=[hour_of_year(snapshot, row) for row in rows])
    try:
        table[TARGETS] = _predict(snapshot.champion, table)[0]
    except PipelineError as error:
        return figures.empty(error.what)
    names, values = zip(*swept, strict=True)
    table = table[TARGETS].assign(feature=names, value=values)
    ranges = {}
    if (learned := snapshot.learned) is not None:
        for name in FEATURES:
            ranges[name] = [learned[name].min(), *_learned_here(learned, name, weather), learned[name].max()]
    axes = AXES | {DAY: f"{AXES[DAY]} {year}"}
    figure = figures.responses(table, point=weather, names=axes, title=None, ranges=ranges)
    return figure.update_layout(margin_t=40, uirevision="same")


def hint(snapshot: Snapshot) -> str:
    """Return what the sliders set, and whether the model uses all of it."""
    text = f"Set the inputs of {steps.ONE}; the prediction follows. The coloured part of a track is the training range."
    return text + f" The model in production does not use {WHEN}." * is_unused(snapshot)


def is_unused(snapshot: Snapshot) -> bool:
    """Return whether hour and day make no difference to the model in production."""
    return snapshot.champion is not None and not snapshot.champion.model.takes_time


def hour_of_year(snapshot: Snapshot, weather: dict[str, float]) -> datetime:
    """Return the step that the sliders set: the same date in each year, and never 29 February.

    A year before 1900 stands for the last of the data, at most the last whose capacity is known.
    """
    year, hours = round(weather[YEAR]), round(weather.get(HOUR, 0) / steps.HOURS) * steps.HOURS
    if year < 1900:
        year = features.last_year(snapshot.champion.model.year_ends if snapshot.champion else problem.CAPACITY)
        year = year if snapshot.frame is None else min(snapshot.frame["utc_timestamp"].iloc[-1].year, year)
    began = datetime(NO_LEAP_YEAR, 1, 1, tzinfo=ZoneInfo(steps.CALENDAR))
    return (began + timedelta(days=round(weather[DAY]) - 1, hours=hours)).replace(year=year)


def _slider(name: str, values: dict[str, float], snapshot: Snapshot) -> html.Div:
    slider, id_, value = SLIDERS[name], IDS[name], values[name]
    ends = [html.Span(f"{slider.low:g}"), html.Span(f"{slider.high:g}")]
    limits = {"min": slider.low, "max": slider.high, "step": slider.step, "style": training_range(snapshot, name)}
    if name in FEATURES:
        ends.insert(1, html.Span(seen(snapshot, name, value), id=f"{id_}-seen"))
        typed = dbc.Input(id=f"{id_}-value", type="number", value=value, debounce=True, size="sm", step="any")
        hidden_label = html.Label(f"{LABELS[name]}, {UNITS[name]}", htmlFor=f"{id_}-value", className="visually-hidden")
        field = html.Span([hidden_label, typed, f" {UNITS[name]}"])
    else:
        field = html.Span(reading(snapshot, name, values), id=f"{id_}-value")
    unused = name in TIME and is_unused(snapshot)
    return html.Div(
        [
            html.Div([html.Label(LABELS[name], htmlFor=id_), field], className="name"),
            # The browser's own slider: known to keyboards, screen readers and thumbs.
            dbc.Input(id=id_, type="range", value=value, className="form-range", disabled=unused, **limits),
            html.Div(ends, className="ends"),
        ],
        className="slider",
    )
