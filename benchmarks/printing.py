"""A notebook that prints ten thousand lines: in one go, and each line sent at once."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import Side
from benchmarks.notebooks import output_text, papermill, write_notebook
from benchmarks.place import Place
from benchmarks.rows import Figure, Ratio

TITLE = "Printing"
LINES = 10_000
MEGABYTE = 1e6
OWN, OURS = "`papermill`", "`papermill --engine dask`"
OWN_FLUSHED, OURS_FLUSHED = f"{OWN}, each line flushed", f"{OURS}, each line flushed"
GROWTH, GROWTH_FLUSHED = "growth of the scheduler (MB)", "growth of the scheduler, each line flushed (MB)"
ROWS = (
    Ratio("printing 10,000 lines", OWN, OURS, 1),
    Ratio("printing 10,000 lines, each flushed", OWN_FLUSHED, OURS_FLUSHED),
    Figure("printing 10,000 lines: growth of the scheduler", GROWTH, "MB", at_most=20),
    Figure("the same, each flushed", GROWTH_FLUSHED, "MB", at_most=20),
)


def sides(place: Place) -> list[Side]:
    """Return both engines, for lines that are printed and for lines that are flushed one by one."""
    plain, flushed = _notebook(place, "print(line)"), _notebook(place, "print(line, flush=True)")

    def own(notebook: Path) -> None:
        _run(place, notebook)

    def ours(notebook: Path, growth: str) -> dict[str, float]:
        scheduler = place.scheduler()
        before = scheduler.memory_info().rss
        _run(place, notebook, "--engine", "dask")
        return {growth: (scheduler.memory_info().rss - before) / MEGABYTE}

    return [
        Side(OWN, lambda: own(plain)),
        Side(OURS, lambda: ours(plain, GROWTH), place.wait_until_warm),
        Side(OWN_FLUSHED, lambda: own(flushed)),
        Side(OURS_FLUSHED, lambda: ours(flushed, GROWTH_FLUSHED), place.wait_until_warm),
    ]


def _notebook(place: Place, cell: str) -> Path:
    loop = f"for number in range({LINES}):\n    line = f'line {{number:06}} ' + 'x' * 60\n    {cell}"
    return write_notebook(place.new_folder("printing") / "printing.ipynb", loop)


def _run(place: Place, notebook: Path, *options: str) -> None:
    output = notebook.with_name("out.ipynb")
    papermill(place, notebook, output, *options)
    if output_text(output).count("\n") != LINES:
        raise RuntimeError("lines are missing")
