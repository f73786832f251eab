"""What surrounds every page: masthead, navigation, banners and footer; nothing here reads, asks or remembers."""

from __future__ import annotations

from datetime import UTC, datetime

import address
import dash_bootstrap_components as dbc
import pages
import parts
from address import Address
from dash import dcc, html
from serving import Served

from workshop.data import origin

CLOCK_MILLISECONDS = 2000
TITLE = "Solar and wind power"
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
def whole(served: Served, asked: str) -> html.Div:
    """Return the page of an address, filled: a reader sees the answer with the first view, and nothing jumps."""
    links, title, content = view(served, address.of(asked))
    return html.Div(
        [
            html.A("Skip to the content", href="#page", className="skip-link"),
            dcc.Interval(id="clock", interval=CLOCK_MILLISECONDS),
            dcc.Store(id="revision", data=served.revision),
            dcc.Store(id="spoke", data=speaker(served)),  # the version that spoke when the page was opened
            dcc.Store(id="asked", data=asked),  # the address that is to be shown; `assets/address.js` sets it
            dcc.Store(id="shown", data=[asked, title]),  # the address that is shown, and what the window is called
            html.Header(
                [
                    html.Div(
                        [html.P("Germany, hourly", className="eyebrow"), html.H1(TITLE)],
                        className="title",
                    ),
                    html.Section(model(served), id="model", className="model", **{"aria-label": "Now in production"}),
                ],
                className="masthead",
            ),
            html.Div(
                [
                    html.Nav(links, id="navigation", **{"aria-label": "Pages"}),
                    html.Button(html.Span("Dark"), id="theme", **{"aria-pressed": "false", "aria-label": "Dark"}),
                ],
                className="bar",
            ),
            html.Div(
                id="connection", className="alert alert-danger", role="alert"
            ),  # `assets/connection.js` writes there
            html.Div(message(served), id="message", role="status", **{"aria-live": "polite"}),
            html.Main(content, id="page", tabIndex="-1"),
            html.Footer(
                [
                    html.P(attribution(served), id="attribution"),
                    html.P("All times are UTC; a value stands for the hour that begins then."),
                ]
            ),
            html.Div(id="notice", role="status", **{"aria-live": "polite"}),
        ],
        className="frame",
    )


def view(served: Served, asked: Address) -> tuple[list, str, list]:
    """Return what an address changes: the links of the navigation, the window's title, and the page."""
    page = pages.at(asked.path)
    if page is None:
        return _links(None), f"No such page · {TITLE}", _unknown(asked.path)
    return _links(page.PATH), f"{page.TITLE} · {TITLE}", page.page(served, asked.query)


def _links(current: str | None) -> list:
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
    links = html.Ul(
        [html.Li(html.A(page.TITLE, href=address.link(page.PATH), className="inside")) for page in pages.PAGES]
    )
    return [parts.panel("unknown", "There is no such page", hint, [links])]


# -- its parts that change --------------------------------------------------------------------------------------------
def model(served: Served) -> list:
    """Say which version speaks, of what kind, how good it is and since when."""
    production = served.production
    if production is None:
        return [html.P("no model yet" if served.looked else "one moment …", id="model-version", className="version")]
    known = [
        ("Kind", html.Span(parts.kind(production.stage, served.model.kind), id="model-kind")),
        ("R² held out", html.Span("not recorded" if production.r2 is None else f"{production.r2:.3f}", id="model-r2")),
        ("In production since", html.Span(parts.moment(production.since), id="model-since")),
    ]
    version = f"{production.name} version {production.version}"
    return [html.P(version, id="model-version", className="version"), parts.facts(known)]


def speaker(served: Served) -> str | None:
    """Return the version that speaks, `none` if there is none, or None before anybody has looked."""
    return served.production.version if served.production else "none" if served.looked else None


def notice(served: Served, before: str) -> dbc.Alert:
    """Say that another version speaks than when the page was opened; readers put it away."""
    production = served.production
    # Moved by hand, it has no record: then what is known is when it was noticed.
    since = parts.moment(production.since) if production.since else f"{datetime.now(UTC):%d %b %Y, %H:%M} UTC"
    said = [html.Strong(f"Version {production.version} speaks since {since}.")]
    rest = " All numbers on this page are its own." + (f" Before it was version {before}." if before != "none" else "")
    return dbc.Alert([*said, rest], color="info", dismissable=True, is_open=True)


def message(served: Served) -> list:
    """Say what is missing and what to run, or since when and why the page cannot follow; empty when all is well."""
    alerts = []
    if not served.looked:
        return [dbc.Alert("Looking for the data and the model in production …", color="light")]
    if served.frame is None and "data" not in served.troubles:
        alerts.append(parts.banner("There is no data yet.", f"Run {WHAT_TO_RUN}."))
    if served.production is None and not {"registry", "model"} & set(served.troubles):
        alerts.append(parts.banner("No model is in production yet.", f"Run {WHAT_TO_RUN}."))
    for subject, trouble in served.troubles.items():
        goes_on = served.production and subject != "data"
        rest = f" Version {served.production.version} goes on answering." if goes_on else ""
        since = f"Since {trouble.since:%H:%M:%S} UTC, {trouble.since:%d %B}:"
        alerts.append(parts.banner(since, trouble.why + rest))
    return alerts


def attribution(served: Served) -> str:
    """Return whose data is shown; nothing before there is any."""
    return "" if served.frame is None else origin.of_frame(served.frame).attribution
