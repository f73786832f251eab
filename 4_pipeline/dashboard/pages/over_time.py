"""Over time: the quality of the predictions in the latest weeks and by month, and inputs outside the training range."""

from __future__ import annotations

import math

import pandas as pd
from dash import html
from dash.development.base_component import Component
from forecast import problem
from forecast.govern import gate
from forecast.show import figures, monitoring
from forecast.show.monitoring import Quality
from forecast.terms import steps

from .. import parts
from ..follower import Snapshot

PATH, TITLE = "/over-time", "Over time"
HEAD = ["Target", "State", "Bias", "Mean absolute error", "as share of capacity", "Within the band"]
HEAD += [f"Error of the baseline: {name}" for name in monitoring.BASELINES]
UNKNOWN = "not known"
INPUTS_HEAD = ["Input", "Training minimum", "Training maximum", f"Later {steps.NAMES} outside"]


def page(snapshot: Snapshot, _query: dict[str, str]) -> list:
    """Return the panels on the state of the model in production, its errors by month, and its inputs."""
    if (comparison := snapshot.comparison) is None:
        return [parts.panel("state", TITLE, snapshot.missing("frame", "champion"), [])]
    qualities, since = comparison.latest, comparison.champion.evaluated_training_end
    rows = [_row(each) for each in qualities]
    known = [column for column in zip(HEAD, *rows, strict=True) if set(map(str, column[1:])) != {UNKNOWN}]
    head, *rows = map(list, zip(*known, strict=True))
    table = parts.table("Quality of the predictions by target", head, rows, "moves")
    text = monitoring.next_step(qualities, snapshot.record.decision, comparison.champion.production.version)
    advice = [parts.banner("What next:", text)] if comparison.state != "good" else []
    days = f"The latest {monitoring.WINDOW_DAYS} days. "
    days += monitoring.state_rule(snapshot.max_bias_percent, band=not math.isnan(qualities[0].nominal_coverage))
    later = comparison.frame[comparison.frame["utc_timestamp"] > pd.Timestamp(since)] if since else comparison.frame
    months = [
        (month, each.target.name, each.nmae_percent, each.bias_percent, 100 * each.coverage)
        for month, hours in later.groupby(steps.local(later["utc_timestamp"]).dt.strftime("%Y-%m-01"))
        for each in comparison.at(hours.index).qualities
    ]
    columns = ["month", "target", "nmae_percent", "bias_percent", "coverage_percent"]
    refit = gate.refit_until(comparison.champion.production)
    figure = figures.by_month(pd.DataFrame(months, columns=columns), refit_until=refit)
    label = "Error, bias and coverage by month"
    about = f"{steps.NAMES.capitalize()} after {steps.date(since)}, the end of the training data." if since else ""
    if refit:
        last, start = map(steps.date, (refit, since))
        about = f"{steps.NAMES.capitalize()} up to {last} are predicted by the evaluated model (trained up to {start});"
        about += " those after the dotted line, by its refit in production (trained up to that line)."
    about = about or f"All {steps.NAMES}, since the training data of the model are not recorded."
    about += " The first and the last month may be incomplete."
    outside = "Predictions outside the training range are unreliable: tree models predict a constant there."
    return [
        parts.panel("state", monitoring.summarize(qualities), days, [*advice, table]),
        parts.panel("months", "By month", about, [parts.graph("by-month", figure, label, "chart tall")]),
        parts.panel("inputs", "Inputs outside the training range", outside, [_inputs(comparison.frame, since)]),
    ]


def _inputs(frame: pd.DataFrame, since: str | None) -> Component:
    ranges = monitoring.input_ranges(frame, since)
    rows = [
        [each.title, f"{low:.1f}", f"{high:.1f} {each.unit}", f"{100 * share:.2f} %"]
        for each in problem.INPUTS
        for low, high, share in [ranges[each.name]]
    ] if ranges else []  # fmt: skip
    return parts.table("Training ranges of the inputs", INPUTS_HEAD, rows, "words") if rows else html.P("Not known.")


def _row(quality: Quality) -> list:
    unit = quality.target.unit
    return [
        quality.target.title,
        html.Span(quality.state, className=f"state {quality.state}"),
        quality.bias_text.removeprefix(f"{quality.target.words} "),
        f"{quality.mae:.2f} {unit}",
        _percent(quality.nmae_percent, 1),
        _percent(100 * quality.coverage),
        *(f"{error:.2f} {unit}" for error in quality.baselines.values()),
    ]


def _percent(value: float, digits: int = 0) -> str:
    return UNKNOWN if math.isnan(value) else f"{value:.{digits}f} %"
