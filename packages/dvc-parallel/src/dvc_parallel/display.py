"""Shows a run as it goes: a live table on a terminal, else a line for each stage that has ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from dvc_parallel.pipeline import State
from dvc_parallel.reproduction import Progress

ACTIVE = (State.RUNNING, State.SAVING)


def lines(write: Callable[[str], object]) -> Progress:
    """Return a progress that writes one line for each stage that has come to its end: its seconds, or its state."""
    began: dict[str, float] = {}

    def progress(stage: str, state: State, _steps: tuple[int, int] | None = None) -> None:
        now = time.monotonic()
        began.setdefault(stage, now)
        if state is State.WAITING:
            del began[stage]
        elif state not in ACTIVE:
            write(f"  {stage}: {f'{now - began[stage]:.1f} s' if state is State.DONE else state}\n")

    return progress


@contextlib.contextmanager
def shown(stream: TextIO) -> Iterator[tuple[Progress, Callable[[str], object]]]:
    """Yield ``progress`` and ``notice`` for `reproduce`."""
    if not stream.isatty():
        yield lines(stream.write), lambda text: print(f"  {text}", file=stream, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = [TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[state]}")]
    bars = Bars(*columns, BarColumn(20), TimeElapsedColumn(), console=Console(file=stream))
    tasks: dict[str, int] = {}

    def progress(stage: str, state: State, steps: tuple[int, int] | None = None) -> None:
        task = tasks.get(stage)
        if task is None:
            task = tasks[stage] = bars.add_task(stage, start=False, total=None, state=state)
        if state is State.RUNNING and bars.tasks[task].start_time is None:
            bars.start_task(task)
        done, every = steps or (bars.tasks[task].completed, bars.tasks[task].total)
        bars.update(task, state=state, completed=done, total=every)
        if state not in (State.WAITING, *ACTIVE):
            bars.stop_task(task)

    with bars:
        yield progress, lambda text: bars.console.print(text, markup=False)
