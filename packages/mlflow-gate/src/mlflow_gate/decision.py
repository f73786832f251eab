"""Decide whether a candidate replaces the champion, without access to the server."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mlflow_gate.comparison import MIN_BLOCKS, PAIRED_TEST, Comparison
from mlflow_gate.errors import ConfigError
from mlflow_gate.rules import Finding, Rules, Scores, check

UNDECLARED = "its run does not declare its training rows"
RENUMBERED = "; the keys count from 0: if reset_index created them, keep the index of the whole table instead"
HELD_OUT = "held-out rows"
UNSEEN = "held-out rows in neither model's training rows"
BLOCKED = "rolled back before"
CHAMPION = "model in production"


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a model on the held-out rows.

    Parameters
    ----------
    scores : Scores, optional
        None if the model cannot be loaded or cannot predict.
    problem : str, optional
        Why there are no scores.
    is_declared : bool
        Whether the model's run declares its training rows.
    seen_rows : int
        Number of held-out rows among the training rows.
    unknown : str
        Why the seen rows cannot be counted; empty if they can.
    exists : bool
        False if the model's files were deleted.
    are_renumbered : bool
        Whether the keys of the held-out rows count from 0.
    run_id : str
        The run in which the model's training rows can be declared; empty if it was deleted.
    """

    scores: Scores | None = None
    problem: str | None = None
    is_declared: bool = True
    seen_rows: int = 0
    unknown: str = ""
    exists: bool = True
    are_renumbered: bool = False
    run_id: str = ""


@dataclass(frozen=True)
class Decision:
    """The decision on a candidate and its reasons, as returned by `Gate.evaluate`, `Gate.promote` and `decide`.

    Parameters
    ----------
    promoted : bool
        Whether the candidate goes into production.
    reason : str
        The decision in one line.
    findings : tuple of Finding
        The result of each rule.
    candidate, champion : Scores, optional
        The scores of both models.
    disqualified : str, optional
        Why the champion was left out of the comparison.
    forced : bool
        Whether somebody overruled the gate.
    experiment : str, optional
        The DVC experiment in which the gate decided; experiments never move the alias.
    run_id, model_uri : str
        The candidate's run and model.
    production : mapping
        The version in production after the decision.
    metric : str
        The compared metric.
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
        """The findings as rows of a table to print."""
        names, results = ("rule", "found", "allowed", "result"), ("failed", "passed")
        rows = ((each.label, each.text, each.limit, results[each.passed]) for each in self.findings)
        return [dict(zip(names, row, strict=True)) for row in rows]

    @property
    def failed(self) -> list[Finding]:
        """The findings that the candidate failed."""
        return [each for each in self.findings if not each.passed]

    @property
    def words(self) -> str:
        """The decision and, after a refusal, one line for each next step."""
        lines = [self.reason]
        if self.experiment:
            lines.append(f"  the alias does not move, because this is the DVC experiment {self.experiment}")
        elif not self.promoted:
            lines += [f"  next: {each.name}: {each.next_step}" for each in self.failed if each.next_step]
            if self.candidate is not None:
                command = "`mlflow-gate promote --force --why REASON`, in Python `force=True, why=REASON`"
                lines.append(f"  or overrule the gate: {command}; the user and the reason are recorded")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the decision as JSON-serializable values, with its `words`; NaN and infinity become None."""
        scores = {name: each.as_dict() if (each := getattr(self, name)) else None for name in ("candidate", "champion")}
        content = asdict(replace(self, candidate=None, champion=None)) | scores | {"words": self.words}
        return json.loads(json.dumps(content, default=str), parse_constant=lambda _: None)


