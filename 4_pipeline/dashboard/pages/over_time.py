"""Over time: how good the model is in the latest weeks and in each month, and the inputs that it has not learned."""

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
HEAD = ["Target", "State", "Mean error", "Mean absolute error", "of the capacity", "Within the band"]
HEAD += [f"Error of {name}" for name in monitoring.BASELINES]
UNKNOWN = "not known"
INPUTS_HEAD = ["Input", "Learned from", "to", f"Later {steps.NAMES} beyond"]


def page(snapshot: Snapshot, _query: dict[str, str]) -> list:
    """Return the state, the months and the inputs of the model in production."""
    if (comparison := snapshot.comparison) is None:
        return [parts.panel("state", TITLE, snapshot.missing("frame", "champion"), [])]
    qualities, since = comparison.latest, comparison.champion.judged_until
    rows = [_row(each) for each in qualities]
    known = [column for column in zip(HEAD, *rows, strict=True) if set(map(str, column[1:])) != {UNKNOWN}]
    head, *rows = map(list, zip(*known, strict=True))
    table = parts.table("How good each target's predictions are", head, rows, "moves")
    text = monitoring.next_step(qualities, snapshot.record.decision, comparison.champion.production.version)
    advice = [parts.banner("What next:", text)] if comparison.state != "good" else []
    days = f"The latest {monitoring.WINDOW_DAYS} days. "
    days += monitoring.rule(snapshot.max_bias_percent, band=not math.isnan(qualities[0].promised))
    later = comparison.frame[comparison.frame["utc_timestamp"] > pd.Timestamp(since)] if since else comparison.frame
    months = [
        (month, each.target.name, each.nmae_percent, each.bias_percent, 100 * each.inside)
        for month, hours in later.groupby(steps.local(later["utc_timestamp"]).dt.strftime("%Y-%m-01"))
        for each in comparison.at(hours.index).qualities
    ]
    columns = ["month", "target", "nmae_percent", "bias_percent", "inside_percent"]
    refit = gate.refit_until(comparison.champion.production)
    figure = figures.by_month(pd.DataFrame(months, columns=columns), refit_until=refit)
    label = "Errors, bias and share within the band by month"
    about = f"{steps.NAMES.capitalize()} after {steps.date(since)}, the last that the model learned." if since else ""
    if refit:
        last, start = map(steps.date, (refit, since))
        about = f"{steps.NAMES.capitalize()} to {last} are predicted by the judged model, which learned until {start};"
        about += " later ones, right of the dotted line, by its refit in production, which learned until there."
    about = about or f"Which {steps.NAMES} the model learned is not known: all."
    about += " The first and the last month may be incomplete."
    beyond = "A model does not know what it does beyond the inputs that it learned: trees stay at their last value."
    return [
        parts.panel("state", monitoring.sentence(qualities), days, [*advice, table]),
        parts.panel("months", "Month by month", about, [parts.graph("by-month", figure, label, "chart tall")]),
        parts.panel("inputs", "Inputs beyond what was learned", beyond, [_inputs(comparison.frame, since)]),
    ]


def _inputs(frame: pd.DataFrame, since: str | None) -> Component:
    ranges = monitoring.unlearned(frame, since)
    rows = [
        [each.title, f"{low:.1f}", f"{high:.1f} {each.unit}", f"{100 * share:.2f} %"]
        for each in problem.INPUTS
        for low, high, share in [ranges[each.name]]
    ] if ranges else []  # fmt: skip
    return parts.table("Inputs beyond those learned", INPUTS_HEAD, rows, "words") if rows else html.P("Not known.")


def _row(quality: Quality) -> list:
    unit = quality.target.unit
    return [
        quality.target.title,
        html.Span(quality.state, className=f"state {quality.state}"),
        quality.in_words.removeprefix(f"{quality.target.words} "),
        f"{quality.mae:.2f} {unit}",
        _percent(quality.nmae_percent, 1),
        _percent(100 * quality.inside),
        *(f"{error:.2f} {unit}" for error in quality.baselines.values()),
    ]


def _percent(value: float, digits: int = 0) -> str:
    return UNKNOWN if math.isnan(value) else f"{value:.{digits}f} %"
