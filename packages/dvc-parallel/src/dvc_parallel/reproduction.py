"""Run stages in parallel, each as soon as its dependencies are up to date."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from dvc_parallel import compat
from dvc_parallel.commands import Command, Commands
from dvc_parallel.compat import Stage
from dvc_parallel.pipeline import Pipeline, explain, open_repository
from dvc_parallel.sessions import Sessions
from dvc_parallel.settings import Limits
from dvc_parallel.states import Progress, StagesFailed, State
from dvc_parallel.stop import Stopped, StopRequest

TAIL_LINES, TAIL_BYTES = 30, 1 << 16
TICK_SECONDS = 0.2
UP_TO_DATE = {State.UNCHANGED, State.RESTORED, State.DONE}
NOT_DONE = {State.FAILED, State.SKIPPED, State.INTERRUPTED}


def run_stages(
    targets: Sequence[str],
    folder: Path | str,
    *,
    jobs: int | None,
    limits: Mapping[str, object],
    force: bool,
    run_cache: bool,
    progress: Progress,
    notice: Callable[[str], object],
    **selection: bool,
) -> dict[str, State]:
    """Implement `reproduce`."""
    stop = StopRequest()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop.listening())
        stack.enter_context(contextlib.chdir(folder))  # DVC's stage and file names are relative to this folder
        # Hide DVC's messages and progress bars.
        for name, level in (("dvc", logging.WARNING), ("dvc.progress", logging.CRITICAL)):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(level)
        try:
            repo = stack.enter_context(open_repository())
            with contextlib.closing(Pipeline(repo, targets, stop, notice, **selection)) as pipeline:
                lines = [line for stage in pipeline.steps if stage.cmd for line in compat.split_commands(stage.cmd)]
                bounds = Limits(limits, pipeline.graph, pipeline.steps)
                jobs = jobs or os.cpu_count() or 1
                sessions = stack.enter_context(Sessions(jobs=jobs, folder=pipeline.folder))
                with contextlib.closing(Commands(stop.ignored, lines)) as commands:
                    run = _Reproduction(
                        pipeline, commands, sessions, stop, progress, bounds, force=force, run_cache=run_cache
                    )
                    return run.run(jobs)
        except Stopped:
            raise SystemExit(128 + stop.number) from None


class _Reproduction:
    """One run of the stages of a pipeline."""

    def __init__(
        self, pipeline: Pipeline, commands: Commands, sessions: Sessions, stop: StopRequest, progress: Progress,
        limits: Limits, **options: bool,
    ) -> None:  # fmt: skip
        self._pipeline, self._commands, self._sessions = pipeline, commands, sessions
        self._stop, self._progress = stop, progress
        self._limits, self._options = limits, options  # options of `Pipeline.prepare`
        self._states = dict.fromkeys(pipeline.steps, State.WAITING)
        self._needs = {stage: self._states.keys() & pipeline.graph[stage] for stage in pipeline.steps}
        self._running: dict[Command, tuple[Stage, list[str]]] = {}  # values: the stage and its remaining commands
        self._errors: dict[str, str] = {}

    def run(self, jobs: int) -> dict[str, State]:
        """Run the stages; return their states, or raise the exceptions that `reproduce` documents."""
        try:
            self._start_ready(jobs)
            with contextlib.suppress(Stopped, compat.DvcException, OSError):  # `prepare` will raise the error again
                if self._running and (self._options["force"] or self._pipeline.is_outdated()):
                    # Preload modules and enter sessions for the outdated stages while the first stages are running.
                    for line, _ in self._remaining():
                        self._sessions.variables(line, os.environ, self._remaining)
            while self._running or State.WAITING in self._states.values():
                self._start_ready(jobs)
                for command in select.select(self._running, [], [], TICK_SECONDS if self._running else 0)[0]:
                    self._continue(command, *self._running.pop(command))
                if self._stop:
                    self._signal(self._stop.signal)
        finally:
            self._signal(signal.SIGKILL)
        if self._stop:
            raise Stopped
        if self._errors:
            raise self._failure()
        return {stage.addressing: state for stage, state in self._states.items()}

    def _start_ready(self, jobs: int) -> None:
        """Start the stages that are ready, and skip those that depend on a failed stage."""
        # Keep DVC's order (dependencies first), but try stages that always run first: they may make others outdated.
        for stage in sorted(self._states, key=lambda stage: not stage.always_changed):
            state = self._states[stage]
            if state is State.WAITING and len(self._running) < jobs:
                states = {self._states[other] for other in self._needs[stage]}
                if self._stop or states & NOT_DONE:
                    self._set(stage, State.SKIPPED)
                elif states <= UP_TO_DATE and (stage not in self._pipeline.outdated or self._fits(stage)):
                    self._start(stage)
        self._pipeline.kept_lock.close()

    def _fits(self, stage: Stage) -> bool:
        """Return whether the limits allow a stage to start now."""
        return self._limits.allow(stage, [other for other, _ in self._running.values()])

    def _start(self, stage: Stage) -> None:
        with self._failing(stage):
            state = self._pipeline.prepare(stage, may_run=self._fits(stage), **self._options)
            self._set(stage, state)
            if state is State.RUNNING:
                self._pipeline.kept_lock.close()  # the command may need DVC's lock
                self._pipeline.log_of(stage).write_bytes(b"")
                self._start_command(stage, compat.split_commands(stage.cmd))

    def _start_command(self, stage: Stage, lines: list[str]) -> None:
        log = self._pipeline.log_of(stage)
        with log.open("a") as file:
            file.write(f"> {lines[0]}\n")
        options = compat.prepare_kwargs(stage)
        variables = self._sessions.variables(lines[0], options["env"], self._remaining)
        command = self._commands.start(lines[0], options["cwd"], options["env"] | variables, log)
        self._running[command] = stage, lines[1:]

    def _remaining(self) -> Iterator[tuple[str, str]]:
        """Start to preload modules, then yield the commands, and their folders, of stages that may still run."""
        self._commands.warm_up(self._commands.modules)
        for stage, state in self._states.items():
            if stage.cmd and state in {State.WAITING, State.RUNNING}:
                yield from ((line, stage.wdir) for line in compat.split_commands(stage.cmd))

    def _continue(self, command: Command, stage: Stage, lines: list[str]) -> None:
        """After a command has ended, start the stage's next command, or record the stage."""
        exit_code = command.wait()
        if exit_code:
            command.send_signal(signal.SIGKILL)  # kill the shell's background jobs, which ignore SIGINT
        if self._stop and (exit_code or lines):
            self._set(stage, State.INTERRUPTED)
            return
        with self._failing(stage):
            if exit_code:
                tail = _tail(self._pipeline.log_of(stage))
                raise ChildProcessError(f"a command exited with code {exit_code}\n{tail}")
            if lines:
                self._start_command(stage, lines)
            else:
                self._pipeline.record(stage)
                self._set(stage, State.DONE)

    def _signal(self, number: int) -> None:
        """Send a signal to the running commands."""
        for command in self._running:
            command.send_signal(number)

    @contextlib.contextmanager
    def _failing(self, stage: Stage) -> Iterator[None]:
        """Treat errors of DVC and the operating system as a failure of the stage."""
        try:
            yield
        except Stopped:
            self._set(stage, State.SKIPPED if self._states[stage] is State.WAITING else State.INTERRUPTED)
        except (compat.DvcException, OSError) as error:
            self._errors[stage.addressing] = explain(error)
            self._set(stage, State.FAILED)

    def _set(self, stage: Stage, state: State) -> None:
        self._states[stage] = state
        self._progress(stage.addressing, state)

    def _failure(self) -> StagesFailed:
        skips = [stage.addressing for stage, state in self._states.items() if state is State.SKIPPED]
        texts = [f"{len(self._errors)} of {len(self._states)} stages failed: {', '.join(self._errors)}."]
        if skips:
            texts[0] += f" These stages did not run because they depend on failed stages: {', '.join(skips)}."
        texts += [f"  found:    {stage}: {text}" for stage, text in self._errors.items()]
        texts.append("  next:     correct the cause, then run the command again; finished stages are kept")
        return StagesFailed("\n".join(texts))


def _tail(log: Path) -> str:
    """Return the last lines of a log, with only the final state of each progress bar."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").rstrip().split("\n")[-TAIL_LINES:]
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
