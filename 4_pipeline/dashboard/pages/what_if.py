"""What if: the prediction for an hour that the reader sets with sliders, and how it follows each input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import dash_bootstrap_components as dbc
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html

from workshop import problem
from workshop.data import features, figures
from workshop.data.schema import FEATURES, TARGETS, UNITS
from workshop.errors import WorkshopError
from workshop.problem import Slider, Target

from .. import parts
from ..follower import Follower, Snapshot
from ..predictions import Band

PATH, TITLE = "/what-if", "What if"
POINTS = 33  # values of an input that a curve is drawn through
TIME = {"hour": "Hour of the day, UTC", "day": "Day of the year"}  # not every model knows them
LABELS = {each.name: each.meaning.capitalize() for each in problem.INPUTS} | TIME
AXES = {each.name: f"{each.title}, {each.unit}" for each in problem.INPUTS} | TIME
SLIDERS = {each.name: each.slider for each in problem.INPUTS}
SLIDERS |= {"hour": Slider(0, 23, 1, 12), "day": Slider(1, 365, 1, 172)}
FIRST = {name: slider.first for name, slider in SLIDERS.items()}
PRESETS = {"Reset": {}} | problem.PRESETS
BUTTONS = {f"preset-button-{number}": name for number, name in enumerate(PRESETS)}


def page(snapshot: Snapshot, query: dict[str, str]) -> list:
    """Return sliders, prediction and curves for the values of the query, each by its input's name (`SLIDERS`)."""
    values = within_range(query.get(name) for name in SLIDERS)
    presets = [parts.button(name, id_) for id_, name in BUTTONS.items()]
    sliders = [
        html.Div(answers(snapshot, values), id="what-if-answers", className="tiles", **{"aria-live": "polite"}),
        html.Div(presets, className="group"),
        html.Div([_slider(name, value, snapshot) for name, value in values.items()], className="sliders"),
    ]
    figure = parts.graph("what-if-curves", curves(snapshot, values), "Predictions around this hour", "chart tall")
    about = "The prediction when one input changes and the others stay; the dotted line is the hour that you set."
    panels = [
        parts.panel("what-if", "What if", hint(snapshot), sliders),
        parts.panel("curves", "Around this hour", about, [figure]),
    ]
    return [
        dcc.Store(id="what-if-first", data=[*FIRST.items()]),
        dcc.Store(id="what-if-rest"),  # set when the sliders come to rest: no need to draw on the way
        html.Div(panels, className="columns narrow-first"),
    ]


def register(app: Dash, follower: Follower) -> None:
    """Answer to the sliders, and follow the snapshot."""
    sliders = [Input(slider_id(name), "value") for name in SLIDERS]

    @app.callback(
        Output("what-if-answers", "children"),
        *(Output(f"{slider_id(name)}-value", "value" if name in FEATURES else "children") for name in SLIDERS),
        *sliders,
        Input("revision", "data"),
    )
    def answer(*values):
        """Predict for the hour and the weather of the sliders."""
        weather = within_range(values[:-1])
        return answers(follower.now, weather), *itertools.starmap(reading, weather.items())

    @app.callback(
        *(Output(slider_id(name), "value") for name in SLIDERS),
        *(Input(id_, "n_clicks") for id_ in BUTTONS),
    )
    def choose_preset(*_clicks):
        """Set all sliders."""
        values = FIRST | PRESETS.get(BUTTONS.get(ctx.triggered_id), {})
        return [values[name] for name in SLIDERS]

    @app.callback(
        Output("what-if-curves", "figure"),
        Output("what-if-hint", "children"),
        *(Output(slider_id(name), "disabled") for name in TIME),
        Input("what-if-rest", "data"),
        Input("revision", "data"),
        *(State(slider_id(name), "value") for name in SLIDERS),
    )
    def draw_curves(_rest, _revision, *values):
        """Draw how the prediction changes around the sliders' hour."""
        snapshot = follower.now
        return curves(snapshot, within_range(values)), hint(snapshot), *[is_unused(snapshot)] * len(TIME)

    for name in FEATURES:
        app.clientside_callback(
            ClientsideFunction("figures", "take_typed"),
            Output(slider_id(name), "value", allow_duplicate=True),
            Input(f"{slider_id(name)}-value", "value"),
            State(slider_id(name), "value"),
        )
    app.clientside_callback(
        ClientsideFunction("address", "keep_sliders"),
        *sliders,
        State("what-if-first", "data"),
        prevent_initial_call=False,
    )


def within_range(values: Iterable[object]) -> dict[str, float]:
    """Return the sliders' values by their inputs, each within its range."""
    return {name: number(value, name) for name, value in zip(SLIDERS, values, strict=True)}


def number(value: object, name: str) -> float:
    """Return a slider's value within its range; its first value when it is not a number."""
    allowed = SLIDERS[name]
    try:
        given = float(value)
    except (TypeError, ValueError, OverflowError):
        given = math.nan
    return float(allowed.first if math.isnan(given) else min(max(given, allowed.low), allowed.high))


def reading(name: str, value: float) -> str | float:
    """Return a slider's value as its field shows it: a day of the year as a date, an hour as on a clock."""
    return {"day": f"{_time(value):%d %b}", "hour": f"{value:02.0f}:00"}.get(name, value)


