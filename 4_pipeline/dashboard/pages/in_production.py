"""Model: why the one in production is there, where it comes from, which inputs it uses, and its predecessors."""

from __future__ import annotations

import re
from typing import Any

from dash import html
from forecast import problem
from forecast.govern.gate import PIPELINE_WHY
from forecast.show import figures
from mlflow_gate import Finding, Link, Move, Production

from .. import parts
from ..follower import Snapshot
from ..predictions import Champion

PATH, TITLE = "/model", "Model"
EXPLANATIONS = {
    "importance": ("Which inputs matter", "By how much R² falls when the values of one input are shuffled."),
    "responses": ("How predictions respond", "The mean prediction for each value of an input, the others unchanged."),
}
# How each score is called, and how it is written.
MEASURES = {"r2": ("R²", "{:.3f}"), "mae": ("Mean absolute error", "{:.2f} {unit}")}
MEASURES |= {"bias_percent": ("Mean error", "{:+.1f} % of its mean")}
WORDS = {"<=": "at most", ">=": "at least"}  # how the gate writes limits, and how people do
RULES_HEAD = ["Rule of the gate", "Found", "Allowed", ""]
VERDICTS = {True: "✓\N{NO-BREAK SPACE}passed", False: "✗\N{NO-BREAK SPACE}failed"}
HEAD = ["Version", "How", "When", "Who and why", "R² (held-out hours)", "R² of the version before, on these"]


def page(snapshot: Snapshot, _query: dict[str, str]) -> list:
    """Return all that is known of the model in production."""
    if (champion := snapshot.champion) is None:
        return [parts.panel("in-production", "Model in production", snapshot.missing("champion"), [])]
    explained = []
    for name, (title, hint) in EXPLANATIONS.items():
        if figure := snapshot.record.explanations.get(name):
            layout = {key: value for key, value in figure.get("layout", {}).items() if key != "title"}  # the panel's
            figure = {**figure, "layout": layout | {"margin": {"l": 48, "r": 12, "t": 40, "b": 44}}}
            graph = parts.graph(name, figure, title, "chart" if name == "responses" else "chart middle")
            explained.append(parts.panel(f"{name}-panel", title, hint, [graph]))
    move, others = snapshot.move, snapshot.comparison.r2_without_model if snapshot.comparison else {}
    return [
        html.Div([_facts(champion, move, others), *explained[:1]], className="columns"),
        *([_gate(move.findings)] if move and move.findings else []),
        *_challenger(champion.production, snapshot.record.decision),
        _lineage(snapshot.record.lineage),
        *explained[1:],
        _moves(snapshot.record.history),
    ]


def _facts(champion: Champion, move: Move | None, others: dict[str, float]) -> html.Section:
    """Return why the version is in production, its scores, and the R2 of ``others`` without a model."""
    coverage, run_url = champion.model.coverage, champion.production.run_url
    scores = move.scores if move else {}
    reasons = [move.why if move.why != PIPELINE_WHY else None, move.reason] if move else []
    facts = {"Why": ", ".join(filter(None, reasons)) or "not recorded"}
    for measure, (name, form) in MEASURES.items():
        for target in problem.TARGETS:
            if (score := scores.get(target.metric(measure))) is not None:
                facts[f"{name}, {target.key}"] = form.format(score, unit=target.unit)
    facts["R² without a model"] = "; ".join(f"{r2:.3f} by {name}" for name, r2 in others.items()) or "not known"
    band = f"The error band promises {coverage:.0%} of the hours." if coverage else "No error band."
    content = [parts.facts([*facts.items()])]
    if run_url:
        content.append(html.P(parts.external_link("Its run in MLflow", run_url, id="run-link")))
    return parts.panel("in-production", "Why this model is in production", band, content)


def _gate(findings: list[dict]) -> html.Section:
    judged = [Finding(**finding) for finding in findings]
    limits = (re.sub("[<>]=", lambda sign: WORDS[sign[0]], finding.limit) for finding in judged)
    rows = [
        [finding.label, parts.copied(finding.text), limit, VERDICTS[finding.passed]]
        for finding, limit in zip(judged, limits, strict=True)
    ]
    passed = sum(finding.passed for finding in judged)
    table = parts.table("The rules of the gate", RULES_HEAD, rows, "words")
    return parts.panel("gate", f"The gate: passed {passed} of {len(judged)} rules", "When this version came.", [table])


def _challenger(production: Production, decision: dict[str, Any]) -> list:
    """Return the last candidate beside the model in production, if that was not replaced by it."""
    is_of_this = (decision.get("production") or {}).get("version") == production.version
    if decision.get("promoted", True) or not is_of_this or decision.get("model_uri") == production.evaluated.source:
        return []
    names = {"champion": f"version {production.version}, in production", "candidate": "the last candidate"}
    scores = {name: decision[name] for name in names if decision.get(name)}
    figure = figures.weekly_errors({names[name]: [*score["blocks"].values()] for name, score in scores.items()})
    r2_scores = ", ".join(f"{names[name]} {_score(score['metrics'])}" for name, score in scores.items())
    content = [parts.graph("weekly-errors", figure, "Errors by week", "chart low")]
    about = f"{decision['reason'].removeprefix('refused: ')}. R²: {r2_scores}."
    about += " Drawn are the errors by week, in standard deviations of each target."
    return [parts.panel("challenger", "The last candidate was not promoted", about, content)]


def _lineage(links: tuple[Link, ...]) -> html.Section:
    boxes = [html.Li(_box(link), className=None if link.known else "unknown") for link in links]
    nothing = html.P("The lineage has not been read yet.", className="hint")
    hint = "Each step as it was recorded; its link shows the thing itself."
    content = html.Ol(boxes, className="chain") if boxes else nothing
    return parts.panel("lineage", "From the data to production", hint, [content])


def _box(link: Link) -> list:
    name = parts.copied(link.name)
    # A recorded address could be anything, a script among others.
    if link.url and link.url.startswith(("http://", "https://")):
        name = parts.external_link(parts.readable_times(link.name), link.url)
    facts = [
        html.Div([html.Dt(parts.readable_times(key)), html.Dd(parts.copied(str(fact)))])
        for key, fact in link.facts.items()
        if not str(fact).startswith(link.name.split()[-1])  # a commit has its hash as its name
    ]
    return [
        html.P("Run in MLflow" if link.kind == "run" else link.kind.capitalize(), className="eyebrow"),
        html.P(name if link.known else "not recorded", className="name"),
        *([html.Details([html.Summary("Details"), html.Dl(facts)])] if facts else []),
    ]


def _moves(history: tuple[Move, ...]) -> html.Section:
    rows = [
        [
            move.version,
            move.action,
            parts.readable_time(move.when),
            ": ".join(filter(None, (move.who, move.why or move.reason))) or "not recorded",
            f"{_score(move.scores)} {move.held_out_rows}",
            _score(move.replaced_scores) if move.replaced or move.replaced_scores else "none",
        ]
        for move in reversed(history)
    ]
    table = parts.table("All versions that were in production", HEAD, rows, "moves")
    nothing = html.P("The history has not been read yet.", className="hint")
    return parts.panel("moves", "Versions in production so far", "The latest first.", [table if rows else nothing])


def _score(scores: dict) -> str:
    return f"{scores['r2']:.3f}" if isinstance(scores.get("r2"), int | float) else "not recorded"
