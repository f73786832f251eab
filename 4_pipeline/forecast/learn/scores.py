"""What a model scores on the held-out hours."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import Any

from forecast import problem

# Scores on the held-out hours: R2 of all targets (the mean) and of each, errors in GW, bias (the mean error, with its
# sign) of each, power while the sun is down.
NIGHT = {target.name: target.night for target in problem.TARGETS if target.by_day}
BIAS = [target.bias for target in problem.TARGETS]
METRICS = ("r2", *(each.r2 for each in problem.TARGETS), "mae_GW", "bias_GW", *BIAS, "lowest_GW", *NIGHT.values())

_Metrics: Any = make_dataclass("_Metrics", [(name, float) for name in METRICS], frozen=True)


@dataclass(frozen=True)
class Scores(_Metrics):
    """How a model does on the held-out period: a field for each of `METRICS`.

    R2 is dimensionless, percent are of the measured mean, the rest is in GW. ``bias`` is the mean error: below zero,
    too little is predicted.

    ``weekly_mae_GW`` is the mean absolute error, over all targets, of each week that holds enough of its hours;
    ``period`` the first and the last hour, as ISO 8601 in UTC.
    """

    finite: bool
    hours: int
    weekly_mae_GW: tuple[float, ...] = ()
    period: tuple[str, str] | None = None

    def metrics(self) -> dict[str, float]:
        """Return the numbers that a run logs as its metrics."""
        return {name: float(getattr(self, name)) for name in METRICS}
