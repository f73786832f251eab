"""Benchmark two or more sides alternately (A B A B), each on an idle machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psutil

QUIET_PERCENT = 10.0
QUIET_SECONDS = 20.0


@dataclass(frozen=True)
class Side:
    """One side of a comparison; only ``run`` is timed, not ``prepare``.

    If ``run`` returns a number, it replaces the measured time. If ``wait`` is false, ``run`` starts right after
    ``prepare``, even if the machine is still busy.
    """

    name: str
    run: Callable[[], float | None]
    prepare: Callable[[], None] = lambda: None
    wait: bool = True


def measure(sides: Sequence[Side], runs: int, report: Callable[[str], None]) -> Mapping[str, dict[str, list[float]]]:
    """Run the sides in turn, A B A B, ``runs`` times each, and report each run on one line.

    Returns `figures`, the seconds by side, and `busy_percent`, the CPU load before each run.
    """
    figures = {side.name: [] for side in sides}
    busy_percent = {side.name: [] for side in sides}
    for turn in range(1, runs + 1):
        for side in sides:
            side.prepare()
            busy = wait_until_quiet() if side.wait else psutil.cpu_percent(interval=0.1)
            start = time.perf_counter()
            seconds = side.run()
            seconds = time.perf_counter() - start if seconds is None else seconds
            figures[side.name].append(round(seconds, 4))
            busy_percent[side.name].append(busy)
            report(f"{turn}/{runs}  {side.name}: {seconds:.2f} s  (CPU load before: {busy:.0f} %)")
    return {"figures": figures, "busy_percent": busy_percent}


def run_each_once(sides: Sequence[Side]) -> None:
    """Run each side once untimed, so that files are in the page cache."""
    for side in sides:
        side.prepare()
        side.run()


def wait_until_quiet() -> float:
    """Wait up to `QUIET_SECONDS` for an idle machine; return its CPU load in percent."""
    deadline = time.monotonic() + QUIET_SECONDS
    busy = psutil.cpu_percent(interval=1.0)
    while busy > QUIET_PERCENT and time.monotonic() < deadline:
        busy = psutil.cpu_percent(interval=1.0)
    return busy
