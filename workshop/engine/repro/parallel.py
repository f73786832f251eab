"""Runs the stages of `dvc.yaml` that do not depend on one another side by side; leaves what `dvc repro` leaves."""

from __future__ import annotations

import collections
import contextlib
import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from papermill_dask.signals import handled

from workshop.engine.repro.commands import CommandServer, StageCommands, StageFailed, Stopped
from workshop.engine.repro.pipeline import State, open_pipeline
from workshop.errors import EngineError

# What loads models is forked from a second server: its imports would keep the first one from starting commands.
HEAVY_COMMANDS = ("workshop promote",)
HEAVY_MODULES = (
    *("mlflow", "mlflow.sklearn", "skops.io", "sklearn.ensemble", "sklearn.metrics"),
    *("pyarrow.parquet", "pvlib.solarposition", "workshop.cli", "workshop.models.registry"),
)
CELLS = re.compile(r"Executing:[^\r\n]*?\| *(\d+)/(\d+) \[")
TAIL_LINES = 30
LONGEST_LINE = 1 << 16
TICK_SECONDS = 0.2
TERMINATE_SECONDS, KILL_SECONDS = 5.0, 8.0


UP_TO_DATE = {State.UNCHANGED, State.RESTORED, State.DONE}


@dataclass(frozen=True)
class StageProgress:
    """One stage as it stands: ``seconds`` since it began to run, ``cells`` done and in all where a notebook tells."""

    stage: str
    state: State = State.WAITING
    seconds: float = 0.0
    cells: tuple[int, int] | None = None


def reproduce_parallel(
    folder: Path,
    targets: Sequence[str] = (),
    *,
    jobs: int,
    log: Path,
    progress: Callable[[StageProgress], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
    environment: Mapping[str, str] | None = None,
    force: bool = False,
    all_pipelines: bool = False,
    heavy_commands: tuple[str, ...] = HEAVY_COMMANDS,
    heavy_modules: Sequence[str] = HEAVY_MODULES,
) -> dict[str, State]:
    """Bring ``targets`` up to date as `dvc repro` in ``folder`` would; return how each stage ended, in DVC's order.

    With ``all_pipelines`` it brings all pipelines of the repository up to date. At most ``jobs`` stages run at once.
    ``progress`` hears of each change, from several threads, and ``notice`` of what is waited for; all that the
    commands print goes to the file ``log``. ``environment`` is on top of this process's own. Raises EngineError when
    the pipeline cannot be read, or at the end when stages failed; SystemExit 130 or 143 when interrupted or
    terminated, what had run to its end being committed.
    """
    stop = _Stop()
    # The current folder is DVC's frame for names, as in the shell; and the server imports while we import DVC.
    with (
        contextlib.chdir(folder),
        contextlib.closing(CommandServer()) as server,
        log.open("w", encoding="utf-8", errors="replace") as file,
        handled((signal.SIGINT, signal.SIGTERM), stop.hear),
    ):
        from dvc.exceptions import DvcException

        commands = StageCommands(server, dict(environment or {}), heavy_commands, heavy_modules)
        try:
            with (
                _logged(file),
                contextlib.closing(commands),
                open_pipeline(targets, stop, notice, all_pipelines) as pipeline,
            ):
                states = _Reproduction(pipeline, commands, stop, Log(file), progress, jobs, force).run()
        except Stopped:
            raise SystemExit(128 + stop.number) from None
        except (DvcException, OSError) as error:
            raise EngineError(
                "The pipeline cannot be run.", value=explain(error), next_step="mend what DVC says, then run again"
            ) from None
        return states


def explain(error: BaseException | None) -> str:
    """Return an error's text with those of its causes, as DVC's own command line prints it."""
    words = []
    while error is not None:
        words.append(str(error) or type(error).__name__)
        error = error.__cause__
    return ": ".join(words)


@contextlib.contextmanager
def _logged(file: TextIO) -> Iterator[None]:
    """Send what DVC logs to the log, and its progress bars nowhere: the terminal shows stages."""
    import dvc.logger  # noqa: F401 - importing it sets the handlers that are replaced here

    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("dvc | %(message)s"))
    loggers = [logging.getLogger(name) for name in ("dvc", "dvc_data", "dvc_objects")]
    before = [logger.handlers for logger in loggers]
    bars = logging.getLogger("dvc.progress")
    level = bars.level
    try:
        bars.setLevel(logging.CRITICAL)
        for logger in loggers:
            logger.handlers = [handler]
        yield
    finally:
        bars.setLevel(level)
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers = handlers


