"""The gate: the decision whether a candidate replaces the model in production. Nothing is read or changed here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from workshop import problem
from workshop.data.features import INPUTS
from workshop.data.schema import FEATURES, TARGETS
from workshop.models.scores import Evaluation, Scores

if TYPE_CHECKING:
    from workshop.parameters import Promote

# The two interfaces that a model may have: weather in, or hour and weather in.
SIGNATURES = tuple(f"{', '.join(columns)} -> {', '.join(TARGETS)}" for columns in (FEATURES, INPUTS))
MIN_WEEKS = 6  # with fewer weeks any difference may be chance
UNKNOWN_HOURS = "the hours it learned from are not known"
UNLEARNED = "held-out hours that neither model learned from"
PAIRED_TEST = "paired test of the weekly errors (probability)"


@dataclass(frozen=True)
class Rule:
    """One rule: its name for a person, with the unit; the value of the candidate, the limit, and whether it passed."""

    name: str
    value: float | str | None
    limit: str
    passed: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.text} (allowed: {self.limit})"

    @property
    def text(self) -> str:
        """The value as text."""
        return f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)


@dataclass(frozen=True)
class Decision:
    """The verdict on a candidate, and its reasons.

    ``disqualified`` says why the champion's scores do not count; ``forced`` is true when a person overruled the gate;
    ``learned_from`` is the source of the candidate's data; ``experiment`` is the experiment of DVC that decided.
    """

    promoted: bool
    reason: str
    rules: tuple[Rule, ...]
    candidate: Scores | None
    champion: Scores | None
    disqualified: str | None = None
    forced: bool = False
    learned_from: str | None = None
    experiment: str | None = None

    @property
    def table(self) -> list[dict[str, str]]:
        """The rules for a person: a row each."""
        return [
            {"rule": rule.name, "found": rule.text, "allowed": rule.limit, "verdict": ("failed", "passed")[rule.passed]}
            for rule in self.rules
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the decision as JSON-able values; NaN and infinity become None."""
        return _jsonable(asdict(self))


def force(decision: Decision) -> Decision:
    """Return the decision of a person who overrules the gate; its reason and rules still say what the gate found."""
    if decision.promoted or decision.candidate is None:
        return decision
    reason = f"forced against the gate, which said: {decision.reason}"
    return replace(decision, promoted=True, reason=reason, forced=True)


def hold(decision: Decision, experiment: str | None) -> Decision:
    """Return the decision as made in an ``experiment`` of DVC, which moves nothing; the reason keeps the verdict."""
    if experiment is None or not decision.promoted:
        return replace(decision, experiment=experiment)
    reason = f"not moved: in the experiment {experiment} of DVC the gate only decides; its verdict: {decision.reason}"
    return replace(decision, promoted=False, reason=reason, experiment=experiment)


def decide(candidate: Evaluation, champion: Evaluation | None, policy: Promote) -> Decision:
    """Decide whether a candidate replaces the champion; both were evaluated on the same held-out hours.

    Without a champion, or with one that is disqualified, the candidate must pass only the rules. A champion is
    disqualified when it cannot predict, predicts other than numbers, or does not say which hours it learned from. A
    champion that learned from these hours refuses the candidate: no hours are left to compare them on. Raises
    ValueError when the two were scored on different hours.
    """
    scores, beaten = candidate.scores, champion.scores if champion else None
    disqualified = None if champion is None else _disqualification(champion)
    loads = "it loads and predicts"
    rules = [Rule("loading", candidate.trouble or loads, loads, scores is not None)]
    if scores is not None:
        rules += _rules(candidate, scores, policy)
        if champion is not None and beaten is not None and disqualified is None:
            if (scores.hours, scores.period) != (beaten.hours, beaten.period):
                raise ValueError("candidate and champion were scored on different hours")
            overlap = _overlap(champion.learned, beaten.period)
            if overlap and same_hours(candidate.learned_from, champion.learned_from):
                limit = (
                    f"at least {MIN_WEEKS} whole weeks after the last hour that the model in production learned from"
                )
                rules.append(Rule(UNLEARNED, f"too few: {overlap}", limit, passed=False))
            else:
                rules += _contest(scores, beaten, policy)
    failed = [rule for rule in rules if not rule.passed]
    if failed or scores is None:
        reason = "refused: " + "; ".join(map(str, failed))
    elif champion is None:
        reason = "promoted: every rule passed and nothing was in production yet"
    elif disqualified or beaten is None:
        reason = f"promoted: every rule passed and the champion is disqualified: {disqualified}"
    else:
        tested = next((rule for rule in rules if rule.name == PAIRED_TEST), None)
        verb = "is in a near-tie with" if tested else "beats"
        reason = f"promoted: R2 {scores.r2:.4f} {verb} the champion's {beaten.r2:.4f}"
        reason += f", and its weekly errors are smaller (p {tested.text})" if tested else ""
    learned_from = candidate.learned_from
    return Decision(not failed, reason, tuple(rules), scores, beaten, disqualified, learned_from=learned_from)


