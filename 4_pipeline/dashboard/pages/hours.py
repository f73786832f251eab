"""Data: which hours the data has and lacks, in what units, and where it comes from."""

from __future__ import annotations

import pandas as pd
import parts
from dash import Dash, Input, Output, html
from serving import Served, Serving

from workshop.data import figures, prepare, sources
from workshop.data.figures import TITLES
from workshop.data.schema import FEATURES, RANGES, TARGETS, UNITS

PATH, TITLE = "/data", "Data"
MOST_GAPS = 12
UNITS_HEAD = ["Column", "Unit", "Lowest", "Mean", "Highest", "Allowed"]
LICENCES = {
    "sample": "The weather files carry no licence of their own: have it checked before you pass them on.",
    "opsd": "The publisher states no licence: attribute the data, and claim none.",
}


def page(served: Served, _query: dict[str, str]) -> list:
    """Return the page; it has no state of its own."""
    return [html.Div(sections(served), id="data-page", className="stack")]


def register(app: Dash, serving: Serving) -> None:
    """Follow what is served."""

    @app.callback(Output("data-page", "children"), Input("revision", "data"), prevent_initial_call=True)
    def follow_hours(_revision):
        """Show the data that is there now."""
        return sections(serving.now)


def sections(served: Served) -> list:
    """Return coverage, gaps, units and source of the data; made once for all readers."""
    return served.cached(PATH, lambda: _sections(served))


def _sections(served: Served) -> list:
    if served.frame is None:
        hint = "There is no data yet." if served.looked else "One moment …"
        return [parts.panel("hours", "Coverage", hint, [])]
    panels = _hours(served.frame), _gaps(served.frame)
    return [html.Div(panels, className="columns"), _units(served.frame), _source(served.frame)]


def _hours(frame: pd.DataFrame) -> html.Section:
    first, last = frame["utc_timestamp"].iloc[0], frame["utc_timestamp"].iloc[-1]
    missing = figures.missing(prepare.missing_by_month(frame, first.year, last.year)).update_layout(margin_t=30)
    expected = round((last - first) / pd.Timedelta(hours=1)) + 1
    period = f"{first:%d %b %Y} to {last:%d %b %Y}"
    hint = f"{len(frame):,} of {expected:,} hours from {period}; each square is the number of hours that are missing."
    return parts.panel(
        "hours", "Coverage", hint, [parts.graph("missing", missing, "Missing hours by month", "chart middle")]
    )


def _gaps(frame: pd.DataFrame) -> html.Section:
    stamps = frame["utc_timestamp"]
    steps = stamps.diff() / pd.Timedelta(hours=1)
    gaps = pd.DataFrame({"from": stamps.shift() + pd.Timedelta(hours=1), "to": stamps, "hours": steps - 1})
    gaps = gaps[gaps["hours"] > 0].sort_values("hours", ascending=False, kind="stable")
    rows = [
        [f"{gap['from']:%d %b %Y, %H:%M}", f"{gap['to']:%d %b %Y, %H:%M}", f"{gap['hours']:.0f}"]
        for _, gap in gaps.head(MOST_GAPS).iterrows()
    ]
    if not rows:
        return parts.panel("gaps", "Gaps", "No hour is missing.", [])
    hint = (
        f"{len(gaps)} gaps, {gaps['hours'].sum():.0f} hours in all; none is filled. The longest {len(rows)} are listed."
    )
    table = parts.table(["First missing hour", "Next hour with data", "Hours"], rows)
    return parts.panel("gaps", "Gaps", hint, [table])


def _units(frame: pd.DataFrame) -> html.Section:
    rows = [
        [
            TITLES[column],
            UNITS[column],
            *(f"{getattr(frame[column], what)():,.1f}" for what in ("min", "mean", "max")),
            f"{RANGES[column][0]:,} to {RANGES[column][1]:,}",
        ]
        for column in (*TARGETS, *FEATURES)
    ]
    table = parts.scroll(parts.table(UNITS_HEAD, rows), "Columns with units and ranges")
    return parts.panel("units", "Columns", "Hourly means; radiation is that on a horizontal surface.", [table])


def _source(frame: pd.DataFrame) -> html.Section:
    source = sources.origin_of(frame)
    known = [
        ("Source", f"{source.source}, modelled" if source.modelled else source.source),
        ("Attribution", source.attribution),
        ("Licence", LICENCES.get(source.source, "See its owner's terms.")),
    ]
    hint = "Generation is modelled here, not measured: the figures show only that the method works."
    return parts.panel("source", "Source", hint if source.modelled else "Measured.", [parts.facts(known)])