class _Stop:
    """Whether the user wants to stop: SIGINT and SIGTERM are counted, not raised wherever they happen to arrive."""

    def __init__(self) -> None:
        self.number = 0
        self._count = 0
        self._since = 0.0

    def hear(self, number: int, _frame) -> None:
        """Take note of a signal."""
        if not self._count:
            self.number, self._since = number, time.monotonic()
        self._count += 1

    def __bool__(self) -> bool:
        return self._count > 0

    @property
    def urgent(self) -> bool:
        """Whether the user asked twice."""
        return self._count > 1

    @property
    def signal(self) -> int:
        """What commands that still run get now: first what they may handle, in the end what they cannot."""
        waited = time.monotonic() - self._since
        if self.urgent or waited > KILL_SECONDS:
            return signal.SIGKILL
        return signal.SIGTERM if waited > TERMINATE_SECONDS else signal.SIGINT


class Log:
    """The log file that all stages write to, a whole line at a time."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._writing = threading.Lock()

    def write(self, stage: str, line: str) -> None:
        """Write a line of a stage."""
        with self._writing:
            self._file.write(f"{stage} | {line}\n")
            self._file.flush()


class StageOutput:
    """What one stage prints: to the log, its last lines kept, papermill's progress bar read."""

    def __init__(self, stage: str, log: Log, on_cells: Callable[[tuple[int, int]], None]) -> None:
        self._stage, self._log, self._on_cells = stage, log, on_cells
        self._rest = ""
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)

    def write(self, text: str) -> None:
        """Take some text as it comes; lines are cut at LONGEST_LINE characters."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._write_line(line)
        if bars := CELLS.findall(self._rest or text):
            self._on_cells((int(bars[-1][0]), int(bars[-1][1])))
        if len(self._rest) > LONGEST_LINE:
            self.end_line()

    def end_line(self) -> None:
        """Write what has no line end yet."""
        if self._rest:
            self._write_line(self._rest)
            self._rest = ""

    def _write_line(self, line: str) -> None:
        # A progress bar overwrites itself with carriage returns: keep what a terminal would show at last.
        line = line.rstrip("\r").rpartition("\r")[2]
        self.tail.append(line)
        self._log.write(self._stage, line)


class _Reproduction:
    """One run: starts each stage when all it needs is up to date, a thread each, at most ``jobs`` commands at once."""

    def __init__(self, pipeline, commands, stop, log, progress, jobs, force) -> None:
        self._pipeline, self._commands, self._stop, self._log = pipeline, commands, stop, log
        self._progress, self._force = progress, force
        self._slots = threading.BoundedSemaphore(max(1, jobs))
        self._states = dict.fromkeys(pipeline.steps, State.WAITING)
        self._began: dict = {}
        self._futures: dict[Future, object] = {}
        self._errors: dict[str, str] = {}

    def run(self) -> dict[str, State]:
        """Run all stages; return their states, or raise what reproduce_parallel tells of."""
        for stage in self._pipeline.steps:
            self._tell(stage, State.WAITING)
        with ThreadPoolExecutor(max_workers=len(self._states) or 1) as pool:
            try:
                while self._submit(pool) or self._futures:
                    done, _ = wait(self._futures, timeout=TICK_SECONDS, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._settle(self._futures.pop(future), future)
                    if self._stop:
                        self._commands.signal(self._stop.signal)
            except BaseException:
                self._commands.signal(signal.SIGKILL)
                raise
        self._pipeline.order_lock_files()
        if self._stop:
            raise Stopped
        if self._errors:
            raise self._failure()
        return {stage.addressing: state for stage, state in self._states.items()}

    def _submit(self, pool: ThreadPoolExecutor) -> bool:
        """Start what has become ready; return whether anything was."""
        started = set(self._futures.values())
        ready = [
            stage
            for stage, state in self._states.items()
            if state is State.WAITING
            and stage not in started
            and all(self._states[needed] in UP_TO_DATE for needed in self._pipeline.needs(stage))
        ]
        if self._stop:
            for stage in ready:
                self._tell(stage, State.SKIPPED)
            return False
        for stage in ready:
            self._futures[pool.submit(self._reproduce, stage)] = stage
        return bool(ready)

    def _reproduce(self, stage) -> State:
        """Bring one stage up to date, in a thread of its own."""
        if self._stop:
            raise Stopped
        # Only commands take a slot: hashing what one stage has made holds no other back.
        with self._slots:
            stage, state = self._pipeline.prepare(stage, force=self._force)
            if state is not State.RUNNING:
                return state
            try:
                self._run(stage)
            except BaseException:
                self._pipeline.abandon(stage)
                raise
        self._tell(stage, State.SAVING)
        try:
            self._pipeline.finish(stage)
        except BaseException:
            self._pipeline.abandon(stage)
            raise
        return State.DONE

    def _run(self, stage) -> None:
        self._began[stage] = time.monotonic()
        self._tell(stage, State.RUNNING)
        output = StageOutput(stage.addressing, self._log, lambda cells: self._tell(stage, State.RUNNING, cells=cells))
        self._commands.run(stage, output, self._stop, last_begun=lambda: self._warm(stage))

    def _warm(self, stage) -> None:
        """Ready what the next stages need, while this one's last command runs: a server that imports starts none."""
        if not stage.always_changed:  # those run each time, and mostly nothing has changed for the others
            self._commands.warm(stage, [other for other, state in self._states.items() if state is State.WAITING])

    def _settle(self, stage, future: Future) -> None:
        """Note how a stage ended; what needs a failed one is not run."""
        from dvc.exceptions import DvcException

        try:
            state = future.result()
        except Stopped:
            state = State.INTERRUPTED if stage in self._began else State.SKIPPED
        except (StageFailed, DvcException, OSError, EngineError) as error:
            state = State.FAILED
            self._errors[stage.addressing] = explain(error)
            self._log.write(stage.addressing, f"failed: {explain(error).splitlines()[0]}")
        self._tell(stage, state)
        if state not in UP_TO_DATE:
            for other in self._pipeline.needing(stage):
                if self._states[other] is State.WAITING:
                    self._tell(other, State.SKIPPED)

    def _tell(self, stage, state: State, **more) -> None:
        self._states[stage] = state
        seconds = time.monotonic() - self._began[stage] if stage in self._began else 0.0
        self._progress(StageProgress(stage.addressing, state, seconds, **more))

    def _failure(self) -> EngineError:
        skipped = [stage.addressing for stage, state in self._states.items() if state is State.SKIPPED]
        names = ", ".join(self._errors)
        ends = "\n".join(f"{stage}: {error}" for stage, error in self._errors.items())
        return EngineError(
            f"{len(self._errors)} of {len(self._states)} stages failed: {names}."
            + (f" Not run, for they need what failed: {', '.join(skipped)}." if skipped else ""),
            value=ends,
            next_step="mend the cause, then run again: what ended well is kept",
        )


