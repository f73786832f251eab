"""What a model scores on the held-out hours."""

from __future__ import annotations

from dataclasses import dataclass

from forecast import problem


@dataclass(frozen=True)
class TargetScore:
    """How a model does on one target, in the unit of the target but for R2 and percent.

    ``bias`` is the mean error (below zero, too little is predicted), ``bias_percent`` that by `evaluation.in_percent`.
    ``lowest`` is the lowest prediction, and ``night`` the mean absolute one while the sun is down, if the target is
    there by day alone.
    """

    r2: float
    mae: float
    bias: float
    bias_percent: float
    lowest: float
    night: float | None = None


@dataclass(frozen=True)
class Scores:
    """How a model does on the held-out period; ``r2`` is the mean of the ``targets``, which are named by `Target.key`.

    ``weekly_errors`` has a number for each week that holds enough of its hours: the mean over the targets of the
    absolute error divided by the target's standard deviation on the held-out hours, so that all units count alike.
    ``period`` is the first and the last hour, as ISO 8601 in UTC.
    """

    r2: float
    targets: dict[str, TargetScore]
    finite: bool
    hours: int
    weekly_errors: tuple[float, ...] = ()
    period: tuple[str, str] | None = None

    def metrics(self) -> dict[str, float]:
        """Return the numbers that a run logs as its metrics: `r2`, and those of each target by `Target.metric`."""
        return {"r2": self.r2} | {
            target.metric(name): value
            for target in problem.TARGETS
            for name, value in vars(self.targets[target.key]).items()
            if value is not None
        }
