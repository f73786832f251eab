"""Components of the pages: panels, labelled figures, tiles, tables, banners and formatted times."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime

import dash_bootstrap_components as dbc
import pandas as pd
import plotly.graph_objects as go
from dash import dcc, html
from forecast import problem
from forecast.terms.errors import PipelineError
from forecast.terms.parameters import FILE, load, project

from .follower import Snapshot
from .predictions import Band

MIN_WIDTH = 0.05  # the ends of a narrower band may round to equal numbers, as in "0.0 to 0.0"


def panel(id_: str, title: str, hint: object, children: list) -> html.Section:
    """Return a section of a page, labelled by its heading for screen readers."""
    head = [html.H2(title, id=f"{id_}-title"), html.P(hint, id=f"{id_}-hint", className="hint")]
    label = {"aria-labelledby": f"{id_}-title"}
    return html.Section([html.Div(head, className="head"), *children], id=id_, className="panel", **label)


def graph(id_: str, figure: go.Figure | dict, label: str, class_name: str = "chart") -> html.Div:
    """Return a figure of fixed height with a label for screen readers."""
    config = {"displayModeBar": False, "responsive": True, "showTips": False, "doubleClick": "autosize"}
    return html.Div(
        dcc.Graph(id=id_, figure=figure, config=config), className=class_name, role="figure", **{"aria-label": label}
    )


def tile(name: str, number: object, unit: str, hint: str, colour: str, middle: tuple = ()) -> html.Div:
    """Return a tile: a large number with its name above and a hint below, in the colour of a target."""
    big = html.P([number, html.Small(f" {unit}")], className="number")
    content = [html.P(name, className="name"), big, *middle, html.P(hint, className="hint")]
    return html.Div(content, className="tile", style={"--colour": colour})


def prediction(snapshot: Snapshot, predicted: pd.DataFrame | None, band: Band | None) -> list[html.Div]:
    """Return a tile per target: the prediction for one row, its band, and its share of the data's maximum."""
    tiles, coverage = [], snapshot.champion and snapshot.champion.model.coverage
    for target in problem.TARGETS:
        value = math.nan if predicted is None else float(predicted[target.name].iloc[0])
        highest = 0.0 if snapshot.frame is None else float(snapshot.frame[target.name].max())
        is_known = not math.isnan(value) and highest
        share = min(max(value / highest, 0.0), 1.0) if is_known else 0.0
        notes = [f"{share:.0%} of the highest value in the data"] if is_known else []
        low, high = (float(end[target.name].iloc[0]) for end in band) if band else (0.0, 0.0)
        if high - low > MIN_WIDTH:  # at night, solar power's band has zero width
            notes = [f"{coverage:.0%} error band: {low:.1f} to {high:.1f} {target.unit}", *notes]
        big = html.Span("n/a" if math.isnan(value) else f"{value:.2f}", id=f"predicted-{target.name}")
        bar = html.Div(html.Div(style={"width": f"{share:.1%}"}), className="share", **{"aria-hidden": "true"})
        tiles.append(tile(target.title, big, target.unit, ". ".join(notes), target.colour, middle=(bar,)))
    return tiles


def table(label: str, head: list[str], rows: list[list], class_name: str) -> html.Div:
    """Return a table that scrolls, also by keyboard; the first cell of each row is its heading."""
    top = html.Thead(html.Tr([html.Th(name, scope="col") if name else html.Td() for name in head]))
    body = html.Tbody([html.Tr([html.Th(row[0], scope="row"), *map(html.Td, row[1:])]) for row in rows])
    content = html.Table([top, body], className=f"figures {class_name}")
    return html.Div(content, className="scroll", tabIndex="0", role="group", **{"aria-label": label})


def facts(pairs: Sequence[tuple[str, object]]) -> html.Dl:
    """Return an HTML description list of name and value pairs."""
    return html.Dl([html.Div([html.Dt(name), html.Dd(fact)]) for name, fact in pairs], className="facts")


def banner(head: str, text: str) -> dbc.Alert:
    """Return a warning banner; text between backticks is shown as code."""
    pieces = [html.Code(piece) if number % 2 else piece for number, piece in enumerate(text.split("`"))]
    return dbc.Alert([html.Strong(head), " ", *pieces], color="warning")


def external_link(text: object, href: str, **options: object) -> html.A:
    """Return an external link, which opens in a new window."""
    return html.A([text, " ↗"], href=href, target="_blank", rel="noopener", **options)


def model_title(stage: str | None, default: str) -> str:
    """Return a stage's model title from params.yaml, or its name if it has no title; ``default`` without a stage."""
    with contextlib.suppress(PipelineError, LookupError, TypeError):
        return str(load(project() / FILE)[stage or ""]["title"])
    return stage or default


def copyable(text: str) -> object:
    """Return the text with readable times; a hash becomes eight characters and a button that copies the whole hash."""
    if not re.fullmatch("[0-9a-f]{32,64}", text):
        return readable_times(text)
    copy = dcc.Clipboard(content=text, title="Copy", className="copy")
    return html.Span([html.Code(text[:8], title=text), copy], className="copy-whole")


def button(label: str, id_: str, title: str | None = None, **options: object) -> dbc.Button:
    """Return a small button."""
    return dbc.Button(label, id=id_, size="sm", color="light", n_clicks=0, title=title, **options)


def readable_times(text: str) -> str:
    """Return the text with its ISO times in human-readable form."""
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)", lambda match: readable_time(match[0]), text)


def readable_time(text: str | None) -> str:
    """Return an ISO time in human-readable form, in UTC; other strings unchanged; "not recorded" if there is none."""
    try:
        time = datetime.fromisoformat(text or "").astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return text or "not recorded"
    return f"{time:%d %b %Y, %H:%M} UTC"