# -- what the user sees --------------------------------------------------------------------------------------------
def lines(write: Callable[[str], object]) -> Callable[[StageProgress], None]:
    """Return a ``progress`` that writes one line for each stage that has come to its end."""

    def progress(now: StageProgress) -> None:
        if now.state not in (State.WAITING, State.RUNNING, State.SAVING):
            write(f"  {now.stage}: {f'{now.seconds:.1f} s' if now.state is State.DONE else now.state}\n")

    return progress


@contextlib.contextmanager
def board(stream: TextIO) -> Iterator[tuple[Callable[[StageProgress], None], Callable[[str], None]]]:
    """Yield ``progress`` and ``notice``: a live table on a terminal, else plain lines as things happen."""
    if not stream.isatty():
        yield lines(stream.write), lambda text: print(f"  {text}", file=stream)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    stages: dict[str, tuple[StageProgress, float]] = {}

    def table() -> Table:
        rows = Table(box=None, show_header=False, padding=(0, 1))
        for now, heard in list(stages.values()):
            active = now.state in (State.RUNNING, State.SAVING)
            seconds = now.seconds + (time.monotonic() - heard if active else 0.0)
            done, all_cells = now.cells or (0, 0)
            bar = ProgressBar(all_cells, done, width=20) if active and all_cells else ""
            rows.add_row(now.stage, now.state, f"{seconds:.1f} s" if seconds else "", bar)
        return rows

    def progress(now: StageProgress) -> None:
        stages[now.stage] = (now, time.monotonic())

    console = Console(file=stream)
    with Live(console=console, get_renderable=table, refresh_per_second=8):
        yield progress, lambda text: console.print(text, markup=False)
