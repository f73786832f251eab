"""A check of the data: what was looked at, its value, its limits, and so its verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workshop.data.thresholds import Limits

FINE, WARNING = "fine", "warning"


@dataclass(frozen=True)
class Check:
    """Something that was looked at: ``name`` it, in a column or file ``of``, with what was found and what is usual.

    Both limits are usual themselves; None is no limit. ``note`` says where it was found, and what to do about it.
    """

    name: str
    of: str
    value: float
    limits: Limits
    unit: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the value is within the limits: `fine`, else `warning`."""
        least, most = self.limits
        within = (least is None or self.value >= least) and (most is None or self.value <= most)
        return FINE if within else WARNING

    @property
    def found(self) -> str:
        """The value with its unit."""
        return f"{number(self.value)} {self.unit}".strip()

    @property
    def expected(self) -> str:
        """The limits in words."""
        least, most = (None if limit is None else number(limit) for limit in self.limits)
        if least is None or most is None:
            return f"{'at most' if least is None else 'at least'} {most or least} {self.unit}".strip()
        return f"{least} to {most} {self.unit}".strip()

    def __str__(self) -> str:
        return f"{self.of}, {self.name}: {self.found}, limit {self.expected}" + (f"; {self.note}" if self.note else "")

    def as_row(self) -> dict[str, str]:
        """Return a row of a table for people."""
        return {"where": self.of, "what": self.name, "found": self.found, "limit": self.expected, "details": self.note}

    def as_dict(self) -> dict[str, Any]:
        """Return what can be written as JSON."""
        return {
            "name": self.name, "of": self.of, "value": round(self.value, 4), "limits": list(self.limits),
            "unit": self.unit, "verdict": self.verdict, "note": self.note,
        }  # fmt: skip


def number(value: float) -> str:
    """Write a number for people: whole ones whole, others to three digits."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"
