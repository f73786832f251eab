"""What if: the prediction for an hour that the reader sets with sliders, and how it follows each input."""

from __future__ import annotations

import itertools
import math
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

import dash_bootstrap_components as dbc
import numpy as np
import pandas as pd
import parts
import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Output, State, ctx, dcc, html
from dash import Input as DashInput
from serving import Follower, Snapshot

from workshop import problem
from workshop.data import features, figures
from workshop.data.schema import FEATURES, TARGETS
from workshop.errors import WorkshopError
from workshop.problem import Slider

PATH, TITLE = "/what-if", "What if"
POINTS = 33  # values of an input that a curve is drawn through


class Input(NamedTuple):
    """A slider's label and unit, and its ends, step and first value."""

    label: str
    unit: str
    slider: Slider


INPUTS = {
    **{given.name: Input(given.meaning.capitalize(), given.unit, given.slider) for given in problem.INPUTS},
    "hour": Input("Hour of the day, UTC", "", Slider(0, 23, 1, 12)),
    "day": Input("Day of the year", "", Slider(1, 365, 1, 172)),
}
PRESETS = {"Reset": {}} | problem.PRESETS
PANELS_A_ROW = 2  # that fit a phone
TIME = ("hour", "day")  # not every model knows them
AXES = {name: ", ".join(filter(None, (input_.label, input_.unit))) for name, input_ in INPUTS.items()}


def page(served: Snapshot, query: dict[str, str]) -> list:
    """Return sliders, prediction and curves for the values of the query, each by its input's name (`INPUTS`)."""
    values = {feature: number(query.get(feature), feature) for feature in INPUTS}
    live = {"aria-live": "polite"}
    presets = [parts.button(name, preset_id(name)) for name in PRESETS]
    sliders = [
        html.Div(answers(served, values), id="what-if-answers", className="tiles", **live),
        html.Div(presets, className="group"),
        html.Div([_slider(feature, value, served) for feature, value in values.items()], className="sliders"),
    ]
    figure = parts.graph("what-if-curves", curves(served, values), "Predictions around this hour", "chart tall")
    about = "The prediction when one input changes and the others stay; the dotted line is the hour that you set."
    panels = [
        parts.panel("what-if", "What if", hint(served), sliders),
        parts.panel("curves", "Around this hour", about, [figure]),
    ]
    return [
        dcc.Store(id="what-if-first", data={slider_id(name): input_.slider.first for name, input_ in INPUTS.items()}),
        dcc.Store(id="what-if-rest"),  # set when the sliders come to rest: no need to draw on the way
        html.Div(panels, className="columns narrow-first"),
    ]


def register(app: Dash, serving: Follower) -> None:
    """Answer to the sliders, and follow what is served."""
    sliders = [DashInput(slider_id(feature), "value") for feature in INPUTS]

    @app.callback(
        Output("what-if-answers", "children"),
        *(Output(f"{slider_id(feature)}-value", "value" if feature in FEATURES else "children") for feature in INPUTS),
        *sliders,
        DashInput("revision", "data"),
        prevent_initial_call=True,
    )
    def answer(*values):
        """Predict for the sliders' hour and weather."""
        weather = within_range(values[:-1])
        return answers(serving.now, weather), *itertools.starmap(reading, weather.items())

    @app.callback(
        *(Output(slider_id(feature), "value") for feature in INPUTS),
        *(DashInput(preset_id(name), "n_clicks") for name in PRESETS),
        prevent_initial_call=True,
    )
    def choose_preset(*_clicks):
        """Set all sliders at once."""
        chosen = next((values for name, values in PRESETS.items() if preset_id(name) == ctx.triggered_id), {})
        return [chosen.get(feature, input_.slider.first) for feature, input_ in INPUTS.items()]

    @app.callback(
        Output("what-if-curves", "figure"),
        Output("what-if-hint", "children"),
        *(Output(slider_id(feature), "disabled") for feature in TIME),
        DashInput("what-if-rest", "data"),
        DashInput("revision", "data"),
        *(State(slider_id(feature), "value") for feature in INPUTS),
        prevent_initial_call=True,
    )
    def draw_curves(_rest, _revision, *values):
        """Draw how the prediction changes around the sliders' hour."""
        served = serving.now
        return curves(served, within_range(values)), hint(served), *[is_unused(served)] * len(TIME)

    for feature in FEATURES:
        app.clientside_callback(
            ClientsideFunction("figures", "take_typed"),
            Output(slider_id(feature), "value", allow_duplicate=True),
            DashInput(f"{slider_id(feature)}-value", "value"),
            State(slider_id(feature), "value"),
            prevent_initial_call=True,
        )
    app.clientside_callback(ClientsideFunction("address", "keep_sliders"), *sliders, State("what-if-first", "data"))


def within_range(values: tuple) -> dict[str, float]:
    """Return the sliders' values by their inputs, each within its range."""
    return {feature: number(value, feature) for feature, value in zip(INPUTS, values, strict=True)}


def number(value: object, feature: str) -> float:
    """Return a slider's value within its range; its first value when it is not a number."""
    allowed = INPUTS[feature].slider
    try:
        given = float(value)
    except (TypeError, ValueError, OverflowError):
        given = math.nan
    return float(allowed.first if math.isnan(given) else min(max(given, allowed.low), allowed.high))


