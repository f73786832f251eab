"""What a model scores on the held-out hours, and what the gate needs to know of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, make_dataclass
from typing import Any

from workshop import problem

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


@dataclass(frozen=True)
class Evaluation:
    """A model before the gate: its scores, and what is known of it.

    ``learned`` is the first and the last hour that it learned from, ``learned_from`` the name of their source, ``data``
    the hash of that table; None for unknown. ``signature`` is as in `SIGNATURES`, ``latency_ms`` the time for one hour,
    ``size_MB`` that of its files. A model that cannot predict has a ``trouble`` and no scores.
    """

    scores: Scores | None = None
    learned: tuple[str, str] | None = None
    data: str | None = None
    signature: str | None = None
    latency_ms: float = math.nan
    size_MB: float = math.nan
    trouble: str | None = None
    learned_from: str | None = None
