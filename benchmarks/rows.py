"""A row of the table: what is compared, what was promised, and what the samples say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure import Spread, ratios

HEADER = ("what", "plain way", "ours", "how many times faster", "target", "")
MET, MISSED, NO_PROMISE = "met", "**missed**", ""


@dataclass(frozen=True)
class Ratio:
    """How many times faster the side ``ours`` is than the side ``base``, and ``at_least`` how many were promised.

    With another ``unit``: how many times less the figure ``ours`` is.
    """

    what: str
    base: str
    ours: str
    at_least: float | None = None
    unit: str = "s"

    @property
    def names(self) -> set[str]:
        """The figures that the row is made of."""
        return {self.base, self.ours}

    def cells(self, figures: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
        """Return the row's cells."""
        spread = Spread.of(ratios(figures[self.base], figures[self.ours]))
        digits = 2 if self.unit == "s" else 0
        promised = "" if self.at_least is None else "no slower" if self.at_least == 1 else f"{self.at_least:g} times"
        return (
            self.what,
            f"{self.base}: {in_words(figures[self.base], self.unit, digits)}",
            f"{self.ours}: {in_words(figures[self.ours], self.unit, digits)}",
            f"**{spread.median:.2g}** ({spread.least:.2g} to {spread.most:.2g})",
            promised,
            verdict(spread.median, at_least=self.at_least),
        )


@dataclass(frozen=True)
class Figure:
    """A figure with no other side; ``digits`` after the point."""

    what: str
    name: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    digits: int = 1

    @property
    def names(self) -> set[str]:
        """The figures that the row is made of."""
        return {self.name}

    def cells(self, figures: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
        """Return the row's cells."""
        spread = Spread.of(figures[self.name])
        promised = "" if self.at_least is None else f"{self.at_least:g} {self.unit}"
        promised = promised if self.at_most is None else f"at most {self.at_most:g} {self.unit}"
        judged = verdict(spread.median, at_least=self.at_least, at_most=self.at_most)
        return (self.what, "", "", f"**{in_words(figures[self.name], self.unit, self.digits)}**", promised, judged)


Row = Ratio | Figure


def in_words(values: Sequence[float], unit: str, digits: int = 2) -> str:
    """Return median and range of some runs."""
    spread = Spread.of(values)
    return f"{spread.median:.{digits}f} {unit} ({spread.least:.{digits}f} to {spread.most:.{digits}f})"


def verdict(median: float, *, at_least: float | None = None, at_most: float | None = None) -> str:
    """Say whether the median keeps what was promised, if anything was."""
    if at_least is None and at_most is None:
        return NO_PROMISE
    kept = (at_least is None or median >= at_least) and (at_most is None or median <= at_most)
    return MET if kept else MISSED
