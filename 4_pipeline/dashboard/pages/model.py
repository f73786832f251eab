"""The model that speaks: since when and why, where it comes from, what it goes by, and what spoke before it."""

from __future__ import annotations

import pandas as pd
import parts
from dash import Dash, Input, Output, html
from serving import Served, Serving

from workshop.data import figures, model_figures
from workshop.models.history import Move
from workshop.models.lineage import Link

PATH, TITLE = "/model", "Model"
EXPLANATIONS = {
    "importance": ("What it goes by", "By how much R² falls when the values of one input are shuffled."),
    "responses": ("How it answers", "The mean prediction over the values of each input, all else as it was."),
}
LINKS = {
    "data": "Data",
    "commit": "Commit",
    "stage": "Stage",
    "notebook": "Notebook",
    "run": "Run in MLflow",
    "model": "Model",
    "decision": "Decision",
    "production": "Production",
}
HEAD = ["Version", "How", "When", "Who and why", "R²", "R² of what it replaced"]


def page(served: Served, _query: dict[str, str]) -> list:
    """Return the page; it has no state of its own."""
    return [html.Div(sections(served), id="model-page", className="stack")]


def register(app: Dash, serving: Serving) -> None:
    """Follow what is served."""

    @app.callback(Output("model-page", "children"), Input("revision", "data"), prevent_initial_call=True)
    def follow_model(_revision):
        """Show the model that speaks now."""
        return sections(serving.now)


def sections(served: Served) -> list:
    """Return all that is known of the model in production."""
    if served.production is None:
        hint = "There is no model in production yet." if served.looked else "One moment …"
        return [parts.panel("speaker", "The model that speaks", hint, [])]
    explained = [
        parts.panel(f"{name}-panel", title, hint, [_explanation(name, served.record.explanations[name], title)])
        for name, (title, hint) in EXPLANATIONS.items()
        if name in served.record.explanations
    ]
    return [
        html.Div([_speaker(served), _history_figure(served)], className="columns"),
        _lineage(served.record.lineage),
        *explained,
        _moves(served.record.history),
    ]


def _speaker(served: Served) -> object:
    production, history = served.production, served.record.history
    came = next((move for move in reversed(history) if move.version == production.version), None)
    scores = came.scores if came else {}
    known = [
        ("Version", f"{production.name} version {production.version}"),
        ("Kind", parts.kind(production.stage, served.model.kind)),
        ("In production since", parts.moment((came and came.when) or production.since)),
        ("R² held out", "not recorded" if production.r2 is None else f"{production.r2:.3f}"),
        *(
            (name, f"{scores[key]:.3f}")
            for key, name in (("r2_solar", "R² solar"), ("r2_wind", "R² wind"))
            if _has(scores, key)
        ),
        *([("Mean absolute error", f"{scores['mae_GW']:.2f} GW")] if _has(scores, "mae_GW") else []),
        ("Why", (came and (came.why or came.reason)) or production.why or "not recorded"),
        *([("Who", came.who)] if came and came.who else []),
        *([("It replaced", f"version {came.replaced}")] if came and came.replaced else []),
    ]
    run = [html.P(parts.away("Its run in MLflow", production.run_url, id="run-link"))] if production.run_url else []
    return parts.panel("speaker", "The model that speaks", _band_hint(served), [parts.facts(known), *run])


def _band_hint(served: Served) -> str:
    share = served.model.coverage if served.model else None
    return f"Its error band was made to hold {share:.0%} of the hours." if share else "It has no error band."


def _lineage(links: tuple[Link, ...]) -> object:
    boxes = [html.Li(_box(link), className=None if link.known and not link.trouble else "unknown") for link in links]
    nothing = html.P("Where it comes from has not been read yet.", className="hint")
    return parts.panel(
        "lineage",
        "From the data to production",
        "Each step as it was recorded; follow a link to see the thing itself.",
        [html.Ol(boxes, className="chain") if boxes else nothing],
    )


def _box(link: Link) -> list:
    name = parts.moments(link.name)
    name = parts.away(name, link.url) if link.url and _is_web(link.url) else name
    told = [
        html.Div([html.Dt(parts.moments(key)), html.Dd(parts.moments(str(fact)))]) for key, fact in link.facts.items()
    ]
    return [
        html.P(LINKS.get(link.kind, link.kind), className="eyebrow"),
        html.P(name if link.known else "not recorded", className="name"),
        *([html.Dl(told)] if told else []),
        *([html.P(link.trouble, className="trouble")] if link.trouble else []),
    ]


def _is_web(url: str) -> bool:
    """Tell whether a link leads to a page: what is recorded with a run could say anything, a script among it."""
    return url.startswith(("http://", "https://"))


def _history_figure(served: Served) -> object:
    moves = [move for move in served.record.history if _has(move.scores, "r2")]
    if moves:
        table = pd.DataFrame(
            {
                "name": [f"{move.number}: v{move.version}" for move in moves],
                **{key: [move.scores.get(key) for move in moves] for key in figures.SCORES},
                "replaced_r2": [move.replaced_scores.get("r2") for move in moves],
            }
        )
        drawn = model_figures.scores_over_time(table)
    else:
        drawn = figures.empty("No scores of earlier moves have been read yet.")
    return parts.panel(
        "scores",
        "Its scores beside its predecessors'",
        "R² on the hours that were held out at the time, each time the alias moved.",
        [
            parts.graph(
                "scores-figure",
                drawn.update_layout(margin_t=40),
                "R² of each version in production over time",
                "chart middle",
            )
        ],
    )


def _moves(history: tuple[Move, ...]) -> object:
    rows = [
        [
            f"{move.version}{' (deleted)' if move.deleted else ''}",
            move.action,
            parts.moment(move.when),
            ": ".join(filter(None, (move.who, move.why or move.reason))) or "not recorded",
            _score(move.scores),
            _score(move.replaced_scores) if move.replaced or move.replaced_scores else "nothing replaced",
        ]
        for move in reversed(history)
    ]
    shown = parts.scroll(parts.table(HEAD, rows, class_name="moves"), "All moves of the alias")
    nothing = html.P("No move has been read yet.", className="hint")
    return parts.panel("moves", "What was in production", "The latest first.", [shown if rows else nothing])


def _has(scores: dict, key: str) -> bool:
    return isinstance(scores.get(key), int | float)


def _score(scores: dict) -> str:
    return f"{scores['r2']:.3f}" if _has(scores, "r2") else "not recorded"


def _explanation(name: str, figure: dict, says: str) -> html.Div:
    """Return a figure as it was logged, without the title that the panel says already."""
    layout = {key: value for key, value in figure.get("layout", {}).items() if key != "title"}
    figure = {**figure, "layout": layout | {"margin": {"l": 48, "r": 12, "t": 40, "b": 44}}}
    drawn = parts.graph(name, figure, says, "chart middle wide" if name == "responses" else "chart middle")
    return parts.scroll(drawn, says) if name == "responses" else drawn
