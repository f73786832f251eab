"""Runs the stages of `dvc.yaml` that do not depend on one another side by side; leaves what `dvc repro` leaves."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from dvc_parallel import compat
from dvc_parallel.commands import Command, Commands, named_modules
from dvc_parallel.errors import ReproError, StagesFailed
from dvc_parallel.pipeline import LOCKS, Pipeline, State, Stopped

if TYPE_CHECKING:
    from dvc.stage import Stage

logger = logging.getLogger("dvc_parallel")
logger.propagate = False
STEPS = re.compile(r"\| *(\d+)/(\d+) \[")  # of a progress bar of tqdm's, as papermill shows
TAIL_LINES = 30
LONGEST_LINE = 1 << 16
TICK_SECONDS = 0.2
TERMINATE_SECONDS, KILL_SECONDS = 5.0, 8.0
UP_TO_DATE = {State.UNCHANGED, State.RESTORED, State.DONE}
NOT_MADE = {State.FAILED, State.SKIPPED, State.INTERRUPTED}


# Called at each change of a stage, from several threads, with its name, state, and steps done and in all, if it tells.
Progress = Callable[[str, State, tuple[int, int] | None], object]


def reproduce(
    targets: Sequence[str] = (),
    *,
    folder: Path | str = ".",
    jobs: int | None = None,
    force: bool = False,
    run_cache: bool = True,
    preload: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    progress: Progress = lambda *_: None,
    notice: Callable[[str], object] = lambda _: None,
    **selection: bool,
) -> dict[str, State]:
    """Bring ``targets`` up to date as `dvc repro` in ``folder`` would; return how each stage ended, in DVC's order.

    ``selection`` are `dvc repro`'s options of the same name: ``single_item``, ``pipeline``, ``all_pipelines``,
    ``recursive``, ``downstream``, ``glob``. At most ``jobs`` stages run at once, by default one a processor.
    ``environment`` is on top of this process's own. Python programs are forked from a process that has imported the
    modules ``preload``, by default those of the console scripts that the stages call; with none, they start as others.
    All that commands print goes to the file ``log``, by default `.dvc/tmp/dvc-parallel/log`. ``progress`` is called as
    `Progress` says, and ``notice`` with the words when another process is waited for.

    Raises ReproError when the pipeline cannot be run, StagesFailed at the end when stages failed, and SystemExit 130 or
    143 when interrupted or terminated, what had run to its end being recorded.
    """
    stop = _Stop()
    # The current folder is DVC's frame for names, as in the shell.
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(stop.heard())
        try:
            repo = stack.enter_context(compat.Repo())
            log = log or Path(repo.root_dir) / LOCKS / "log"
            log.parent.mkdir(parents=True, exist_ok=True)
            _log_to(log, stack)
            pipeline = Pipeline(repo, targets, stop, notice, **selection)
            stack.callback(pipeline.close)
            if preload is None:
                lines = [line for stage in pipeline.steps for line in _lines(stage)]
                preload = named_modules(lines, {**os.environ, **(environment or {})})
            commands = stack.enter_context(contextlib.closing(Commands(preload)))
            run = _Reproduction(pipeline, commands, stop, progress, dict(environment or {}), force, run_cache)
            return run.run(jobs or os.cpu_count() or 1)
        except Stopped:
            raise SystemExit(128 + stop.number) from None
        except (compat.DvcException, OSError) as error:
            raise ReproError(
                "The pipeline cannot be run.", explain(error), next_step="mend what DVC says, then run again"
            ) from None


def explain(error: BaseException | None) -> str:
    """Return an error's text with those of its causes, as DVC's own command line prints it."""
    words = []
    while error is not None:
        words.append(str(error) or type(error).__name__)
        error = error.__cause__
    return ": ".join(words)


def _lines(stage: Stage) -> list[str]:
    """Return a stage's commands as DVC splits them; a `.dvc` file has none."""
    return compat.split_commands(stage.cmd) if stage.cmd else []


def _log_to(file: Path, stack: contextlib.ExitStack) -> None:
    """Send what stages print and DVC logs to ``file``, and DVC's progress bars nowhere, until the ``stack`` closes."""
    handler = stack.enter_context(contextlib.closing(logging.FileHandler(file, "w", "utf-8", errors="replace")))
    for name in ("dvc", "dvc_data", "dvc_objects", logger.name):
        log = logging.getLogger(name)
        stack.callback(setattr, log, "handlers", log.handlers)
        log.handlers = [handler]
    for log, level in ((logger, logging.INFO), (logging.getLogger("dvc.progress"), logging.CRITICAL)):
        stack.callback(log.setLevel, log.level)
        log.setLevel(level)


class _Stop:
    """Whether the user wants to stop: SIGINT and SIGTERM are counted, not raised wherever they happen to arrive."""

    def __init__(self) -> None:
        self.number = 0
        self._count = 0
        self._since = 0.0

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Take note of signals meanwhile; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _frame) -> None:
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


class _Output:
    """What one stage prints: to the log, its last lines kept, its progress bar read."""

    def __init__(self, stage: str, on_steps: Callable[[tuple[int, int]], None]) -> None:
        self._stage, self._on_steps, self._rest = stage, on_steps, ""
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)

    def write(self, text: str) -> None:
        """Take some text as it comes; lines are cut at LONGEST_LINE characters."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._write_line(line)
        if bars := STEPS.findall(self._rest or text):
            self._on_steps((int(bars[-1][0]), int(bars[-1][1])))
        if len(self._rest) > LONGEST_LINE:
            self.end_line()

    def end_line(self) -> None:
        """Write what has no line end yet."""
        if self._rest:
            self._write_line(self._rest)
            self._rest = ""

    def _write_line(self, line: str) -> None:
        # A progress bar overwrites itself with carriage returns: keep what a terminal would show at last.
        self.tail.append(line.rstrip("\r").rpartition("\r")[2])
        logger.info("%s | %s", self._stage, self.tail[-1])


class _StageFailed(Exception):
    """A stage's own failure; the text is for the user."""


