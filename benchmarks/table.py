"""Generate the table in README.md from the results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
HEADER = ("task", "standard tools", "this repository", "speedup")


@dataclass(frozen=True)
class Row:
    """A table row: the speedup of the side ``ours`` over the side ``base``."""

    task: str
    base: str
    ours: str

    def cells(self, figures: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
        """Return the row's cells; compute speedups per round, because the sides of a round ran under similar load."""
        ratios = [slow / fast for slow, fast in zip(figures[self.base], figures[self.ours], strict=True)]
        return (
            self.task,
            *(f"{name}: {_seconds(figures[name])}" for name in (self.base, self.ours)),
            f"**{statistics.median(ratios):.2g}** ({min(ratios):.2g}-{max(ratios):.2g})",
        )


def table(results: Mapping[str, dict], benchmarks: Mapping[str, ModuleType]) -> str:
    """Return the table in Markdown, followed by one line per benchmark."""
    measured = {name: module for name, module in benchmarks.items() if name in results}
    rows = []
    for name, module in measured.items():
        figures = results[name]["figures"]
        # Skip rows that were added after the last measurement.
        rows += [row.cells(figures) for row in module.ROWS if {row.base, row.ours} <= figures.keys()]
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEADER, ["---"] * len(HEADER), *rows)] + [""]
    for name, module in measured.items():
        result = results[name]
        busy = max(value for values in result["busy_percent"].values() for value in values)
        lines.append(
            f"- {module.TITLE} (`{name}`): {result['runs']} runs, {result['date']}, {result['machine']}; {busy:.0f} %"
        )
    return "\n".join(lines)


def write_table(text: str) -> None:
    """Replace the table between the markers in README.md."""
    before, rest = README.read_text().split(BEGIN)
    _, after = rest.split(END)
    README.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def _seconds(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} s ({min(values):.2f}-{max(values):.2f})"
