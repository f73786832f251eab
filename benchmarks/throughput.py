"""A hundred notebooks of one second on two warm workers."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.measure import Side
from benchmarks.notebooks import write_notebook
from benchmarks.place import Place
from benchmarks.rows import Figure
from benchmarks.tiny import sweep

TITLE = "Throughput"
COUNT, SECONDS, WORKERS = 100, 1.0, 2
SWEEP = "100 notebooks of one second"
SHARE, SCHEDULER = "share of the ideal throughput (%)", "the scheduler's share of one core (%)"
ROWS = (
    Figure("100 notebooks of one second, two warm workers: share of the ideal throughput", SHARE, "%", at_least=70),
    Figure("the same: share of one core that the scheduler used", SCHEDULER, "%"),
)


def sides(place: Place) -> list[Side]:
    """Return the sweep, which fails when a single notebook does."""
    notebook = _notebook(place)

    def run() -> dict[str, float]:
        scheduler = place.scheduler()
        before = sum(scheduler.cpu_times()[:2])
        began = time.perf_counter()
        sweep(place, notebook, COUNT)
        seconds = time.perf_counter() - began
        used = sum(scheduler.cpu_times()[:2]) - before
        ideal = COUNT * SECONDS / WORKERS
        return {"seconds": seconds, SHARE: 100 * ideal / seconds, SCHEDULER: 100 * used / seconds}

    return [Side(SWEEP, run, place.wait_until_warm)]


def settle(place: Place) -> None:
    """Run two of them."""
    sweep(place, _notebook(place), WORKERS)


def _notebook(place: Place) -> Path:
    cell = f"import time\n\ntime.sleep({SECONDS})"
    return write_notebook(place.new_folder("throughput") / "second.ipynb", cell, parameters="i = 0")
