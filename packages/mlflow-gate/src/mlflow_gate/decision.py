"""The decision whether a candidate replaces the champion. Nothing of the server is read or changed here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mlflow_gate.contest import LEAST_BLOCKS, PAIRED_TEST, Contest
from mlflow_gate.errors import ConfigError
from mlflow_gate.rules import Finding, Rules, Scores, judge

UNDECLARED = "its run does not declare its training rows"
RENUMBERED = "; the keys count from 0: if that is the work of reset_index, keep the index of the whole table"
HELD_OUT = "held-out rows"
UNLEARNED = "held-out rows that neither model was trained on"
BLOCKED = "rolled back from"
CHAMPION = "model in production"


@dataclass(frozen=True)
class Evaluation:
    """A model before the gate: its scores, or the ``trouble`` that it cannot be loaded or cannot predict.

    ``is_there`` is false for a model whose files are gone, ``is_declared`` for one whose run ``run_id`` declares no
    training rows. ``learned_rows`` counts the held-out rows among these, or ``unknown`` says why they cannot be
    counted; ``are_renumbered`` says that the keys of the held-out rows count from 0.
    """

    scores: Scores | None = None
    trouble: str | None = None
    is_declared: bool = True
    learned_rows: int = 0
    unknown: str = ""
    is_there: bool = True
    are_renumbered: bool = False
    run_id: str = ""


@dataclass(frozen=True)
class Decision:
    """The decision on a candidate, and its reasons.

    ``disqualified`` says why the champion's scores do not count, ``forced`` that a person overruled the gate.
    ``experiment`` is the experiment of DVC that decided, in which nothing moves, ``production`` what is in production
    after the decision, and ``metric`` that of the contest. ``model_uri`` is the candidate, a model of the run
    ``run_id``.
    """

    promoted: bool
    reason: str
    findings: tuple[Finding, ...] = ()
    candidate: Scores | None = None
    champion: Scores | None = None
    disqualified: str | None = None
    forced: bool = False
    experiment: str | None = None
    run_id: str = ""
    model_uri: str = ""
    production: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""

    @property
    def table(self) -> list[dict[str, str]]:
        """The findings for a person: a row each."""
        names, results = ("rule", "found", "allowed", "result"), ("failed", "passed")
        rows = ((each.label, each.text, each.limit, results[each.passed]) for each in self.findings)
        return [dict(zip(names, row, strict=True)) for row in rows]

    @property
    def failed(self) -> list[Finding]:
        """The findings of rules that the candidate did not pass."""
        return [each for each in self.findings if not each.passed]

    @property
    def words(self) -> str:
        """The decision, and after a refusal the next steps, a line each."""
        lines = [self.reason]
        if self.experiment:
            lines.append(f"  nothing moves: the experiment {self.experiment} of DVC")
        elif not self.promoted:
            lines += [f"  next: {each.name}: {each.next_step}" for each in self.failed if each.next_step]
            if self.candidate is not None:
                command = "`mlflow-gate promote --force --why REASON`, in Python `force=True, why=REASON`"
                lines.append(f"  or overrule the gate: {command}; who and why are recorded")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the decision as JSON-able values, with its `words`; NaN and infinity become None."""
        scores = {name: each.as_dict() if (each := getattr(self, name)) else None for name in ("candidate", "champion")}
        content = asdict(replace(self, candidate=None, champion=None)) | scores | {"words": self.words}
        return json.loads(json.dumps(content, default=str), parse_constant=lambda _: None)


def decide(candidate: Evaluation, champion: Evaluation | None, rules: Rules, contest: Contest | None) -> Decision:
    """Decide whether a candidate replaces the champion; both were scored on the same held-out rows.

    Without a champion or a contest, or with a champion that is disqualified, the candidate must pass only the rules. A
    champion is disqualified when it is there and cannot predict, or its metric is not a number. With a champion whose
    files are gone, or whose training rows are not declared or among the held-out rows, the candidate is refused.
    """
    scores, disqualified, compared = candidate.scores, None, None
    works, step = "it loads and predicts", "" if scores else "load it and predict the held-out rows, as the gate does"
    findings = [Finding("loading", candidate.trouble or works, works, bool(scores), next_step=step)]
    if scores is not None:
        if contest is not None:
            contest.figure(scores)
        findings += _own_findings(candidate, scores, rules)
        if champion is not None and contest is not None:
            disqualified = _disqualification(champion, contest)
            obstacle = _obstacle(champion) if disqualified is None else None
            if obstacle:
                findings.append(obstacle)
            elif disqualified is None and champion.scores is not None:
                compared = champion.scores
                if scores.held_out != compared.held_out:
                    raise ValueError("candidate and champion were scored on different rows")
                findings += contest.judge(scores, compared)
    failed = [each for each in findings if not each.passed]
    if failed or scores is None:
        reason = "refused: " + "; ".join(map(str, failed))
    elif champion is None:
        reason = "promoted: all rules passed, nothing was in production yet"
    elif contest is None:
        reason = "promoted: all rules passed (no comparison with the champion configured)"
    elif compared is None:
        reason = f"promoted: all rules passed, the champion is disqualified: {disqualified}"
    else:
        tested = next((each for each in findings if each.name == PAIRED_TEST), None)
        verb = "is in a near-tie with" if tested else "beats"
        figure, other = (each.metrics[contest.metric] for each in (scores, compared))
        reason = f"promoted: {contest.name or contest.metric} {figure:.4f} {verb} the champion's {other:.4f}"
        reason += f", with smaller block errors (p {tested.text})" if tested else ""
    counted = champion.scores if champion and disqualified is None else None
    metric = contest.metric if contest else ""
    return Decision(not failed, reason, tuple(findings), scores, counted, disqualified, metric=metric)


