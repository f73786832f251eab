"""Data: which steps of time the data has and lacks, and where it comes from."""

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
    "sample": "The weather files carry no licence of their own: have it checked before you pass them on.",
    "opsd": "The publisher states no licence: attribute the data, and claim none.",
}


def page(snapshot: Snapshot, _query: dict[str, str]) -> list:
    """Return coverage and source of the data."""
    if (frame := snapshot.frame) is None:
        return [parts.panel("hours", "Coverage", snapshot.missing("frame"), [])]
    first, last = frame["utc_timestamp"].iloc[0], frame["utc_timestamp"].iloc[-1]
    missing = figures.missing(prepare.missing_by_month(frame)).update_layout(margin_t=30)
    expected = len(steps.grid(first, last))
    first, last = (end.tz_convert(steps.CALENDAR) for end in (first, last))
    period = f"{first:%d %b %Y} to {last:%d %b %Y}"
    hint = f"{len(frame):,} of {expected:,} {steps.NAMES}, {period}. Each square counts those missing; none is filled."
    graph = parts.graph("missing", missing, f"Missing {steps.NAMES} by month", "chart middle")
    hours = parts.panel("hours", "Coverage", hint, [graph])
    origin = origin_of(frame)
    known = [
        ("Source", f"{origin.source}, modelled" if origin.modelled else origin.source),
        ("Attribution", origin.attribution),
        ("Licence", LICENCES.get(origin.source, "See its owner's terms.")),
    ]
    modelled = "Generation is modelled here, not measured: the figures show only that the method works."
    unknown = "Whether it is measured or modelled is not said: `fetch.csv.modelled` in params.yaml says so."
    hint = {True: modelled, False: "Measured.", None: unknown}[origin.modelled]
    checks = "Gaps, ranges and every check are in the executed notebook prepare.ipynb, which its run in MLflow keeps."
    source = parts.panel("source", "Source", hint, [parts.facts(known), html.P(checks)])
    return [html.Div([hours, source], className="columns")]
