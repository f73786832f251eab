"""What if: the prediction for an hour that the reader sets with sliders, and how it follows each input."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

import dash_bootstrap_components as dbc
import numpy as np
import pandas as pd
import parts
import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Output, State, dcc, html
from dash import Input as DashInput
from serving import Served, Serving

from workshop.data import features, figures
from workshop.data.schema import FEATURES, TARGETS
from workshop.errors import WorkshopError

PATH, TITLE = "/what-if", "What if"
POINTS = 33  # values of an input that a curve is drawn through


class Input(NamedTuple):
    """A slider: its label, unit, range (for weather that of a country's mean), step and first value."""

    label: str
    unit: str
    least: float
    most: float
    step: float
    first: float


INPUTS = {
    "windspeed": Input("Wind speed at 10 m", "m/s", 0, 16, 0.1, 5.0),
    "temperature": Input("Temperature at 2 m", "°C", -20, 40, 0.5, 12.0),
    "rad_horizontal": Input("Direct radiation", "W/m²", 0, 850, 5, 250),
    "rad_diffuse": Input("Diffuse radiation", "W/m²", 0, 520, 5, 120),
    "hour": Input("Hour of the day, UTC", "", 0, 23, 1, 12),
    "day": Input("Day of the year", "", 1, 365, 1, 172),
}
PANELS_A_ROW = 2  # that fit a phone
AXES = {name: ", ".join(filter(None, (input_.label, input_.unit))) for name, input_ in INPUTS.items()}


def page(served: Served, query: dict[str, str]) -> list:
    """Return sliders, prediction and curves for the values of the query, each by its input's name (`INPUTS`)."""
    values = {feature: number(query.get(feature), feature) for feature in INPUTS}
    live = {"aria-live": "polite"}
    sliders = [
        html.Div(answers(served, values), id="what-if-answers", className="tiles", **live),
        html.Div([_slider(feature, value) for feature, value in values.items()], className="sliders"),
    ]
    figure = parts.graph("what-if-curves", curves(served, values), "Predictions around this hour", "chart tall")
    about = "The prediction when one input changes and the others stay; the dotted line is the hour that you set."
    panels = [
        parts.panel("what-if", "What if", hint(served), sliders),
        parts.panel("curves", "Around this hour", about, [figure]),
    ]
    return [
        dcc.Store(id="what-if-first", data={slider_id(name): input_.first for name, input_ in INPUTS.items()}),
        dcc.Store(id="what-if-rest"),  # set when the sliders come to rest: no need to draw on the way
        html.Div(panels, className="columns narrow-first"),
    ]


def register(app: Dash, serving: Serving) -> None:
    """Answer to the sliders, and follow what is served."""
    sliders = [DashInput(slider_id(feature), "value") for feature in INPUTS]

    @app.callback(
        Output("what-if-answers", "children"),
        *(Output(f"{slider_id(feature)}-value", "children") for feature in INPUTS),
        *sliders,
        DashInput("revision", "data"),
        prevent_initial_call=True,
    )
    def answer(*values):
        """Predict for the sliders' hour and weather."""
        weather = within_range(values[:-1])
        return answers(serving.now, weather), *(reading(*item) for item in weather.items())

    @app.callback(
        Output("what-if-curves", "figure"),
        Output("what-if-hint", "children"),
        DashInput("what-if-rest", "data"),
        DashInput("revision", "data"),
        *(State(slider_id(feature), "value") for feature in INPUTS),
        prevent_initial_call=True,
    )
    def draw_curves(_rest, _revision, *values):
        """Draw how the prediction changes around the sliders' hour."""
        served = serving.now
        return curves(served, within_range(values)), hint(served)

    app.clientside_callback(ClientsideFunction("address", "keep_sliders"), *sliders, State("what-if-first", "data"))


def within_range(values: tuple) -> dict[str, float]:
    """Return the sliders' values by their inputs, each within its range."""
    return {feature: number(value, feature) for feature, value in zip(INPUTS, values, strict=True)}


def number(value: object, feature: str) -> float:
    """Return a slider's value within its range; its first value when it is not a number."""
    allowed = INPUTS[feature]
    try:
        given = float(value)
    except (TypeError, ValueError, OverflowError):
        given = math.nan
    return float(allowed.first if math.isnan(given) else min(max(given, allowed.least), allowed.most))


def reading(feature: str, value: float) -> str:
    """Return a slider's value with its unit; a day of the year as a date, an hour as the clock shows it."""
    input_ = INPUTS[feature]
    if feature == "day":
        return f"{_date(value):%d %B}"
    if feature == "hour":
        return f"{value:02.0f}:00"
    return f"{value:.{0 if input_.step >= 1 else 1}f} {input_.unit}"


def slider_id(feature: str) -> str:
    """Return the id of the slider of a feature."""
    return f"what-if-{feature.replace('_', '-')}"


def answers(served: Served, weather: dict[str, float]) -> list:
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


def curves(served: Served, weather: dict[str, float]) -> go.Figure:
    """Return the figure of the predictions around one hour of weather (`INPUTS`); it says so if there are none."""
    if served.model is None:
        return figures.empty("There is no model in production yet." if served.looked else "One moment …")
    rows = []
    for name in INPUTS if served.model.knows_time else FEATURES:
        input_ = INPUTS[name]
        values = np.linspace(input_.least, input_.most, POINTS)
        values = np.unique(values.round()) if input_.step == 1 else values
        rows += [{**weather, name: value, "feature": name, "value": value} for value in values]
    table = pd.DataFrame(rows)
    table["utc_timestamp"] = [moment_of_year(served, *when) for when in zip(table["day"], table["hour"], strict=True)]
    try:
        table[TARGETS] = served.predict_with_band(table)[0]
    except WorkshopError as error:
        return figures.empty(error.what)
    figure = figures.responses(table, point=weather, names=AXES, columns=PANELS_A_ROW, title=None)
    return figure.update_layout(margin_t=40, uirevision="same")


def hint(served: Served) -> str:
    """Return what the sliders set, and whether the model uses all of it."""
    text = "Set the weather of an hour; the prediction follows."
    if served.model is not None and not served.model.knows_time:
        return text + " The model in production does not use hour and day."
    return text


def moment_of_year(served: Served, day: float, hour: float) -> datetime:
    """Return the hour (UTC) of a day in the last year of the data, at most the last whose capacity is known."""
    known = features.last_year(served.model.year_ends if served.model else features.YEAR_ENDS_GW)
    year = known if served.frame is None else min(served.frame["utc_timestamp"].iloc[-1].year, known)
    date_ = _date(day)  # the date, since the number of a day differs in leap years
    return datetime(year, date_.month, date_.day, round(hour), tzinfo=UTC)


def _date(day: float) -> date:
    """Return the date of a day of the year, in a year without a leap day."""
    return date(2015, 1, 1) + timedelta(days=round(day) - 1)


def _slider(feature: str, value: float) -> html.Div:
    input_, id_ = INPUTS[feature], slider_id(feature)
    name = [html.Span(input_.label), html.Span(reading(feature, value), id=f"{id_}-value")]
    ends = [html.Span(f"{input_.least:g}"), html.Span(f"{input_.most:g}")]
    limits = {"min": input_.least, "max": input_.most, "step": input_.step}
    return html.Div(
        [
            html.Label(name, htmlFor=id_),
            # The browser's own slider: known to keyboards, screen readers and thumbs.
            dbc.Input(id=id_, type="range", value=value, className="form-range", **limits),
            html.Div(ends, className="ends", **{"aria-hidden": "true"}),
        ],
        className="slider",
    )
