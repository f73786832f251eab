"""The decision whether a candidate replaces the model in production. Nothing of the server is read or changed here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mlflow_gate.contest import LEAST_BLOCKS, PAIRED_TEST, Contest
from mlflow_gate.errors import ConfigError
from mlflow_gate.rules import Check, Limits, Rule, judge
from mlflow_gate.scores import Scores

UNDECLARED = "its run does not declare what it learned from"
HELD_OUT = "held-out rows"
UNLEARNED = "held-out rows that neither model learned from"
VETO = "rolled back from"


@dataclass(frozen=True)
class Evaluation:
    """A model before the gate: its scores, or the ``trouble`` that it cannot be loaded or cannot predict.

    ``is_declared`` tells whether its run declares what it learned from; ``learned_rows`` counts the held-out rows
    among these, and ``source`` names the data.
    """

    scores: Scores | None = None
    trouble: str | None = None
    is_declared: bool = True
    learned_rows: int = 0
    source: str = ""


@dataclass(frozen=True)
class Decision:
    """The verdict on a candidate, and its reasons.

    ``disqualified`` says why the champion's scores do not count; ``forced`` is true when a person overruled the gate;
    ``experiment`` is the experiment of DVC that decided, in which nothing moves. ``notes`` are later findings on a
    model that is in production already. ``production`` is what is in production after the decision.
    """

    promoted: bool
    reason: str
    rules: tuple[Rule, ...] = ()
    candidate: Scores | None = None
    champion: Scores | None = None
    disqualified: str | None = None
    forced: bool = False
    learned_from: str = ""
    experiment: str | None = None
    notes: tuple[str, ...] = ()
    run_id: str = ""
    production: Mapping[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> list[dict[str, str]]:
        """The rules for a person: a row each."""
        verdicts = ("failed", "passed")
        return [
            {"rule": rule.label, "found": rule.text,
             "allowed": rule.limit, "verdict": verdicts[rule.passed]}
            for rule in self.rules
        ]  # fmt: skip

    @property
    def next_steps(self) -> list[str]:
        """What to do about each rule that failed, for a person; empty for a candidate that passed."""
        return [f"{rule.name}: {rule.next_step}" for rule in self.rules if not rule.passed and rule.next_step]

    @property
    def words(self) -> str:
        """The verdict, and after a refusal the next steps, a line each."""
        lines = [self.reason, *self.notes]
        if not self.promoted and not self.experiment:
            lines += [f"  next: {step}" for step in self.next_steps]
            if self.candidate is None:
                return "\n".join(lines)
            command = "`mlflow-gate promote --force --why REASON`, in Python `force=True, why=REASON`"
            lines.append(f"  or overrule the gate: {command}; who and why are recorded")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the decision as JSON-able values; NaN and infinity become None."""
        scores = {name: each.as_dict() if (each := getattr(self, name)) else None for name in ("candidate", "champion")}
        return jsonable(asdict(replace(self, candidate=None, champion=None)) | scores)


def decide(
    candidate: Evaluation, champion: Evaluation | None, rules: Mapping[str, Limits | Check], contest: Contest | None
) -> Decision:
    """Decide whether a candidate replaces the champion; both were scored on the same held-out rows.

    Without a champion, or with one that is disqualified, the candidate must pass only the rules. A champion is
    disqualified when it cannot predict, its metrics are not numbers, or its run does not declare what it learned from.
    A champion that learned from some of the rows refuses the candidate: no rows are left to compare them on.

    >>> from mlflow_gate.rules import read_rules
    >>> scored = Evaluation(Scores({"accuracy": 0.7}, held_out="9f", rows=100))
    >>> decide(scored, None, read_rules({"accuracy": {"min": 0.8}}), None).reason
    'refused: accuracy: 0.7 (allowed: >= 0.8)'
    """
    scores, beaten = candidate.scores, champion.scores if champion else None
    disqualified = None if champion is None else _disqualification(champion, contest)
    findings = [Rule("loading", candidate.trouble or "it loads and predicts", "it loads and predicts", bool(scores))]
    if scores is not None:
        findings += _rules(candidate, scores, rules)
        if champion is not None and beaten is not None and disqualified is None:
            if scores.held_out != beaten.held_out:
                raise ValueError("candidate and champion were scored on different rows")
            if champion.learned_rows:
                value = f"too few: of {beaten.rows} the model in production learned from {champion.learned_rows}"
                limit = f"at least {LEAST_BLOCKS} blocks of them"
                step = "wait for more data that is new to both, or hold out rows that neither learned"
                findings.append(Rule(UNLEARNED, value, limit, passed=False, next_step=step))
            elif contest is not None:
                findings += contest.judge(scores, beaten)
    failed = [rule for rule in findings if not rule.passed]
    counted = beaten if disqualified is None else None
    if failed or scores is None:
        reason = "refused: " + "; ".join(map(str, failed))
    elif champion is None:
        reason = "promoted: every rule passed and nothing was in production yet"
    elif counted is None:
        reason = f"promoted: every rule passed and the champion is disqualified: {disqualified}"
    elif contest is None:
        reason = "promoted: every rule passed, and no contest is asked for"
    else:
        tested = next((rule for rule in findings if rule.name == PAIRED_TEST), None)
        verb = "is in a near-tie with" if tested else "beats"
        figure, other = (each.metrics[contest.metric] for each in (scores, counted))
        reason = f"promoted: {contest.name or contest.metric} {figure:.4f} {verb} the champion's {other:.4f}"
        reason += f", and its errors in blocks are smaller (p {tested.text})" if tested else ""
    return Decision(not failed, reason, tuple(findings), scores, counted, disqualified, learned_from=candidate.source)


