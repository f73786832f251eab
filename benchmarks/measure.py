"""Measures sides of a comparison in turn, each when the machine is quiet; says what the figures amount to."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import psutil

QUIET_PERCENT = 10.0
QUIET_SECONDS = 20.0


@dataclass(frozen=True)
class Side:
    """One way to do the work: ``ready`` is not timed, ``run`` is.

    What ``run`` returns are further figures by name; "seconds" among them replaces the time of the call. ``at_once``:
    measured right after ``ready``, also while the machine is still busy with what that started.
    """

    name: str
    run: Callable[[], Mapping[str, float] | None]
    ready: Callable[[], None] = lambda: None
    at_once: bool = False


@dataclass
class Samples:
    """What was measured: ``figures`` by name, one a run, and how busy the machine was before each run (percent)."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    busy_percent: dict[str, list[float]] = field(default_factory=dict)
    load_average: list[float] = field(default_factory=list)

    def add(self, name: str, value: float) -> None:
        """Add one run's figure."""
        self.figures.setdefault(name, []).append(round(value, 4))

    def as_dict(self) -> dict:
        """Return the fields as JSON-able values."""
        return asdict(self)


@dataclass(frozen=True)
class Spread:
    """Median and range of some runs."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of ``values``."""
        return cls(statistics.median(values), min(values), max(values))


def ratios(base: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Return how many times faster ours was, round by round: both sides of a round saw the same machine."""
    return [slow / fast for slow, fast in zip(base, ours, strict=True)]


def measure(sides: Sequence[Side], runs: int, tell: Callable[[str], None]) -> Samples:
    """Run the sides in turn, A B A B, ``runs`` times each; ``tell`` gets a line for each run."""
    samples = Samples()
    for turn in range(1, runs + 1):
        for side in sides:
            side.ready()
            busy = psutil.cpu_percent(interval=0.1 if side.at_once else 1.0)
            if not side.at_once:
                busy = wait_until_quiet(busy)
            samples.busy_percent.setdefault(side.name, []).append(busy)
            samples.load_average.append(round(os.getloadavg()[0], 2))
            began = time.perf_counter()
            further = dict(side.run() or {})
            seconds = further.pop("seconds", time.perf_counter() - began)
            samples.add(side.name, seconds)
            for name, value in further.items():
                samples.add(name, value)
            words = "".join(f", {name} {value:.3g}" for name, value in further.items())
            tell(f"{turn}/{runs}  {side.name}: {seconds:.2f} s{words}  (machine {busy:.0f} % busy before)")
    return samples


def run_once(sides: Sequence[Side]) -> None:
    """Run each side once without measuring: what is read from disk the first time is in memory then."""
    for side in sides:
        side.ready()
        side.run()


def wait_until_quiet(busy: float) -> float:
    """Wait some seconds at most for the machine to have nothing to do; return how busy it is then, in percent."""
    deadline = time.monotonic() + QUIET_SECONDS
    while busy > QUIET_PERCENT and time.monotonic() < deadline:
        busy = psutil.cpu_percent(interval=1.0)
    return busy
