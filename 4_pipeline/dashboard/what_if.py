"""The panel that asks the model about an hour that one sets by sliders."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

import dash_bootstrap_components as dbc
import pandas as pd
from dash import html
from serving import Served

from workshop.data import capacity, figures
from workshop.data.schema import TARGETS


class Input(NamedTuple):
    """A slider: what it is called, its unit, its range (for weather that of a country's mean), step and first value."""

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
    "hour": Input("Hour of the day, UTC", "h", 0, 23, 1, 12),
    "day": Input("Day of the year", "", 1, 365, 1, 172),
}


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


def panel(served: Served) -> html.Section:
    """Return the sliders and the answer to where they stand at first."""
    values = {feature: input_.first for feature, input_ in INPUTS.items()}
    sliders = [
        html.Div(
            [
                html.Label(
                    [
                        html.Span(input_.label),
                        html.Span(reading(feature, input_.first), id=f"{slider_id(feature)}-value"),
                    ],
                    htmlFor=slider_id(feature),
                ),
                # The browser's own slider: known to keyboards, screen readers and thumbs.
                dbc.Input(
                    id=slider_id(feature),
                    type="range",
                    min=input_.least,
                    max=input_.most,
                    step=input_.step,
                    value=input_.first,
                    className="form-range",
                ),
                html.Div(
                    [html.Span(f"{input_.least:g}"), html.Span(f"{input_.most:g}")],
                    className="ends",
                    **{"aria-hidden": "true"},
                ),
            ],
            className="slider",
        )
        for feature, input_ in INPUTS.items()
    ]
    return html.Section(
        [
            html.Div(
                [
                    html.H2("What if", id="what-if-title"),
                    html.P(hint(served), id="what-if-hint", className="hint"),
                ],
                className="head",
            ),
            html.Div(answers(served, values), id="what-if-answers", className="answers", **{"aria-live": "polite"}),
            html.Div(sliders, className="sliders"),
        ],
        className="panel what-if",
        **{"aria-labelledby": "what-if-title"},
    )


def answers(served: Served, weather: dict[str, float]) -> list:
    """Return the predicted power for one hour of weather: two large numbers, each with its share of the record.

    ``weather`` holds the value of each slider (`INPUTS`). Hour and day are those of the data's last year: the capacity
    of that time is counted with.
    """
    hour = pd.DataFrame([{**weather, "utc_timestamp": _moment_of_year(served, weather["day"], weather["hour"])}])
    predicted = served.predict(hour).iloc[0] if served.model else None
    band = served.predict_band(hour) if served.model else None
    parts = []
    for target in TARGETS:
        name = target.removesuffix("_GW")
        value = None if predicted is None else float(predicted[target])
        most = None if served.frame is None else float(served.frame[target].max())
        share = 0.0 if value is None or not most else min(max(value / most, 0.0), 1.0)
        note = "" if value is None or not most else f"{share:.0%} of the highest hour in the data"
        if band is not None:
            low, high = (float(end[target].iloc[0]) for end in band)
            note = f"{low:.1f} to {high:.1f} GW in {served.model.coverage:.0%} of such hours. {note}"
        parts.append(
            html.Div(
                [
                    html.P(figures.NAMES[target], className="name"),
                    html.P(
                        [
                            html.Span("n/a" if value is None else f"{value:.2f}", id=f"what-if-{name}"),
                            html.Small(" GW"),
                        ],
                        className="number",
                    ),
                    html.Div(html.Div(style={"width": f"{share:.1%}"}), className="share", **{"aria-hidden": "true"}),
                    html.P(note, className="hint"),
                ],
                className=f"answer {name}",
            )
        )
    return parts


def hint(served: Served) -> str:
    """Say what the sliders set, and whether the model asks for all of it."""
    text = "Set the weather of an hour; the model answers at once."
    if served.model is not None and not served.model.knows_time:
        return text + " The one in production does not look at hour and day."
    return text


def _moment_of_year(served: Served, day: float, hour: float) -> datetime:
    """Return the hour (UTC) of a day in the last year of the data, at most the last whose capacity is known."""
    known = max(capacity.YEAR_ENDS_GW[TARGETS[0]])
    year = known if served.frame is None else min(served.frame["utc_timestamp"].iloc[-1].year, known)
    shown = _date(day)  # and not the year's so-and-so-many-th day, which in leap years is another
    return datetime(year, shown.month, shown.day, round(hour), tzinfo=UTC)


def _date(day: float) -> date:
    """Return the date of a day of the year, in a year without a leap day."""
    return date(2015, 1, 1) + timedelta(days=round(day) - 1)
