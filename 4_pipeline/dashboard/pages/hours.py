"""Data: the coverage and the source of the data."""

from __future__ import annotations

from dash import html
from forecast.raw import prepare
from forecast.show import figures
from forecast.terms import steps
from forecast.terms.origin import origin_of

from .. import parts
from ..follower import Snapshot

PATH, TITLE = "/data", "Data"
LICENCES = {
    "sample": "The weather files carry no licence of their own: have this checked before you pass the data on.",
    "opsd": "The publisher states no licence: attribute the data, and do not claim one.",
}


def page(snapshot: Snapshot, _query: dict[str, str]) -> list:
    """Return the panels on the coverage and the source of the data."""
    if (frame := snapshot.frame) is None:
        return [parts.panel("hours", "Coverage", snapshot.missing("frame"), [])]
    first, last = frame["utc_timestamp"].iloc[0], frame["utc_timestamp"].iloc[-1]
    missing = figures.missing(prepare.missing_by_month(frame)).update_layout(margin_t=30)
    expected = len(steps.grid(first, last))
    first, last = (end.tz_convert(steps.CALENDAR) for end in (first, last))
    period = f"{first:%d %b %Y} to {last:%d %b %Y}"
    hint = f"{len(frame):,} of {expected:,} {steps.NAMES}, {period}. Each square counts missing {steps.NAMES}."
    graph = parts.graph("missing", missing, f"Missing {steps.NAMES} by month", "chart middle")
    hours = parts.panel("hours", "Coverage", hint, [graph])
    origin = origin_of(frame)
    rows = [
        ("Source", f"{origin.source}, modelled" if origin.modelled else origin.source),
        ("Attribution", origin.attribution),
        ("Licence", LICENCES.get(origin.source, "See the data owner's terms.")),
    ]
    modelled = "The generation is modelled, not measured: the figures only show that the method works."
    unknown = "It is unknown whether the generation was measured or modelled: set `fetch.csv.modelled` in params.yaml."
    hint = {True: modelled, False: "The generation was measured.", None: unknown}[origin.modelled]
    checks = "The executed notebook prepare.ipynb, kept by its run in MLflow, lists all gaps, ranges and checks."
    source = parts.panel("source", "Source", hint, [parts.facts(rows), html.P(checks)])
    return [html.Div([hours, source], className="columns")]