def force(decision: Decision) -> Decision:
    """Return the decision of a person who overrules the gate; reason and rules still say what the gate found."""
    if decision.promoted or decision.candidate is None:
        return decision
    reason = f"forced against the gate, which said: {decision.reason}"
    return replace(decision, promoted=True, reason=reason, forced=True)


def refuse(decision: Decision, rule: Rule) -> Decision:
    """Return the decision with one more rule that failed."""
    reason = f"refused: {rule}" if decision.promoted else f"{decision.reason}; {rule}"
    return replace(decision, promoted=False, reason=reason, rules=(*decision.rules, rule))


def check_refit(decision: Decision, refitted: Evaluation, rules: Mapping[str, Limits | Check]) -> Decision:
    """Return the decision, refused if the refit of what passed breaks a rule; it has learned the rows."""
    verdict = decide(replace(refitted, is_declared=True), None, rules, None)
    if verdict.promoted:
        return decision
    step = "look at the rows that only the refit has learned"
    value = "; ".join(str(rule) for rule in verdict.rules if not rule.passed)
    return refuse(decision, Rule("refit on all rows", value, "every rule passed", passed=False, next_step=step))


def hold(decision: Decision, experiment: str | None) -> Decision:
    """Return the decision as made in an ``experiment`` of DVC, which moves nothing; the reason keeps the verdict."""
    if experiment is None or not decision.promoted:
        return replace(decision, experiment=experiment)
    reason = f"not moved: in the experiment {experiment} of DVC the gate only decides; its verdict: {decision.reason}"
    return replace(decision, promoted=False, reason=reason, experiment=experiment)


def _rules(candidate: Evaluation, scores: Scores, rules: Mapping[str, Limits | Check]) -> Iterator[Rule]:
    """Yield the findings that do not depend on a champion."""
    numbers = "all are numbers"
    wrong = [name for name, value in scores.metrics.items() if not math.isfinite(value)]
    step = "look at what the model predicts for the held-out rows: NaN or infinity is among it" if wrong else ""
    value = f"not numbers: {', '.join(wrong)}" if wrong else numbers
    yield Rule("metrics", value, numbers, not wrong, next_step=step)
    yield from judge(rules, scores)
    new = "new to it, as its run declares"
    if not candidate.is_declared:
        step = "call mlflow_gate.log_learned(keys) in the run that trains it"
        yield Rule(HELD_OUT, UNDECLARED, new, passed=False, next_step=step)
    else:
        count = candidate.learned_rows
        value = f"it learned from {count} of {scores.rows}" if count else new
        step = "hold out rows that it did not learn from" if count else ""
        yield Rule(HELD_OUT, value, new, not count, next_step=step)


def _disqualification(champion: Evaluation, contest: Contest | None) -> str | None:
    if champion.scores is None:
        return champion.trouble or "it cannot predict"
    if contest and not math.isfinite(contest.figure(champion.scores)):
        return f"its {contest.metric} is not a number"
    return None if champion.is_declared else UNDECLARED


def jsonable(value: Any) -> Any:
    """Return a value as JSON has it; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(name): jsonable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_decision(decision: Path | str | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return a decision as its JSON says it, or that of a file; None where there is no file."""
    if decision is None or isinstance(decision, Mapping):
        return decision
    try:
        return json.loads(Path(decision).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        expected = "JSON as `Decision.as_dict` returns it"
        raise ConfigError(f"{decision} holds no decision.", value=error, expected=expected) from None
