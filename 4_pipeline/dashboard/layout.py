"""The frame of every page: header, navigation, banners and footer; nothing here reads, asks or remembers."""

from __future__ import annotations

import address
import dash_bootstrap_components as dbc
import pages
import parts
from address import Address
from dash import dcc, html
from serving import Snapshot

from workshop.data import sources
from workshop.models.registry import BY_HAND, FORCED
from workshop.problem import REGION, TITLE

CLOCK_MILLISECONDS = 2000
BADGES = {FORCED: "forced past the gate", BY_HAND: "moved by hand, without the gate"}
WHAT_TO_RUN = "`make run`, or `workshop up` and then `cd 4_pipeline && dvc repro`"
# Light or dark is settled before anything is drawn.
INDEX = """<!DOCTYPE html>
<html lang="en">
<head>{%metas%}<title>{%title%}</title><link rel="icon" href="/assets/icon.svg" type="image/svg+xml">
<script src="/assets/theme.js"></script>
{%css%}</head>
<body>{%app_entry%}{%config%}{%scripts%}{%renderer%}</body>
</html>"""


# -- the whole page --------------------------------------------------------------------------------------------------
def whole_page(served: Snapshot, asked: str) -> html.Div:
    """Return the page of an address, filled: a reader sees the answer with the first view, and nothing jumps."""
    links, title, content = view(served, address.parse(asked))
    theme = html.Button(html.Span("Dark"), id="theme", **{"aria-pressed": "false", "aria-label": "Dark"})
    return html.Div(
        [
            html.A("Skip to the content", href="#page", className="skip-link"),
            dcc.Interval(id="clock", interval=CLOCK_MILLISECONDS),
            dcc.Store(id="revision", data=served.revision),
            dcc.Store(id="version", data=version(served)),
            dcc.Store(id="asked", data=asked),  # the address to show; `assets/address.js` sets it
            dcc.Store(id="shown", data=[asked, title]),  # the address that is shown, and the window's title
            html.Header(
                [
                    html.H1([TITLE, html.Small(f"{REGION}, hourly")]),
                    html.Section(model(served), id="model", **{"aria-label": "Model in production"}),
                ],
                className="masthead",
            ),
            html.Div([html.Nav(links, id="navigation", **{"aria-label": "Pages"}), theme], className="bar"),
            # `assets/connection.js` writes there
            html.Div(id="connection", className="alert alert-danger", role="alert"),
            html.Div(message(served), id="message", role="status", **{"aria-live": "polite"}),
            html.Main(content, id="page", tabIndex="-1"),
            html.Footer(
                [
                    html.P(attribution(served), id="attribution"),
                    html.P(
                        "Times are UTC unless a figure names a zone; a value is the mean of the hour that begins then."
                    ),
                ]
            ),
            html.Div(id="notice", role="status", **{"aria-live": "polite"}),
        ],
        className="frame",
    )


def view(served: Snapshot, asked: Address) -> tuple[list, str, list]:
    """Return what an address changes: the links of the navigation, the window's title, and the page."""
    page = pages.at(asked.path)
    if page is None:
        return _links(), f"No such page · {TITLE}", _unknown(asked.path)
    return _links(page.PATH), f"{page.TITLE} · {TITLE}", page.page(served, asked.query)


def _links(current: str | None = None) -> list:
    return [
        html.A(
            page.TITLE,
            href=address.link(page.PATH),
            className="inside",
            **({"aria-current": "page"} if current == page.PATH else {}),
        )
        for page in pages.PAGES
    ]


def _unknown(path: str) -> list:
    hint = ["There is nothing at ", html.Code(path[:80]), ". These are the pages:"]
    return [parts.panel("unknown", "There is no such page", hint, [html.Ul([html.Li(link) for link in _links()])])]


# -- its parts that change --------------------------------------------------------------------------------------------
def model(served: Snapshot) -> list:
    """Return a line on the model in production: version, kind, score and since when."""
    production = served.production
    if production is None:
        return [html.Span("no model yet" if served.looked else "one moment …", id="model-version")]
    score = "not recorded" if production.r2 is None else f"{production.r2:.3f}"
    stale = " ".join(subject for subject in ("registry", "model") if subject in served.troubles)
    badge = BADGES.get(served.move.action) if served.move else None
    return [
        html.Span(f"{production.name} version {production.version}", id="model-version", className=stale),
        *([html.Span(badge, className="badge text-bg-warning")] if badge else []),
        html.Span(parts.kind(production.stage, served.model.kind), id="model-kind"),
        html.Span(["held-out R² ", html.Span(score, id="model-r2")]),
        html.Span(["since ", html.Span(parts.moment(production.since), id="model-since")]),
    ]


def version(served: Snapshot) -> str | None:
    """Return the version in production, `none` if there is none, or None before the first look has ended."""
    return served.production.version if served.production else "none" if served.looked else None


def notice(served: Snapshot, before: str) -> dbc.Alert:
    """Return a notice that another version is in production than before; readers close it."""
    production = served.production
    since = f" since {parts.moment(production.since)}" if production.since else ""  # moved by hand, it has no record
    head = html.Strong(f"Version {production.version} is in production{since}.")
    rest = " The whole page shows its predictions." + (f" Before it was version {before}." if before != "none" else "")
    return dbc.Alert([head, rest], color="info", dismissable=True, is_open=True)


def message(served: Snapshot) -> list:
    """Return banners: what is missing and what to run, or since when and why the page is not up to date."""
    alerts = []
    if not served.looked:
        return [dbc.Alert("Looking for the data and the model in production …", color="light")]
    if served.frame is None and "data" not in served.troubles:
        alerts.append(parts.banner("There is no data yet.", f"Run {WHAT_TO_RUN}."))
    if served.production is None and not {"registry", "model"} & set(served.troubles):
        alerts.append(parts.banner("No model is in production yet.", f"Run {WHAT_TO_RUN}."))
    for subject, trouble in served.troubles.items():
        still_answers = served.production and subject != "data"
        rest = f" Version {served.production.version} still answers." if still_answers else ""
        since = f"Since {trouble.since:%H:%M:%S} UTC, {trouble.since:%d %B}:"
        alerts.append(parts.banner(since, trouble.why + rest))
    return alerts


def attribution(served: Snapshot) -> str:
    """Return whose data is shown; nothing before there is any."""
    return "" if served.frame is None else sources.origin_of(served.frame).attribution