def reading(feature: str, value: float) -> str | float:
    """Return a slider's value as its field shows it: a day of the year as a date, an hour as on a clock."""
    return {"day": f"{_date(value):%d %b}", "hour": f"{value:02.0f}:00"}.get(feature, value)


def preset_id(name: str) -> str:
    """Return the id of the button of a preset."""
    return f"what-if-{name.lower().replace(' ', '-')}"


def slider_id(feature: str) -> str:
    """Return the id of the slider of a feature."""
    return f"what-if-{feature.replace('_', '-')}"


def answers(served: Snapshot, weather: dict[str, float]) -> list:
    """Return the predicted power for one hour of weather: two tiles, each with its share of the highest in the data.

    ``weather`` holds the value of each slider (`INPUTS`). Hour and day are those of the data's last year: the capacity
    of that time counts.
    """
    hour = pd.DataFrame([{**weather, "utc_timestamp": moment_of_year(served, weather["day"], weather["hour"])}])
    try:
        predicted, band = served.predict_with_band(hour) if served.model else (None, None)
    except WorkshopError as error:
        return [parts.banner("There is no prediction for this hour:", error.what)]
    tiles = []
    for target in TARGETS:
        name = target.removesuffix("_GW")
        value = None if predicted is None else float(predicted[target].iloc[0])
        most = 0.0 if served.frame is None else float(served.frame[target].max())
        share = min(max(value / most, 0.0), 1.0) if value is not None and most else 0.0
        note = f"{share:.0%} of the highest hour in the data" if value is not None and most else ""
        if band is not None:
            low, high = (float(end[target].iloc[0]) for end in band)
            note = f"{low:.1f} to {high:.1f} GW in {served.model.coverage:.0%} of such hours. {note}"
        big = html.Span("n/a" if value is None else f"{value:.2f}", id=f"what-if-{name}")
        bar = html.Div(html.Div(style={"width": f"{share:.1%}"}), className="share", **{"aria-hidden": "true"})
        tiles.append(parts.tile(figures.NAMES[target], big, "GW", note, name, middle=(bar,)))
    return tiles


def curves(served: Snapshot, weather: dict[str, float]) -> go.Figure:
    """Return the figure of the predictions around one hour of weather (`INPUTS`); it says so if there are none."""
    if served.model is None:
        return figures.empty("There is no model in production yet." if served.looked else "One moment …")
    rows = []
    for name in INPUTS if served.model.knows_time else FEATURES:
        input_ = INPUTS[name]
        values = np.linspace(input_.slider.low, input_.slider.high, POINTS)
        values = np.unique(values.round()) if input_.slider.step == 1 else values
        rows += [{**weather, name: value, "feature": name, "value": value} for value in values]
    table = pd.DataFrame(rows)
    table["utc_timestamp"] = [moment_of_year(served, *when) for when in zip(table["day"], table["hour"], strict=True)]
    try:
        table[TARGETS] = served.predict_with_band(table)[0]
    except WorkshopError as error:
        return figures.empty(error.what)
    figure = figures.responses(table, point=weather, names=AXES, columns=PANELS_A_ROW, title=None)
    return figure.update_layout(margin_t=40, uirevision="same")


def hint(served: Snapshot) -> str:
    """Return what the sliders set, and whether the model uses all of it."""
    text = "Set the weather of an hour; the prediction follows."
    return text + " The model in production does not use hour and day." * is_unused(served)


def is_unused(served: Snapshot) -> bool:
    """Tell whether hour and day make no difference to the model in production."""
    return served.model is not None and not served.model.knows_time


def moment_of_year(served: Snapshot, day: float, hour: float) -> datetime:
    """Return the hour (UTC) of a day in the last year of the data, at most the last whose capacity is known."""
    known = features.last_year(served.model.year_ends if served.model else problem.CAPACITY_GW)
    year = known if served.frame is None else min(served.frame["utc_timestamp"].iloc[-1].year, known)
    date_ = _date(day)  # the date, since the number of a day differs in leap years
    return datetime(year, date_.month, date_.day, round(hour), tzinfo=UTC)


def _date(day: float) -> date:
    """Return the date of a day of the year, in a year without a leap day."""
    return date(2015, 1, 1) + timedelta(days=round(day) - 1)


def _slider(feature: str, value: float, served: Snapshot) -> html.Div:
    input_, id_ = INPUTS[feature], slider_id(feature)
    ends = [html.Span(f"{input_.slider.low:g}"), html.Span(f"{input_.slider.high:g}")]
    limits = {"min": input_.slider.low, "max": input_.slider.high, "step": input_.slider.step}
    if feature in FEATURES:
        typed = dbc.Input(id=f"{id_}-value", type="number", value=value, debounce=True, size="sm", step="any")
        label = html.Label(f"{input_.label}, {input_.unit}", htmlFor=f"{id_}-value", className="visually-hidden")
        shown = html.Span([label, typed, f" {input_.unit}"])
    else:
        shown = html.Span(reading(feature, value), id=f"{id_}-value")
    unused = feature in TIME and is_unused(served)
    return html.Div(
        [
            html.Div([html.Label(input_.label, htmlFor=id_), shown], className="name"),
            # The browser's own slider: known to keyboards, screen readers and thumbs.
            dbc.Input(id=id_, type="range", value=value, className="form-range", disabled=unused, **limits),
            html.Div(ends, className="ends", **{"aria-hidden": "true"}),
        ],
        className="slider",
    )
