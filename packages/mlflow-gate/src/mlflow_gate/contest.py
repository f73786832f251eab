"""The contest of a candidate with the model in production."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real

from mlflow_gate.errors import ConfigError
from mlflow_gate.rules import Finding, Scores

LEAST_BLOCKS = 6  # five differences of one sign have a p-value of 1/32: with few blocks any difference may be chance
PAIRED_TEST = "paired test on block errors (p-value)"


@dataclass(frozen=True)
class Contest:
    """How a candidate beats the model in production: by a gain in ``metric``, and in a near-tie by a paired test, too.

    A gain must be more than ``min_gain``. Where both lie within ``near_tie``, the errors of the blocks decide: a
    one-sided Wilcoxon signed-rank test (Biometrics Bulletin 1945, 1(6), 80-83) at the level ``alpha``. Without
    `min_gain` that test alone decides a near-tie. A gain beyond ``max_gain``, if given, is refused as too good.
    """

    metric: str
    higher_is_better: bool = True
    min_gain: float = 0.0
    near_tie: float = 0.0
    alpha: float = 0.05
    max_gain: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not isinstance(self.higher_is_better, bool):
            value, expected = f"{self.metric!r}, {self.higher_is_better!r}", 'Contest("mae", higher_is_better=False)'
            raise ConfigError("The contest's metric or direction cannot be used.", value=value, expected=expected)
        for field in ("min_gain", "near_tie", "alpha", "max_gain"):
            value, most = getattr(self, field), 1 if field == "alpha" else math.inf
            is_number = isinstance(value, Real) and 0 <= float(value) <= most
            if not is_number and not (value is None and field == "max_gain"):
                what = f"The contest's {field} cannot be used."
                raise ConfigError(what, value=value, expected=f"a number from 0{' to 1' * (most == 1)}")

    def judge(self, candidate: Scores, champion: Scores) -> Iterator[Finding]:
        """Yield the findings: the gain, in a near-tie the paired test, and a gain that is too good to be true."""
        label = self.name or self.metric
        figure, other = (self.figure(scores) for scores in (candidate, champion))
        gain = round(figure - other if self.higher_is_better else other - figure, 12)  # below zero: worse
        near = abs(gain) <= self.near_tie  # false for NaN
        p = p_value(candidate.blocks, champion.blocks) if near else 0.0
        better = p is not None and p <= self.alpha
        enough = gain > self.min_gain if self.min_gain else near or gain > 0
        limit = f"> {self.min_gain or self.near_tie:g} (champion: {other:.4f})"
        if self.near_tie:
            limit += f", {'and if' if self.min_gain else 'or'} within {self.near_tie:g} with smaller block errors"
        step = f"{'worse' if gain < 0 else 'too small'}: improve the candidate, or judge both on a longer period"
        words = f"{label} gained over the model in production"
        yield Finding(words, gain, limit, enough and better, next_step="" if enough else step)
        if near:
            few = f"nothing can be shown with {len(candidate.blocks)} blocks" if p is None else None
            step = "a near-tie: more blocks, or a longer period, would show a smaller difference"
            limit = f"<= {self.alpha:g}, with at least {LEAST_BLOCKS} blocks"
            yield Finding(PAIRED_TEST, few or p, limit, better, next_step="" if better else step)
        if self.max_gain is not None:
            passed = gain <= self.max_gain
            step = "" if passed else "too good to be true: look for held-out rows or targets in its training data"
            yield Finding(f"{label}: a gain too large to trust", gain, f"<= {self.max_gain:g}", passed, next_step=step)

    def figure(self, scores: Scores) -> float:
        """Return the metric of scores; raise ConfigError when it was not scored."""
        if self.metric not in scores.metrics:
            expected = f"one of {', '.join(scores.metrics) or 'none'}"
            raise ConfigError("The contest's metric was not scored.", value=self.metric, expected=expected)
        return scores.metrics[self.metric]


def p_value(candidate: Mapping[str, float], champion: Mapping[str, float]) -> float | None:
    """Return the p-value of smaller errors of a candidate, block by block: how likely chance alone makes them so small.

    None with fewer than six blocks: then nothing can be shown. Blocks of equal errors are left out first; with them
    SciPy takes the normal distribution instead of the exact one, and four blocks are enough to get under 0.05. Where
    fewer than six differ, the p-value is 1.
    """
    if candidate.keys() != champion.keys():
        what, step = "The two models were scored on different blocks.", "name blocks by the data alone in `evaluate`"
        raise ConfigError(
            what, value=", ".join(sorted(map(str, candidate.keys() ^ champion.keys()))[:3]), next_step=step
        )
    if len(candidate) < LEAST_BLOCKS:
        return None
    differences = [candidate[name] - champion[name] for name in candidate if candidate[name] != champion[name]]
    if len(differences) < LEAST_BLOCKS:
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences, alternative="less").pvalue)
