"""Show a processed table and its validation on a page."""

from __future__ import annotations

from importlib.resources import files
from itertools import cycle
from typing import Any

import jinja2
import numpy as np
from pandas import DataFrame, Series

from forecast.raw import prepare
from forecast.raw.validation import Validation, number
from forecast.show.figures import COLOURS, TEMPLATE, TITLES
from forecast.table.origin import Origin
from forecast.table.schema import FEATURES, RANGES, TARGETS, UNITS, USUAL_MEANS

BARS = 40
MANY_ZEROS = 0.1  # a higher share of zeros would hide all other bars; the page states it in words


def render(frame: DataFrame, validated: Validation, origin: Origin) -> str:
    """Return the page on a processed table and its validation, one file of HTML; equal tables give equal pages."""
    findings = validated.findings
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    environment.filters["stamp"] = lambda text: text.replace("T", " ").removesuffix(":00Z")
    template = environment.from_string(files(__package__).joinpath("validation.html.jinja").read_text("utf-8"))
    colours = COLOURS | dict(zip(FEATURES, cycle(TEMPLATE.layout.colorway[len(TARGETS) :]), strict=False))
    return template.render(
        validated=validated,
        findings=findings,
        origin=origin,
        left_out=prepare.left_out(findings),
        months=prepare.missing_by_month(frame, findings["first_year"], findings["last_year"]),
        columns=[_column(frame[name], validated) | {"colour": colours[name]} for name in (*TARGETS, *FEATURES)],
    )


def _column(values: Series, validated: Validation) -> dict[str, Any]:
    """Return what the page shows of a column: numbers, and the distribution as bars."""
    name, zeros = values.name, float((values == 0).mean())
    drawn = values[values != 0] if MANY_ZEROS < zeros < 1 else values
    counts, edges = np.histogram(drawn, bins=BARS)
    return {
        "name": name,
        "title": TITLES[name],
        "unit": UNITS[name],
        "digits": "%.0f" if RANGES[name][1] >= 1000 else "%.2f",
        "bars": [round(float(count / counts.max()), 3) for count in counts],
        "edges": (float(edges[0]), float(edges[-1])),
        "mean_at": round(float((values.mean() - edges[0]) / (edges[-1] - edges[0])), 3),
        "mean": float(values.mean()),
        "zeros": zeros if zeros > MANY_ZEROS else 0,
        "range": RANGES[name],
        "usual": USUAL_MEANS.get(name),
        "years": validated.values[validated.values["column"] == name].to_dict("records"),
        "warnings": [check for check in validated.warnings if check.of == name],
    }
