"""Settings of a stage (`meta: {dvc-parallel: ...}` in dvc.yaml), and limits of shared resources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import click

from dvc_parallel.states import ReproError


def amount(value: object) -> Decimal:
    """Convert a value to a Decimal (exact: three times 0.1 is 0.3); raise BadParameter unless it is finite and >= 0.

    >>> amount("0.1") * 3 == amount("0.3")
    True
    """
    try:
        if (number := Decimal(str(value))).is_finite() and number >= 0:
            return number
    except ArithmeticError:
        pass
    raise click.BadParameter(f"{value!r} is not a number that is 0 or greater; example of a limit: gpu=1")


def uses_of(stage: Any) -> dict[str, Decimal]:
    """Return the amount of each resource that a stage uses."""
    settings = stage.meta.get("dvc-parallel", {}) if isinstance(stage.meta, dict) else {}
    try:
        (uses,) = ({"uses": {}} | settings).values()  # ValueError if there are other keys
        return {str(name): amount(value) for name, value in uses.items()}
    except (AttributeError, TypeError, ValueError, click.BadParameter):
        what = f"Stage {stage.addressing} has invalid dvc-parallel settings in its `meta`."
        allowed = "uses: {NAME: NUMBER}, where each number is 0 or greater"
        raise ReproError(what, found=settings, expected=allowed, next=f"correct {stage.relpath}") from None


class Limits:
    """Limits of the resources that the stages of a run share.

    Raises ReproError if a stage of ``steps`` exceeds a limit, or if no stage uses a limited resource.
    """

    def __init__(self, limits: Mapping[str, object], stages: Iterable[Any], steps: Iterable[Any]) -> None:
        self._limits = {name: amount(limit) for name, limit in limits.items()}
        self._uses = {stage: uses_of(stage) for stage in stages}
        names = (
            ", ".join(sorted({name for uses in self._uses.values() for name in uses}))
            or "none: no stage uses a resource"
        )
        for name, limit in self._limits.items():
            if not any(name in uses for uses in self._uses.values()):
                raise ReproError(
                    "No stage uses the limited resource.", found=name, expected=names, next="correct its name"
                )
            for stage in steps:
                if (number := self._uses[stage].get(name, 0)) > limit:
                    what = f"Stage {stage.addressing} exceeds a limit, so it can never start."
                    next_step = "raise the limit, or reduce the number in the stage's `uses`"
                    raise ReproError(what, found=f"{name}={number}", expected=f"{limit} or less", next=next_step)

    def allow(self, stage: Any, running: Iterable[Any]) -> bool:
        """Return whether the limits allow a stage to start while others are running."""
        used = [self._uses[other] for other in running]
        numbers = ((number, name) for name, number in self._uses[stage].items() if number and name in self._limits)
        return all(sum((each.get(name, 0) for each in used), number) <= self._limits[name] for number, name in numbers)
