"""Measures the sides of a comparison in turn, each when the machine is quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psutil

QUIET_PERCENT = 10.0
QUIET_SECONDS = 20.0


@dataclass(frozen=True)
class Side:
    """One way to do the work: ``ready`` is not timed, ``run`` is.

    A number that ``run`` returns replaces the time of the call. With ``at_once`` it runs right after ``ready``, also
    while the machine is still busy with that.
    """

    name: str
    run: Callable[[], float | None]
    ready: Callable[[], None] = lambda: None
    at_once: bool = False


def measure(sides: Sequence[Side], runs: int, report: Callable[[str], None]) -> Mapping[str, dict[str, list[float]]]:
    """Run the sides in turn, A B A B, ``runs`` times each, and report a line for each run.

    Returns `figures`, the seconds of each side by its name, and `busy_percent`, how busy the machine was before.
    """
    figures = {side.name: [] for side in sides}
    busy_percent = {side.name: [] for side in sides}
    for turn in range(1, runs + 1):
        for side in sides:
            side.ready()
            busy = psutil.cpu_percent(interval=0.1) if side.at_once else wait_until_quiet()
            began = time.perf_counter()
            seconds = side.run()
            seconds = time.perf_counter() - began if seconds is None else seconds
            figures[side.name].append(round(seconds, 4))
            busy_percent[side.name].append(busy)
            report(f"{turn}/{runs}  {side.name}: {seconds:.2f} s  (machine {busy:.0f} % busy before)")
    return {"figures": figures, "busy_percent": busy_percent}


def run_once(sides: Sequence[Side]) -> None:
    """Run each side once without measuring: files read from disk the first time are in memory then."""
    for side in sides:
        side.ready()
        side.run()


def wait_until_quiet() -> float:
    """Wait some seconds at most for an idle machine; return how busy it is then, in percent."""
    deadline = time.monotonic() + QUIET_SECONDS
    busy = psutil.cpu_percent(interval=1.0)
    while busy > QUIET_PERCENT and time.monotonic() < deadline:
        busy = psutil.cpu_percent(interval=1.0)
    return busy
