"""The data behind all pages: which hours there are, which are not, in what units, and whose it is."""

from __future__ import annotations

import pandas as pd
import parts
from dash import Dash, Input, Output, html
from serving import Served, Serving

from workshop.data import coverage, figures, origin
from workshop.data.schema import FEATURES, TARGETS, UNITS
from workshop.data.thresholds import RANGES
from workshop.data.validation_page import TITLES

PATH, TITLE = "/data", "Data"
MOST_GAPS = 12
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
        return [parts.panel("hours", "Which hours there are", hint, [])]
    return [
        html.Div([_hours(served.frame), _gaps(served.frame)], className="columns"),
        _units(served.frame),
        _source(served.frame),
    ]


def _hours(frame: pd.DataFrame) -> object:
    first, last = frame["utc_timestamp"].iloc[0], frame["utc_timestamp"].iloc[-1]
    missing = coverage.missing_by_month(frame, first.year, last.year)
    expected = round((last - first) / pd.Timedelta(hours=1)) + 1
    return parts.panel(
        "hours",
        "Which hours there are",
        f"{len(frame):,} of {expected:,} hours from {first:%d %b %Y} to {last:%d %b %Y}; missing hours by month.",
        [
            parts.graph(
                "missing", figures.missing(missing).update_layout(margin_t=30), "Missing hours by month", "chart middle"
            )
        ],
    )


def _gaps(frame: pd.DataFrame) -> object:
    stamps = frame["utc_timestamp"]
    steps = stamps.diff() / pd.Timedelta(hours=1)
    gaps = pd.DataFrame({"from": stamps.shift() + pd.Timedelta(hours=1), "to": stamps, "hours": steps - 1})
    gaps = gaps[gaps["hours"] > 0].sort_values("hours", ascending=False, kind="stable")
    rows = [
        [f"{gap['from']:%d %b %Y, %H:%M}", f"{gap['to']:%d %b %Y, %H:%M}", f"{gap['hours']:.0f}"]
        for _, gap in gaps.head(MOST_GAPS).iterrows()
    ]
    hint = (
        f"{len(gaps)} gaps, {gaps['hours'].sum():.0f} hours; counted, never filled." if len(gaps) else "There is none."
    )
    shown = [parts.table(["First missing hour", "Goes on at", "Hours"], rows)] if rows else []
    more = [html.P(f"The {MOST_GAPS} longest are listed.", className="hint")] if len(gaps) > MOST_GAPS else []
    return parts.panel("gaps", "Gaps", hint, [*shown, *more])


def _units(frame: pd.DataFrame) -> object:
    rows = [
        [
            TITLES[column],
            UNITS[column],
            *(f"{getattr(frame[column], what)():,.1f}" for what in ("min", "mean", "max")),
            f"{RANGES[column][0]:,} to {RANGES[column][1]:,}",
        ]
        for column in (*TARGETS, *FEATURES)
    ]
    head = ["Column", "Unit", "Least", "Mean", "Most", "Allowed"]
    shown = parts.scroll(parts.table(head, rows), "Columns with units and ranges")
    hint = "Hourly means; radiation is on the horizontal; a value stands for the hour that begins then (UTC)."
    return parts.panel("units", "What it holds", hint, [shown])


def _source(frame: pd.DataFrame) -> object:
    told = origin.of_frame(frame)
    known = [
        ("Source", f"{told.source}, modelled" if told.modelled else told.source),
        ("Attribution", told.attribution),
        ("Licence", LICENCES.get(told.source, "As its owner says.")),
    ]
    hint = "Generation is modelled here, not measured: the figures show that the method works, and no more."
    return parts.panel("source", "Whose it is", hint if told.modelled else "Measured.", [parts.facts(known)])
