"""The page that tells people what was found in the data: one file of HTML that needs nothing else."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from workshop.data import coverage, origin
from workshop.data.checks import number
from workshop.data.figures import COLOURS, TEMPLATE
from workshop.data.schema import FEATURES, TARGETS, UNITS
from workshop.data.thresholds import RANGES, USUAL_MEANS
from workshop.data.validation import Validation

if TYPE_CHECKING:
    import jinja2
    from pandas import DataFrame, Series

BARS = 40
MANY = 1000  # a column that reaches this needs no digits after the point
MANY_ZEROS = 0.1  # a share of zeros above this would hide all other bars, and is told in words
TITLES = {
    "solar_GW": "Solar generation",
    "wind_GW": "Wind generation",
    "windspeed": "Wind speed at 10 m",
    "temperature": "Temperature at 2 m",
    "rad_horizontal": "Direct radiation",
    "rad_diffuse": "Diffuse radiation",
}
_COLOURS = COLOURS | dict(zip(FEATURES, TEMPLATE.layout.colorway[2:], strict=True))


def render(frame: DataFrame, found: Validation) -> str:
    """Return the page on a processed frame and its validation; it names the origin that the frame carries.

    The same frame gives the same text.
    """
    findings = found.findings
    return _template().render(
        found=found,
        findings=findings,
        origin=origin.of_frame(frame),
        left_out=coverage.left_out(findings),
        months=coverage.missing_by_month(frame, findings["first_year"], findings["last_year"]),
        columns=[_column(frame[column], found) for column in (*TARGETS, *FEATURES)],
    )


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    environment.filters["stamp"] = lambda text: text.replace("T", " ").removesuffix(":00Z")
    text = files("workshop.data").joinpath("validation.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text)


def _column(values: Series, found: Validation) -> dict[str, Any]:
    """Return what the page shows of a column: numbers, and its distribution as bars, by the highest of them."""
    zeros = float((values == 0).mean())
    drawn = values[values != 0] if zeros > MANY_ZEROS else values
    drawn = drawn if len(drawn) else values
    counts, edges = np.histogram(drawn, bins=BARS)
    name = values.name
    return {
        "name": name,
        "title": TITLES[name],
        "unit": UNITS[name],
        "digits": "%.0f" if RANGES[name][1] >= MANY else "%.2f",
        "colour": _COLOURS[name],
        "bars": [round(float(count / counts.max()), 3) for count in counts],
        "edges": (float(edges[0]), float(edges[-1])),
        "mean_at": round(float((values.mean() - edges[0]) / (edges[-1] - edges[0])), 3),
        "mean": float(values.mean()),
        "zeros": zeros if zeros > MANY_ZEROS else 0,
        "range": RANGES[name],
        "usual": USUAL_MEANS[name],
        "years": found.values[found.values["column"] == name].to_dict("records"),
        "warnings": [check for check in found.warnings if check.of == name],
    }
