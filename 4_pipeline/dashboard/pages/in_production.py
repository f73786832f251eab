"""Model: why a version is in production, its lineage, its important inputs and its predecessors."""

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
    "importance": ("Which inputs matter", "Permutation importance: the loss of R² when one input is shuffled."),
    "responses": ("How predictions respond", "Partial dependence: the mean prediction by the value of one input."),
}
# Label and format of each score.
MEASURES = {"r2": ("R²", "{:.3f}"), "mae": ("Mean absolute error", "{:.2f} {unit}")}
MEASURES |= {"bias_percent": ("Bias", "{:+.1f} % of the mean")}
SIGNS = {"<=": "at most", ">=": "at least"}
RULES_HEAD = ["Rule", "Value", "Limit", "Result"]
RESULTS = {True: "✓\N{NO-BREAK SPACE}passed", False: "✗\N{NO-BREAK SPACE}failed"}
HEAD = ["Version", "Move", "Time", "By, and reason", "R² (held-out rows)", "R² of its predecessor on the same rows"]


def page(snapshot: Snapshot, _query: dict[str, str]) -> list:
    """Return the panels on the model in production."""
    if (champion := snapshot.champion) is None:
        return [parts.panel("in-production", "Model in production", snapshot.missing("champion"), [])]
    explained = []
    for name, (title, hint) in EXPLANATIONS.items():
        if figure := snapshot.record.explanations.get(name):
            layout = {key: value for key, value in figure.get("layout", {}).items() if key != "title"}  # in the panel
            figure = {**figure, "layout": layout | {"margin": {"l": 48, "r": 12, "t": 40, "b": 44}}}
            graph = parts.graph(name, figure, title, "chart" if name == "responses" else "chart middle")
            explained.append(parts.panel(f"{name}-panel", title, hint, [graph]))
    move, baseline_r2 = snapshot.move, snapshot.comparison.baseline_r2 if snapshot.comparison else {}
    return [
        html.Div([_facts(champion, move, baseline_r2), *explained[:1]], className="columns"),
        *([_gate(move.findings)] if move and move.findings else []),
        *_challenger(champion.production, snapshot.record.decision),
        _lineage(snapshot.record.lineage),
        *explained[1:],
        _moves(snapshot.record.history),
    ]


def _facts(champion: Champion, move: Move | None, baseline_r2: dict[str, float]) -> html.Section:
    """Return the panel with the reason for the alias's move, and the scores of the version and the baselines."""
    coverage, run_url = champion.model.coverage, champion.production.run_url
    scores = move.scores if move else {}
    reasons = [move.why if move.why != PIPELINE_WHY else None, move.reason] if move else []
    facts = {"Reason": ", ".join(filter(None, reasons)) or "not recorded"}
    for measure, (name, template) in MEASURES.items():
        for target in problem.TARGETS:
            if (score := scores.get(target.metric(measure))) is not None:
                facts[f"{name}, {target.key}"] = template.format(score, unit=target.unit)
    facts["R² of baselines"] = "; ".join(f"{r2:.3f} ({name})" for name, r2 in baseline_r2.items()) or "not known"
    band = f"The error band has a nominal coverage of {coverage:.0%}." if coverage else "The model has no error band."
    content = [parts.facts([*facts.items()])]
    if run_url:
        content.append(html.P(parts.external_link("Run in MLflow", run_url, id="run-link")))
    return parts.panel("in-production", "Why this version is in production", band, content)


def _gate(findings: list[dict]) -> html.Section:
    rules = [Finding(**finding) for finding in findings]
    limits = (re.sub("[<>]=", lambda sign: SIGNS[sign[0]], finding.limit) for finding in rules)
    rows = [
        [finding.label, parts.copyable(finding.text), limit, RESULTS[finding.passed]]
        for finding, limit in zip(rules, limits, strict=True)
    ]
    passed = sum(finding.passed for finding in rules)
    table = parts.table("Rules of the gate", RULES_HEAD, rows, "words")
    return parts.panel("gate", f"Gate: {passed} of {len(rules)} rules passed", "Values when the gate decided.", [table])


def _challenger(production: Production, decision: dict[str, Any]) -> list:
    """Return the panel on the last candidate if the gate kept the version in production, else an empty list."""
    is_current = (decision.get("production") or {}).get("version") == production.version
    if decision.get("promoted", True) or not is_current or decision.get("model_uri") == production.evaluated.source:
        return []
    names = {"champion": f"version {production.version}, in production", "candidate": "the last candidate"}
    scores = {name: decision[name] for name in names if decision.get(name)}
    figure = figures.weekly_errors({names[name]: [*score["blocks"].values()] for name, score in scores.items()})
    r2_scores = ", ".join(f"{names[name]} {_score(score['metrics'])}" for name, score in scores.items())
    content = [parts.graph("weekly-errors", figure, "Errors by week", "chart low")]
    about = f"{decision['reason'].removeprefix('refused: ')}. R²: {r2_scores}."
    about += " The figure shows the errors by week, in standard deviations of each target."
    return [parts.panel("challenger", "The last candidate was not promoted", about, content)]


def _lineage(links: tuple[Link, ...]) -> html.Section:
    boxes = [html.Li(_box(link), className=None if link.known else "unknown") for link in links]
    nothing = html.P("The lineage is still being loaded.", className="hint")
    hint = "As recorded with the model: data, code, run and decision, each with its link."
    content = html.Ol(boxes, className="chain") if boxes else nothing
    return parts.panel("lineage", "Lineage: from the data to production", hint, [content])


def _box(link: Link) -> list:
    name = parts.copyable(link.name)
    # Any client can write tags, so a recorded URL may be a `javascript:` link.
    if link.url and link.url.startswith(("http://", "https://")):
        name = parts.external_link(parts.readable_times(link.name), link.url)
    facts = [
        html.Div([html.Dt(parts.readable_times(key)), html.Dd(parts.copyable(str(fact)))])
        for key, fact in link.facts.items()
        if not str(fact).startswith(link.name.split()[-1])  # a commit's name already contains its hash
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
    table = parts.table("Versions that have been in production", HEAD, rows, "moves")
    nothing = html.P("The history is still being loaded.", className="hint")
    return parts.panel("moves", "Versions in production so far", "Latest first.", [table if rows else nothing])


def _score(scores: dict) -> str:
    return f"{scores['r2']:.3f}" if isinstance(scores.get("r2"), int | float) else "not recorded"