class _Reproduction:
    """One run: starts each stage when all it needs is up to date, a thread each, at most ``jobs`` commands at once."""

    def __init__(self, pipeline, commands, stop, progress, environment, force, run_cache) -> None:
        self._pipeline, self._commands, self._stop = pipeline, commands, stop
        self._progress, self._environment = progress, environment
        self._force, self._run_cache = force, run_cache
        self._states = dict.fromkeys(pipeline.steps, State.WAITING)
        self._needs = {stage: pipeline.needs(stage) for stage in pipeline.steps}
        self._futures: dict[Future, Stage] = {}
        self._running: dict[Command, int] = {}  # and the last signal that each was sent
        self._errors: dict[str, str] = {}

    def run(self, jobs: int) -> dict[str, State]:
        """Run all stages; return their states, or raise what `reproduce` tells of."""
        self._slots = threading.BoundedSemaphore(jobs)
        for stage in self._states:
            self._tell(stage, State.WAITING)
        with ThreadPoolExecutor(max_workers=len(self._states) or 1) as pool:
            try:
                while self._submit(pool) or self._futures:
                    done, _ = wait(self._futures, timeout=TICK_SECONDS, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._settle(self._futures.pop(future), future)
                    if self._stop:
                        self._signal(self._stop.signal)
            except BaseException:
                self._signal(signal.SIGKILL)
                raise
        self._pipeline.order_lock_files()
        if self._stop:
            raise Stopped
        if self._errors:
            raise self._failure()
        return {stage.addressing: state for stage, state in self._states.items()}

    def _submit(self, pool: ThreadPoolExecutor) -> bool:
        """Start what has become ready, skip what cannot any more; return whether anything was started."""
        started = set(self._futures.values())
        before = len(started)
        for stage, state in self._states.items():  # in DVC's order: what a stage needs comes before it
            if state is State.WAITING and stage not in started:
                needed = {self._states[other] for other in self._needs[stage]}
                if self._stop or needed & NOT_MADE:
                    self._tell(stage, State.SKIPPED)
                elif needed <= UP_TO_DATE:
                    self._futures[pool.submit(self._reproduce, stage)] = stage
        return len(self._futures) > before

    def _reproduce(self, stage: Stage) -> State:
        """Bring one stage up to date, in a thread of its own."""
        # Only commands take a slot: hashing what one stage has made holds no other back.
        with self._slots:
            if self._stop:
                raise Stopped
            stage, state = self._pipeline.prepare(stage, force=self._force, run_cache=self._run_cache)
            if state is not State.RUNNING:
                return state
            try:
                self._run_commands(stage)
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

    def _run_commands(self, stage: Stage) -> None:
        """Run a stage's commands one after the other; raise _StageFailed, or Stopped before its end."""
        self._tell(stage, State.RUNNING)
        output = _Output(stage.addressing, lambda steps: self._tell(stage, State.RUNNING, steps))
        options = compat.prepare_kwargs(stage, run_env=self._environment)
        lock = self._pipeline.lock_of(stage)
        # What always runs mostly finds nothing to do: no imports for it, nor for a run in which all is up to date.
        warm = not stage.always_changed
        for line in _lines(stage):
            output.write(f"> {line}\n")
            if self._stop:
                raise Stopped
            command = self._commands.start(line, lock, options["cwd"], options["env"], warm=warm)
            self._running[command] = 0
            for text in command.read():
                output.write(text)
            output.end_line()
            del self._running[command]
            if command.returncode:
                command.end_session()
                if self._stop:
                    raise Stopped
                raise _StageFailed(f"`{line}` {_ended(command.returncode)}\n" + "\n".join(output.tail))

    def _signal(self, number: int) -> None:
        """Send a signal to the commands that run and have not had it."""
        for command, had in list(self._running.items()):
            if had != number and command.signal(number):
                self._running[command] = number

    def _settle(self, stage: Stage, future: Future) -> None:
        """Note how a stage ended."""
        try:
            state = future.result()
        except Stopped:
            state = State.SKIPPED if self._states[stage] is State.WAITING else State.INTERRUPTED
        except (_StageFailed, compat.DvcException, OSError) as error:
            state = State.FAILED
            self._errors[stage.addressing] = explain(error)
            logger.info("%s | failed: %s", stage.addressing, explain(error).splitlines()[0])
        self._tell(stage, state)

    def _tell(self, stage: Stage, state: State, steps: tuple[int, int] | None = None) -> None:
        self._states[stage] = state
        self._progress(stage.addressing, state, steps)

    def _failure(self) -> StagesFailed:
        skipped = [stage.addressing for stage, state in self._states.items() if state is State.SKIPPED]
        return StagesFailed(
            f"{len(self._errors)} of {len(self._states)} stages failed: {', '.join(self._errors)}."
            + (f" Not run, for they need what failed: {', '.join(skipped)}." if skipped else ""),
            "\n".join(f"{stage}: {error}" for stage, error in self._errors.items()),
            next_step="mend the cause, then run again: what ended well is kept",
        )


def _ended(code: int) -> str:
    return f"exited with {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
