"""The contest of a candidate with the model in production."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real

from mlflow_gate.errors import ConfigError
from mlflow_gate.rules import Rule
from mlflow_gate.scores import Scores

LEAST_BLOCKS = (
    6  # five differences of one sign have a probability of 1/32: with few blocks any difference may be chance
)
PAIRED_TEST = "paired test of the blocks' errors (probability)"


@dataclass(frozen=True)
class Contest:
    """How a candidate beats the model in production: by a gain in ``metric``, and in a near-tie by a paired test, too.

    A gain must be more than ``min_gain``. Where both lie within ``near_tie``, the errors of the blocks decide: a
    one-sided Wilcoxon signed-rank test (Biometrics Bulletin 1945, 1(6), 80-83) at the level ``alpha``. Without
    `min_gain` that test alone decides a near-tie. A gain beyond ``max_gain``, if given, is too good to be true, and
    refused.

    >>> Contest("error_rate", higher_is_better=False, near_tie=0.01).gain(0.12, champion=0.15)
    0.03
    """

    metric: str
    higher_is_better: bool = True
    min_gain: float = 0.0
    near_tie: float = 0.0
    alpha: float = 0.05
    max_gain: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for field, most in (("min_gain", math.inf), ("near_tie", math.inf), ("alpha", 1.0), ("max_gain", math.inf)):
            value = getattr(self, field)
            is_number = isinstance(value, Real) and 0 <= float(value) <= most
            if not is_number and not (value is None and field == "max_gain"):
                expected = "0 to 1" if most == 1 else "a number from 0"
                raise ConfigError(f"The contest's {field} cannot be used.", value=value, expected=expected)

    def gain(self, candidate: float, champion: float) -> float:
        """Return by how much the candidate is better; below zero, worse."""
        return round(candidate - champion if self.higher_is_better else champion - candidate, 12)

    def judge(self, candidate: Scores, champion: Scores) -> Iterator[Rule]:
        """Yield the findings: the gain, in a near-tie the paired test, and a gain that is too good to be true."""
        label = self.name or self.metric
        figure, other = (self.figure(scores) for scores in (candidate, champion))
        gain = self.gain(figure, other)
        near = abs(gain) <= self.near_tie  # false for NaN
        p = chance_of_better(candidate.blocks, champion.blocks) if near else 0.0
        better = p is not None and p <= self.alpha
        tie = f"within {self.near_tie:g} of it"
        if self.min_gain:
            enough = gain > self.min_gain
            limit = f"> {self.min_gain:g} over its {other:.4f}, and {tie} also better by the paired test"
        else:
            enough = near or gain > 0
            limit = f"> {self.near_tie:g} over its {other:.4f}; or {tie}, and then better by the paired test"
        step = f"{'worse' if gain < 0 else 'too small'}: improve the candidate, or judge both on a longer period"
        words = f"{label} gained over the model in production"
        yield Rule(words, gain, limit, enough and better, next_step="" if enough else step)
        if near:
            count = len(candidate.blocks)
            few = f"nothing can be shown with {count} block{'s' * (count != 1)}" if p is None else None
            step = "a near-tie: more blocks, or a longer period, would show a smaller difference"
            limit = f"<= {self.alpha:g} that smaller errors are chance, with at least {LEAST_BLOCKS} blocks"
            yield Rule(PAIRED_TEST, few or p, limit, better, next_step="" if better else step)
        if self.max_gain is not None:
            passed = gain <= self.max_gain
            step = "" if passed else "too good to be true: look for held-out rows or targets in what it learned from"
            words = f"{label} gained, if it is to be believed"
            yield Rule(words, gain, f"<= {self.max_gain:g} at once", passed, next_step=step)

    def figure(self, scores: Scores) -> float:
        """Return the metric of scores; raise ConfigError when it was not scored."""
        if self.metric not in scores.metrics:
            expected = f"one of {', '.join(scores.metrics) or 'none'}"
            raise ConfigError("The contest's metric was not scored.", value=self.metric, expected=expected)
        return scores.metrics[self.metric]


def chance_of_better(candidate: Mapping[str, float], champion: Mapping[str, float]) -> float | None:
    """Return the probability that a candidate's errors are this much smaller by chance alone, block by block.

    None with fewer than six blocks: then nothing can be shown. Blocks of equal errors are left out first; with them
    SciPy takes the normal distribution instead of the exact one, and four blocks are enough to get under 0.05. Where
    fewer than six differ, the probability is 1.

    >>> errors = {block: 0.1 for block in range(6)}
    >>> chance_of_better({block: 0.08 - block / 1000 for block in errors}, errors)
    0.015625
    """
    if candidate.keys() != champion.keys():
        differing = sorted(map(str, candidate.keys() ^ champion.keys()))[:3]
        raise ConfigError(
            "The two models were scored on different blocks.",
            value=", ".join(differing),
            expected="the same names of blocks for any model",
            next_step="name blocks by the data alone in `evaluate`",
        )
    if len(candidate) < LEAST_BLOCKS:
        return None
    differences = [candidate[name] - champion[name] for name in candidate if candidate[name] != champion[name]]
    if len(differences) < LEAST_BLOCKS:
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences, alternative="less").pvalue)
