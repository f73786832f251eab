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
HELD_OUT = "held-out rows"
UNLEARNED = "held-out rows that neither model was trained on"
VETO = "rolled back from"
CHAMPION = "model in production"


@dataclass(frozen=True)
class Evaluation:
    """A model before the gate: its scores, or the ``trouble`` that it cannot be loaded or cannot predict.

    ``is_there`` is false for a model whose files are gone, ``is_declared`` for one whose run declares no training rows.
    ``learned_rows`` counts the held-out rows among these, or ``unknown`` says why they cannot be counted.
    """

    scores: Scores | None = None
    trouble: str | None = None
    is_declared: bool = True
    learned_rows: int = 0
    unknown: str = ""
    is_there: bool = True


@dataclass(frozen=True)
class Decision:
    """The verdict on a candidate, and its reasons.

    ``disqualified`` says why the champion's scores do not count, ``forced`` that a person overruled the gate.
    ``experiment`` is the experiment of DVC that decided, in which nothing moves, ``note`` a later finding on a model
    that is in production already, ``production`` what is in production after the decision, and ``metric`` that of the
    contest.
    """

    promoted: bool
    reason: str
    findings: tuple[Finding, ...] = ()
    candidate: Scores | None = None
    champion: Scores | None = None
    disqualified: str | None = None
    forced: bool = False
    experiment: str | None = None
    note: str = ""
    run_id: str = ""
    production: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""

    @property
    def table(self) -> list[dict[str, str]]:
        """The findings for a person: a row each."""
        names, verdicts = ("rule", "found", "allowed", "verdict"), ("failed", "passed")
        rows = ((each.label, each.text, each.limit, verdicts[each.passed]) for each in self.findings)
        return [dict(zip(names, row, strict=True)) for row in rows]

    @property
    def failed(self) -> list[Finding]:
        """The findings of rules that the candidate did not pass."""
        return [each for each in self.findings if not each.passed]

    @property
    def next_steps(self) -> list[str]:
        """What to do about each rule that failed, for a person; empty for a candidate that passed."""
        return [f"{each.name}: {each.next_step}" for each in self.failed if each.next_step]

    @property
    def words(self) -> str:
        """The verdict, and after a refusal the next steps, a line each."""
        lines = [self.reason, *filter(None, [self.note])]
        if not self.promoted and not self.experiment:
            lines += [f"  next: {step}" for step in self.next_steps]
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
    champion is disqualified when it is there and cannot predict, its metric is not a number, or its run does not
    declare its training rows. A champion that is gone, or that was trained on some of the rows, refuses the candidate.
    """
    scores, disqualified, beaten = candidate.scores, None, None
    works, step = "it loads and predicts", "" if scores else "load it and predict the held-out rows, as the gate does"
    findings = [Finding("loading", candidate.trouble or works, works, bool(scores), next_step=step)]
    if scores is not None:
        findings += _own_findings(candidate, scores, rules)
        if champion is not None and contest is not None:
            disqualified = _disqualification(champion, contest)
            obstacle = _obstacle(champion) if disqualified is None else None
            if obstacle:
                findings.append(obstacle)
            elif disqualified is None and champion.scores is not None:
                beaten = champion.scores
                if scores.held_out != beaten.held_out:
                    raise ValueError("candidate and champion were scored on different rows")
                findings += contest.judge(scores, beaten)
    failed = [each for each in findings if not each.passed]
    if failed or scores is None:
        reason = "refused: " + "; ".join(map(str, failed))
    elif champion is None:
        reason = "promoted: every rule passed and nothing was in production yet"
    elif contest is None:
        reason = "promoted: every rule passed, and no contest is asked for"
    elif beaten is None:
        reason = f"promoted: every rule passed and the champion is disqualified: {disqualified}"
    else:
        tested = next((each for each in findings if each.name == PAIRED_TEST), None)
        verb = "is in a near-tie with" if tested else "beats"
        figure, other = (each.metrics[contest.metric] for each in (scores, beaten))
        reason = f"promoted: {contest.name or contest.metric} {figure:.4f} {verb} the champion's {other:.4f}"
        reason += f", and its errors in blocks are smaller (p {tested.text})" if tested else ""
    counted = champion.scores if champion and disqualified is None else None
    metric = contest.metric if contest else ""
    return Decision(not failed, reason, tuple(findings), scores, counted, disqualified, metric=metric)


def force(decision: Decision) -> Decision:
    """Return the decision of a person who overrules the gate; reason and findings still say what the gate found."""
    words = f"forced against the gate, which said: {decision.reason}"
    is_overruled = not decision.promoted and decision.candidate is not None
    return replace(decision, promoted=True, reason=words, forced=True) if is_overruled else decision


def refuse(decision: Decision, finding: Finding) -> Decision:
    """Return the decision with one more rule that failed."""
    reason = f"refused: {finding}" if decision.promoted else f"{decision.reason}; {finding}"
    return replace(decision, promoted=False, reason=reason, findings=(*decision.findings, finding))


def check_refit(decision: Decision, refitted: Evaluation, rules: Rules) -> Decision:
    """Return the decision, refused if the refit of what passed breaks a rule; it has learned the rows."""
    verdict = decide(replace(refitted, is_declared=True), None, rules, None)
    if verdict.promoted:
        return decision
    step = "look at the rows that only the refit has learned"
    value = "; ".join(map(str, verdict.failed))
    return refuse(decision, Finding("refit on all rows", value, "every rule passed", passed=False, next_step=step))


def hold(decision: Decision, experiment: str | None) -> Decision:
    """Return the decision as made in an ``experiment`` of DVC, which moves nothing; the reason keeps the verdict."""
    if experiment is None or not decision.promoted:
        return replace(decision, experiment=experiment)
    reason = f"not moved: in the experiment {experiment} of DVC the gate only decides; its verdict: {decision.reason}"
    return replace(decision, promoted=False, reason=reason, experiment=experiment)


def _own_findings(candidate: Evaluation, scores: Scores, rules: Rules) -> Iterator[Finding]:
    """Yield the findings that do not depend on a champion."""
    numbers, wrong = "all are numbers", [name for name, value in scores.metrics.items() if not math.isfinite(value)]
    step = "look at what the model predicts for the held-out rows: NaN or infinity is among it" if wrong else ""
    yield Finding("metrics", f"not numbers: {', '.join(wrong)}" if wrong else numbers, numbers, not wrong, "", step)
    yield from judge(rules, scores)
    new, step = "not in the model's training rows", ""
    if not candidate.is_declared:
        value, step = UNDECLARED, "call mlflow_gate.log_learned(keys) in the run that trains it"
    elif candidate.unknown:
        value, step = candidate.unknown, "declare keys of the same kind as those of the held-out rows"
    elif count := candidate.learned_rows:
        value, step = f"it learned from {count} of {scores.rows}", "hold out rows that it did not learn from"
    else:
        value = new
    yield Finding(HELD_OUT, value, new, not step, next_step=step)


def _disqualification(champion: Evaluation, contest: Contest) -> str | None:
    if not champion.is_there:
        return None
    if champion.scores is None:
        return champion.trouble or "it cannot predict"
    if not math.isfinite(contest.figure(champion.scores)):
        return f"its {contest.metric} is not a number"
    return None if champion.is_declared else UNDECLARED


def _obstacle(champion: Evaluation) -> Finding | None:
    """Return the finding on a champion with which nothing can be compared."""
    if not champion.is_there:
        step, value = "restore its files, or roll back to another version", f"not there: {champion.trouble}"
        return Finding(CHAMPION, value, "a champion to compare the candidate with", passed=False, next_step=step)
    if champion.unknown:
        step, limit = "hold out rows with keys of that kind", "keys that can be compared with its training rows"
        return Finding(UNLEARNED, champion.unknown, limit, passed=False, next_step=step)
    if not champion.learned_rows or champion.scores is None:
        return None
    value = f"too few: of {champion.scores.rows} the model in production learned from {champion.learned_rows}"
    step = "wait for more data that is new to both, or hold out rows that neither was trained on; rows of other data"
    step += " are told apart by another `population` in log_learned"
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