def slider_id(name: str) -> str:
    """Return the id of the slider of an input."""
    return f"slider-{name}"


def answers(snapshot: Snapshot, weather: dict[str, float]) -> list:
    """Return the prediction for one hour of weather: a tile a target, with its share of the highest in the data.

    ``weather`` holds the value of each slider (`SLIDERS`). Hour and day are those of the data's last year: the capacity
    of that time counts.
    """
    hour = pd.DataFrame([{**weather, "utc_timestamp": hour_of_year(snapshot, weather["day"], weather["hour"])}])
    try:
        predicted, band = snapshot.predict_with_band(hour) if snapshot.model else (None, None)
    except WorkshopError as error:
        return [parts.banner("There is no prediction for this hour:", error.what)]
    return [_tile(snapshot, target, predicted, band) for target in problem.TARGETS]


def _tile(snapshot: Snapshot, target: Target, predicted: pd.DataFrame | None, band: Band | None) -> html.Div:
    value = None if predicted is None else float(predicted[target.name].iloc[0])
    highest = 0.0 if snapshot.frame is None else float(snapshot.frame[target.name].max())
    share = min(max(value / highest, 0.0), 1.0) if value is not None and highest else 0.0
    note = f"{share:.0%} of the highest hour in the data" if value is not None and highest else ""
    if band is not None:
        low, high = (float(end[target.name].iloc[0]) for end in band)
        note = f"{low:.1f} to {high:.1f} {target.unit} in {snapshot.model.coverage:.0%} of such hours. {note}"
    big = html.Span("n/a" if value is None else f"{value:.2f}", id=f"predicted-{target.name}")
    bar = html.Div(html.Div(style={"width": f"{share:.1%}"}), className="share", **{"aria-hidden": "true"})
    return parts.tile(target.title, big, target.unit, note, target.colour, middle=(bar,))


def curves(snapshot: Snapshot, weather: dict[str, float]) -> go.Figure:
    """Return the figure of the predictions around one hour of weather (`SLIDERS`); it says so if there are none."""
    if nothing := snapshot.missing("production"):
        return figures.empty(nothing)
    rows = []
    for name in SLIDERS if snapshot.model.knows_time else FEATURES:
        slider = SLIDERS[name]
        values = np.linspace(slider.low, slider.high, POINTS)
        values = np.unique(values.round()) if slider.step == 1 else values
        rows += [{**weather, name: value, "feature": name, "value": value} for value in values]
    table = pd.DataFrame(rows)
    table["utc_timestamp"] = [hour_of_year(snapshot, *when) for when in zip(table["day"], table["hour"], strict=True)]
    try:
        table[TARGETS] = snapshot.predict_with_band(table)[0]
    except WorkshopError as error:
        return figures.empty(error.what)
    figure = figures.responses(table, point=weather, names=AXES, columns=2, title=None)
    return figure.update_layout(margin_t=40, uirevision="same")


def hint(snapshot: Snapshot) -> str:
    """Return what the sliders set, and whether the model uses all of it."""
    text = "Set the weather of an hour; the prediction follows."
    return text + " The model in production does not use hour and day." * is_unused(snapshot)


def is_unused(snapshot: Snapshot) -> bool:
    """Return whether hour and day make no difference to the model in production."""
    return snapshot.model is not None and not snapshot.model.knows_time


def hour_of_year(snapshot: Snapshot, day: float, hour: float) -> datetime:
    """Return the hour (UTC) of a day in the last year of the data, at most the last whose capacity is known."""
    known = features.last_year(snapshot.model.year_ends if snapshot.model else problem.CAPACITY_GW)
    year = known if snapshot.frame is None else min(snapshot.frame["utc_timestamp"].iloc[-1].year, known)
    return _time(day, hour).replace(year=year)  # the same date, since the number of a day differs in leap years


def _time(day: float, hour: float = 0) -> datetime:
    """Return the hour of a day of the year, in a year without a leap day."""
    return datetime(2015, 1, 1, round(hour), tzinfo=UTC) + timedelta(days=round(day) - 1)


def _slider(name: str, value: float, snapshot: Snapshot) -> html.Div:
    slider, id_ = SLIDERS[name], slider_id(name)
    ends = [html.Span(f"{slider.low:g}"), html.Span(f"{slider.high:g}")]
    limits = {"min": slider.low, "max": slider.high, "step": slider.step}
    if name in FEATURES:
        typed = dbc.Input(id=f"{id_}-value", type="number", value=value, debounce=True, size="sm", step="any")
        hidden_label = html.Label(f"{LABELS[name]}, {UNITS[name]}", htmlFor=f"{id_}-value", className="visually-hidden")
        shown = html.Span([hidden_label, typed, f" {UNITS[name]}"])
    else:
        shown = html.Span(reading(name, value), id=f"{id_}-value")
    unused = name in TIME and is_unused(snapshot)
    return html.Div(
        [
            html.Div([html.Label(LABELS[name], htmlFor=id_), shown], className="name"),
            # The browser's own slider: known to keyboards, screen readers and thumbs.
            dbc.Input(id=id_, type="range", value=value, className="form-range", disabled=unused, **limits),
            html.Div(ends, className="ends", **{"aria-hidden": "true"}),
        ],
        className="slider",
    )