def decide(candidate: Evaluation, champion: Evaluation | None, rules: Rules, comparison: Comparison | None) -> Decision:
    """Decide whether a candidate replaces the champion.

    Without a champion or a comparison, or with a disqualified champion, only the rules count. A champion whose files
    exist is disqualified if it cannot predict or its metric is not a number. The candidate is refused if the champion's
    files were deleted, or if either model's training rows are undeclared or among the held-out rows.

    Parameters
    ----------
    candidate : Evaluation
        The evaluation of the candidate.
    champion : Evaluation, optional
        The evaluation of the champion, on the same held-out rows.
    rules : mapping
        `Rule`s by metric, or functions of `Scores` by name.
    comparison : Comparison, optional
        How the candidate and the champion are compared.

    Returns
    -------
    Decision
    """
    scores, disqualified, compared = candidate.scores, None, None
    works, step = (
        "loads and predicts",
        "" if scores else "to find the error, load the model and predict the held-out rows, as the gate does",
    )
    findings = [Finding("loading", candidate.problem or works, works, bool(scores), next_step=step)]
    if scores is not None:
        if comparison is not None:
            comparison.value(scores)
        findings += _candidate_findings(candidate, scores, rules)
        if champion is not None and comparison is not None:
            disqualified = _disqualification(champion, comparison)
            obstacle = _obstacle(champion) if disqualified is None else None
            if obstacle:
                findings.append(obstacle)
            elif disqualified is None and champion.scores is not None:
                compared = champion.scores
                if scores.held_out != compared.held_out:
                    raise ValueError("the candidate and the champion were scored on different rows")
                findings += comparison.compare(scores, compared)
    failed = [each for each in findings if not each.passed]
    if failed or scores is None:
        reason = "refused: " + "; ".join(map(str, failed))
    elif champion is None:
        reason = "promoted: all rules passed, and nothing was in production yet"
    elif comparison is None:
        reason = "promoted: all rules passed (no champion comparison is configured)"
    elif compared is None:
        reason = f"promoted: all rules passed, and the champion is disqualified: {disqualified}"
    else:
        tested = next((each for each in findings if each.name == PAIRED_TEST), None)
        verb = "is in a near-tie with" if tested else "beats"
        value, other = (each.metrics[comparison.metric] for each in (scores, compared))
        reason = f"promoted: {comparison.name or comparison.metric} {value:.4f} {verb} the champion's {other:.4f}"
        reason += f", with smaller block errors (p {tested.text})" if tested else ""
    counted = champion.scores if champion and disqualified is None else None
    metric = comparison.metric if comparison else ""
    return Decision(not failed, reason, tuple(findings), scores, counted, disqualified, metric=metric)


def force(decision: Decision) -> Decision:
    """Return the decision after a person overruled it; the reason and findings still show the gate's refusal."""
    if decision.promoted or decision.candidate is None:
        return decision
    return replace(decision, promoted=True, reason=f"forced; the gate's decision: {decision.reason}", forced=True)


def refuse(decision: Decision, finding: Finding) -> Decision:
    """Return the decision as a refusal, with ``finding`` as an additional failed rule."""
    reason = f"refused: {finding}" if decision.promoted else f"{decision.reason}; {finding}"
    return replace(decision, promoted=False, reason=reason, findings=(*decision.findings, finding))


def check_refit(decision: Decision, refitted: Evaluation, rules: Rules) -> Decision:
    """Refuse the candidate if its refit, which was also trained on the held-out rows, fails a rule."""
    failed = decide(replace(refitted, is_declared=True), None, rules, None).failed
    step, value = "look at the rows that only the refit was trained on", "; ".join(map(str, failed))
    finding = Finding("refit on all rows", value, "all rules passed", passed=False, next_step=step)
    return refuse(decision, finding) if failed else decision