def force(decision: Decision) -> Decision:
    """Return the decision of a person who overrules the gate; reason and findings still say what the gate found."""
    if decision.promoted or decision.candidate is None:
        return decision
    return replace(decision, promoted=True, reason=f"forced; the gate said: {decision.reason}", forced=True)


def refuse(decision: Decision, finding: Finding) -> Decision:
    """Return the decision with one more rule that failed."""
    reason = f"refused: {finding}" if decision.promoted else f"{decision.reason}; {finding}"
    return replace(decision, promoted=False, reason=reason, findings=(*decision.findings, finding))


def check_refit(decision: Decision, refitted: Evaluation, rules: Rules) -> Decision:
    """Return the decision, refused if the refit of what passed breaks a rule; it has learned the rows."""
    failed = decide(replace(refitted, is_declared=True), None, rules, None).failed
    step, value = "look at the rows that only the refit has learned", "; ".join(map(str, failed))
    finding = Finding("refit on all rows", value, "all rules passed", passed=False, next_step=step)
    return refuse(decision, finding) if failed else decision


def in_production(again: Evaluation, rules: Rules, contest: Contest | None, *, has_alias: bool) -> Decision:
    """Return the decision on the champion itself, evaluated again; without the alias it has to pass the rules."""
    decision = decide(again, None, rules, None)
    if not has_alias:
        passed = "promoted again: all rules passed, the alias was unset"
        return replace(decision, reason=passed if decision.promoted else decision.reason)
    scores, metric = again.scores, contest.metric if contest else ""
    figure = f"{metric} {contest.figure(scores):.4f}, " if contest and scores else ""
    rows = f" on {' to '.join(scores.period or ()) or f'rows {scores.held_out}'}" if scores else ""
    result = "all rules pass" if decision.promoted else f"it would be {decision.reason}"
    words = f"already in production; re-evaluated{rows}: {figure}{result}"
    return replace(decision, promoted=True, reason=words, champion=scores, metric=metric)


def _own_findings(candidate: Evaluation, scores: Scores, rules: Rules) -> Iterator[Finding]:
    """Yield the findings that do not depend on a champion."""
    figures = {**scores.metrics, **{f"block {name}": error for name, error in scores.blocks.items()}}
    numbers, wrong = "all are numbers", [name for name, value in figures.items() if not math.isfinite(value)]
    step = "look at what the model predicts for the held-out rows: NaN or infinity is among it" if wrong else ""
    found = f"not numbers: {', '.join(wrong)[:200]}" if wrong else numbers
    yield Finding("metrics", found, numbers, not wrong, "", step)
    yield from judge(rules, scores)
    new, step = "not in the model's training rows", ""
    if not candidate.is_declared:
        value, step = UNDECLARED, "call mlflow_gate.log_learned(keys) in the run that trains it"
    elif candidate.unknown:
        value, step = candidate.unknown, "declare keys of the same kind as those of the held-out rows"
    elif count := candidate.learned_rows:
        value, step = f"it learned from {count} of {scores.rows}", "hold out rows that it did not learn from"
        step += RENUMBERED * candidate.are_renumbered
    else:
        value = new
    yield Finding(HELD_OUT, value, new, not step, next_step=step)


def _disqualification(champion: Evaluation, contest: Contest) -> str | None:
    if not champion.is_there:
        return None
    if champion.scores is None:
        return champion.trouble or "it cannot predict"
    return None if math.isfinite(contest.figure(champion.scores)) else f"its {contest.metric} is not a number"


def _obstacle(champion: Evaluation) -> Finding | None:
    """Return the finding on a champion with which nothing can be compared."""
    if not champion.is_there:
        step, value = "restore its files, or roll back to another version", f"not there: {champion.trouble}"
        return Finding(CHAMPION, value, "a champion to compare the candidate with", passed=False, next_step=step)
    if not champion.is_declared:
        step = f"declare them (with mlflow.start_run(run_id={champion.run_id!r}): log_learned(keys)), or "
        step = f"{step if champion.run_id else ''}overrule the gate: the next champion will declare them"
        return Finding(CHAMPION, UNDECLARED, "declared training rows", passed=False, next_step=step)
    if champion.unknown:
        step, limit = "hold out rows with keys of that kind", "keys that can be compared with its training rows"
        return Finding(UNLEARNED, champion.unknown, limit, passed=False, next_step=step)
    if not champion.learned_rows or champion.scores is None:
        return None
    value = f"too few: of {champion.scores.rows} the model in production learned from {champion.learned_rows}"
    step = "wait for more data that is new to both, or hold out rows that neither was trained on; rows of other data"
    step += f" are told apart by another `population` in log_learned{RENUMBERED * champion.are_renumbered}"
    if not champion.scores.blocks:
        step += "; `evaluate` returns no blocks, by which the rest could be enough"
    limit = f"at least {LEAST_BLOCKS} blocks of them"
    return Finding(UNLEARNED, value, limit, passed=False, next_step=step)


def read_decision(file: Path | str | None) -> Mapping[str, Any] | None:
    """Return the decision in a file, as `Decision.as_dict` returns it; None where there is no file."""
    try:
        return dict(json.loads(Path(file).read_text())) if file else None
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        expected = "JSON as `Decision.as_dict` returns it"
        raise ConfigError(f"{file} holds no decision.", value=error, expected=expected) from None
