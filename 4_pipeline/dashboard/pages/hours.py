"""Data: which hours the data has and lacks, and where it comes from; the checks are a page of the pipeline's."""

from __future__ import annotations

import address
import pandas as pd
import parts
from dash import Dash, Input, Output, html
from serving import Follower, Snapshot

from workshop.data import figures, prepare, sources

PATH, TITLE = "/data", "Data"
LICENCES = {
    "sample": "The weather files carry no licence of their own: have it checked before you pass them on.",
    "opsd": "The publisher states no licence: attribute the data, and claim none.",
}


def page(served: Snapshot, _query: dict[str, str]) -> list:
    """Return the page; it has no state of its own."""
    return [html.Div(sections(served), id="data-page", className="stack")]


def register(app: Dash, serving: Follower) -> None:
    """Follow what is served."""

    @app.callback(Output("data-page", "children"), Input("revision", "data"), prevent_initial_call=True)
    def follow_hours(_revision):
        """Show the data that is there now."""
        return sections(serving.now)


def sections(served: Snapshot) -> list:
    """Return coverage and source of the data; made once for all readers."""
    return served.cached((address.prefix(), PATH), lambda: _sections(served))


def _sections(served: Snapshot) -> list:
    if served.frame is None:
        hint = "There is no data yet." if served.looked else "One moment …"
        return [parts.panel("hours", "Coverage", hint, [])]
    return [html.Div([_hours(served.frame), _source(served.frame)], className="columns")]


def _hours(frame: pd.DataFrame) -> html.Section:
    first, last = frame["utc_timestamp"].iloc[0], frame["utc_timestamp"].iloc[-1]
    missing = figures.missing(prepare.missing_by_month(frame, first.year, last.year)).update_layout(margin_t=30)
    expected = round((last - first) / pd.Timedelta(hours=1)) + 1
    period = f"{first:%d %b %Y} to {last:%d %b %Y}"
    hint = f"{len(frame):,} of {expected:,} hours from {period}. Each square counts those missing; none is filled."
    return parts.panel(
        "hours", "Coverage", hint, [parts.graph("missing", missing, "Missing hours by month", "chart middle")]
    )


def _source(frame: pd.DataFrame) -> html.Section:
    source = sources.origin_of(frame)
    known = [
        ("Source", f"{source.source}, modelled" if source.modelled else source.source),
        ("Attribution", source.attribution),
        ("Licence", LICENCES.get(source.source, "See its owner's terms.")),
    ]
    hint = "Generation is modelled here, not measured: the figures show only that the method works."
    checks = parts.external_link("Gaps, ranges and every check of the data", address.link("/results/validation.html"))
    return parts.panel(
        "source", "Source", hint if source.modelled else "Measured.", [parts.facts(known), html.P(checks)]
    )
