"""What all pages are made of: panels, figures with their names, tables, banners, and how times are written."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import dash_bootstrap_components as dbc
import plotly.graph_objects as go
from dash import dcc, html
from dash.development.base_component import Component

KINDS = {
    "train_linreg": "linear regression",
    "train_rf": "random forest",
    "train_keras": "neural network",
    "train_gradient_boosting": "gradient boosting",
}


def panel(id_: str, title: str, hint: object, children: list, class_name: str = "") -> html.Section:
    """Return a section of a page with its heading; screen readers list it by that."""
    head = html.Div([html.H2(title, id=f"{id_}-title"), html.P(hint, id=f"{id_}-hint", className="hint")])
    head.className = "head"
    return html.Section(
        [head, *children], id=id_, className=f"panel {class_name}".strip(), **{"aria-labelledby": f"{id_}-title"}
    )


def graph(id_: str, figure: go.Figure | dict, says: str, class_name: str = "chart") -> html.Div:
    """Return a figure that keeps its height from the start, and says in words what it shows."""
    drawn = dcc.Graph(id=id_, figure=figure, config={"displayModeBar": False, "responsive": True})
    return html.Div(drawn, className=class_name, role="figure", **{"aria-label": says})


def table(head: list[str], rows: list[list], *, caption: str | None = None, class_name: str = "") -> html.Table:
    """Return a table; the first cell of each row is its heading."""
    return html.Table(
        [
            *([html.Caption(caption)] if caption else []),
            html.Thead(html.Tr([html.Th(name, scope="col") if name else html.Td() for name in head])),
            html.Tbody([html.Tr([html.Th(row[0], scope="row"), *map(html.Td, row[1:])]) for row in rows]),
        ],
        className=f"figures {class_name}".strip(),
    )


def scroll(content: Component, says: str) -> html.Div:
    """Return a frame for what may be wider or longer than the screen; keyboards scroll it, too."""
    return html.Div(content, className="scroll", tabIndex="0", role="group", **{"aria-label": says})


def facts(named: list[tuple[str, object]]) -> html.Dl:
    """Return names and what is known of each."""
    return html.Dl([html.Div([html.Dt(name), html.Dd(fact)]) for name, fact in named], className="facts")


def banner(head: str, text: str, color: str = "warning") -> dbc.Alert:
    """Return a banner; what stands between backticks is shown as something to type."""
    return dbc.Alert([html.Strong(head), " ", *typed(text)], color=color)


def typed(text: str) -> list:
    """Return a text whose parts between backticks are something to type."""
    return [html.Code(piece) if number % 2 else piece for number, piece in enumerate(text.split("`"))]


def away(text: object, href: str, **options) -> html.A:
    """Return a link that leaves the dashboard, in a window of its own."""
    return html.A([text, " ↗"], href=href, target="_blank", rel="noopener", **options)


def kind(stage: str | None, otherwise: str) -> str:
    """Return what a stage of the pipeline trains, in words."""
    return KINDS.get(stage or "", stage or otherwise)


def moments(text: str) -> str:
    """Return a text with the ISO times in it as people write them."""
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)", lambda found: moment(found[0]), text)


def moment(text: str | None) -> str:
    """Return an ISO time as people write it, in UTC; what is no time is shown as it is."""
    try:
        time = datetime.fromisoformat(text).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return text or "not recorded"
    return f"{time:%d %b %Y, %H:%M} UTC"