def decide_on_champion(
    champion: Evaluation, rules: Rules, comparison: Comparison | None, *, has_alias: bool
) -> Decision:
    """Return the decision on a candidate that is the champion; the rules are binding only if the alias was removed."""
    decision = decide(champion, None, rules, None)
    if not has_alias:
        passed = "promoted again: all rules passed, and the alias was unset"
        return replace(decision, reason=passed if decision.promoted else decision.reason)
    scores, metric = champion.scores, comparison.metric if comparison else ""
    value = f"{metric} {comparison.value(scores):.4f}, " if comparison and scores else ""
    rows = f" on {' to '.join(scores.period or ()) or f'rows {scores.held_out}'}" if scores else ""
    result = "all rules pass" if decision.promoted else f"it would be {decision.reason}"
    reason = f"already in production; re-evaluated{rows}: {value}{result}"
    return replace(decision, promoted=True, reason=reason, champion=scores, metric=metric)


def _candidate_findings(candidate: Evaluation, scores: Scores, rules: Rules) -> Iterator[Finding]:
    """Yield the findings that do not depend on the champion."""
    values = {**scores.metrics, **{f"block {name}": error for name, error in scores.blocks.items()}}
    numbers, wrong = "all are finite", [name for name, value in values.items() if not math.isfinite(value)]
    step = "look for NaN or infinity in the model's predictions of the held-out rows" if wrong else ""
    value = f"not finite: {', '.join(wrong)[:200]}" if wrong else numbers
    yield Finding("metrics", value, numbers, not wrong, "", step)
    yield from check(rules, scores)
    new, step = "not in the model's training rows", ""
    if not candidate.is_declared:
        value, step = UNDECLARED, "call mlflow_gate.log_learned(keys) in the run that trains the model"
    elif candidate.unknown:
        value, step = candidate.unknown, "declare keys of the same kind as those of the held-out rows"
    elif count := candidate.seen_rows:
        value, step = f"it was trained on {count} of {scores.rows}", "hold out rows that the model was not trained on"
        step += RENUMBERED * candidate.are_renumbered
    else:
        value = new
    yield Finding(HELD_OUT, value, new, not step, next_step=step)


def _disqualification(champion: Evaluation, comparison: Comparison) -> str | None:
    if not champion.exists:
        return None
    if champion.scores is None:
        return champion.problem or "it cannot predict"
    return None if math.isfinite(comparison.value(champion.scores)) else f"its {comparison.metric} is not a number"


def _obstacle(champion: Evaluation) -> Finding | None:
    """Return, as a finding, why no candidate can be compared with the champion; None if one can be."""
    if not champion.exists:
        step, value = "restore the champion's files, or roll back to another version", f"deleted: {champion.problem}"
        return Finding(CHAMPION, value, "a champion to compare the candidate with", passed=False, next_step=step)
    if not champion.is_declared:
        step = f"declare its training rows (with mlflow.start_run(run_id={champion.run_id!r}): log_learned(keys)), or "
        step = f"{step if champion.run_id else ''}overrule the gate once: the new champion declares its own rows"
        return Finding(CHAMPION, UNDECLARED, "declared training rows", passed=False, next_step=step)
    if champion.unknown:
        step, limit = (
            "hold out rows with keys of the same kind",
            "keys of the same kind as in the champion's training rows",
        )
        return Finding(UNSEEN, champion.unknown, limit, passed=False, next_step=step)
    if not champion.seen_rows or champion.scores is None:
        return None
    value = f"too few: the model in production was trained on {champion.seen_rows} of {champion.scores.rows}"
    step = "wait for data that is new to both models, or hold out rows that neither was trained on; for different data"
    step += f" sets, pass a `population` for each to log_learned{RENUMBERED * champion.are_renumbered}"
    if not champion.scores.blocks:
        step += "; return blocks from `evaluate`: the other rows may be enough"
    limit = f"at least {MIN_BLOCKS} blocks of such rows"
    return Finding(UNSEEN, value, limit, passed=False, next_step=step)


def read_decision(file: Path | str | None) -> Mapping[str, Any] | None:
    """Return the decision in a JSON file, as written by `Decision.as_dict`; None if the file does not exist."""
    try:
        return dict(json.loads(Path(file).read_text())) if file else None
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        expected = "JSON as `Decision.as_dict` returns it"
        raise ConfigError(f"{file} is not a decision.", value=error, expected=expected) from None