def _rules(candidate: Evaluation, scores: Scores, policy: Promote) -> Iterator[Rule]:
    """Yield the rules that do not depend on a champion."""
    numbers = "all are numbers"
    yield Rule("predictions", numbers if scores.finite else f"not {numbers}", numbers, scores.finite)
    lower = [("lowest predicted power (GW)", scores.lowest_GW, 0.0)]
    upper = [
        ("time to predict one hour (ms)", candidate.latency_ms, policy.max_latency_ms),
        ("size of the model's files (MB)", candidate.size_MB, policy.max_size_MB),
    ]
    for target in problem.TARGETS:
        lower.append((f"R2 of {target.words}", getattr(scores, target.r2), getattr(policy, f"min_{target.r2}")))
        bias = getattr(scores, target.bias)
        allowed = f"-{policy.max_bias_percent:g} to {policy.max_bias_percent:g}"
        passed = abs(bias) <= policy.max_bias_percent  # false for NaN
        yield Rule(f"mean error of {target.words} (% of its mean)", bias, allowed, passed)
        if target.by_day:
            name, limit = f"mean {target.words} predicted at night (GW)", getattr(policy, f"max_{target.night}")
            upper.append((name, getattr(scores, target.night), limit))
    for name, value, limit in lower:
        yield Rule(name, value, f">= {limit:g}", value >= limit)
    for name, value, limit in upper:
        yield Rule(name, value, f"<= {limit:g}", value <= limit)
    fits = candidate.signature in SIGNATURES
    interface = f"weather, or hour and weather, to GW of {' and '.join(target.key for target in problem.TARGETS)}"
    yield Rule("inputs and outputs", candidate.signature, interface, fits)
    yield Rule("hash of the table it learned from", candidate.data, "known", bool(candidate.data))
    overlap = _overlap(candidate.learned, scores.period)
    yield Rule("held-out hours", overlap or "new to it", "new to it", not overlap)


def _contest(scores: Scores, champion: Scores, policy: Promote) -> Iterator[Rule]:
    """Yield the rules that compare a candidate with the champion: by R2, and in a near-tie by a paired test as well.

    The test is Wilcoxon's signed-rank test (Biometrics Bulletin 1945, 1(6), 80-83), one-sided, on the errors of weeks:
    those of hours depend on one another. Where no least gain is asked for, it decides a near-tie alone.
    """
    gain = scores.r2 - champion.r2
    near = abs(gain) <= policy.near_tie  # false for NaN
    p = chance_of_better(scores.weekly_mae_GW, champion.weekly_mae_GW) if near else 0.0
    tie = f"within {policy.near_tie:g} of it"
    if policy.min_gain:
        enough = gain > policy.min_gain
        limit = f"> {policy.min_gain:g} over its {champion.r2:.4f}, and {tie} also better by the paired test"
    else:
        enough = near or gain > 0
        limit = f"> {policy.near_tie:g} over its {champion.r2:.4f}; or {tie}, and then better by the paired test"
    yield Rule("R2 gained over the model in production", gain, limit, enough and p <= policy.alpha)
    if near:
        yield Rule(PAIRED_TEST, p, f"<= {policy.alpha:g} that smaller errors are chance", p <= policy.alpha)


def chance_of_better(candidate: tuple[float, ...], champion: tuple[float, ...]) -> float:
    """Return the probability that weekly errors come out this much smaller than the champion's by chance alone.

    1 when fewer than six weeks differ. Weeks of the same error are left out beforehand: with them SciPy takes the
    normal distribution instead of the exact one, and four weeks are enough to get under 0.05.
    """
    from scipy.stats import wilcoxon

    differences = [one - other for one, other in zip(candidate, champion, strict=True) if one != other]
    if len(differences) < MIN_WEEKS:
        return 1.0
    return float(wilcoxon(differences, alternative="less").pvalue)


def same_hours(*sources: str | None) -> bool:
    """Return whether equal times of these sources are the same hours: a modelled year is no measured one."""
    return len({(source or "").startswith("modelled ") for source in sources}) == 1


def _disqualification(champion: Evaluation) -> str | None:
    if champion.scores is None:
        return champion.trouble or "it cannot predict"
    if not champion.scores.finite:
        return "its predictions are not all numbers"
    return None if champion.learned else UNKNOWN_HOURS


def _overlap(learned: tuple[str, str] | None, held_out: tuple[str, str] | None) -> str | None:
    """Return why a model may know held-out hours; None when it cannot. Times of one ISO format sort as text."""
    if learned is None or held_out is None:
        return UNKNOWN_HOURS
    if learned[1] < held_out[0] or held_out[1] < learned[0]:
        return None
    return f"it learned from {learned[0]} to {learned[1]}, and {held_out[0]} to {held_out[1]} is held out"


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _jsonable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
