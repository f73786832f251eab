"""Comparison of a candidate with the champion, the model in production."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real

from mlflow_gate.errors import ConfigError
from mlflow_gate.rules import Finding, Scores

MIN_BLOCKS = 6  # with five blocks, only a win in all of them would reach the usual level of 0.05 (p = 1/32)
PAIRED_TEST = "paired test on block errors (p-value)"


@dataclass(frozen=True)
class Comparison:
    """What a candidate needs to beat the champion: a gain in one metric and, in a near-tie, a passed paired test.

    The test is a one-sided Wilcoxon signed-rank test on block errors (Biometrics Bulletin 1945, 1(6), 80-83).

    Parameters
    ----------
    metric : str
        Name of the metric to compare.
    higher_is_better : bool
        Direction of the metric.
    min_gain : float
        The gain must exceed this value; if it is 0, only the paired test decides a near-tie.
    near_tie : float
        Largest difference that counts as a near-tie, in the metric's unit.
    alpha : float
        Significance level of the paired test.
    max_gain : float, optional
        A candidate with a larger gain is refused: it is too good to be true.
    name : str
        The metric's name in messages.

    Raises
    ------
    ConfigError
        If a value is out of range or not a number.
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
            value, expected = f"{self.metric!r}, {self.higher_is_better!r}", 'Comparison("mae", higher_is_better=False)'
            raise ConfigError("Invalid metric or direction of the comparison.", value=value, expected=expected)
        for field in ("min_gain", "near_tie", "alpha", "max_gain"):
            value, upper = getattr(self, field), 1 if field == "alpha" else math.inf
            is_number = isinstance(value, Real) and 0 <= float(value) <= upper
            if not is_number and not (value is None and field == "max_gain"):
                what = f"Invalid {field} of the comparison."
                raise ConfigError(what, value=value, expected=f"a number {'from 0 to 1' if upper == 1 else '>= 0'}")

    def compare(self, candidate: Scores, champion: Scores) -> Iterator[Finding]:
        """Yield findings: the gain, the paired test (for a near-tie), and whether the gain is too large to trust."""
        label = self.name or self.metric
        value, other = (self.value(scores) for scores in (candidate, champion))
        gain = round(value - other if self.higher_is_better else other - value, 12)  # negative: worse
        near = abs(gain) <= self.near_tie  # false for NaN
        p = p_value(candidate.blocks, champion.blocks) if near else 0.0
        better = p is not None and p <= self.alpha
        enough = gain > self.min_gain if self.min_gain else near or gain > 0
        limit = f"> {self.min_gain or self.near_tie:g} (champion: {other:.4f})"
        if self.near_tie:
            limit += f", {'and if' if self.min_gain else 'or'} within {self.near_tie:g} with smaller block errors"
        step = f"{'worse' if gain < 0 else 'too small'}: improve the candidate, or score both models on a longer period"
        title = f"{label} gained over the model in production"
        yield Finding(title, gain, limit, enough and better, next_step="" if enough else step)
        if near:
            too_few = f"no test possible with {len(candidate.blocks)} blocks" if p is None else None
            step = "a near-tie: more blocks or a longer period can show a smaller difference"
            limit = f"<= {self.alpha:g}, with at least {MIN_BLOCKS} blocks"
            yield Finding(PAIRED_TEST, too_few or p, limit, better, next_step="" if better else step)
        if self.max_gain is not None:
            passed = gain <= self.max_gain
            step = "" if passed else "too good to be true: look for held-out rows or targets in the training data"
            yield Finding(f"{label}: a gain too large to trust", gain, f"<= {self.max_gain:g}", passed, next_step=step)

    def value(self, scores: Scores) -> float:
        """Return the compared metric; raise ConfigError if it is missing from the scores."""
        if self.metric not in scores.metrics:
            expected = f"one of {', '.join(scores.metrics) or 'the metrics, but there are none'}"
            raise ConfigError("The compared metric is missing from the scores.", value=self.metric, expected=expected)
        return scores.metrics[self.metric]


def p_value(candidate: Mapping[str, float], champion: Mapping[str, float]) -> float | None:
    """Return the p-value of the test for smaller block errors of the candidate; None for fewer than six blocks.

    Blocks with equal errors are dropped: with ties, SciPy uses the normal approximation, whose p-value could be below
    0.05 for as few as four blocks. If fewer than six blocks differ, the p-value is 1.
    """
    if candidate.keys() != champion.keys():
        what, step = "The models were scored on different blocks.", "in `evaluate`, name the blocks by the data alone"
        raise ConfigError(
            what, value=", ".join(sorted(map(str, candidate.keys() ^ champion.keys()))[:3]), next_step=step
        )
    if len(candidate) < MIN_BLOCKS:
        return None
    differences = [candidate[name] - champion[name] for name in candidate if candidate[name] != champion[name]]
    if len(differences) < MIN_BLOCKS:
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences, alternative="less").pvalue)
