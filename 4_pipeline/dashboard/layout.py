"""The frame of every page: header, navigation, banners and footer."""

from __future__ import annotations

from types import ModuleType

import dash_bootstrap_components as dbc
from dash import dcc, html
from forecast.govern.gate import stage_of
from forecast.problem import REGION, TITLE
from forecast.terms import steps
from forecast.terms.origin import origin_of
from mlflow_gate import Production

from . import address, pages, parts
from .follower import LOADING, Snapshot, cache_per_revision
from .pages import over_time

CLOCK_MILLISECONDS = 2000
BADGES = {"forced": "forced past the gate", "by hand": "alias set by hand, without the gate"}
WHAT_TO_RUN = "`dvc repro` in the folder of `dvc.yaml`"
ABOUT_TIMES = f"Times are UTC unless a figure names a zone; a value is the mean of the {steps.NAME} that starts then."
if steps.IS_DAY:
    ABOUT_TIMES = f"Days are calendar days in {steps.ZONE}."
# theme.js runs first, so that the page does not flash in the other theme.
INDEX = """<!DOCTYPE html>
<html lang="en">
<head>{%metas%}<title>{%title%}</title><link rel="icon" href="/assets/icon.svg" type="image/svg+xml">
<script src="/assets/theme.js"></script>
{%css%}</head>
<body><noscript>The dashboard needs JavaScript: enable it for this site. The API (POST /predict)
and the <a href="/results/report.html">report</a> work without JavaScript.</noscript>
{%app_entry%}{%config%}{%scripts%}{%renderer%}</body>
</html>"""


def whole_page(snapshot: Snapshot, requested: str) -> html.Div:
    """Return the whole page for a URL, content included, so that the layout does not shift after the first paint."""
    links, title, content = view(snapshot, *address.parse(requested))
    theme = html.Button(html.Span("Dark"), id="theme", **{"aria-label": "Dark"})
    return html.Div(
        [
            html.A("Skip to content", href="#page", className="skip-link"),
            dcc.Interval(id="clock", interval=CLOCK_MILLISECONDS),
            dcc.Store(id="revision", data=snapshot.revision),
            dcc.Store(id="version", data=version(snapshot)),
            dcc.Store(id="requested", data=requested),  # the URL to show, set by `assets/address.js`
            dcc.Store(id="shown", data=[requested, title]),  # the current URL and the window's title
            html.Header(
                [
                    html.H1([TITLE, html.Small(f"{REGION}, {steps.OFTEN}")]),
                    html.Section(model(snapshot), id="model", **{"aria-label": "Model in production"}),
                ],
                className="masthead",
            ),
            html.Div([html.Nav(links, id="navigation", **{"aria-label": "Pages"}), theme], className="bar"),
            html.Div(id="connection", className="alert alert-danger", role="alert"),  # filled by `assets/connection.js`
            html.Div(message(snapshot), id="message", role="status", **{"aria-live": "polite"}),
            html.Main(content, id="page", tabIndex="-1"),
            html.Footer([html.P(attribution(snapshot), id="attribution"), html.P(ABOUT_TIMES)]),
            html.Div(id="notice", role="status", **{"aria-live": "polite"}),
        ],
        className="frame",
    )


@cache_per_revision
def view(snapshot: Snapshot, path: str, query: dict[str, str]) -> tuple[list, str, list]:
    """Return the parts of the page that depend on the URL: navigation links, window title and content.

    The front page is the first of `pages.PAGES`.
    """
    page = next((page for page in pages.PAGES if path in (page.PATH, "/")), None)
    if page is None:
        hint = ["There is no page at ", html.Code(path[:80]), ". Choose one of the pages above."]
        return _links(None), f"Page not found · {TITLE}", [parts.panel("unknown", "Page not found", hint, [])]
    content = html.Div(page.page(snapshot, query), id=f"content-{page.PATH[1:]}", className="stack")
    return _links(page), f"{page.TITLE} · {TITLE}", [content]


def _links(current: ModuleType | None) -> list:
    states = {page: {"aria-current": "page" if page is current else None} for page in pages.PAGES}
    return [html.A(page.TITLE, href=address.link(page.PATH), className="inside", **states[page]) for page in states]


def model(snapshot: Snapshot) -> list:
    """Return the header line about the model in production: its version, kind, score and time of promotion."""
    if snapshot.champion is None:
        return [html.Span("no model yet" if snapshot.is_ready else LOADING, id="model-version")]
    production, comparison = snapshot.champion.production, snapshot.comparison
    metric, rows = production.move.value, production.move.held_out_rows
    score = "not recorded" if metric is None else f"{metric:.3f}"
    badge = BADGES.get(snapshot.move.action) if snapshot.move else None
    scores = comparison.baseline_r2 if comparison else {}
    best = max(scores, key=lambda name: scores[name], default=None)
    baseline = [html.Small(f" ({scores[best]:.2f} without a model)", title=f"Baseline: {best}")] if best else []
    state, href = comparison and comparison.state, address.link(over_time.PATH)
    doubtful = "doubtful" if badge or snapshot.faults.keys() & {"registry", "model"} else None
    return [
        html.Span(str(production), id="model-version", className=doubtful),
        *([html.Span(badge, className="badge text-bg-warning")] if badge else []),
        *([html.A(f"state: {state}", href=href, id="model-state", className=f"inside state {state}")] if state else []),
        html.Span(parts.model_title(stage_of(production), snapshot.champion.model.kind), id="model-kind"),
        html.Span(["held-out R² ", html.Span(score, id="model-r2"), html.Small(f" {rows}"), *baseline]),
        html.Span(["since ", html.Span(parts.readable_time(production.move.when), id="model-since")]),
    ]


def version(snapshot: Snapshot) -> str | None:
    """Return the version in production: `none` if there is none, None while it is unknown."""
    if snapshot.champion:
        return snapshot.champion.production.version
    return "none" if snapshot.is_ready else None


def notice(production: Production, before: str) -> dbc.Alert:
    """Return a dismissable notice that the version in production has changed."""
    when = production.move.when  # None if the alias was set by hand
    since = f" since {parts.readable_time(when)}" if when else ""
    head = html.Strong(f"Version {production.version} is in production{since}.")
    rest = " This page now shows its predictions." + (f" It replaced version {before}." if before != "none" else "")
    return dbc.Alert([head, rest], color="info", dismissable=True, is_open=True)


def message(snapshot: Snapshot) -> list:
    """Return banners for missing data or models, with the command to run, and for faults, with their start time."""
    alerts = []
    if not snapshot.is_ready:
        return [dbc.Alert("Loading the data and the model in production …", color="light")]
    for part, subjects in (("frame", {"data"}), ("champion", {"registry", "model"})):
        if (text := snapshot.missing(part)) and not subjects & set(snapshot.faults):
            alerts.append(parts.banner(text, f"Run {WHAT_TO_RUN}."))
    for subject, fault in snapshot.faults.items():
        has_model = snapshot.champion and subject != "data"
        rest = f" Version {version(snapshot)} remains in use." if has_model else ""
        since = f"Since {fault.since:%H:%M:%S} UTC, {fault.since:%d %B}:"
        alerts.append(parts.banner(since, fault.why + rest))
    return alerts


def attribution(snapshot: Snapshot) -> str:
    """Return the attribution of the data, or an empty string."""
    return "" if snapshot.frame is None else origin_of(snapshot.frame).attribution
