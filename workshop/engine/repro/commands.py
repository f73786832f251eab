"""Runs commands in process groups of their own, forked from a server that has this package's programs imported."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from workshop.engine.repro.command_server import HEADER, ORPHAN_SECONDS, READ_BYTES
from workshop.errors import EngineError

# Programs whose distribution has the same name. What they import is three to four seconds of a cold start: our own at
# once, for what each run needs, papermill's when a notebook is to come. Parts that take long stand for themselves, and
# first: between two modules the server can start a command.
PROGRAMS = ("papermill", "workshop")
MODULES = ("workshop.cli", "workshop.parameters", "requests")
NOTEBOOK_MODULES = (
    "nbformat", "pyarrow.fs", "nbclient", "papermill.__main__", "distributed",
    "papermill_dask.engine", "papermill_dask.worker",
)  # fmt: skip
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
EXPANDED = re.compile(r"[$`\\\n]")
SHELL_SYNTAX = re.compile(r"[*?\[\]{}~<>|&;()#!]")


def program_words(command: str, environment: dict[str, str]) -> list[str] | None:
    """Return the words of a plain call of one of this environment's PROGRAMS; None for what needs a shell.

    Anything that a shell might expand or act on counts as needing one, and so does a program that PATH finds
    elsewhere. Forking is safe where the imports leave no threads behind that matter: on Linux.
    """
    if sys.platform != "linux" or EXPANDED.search(command) or SHELL_SYNTAX.search(QUOTED.sub("", command)):
        return None
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    if not words or words[0] not in PROGRAMS:
        return None
    found = shutil.which(words[0], path=environment.get("PATH", os.defpath))
    return [found, *words[1:]] if found and Path(found).parent == Path(sys.executable).parent else None


class CommandServer:
    """A process from which commands are forked; with it, or with us, die all commands that it started."""

    def __init__(self, modules: Sequence[str] = MODULES) -> None:
        self._control, theirs = socket.socketpair()
        self._commands: list[Command] = []
        self._sending = threading.Lock()
        code = f"from workshop.engine.repro.command_server import serve; serve({theirs.fileno()}, {list(modules)!r})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # A Ctrl-C in the terminal is for us alone: we pass it on in our order.
                start_new_session=True,
            )

    def start(self, words: Sequence[str], *, cwd: str, environment: dict[str, str], program: bool) -> Command:
        """Start a command: a ``program`` of ours in a forked process, anything else by exec.

        Raises EngineError when the server is gone.
        """
        request = {"words": list(words), "cwd": cwd, "environment": environment, "program": program}
        output, written = os.pipe()
        status, reported = socket.socketpair()
        try:
            with self._sending, reported:
                _send(self._control, request, [written, reported.fileno()])
        except OSError as error:
            raise EngineError("The process that starts commands is gone.", value=repr(error)) from None
        finally:
            os.close(written)
        self._commands.append(Command(output, status))
        return self._commands[-1]

    def load(self, modules: Sequence[str]) -> None:
        """Have the server import more modules when it has nothing else to do."""
        with contextlib.suppress(OSError), self._sending:  # a server that is gone is told of by `start`
            _send(self._control, {"modules": list(modules)}, [])

    def close(self) -> None:
        """End the server; what it still runs gets SIGTERM, then SIGKILL."""
        if all(command.returncode is not None for command in self._commands):
            self._process.kill()  # at once, even while it imports
        self._control.close()
        self._process.wait()


class Command:
    """A command that runs, in a session and process group of its own."""

    def __init__(self, output: int, status: socket.socket) -> None:
        self._output, self._status = output, status
        self._pid: int | None = None
        self.returncode: int | None = None

    def read(self) -> Iterator[str]:
        """Yield what the command prints until it ended; then ``returncode`` is set, negative for a signal.

        Does not wait for processes that the command left behind with its output open.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        os.set_blocking(self._output, False)
        with selectors.DefaultSelector() as selector, self._status:
            selector.register(self._output, selectors.EVENT_READ)
            selector.register(self._status, selectors.EVENT_READ)
            while self.returncode is None:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._output in ready and not (yield from self._drain(decoder)):
                    selector.unregister(self._output)
                if self._status in ready:
                    self._hear()
        yield from self._drain(decoder)
        os.close(self._output)

    def signal(self, number: int) -> bool:
        """Send a signal to the command's whole process group; return whether it was there to get it."""
        if self._pid is None or self.returncode is not None:
            return False
        try:
            os.killpg(self._pid, number)
        except ProcessLookupError:
            return False
        return True

    def end_group(self) -> None:
        """End what an interrupted command left behind: a shell's background jobs do not hear Ctrl-C."""
        patience = time.monotonic() + ORPHAN_SECONDS
        with contextlib.suppress(ProcessLookupError):
            while self._pid and time.monotonic() < patience:
                os.killpg(self._pid, signal.SIGTERM)
                time.sleep(0.05)
            if self._pid:
                os.killpg(self._pid, signal.SIGKILL)

    def _drain(self, decoder: codecs.IncrementalDecoder) -> Iterator[str]:
        """Yield what there is; return whether more may come."""
        while True:
            try:
                data = os.read(self._output, READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            yield decoder.decode(data)

    def _hear(self) -> None:
        """Take the server's word: the pid when the command began, its exit code when it ended."""
        for word in self._status.recv(READ_BYTES).decode().split() or ["-9"]:  # the server was killed: so was it
            if self._pid is None:
                self._pid = int(word)
            else:
                self.returncode = int(word)
        if self._pid is not None and self._pid < 0:
            self.returncode = self._pid


def _send(channel: socket.socket, request: dict, descriptors: list[int]) -> None:
    data = json.dumps(request).encode()
    socket.send_fds(channel, [HEADER.pack(len(data))], descriptors)
    channel.sendall(data)


# -- the commands of stages ---------------------------------------------------------------------------------------
class Stopped(Exception):
    """The user wants to stop, and the work at hand is not at its end."""


class StageFailed(Exception):
    """A stage's own failure; the text is for the user."""


class StageCommands:
    """Starts the commands of stages as DVC would, and passes signals on to those that run."""

    def __init__(
        self, server: CommandServer, environment: dict[str, str], heavy: tuple[str, ...], modules: Sequence[str]
    ) -> None:
        self._server, self._environment = server, environment
        self._heavy, self._modules = heavy, modules
        self._heavy_server: CommandServer | None = None
        self._loaded = False
        self._guard = threading.Lock()
        self._running: dict[Command, int] = {}

    def warm(self, stage, coming: Sequence) -> None:
        """Import what stages need, now that ``stage`` runs and others are ``coming``.

        What notebooks need, as soon as it is clear that one will run; what loads models, in a second server, while a
        notebook keeps the cluster busy and not us.
        """
        lines = command_lines(stage)
        later = [line for other in coming for line in command_lines(other)]
        with self._guard:
            notebooks = any(line.startswith("papermill ") for line in lines)
            if not self._loaded and (notebooks or any(line.startswith("papermill ") for line in later)):
                self._loaded = True
                self._server.load(NOTEBOOK_MODULES)
            if notebooks and self._heavy_server is None and any(line.startswith(self._heavy) for line in later):
                self._heavy_server = CommandServer(self._modules)

    def run(self, stage, output, stop: object, last_begun: Callable[[], None] = lambda: None) -> None:
        """Run a stage's commands one after the other; raise StageFailed, or Stopped before its end.

        ``last_begun`` is called once the last of them runs.
        """
        from dvc.stage.run import prepare_kwargs

        options = prepare_kwargs(stage, run_env=self._environment)
        *_, last = lines = command_lines(stage)
        for line in lines:
            output.write(f"> {line}\n")
            with self._guard:
                if stop:
                    raise Stopped
                command = self._start(line, options["cwd"], options["env"])
                self._running[command] = 0
            if line is last:
                last_begun()
            for text in command.read():
                output.write(text)
            output.end_line()
            del self._running[command]
            if command.returncode:
                if stop:
                    command.end_group()
                    raise Stopped
                raise StageFailed(f"`{line}` {_ended(command.returncode)}\n" + "\n".join(output.tail))

    def signal(self, number: int) -> None:
        """Send a signal to the commands that run and have not had it."""
        for command, had in list(self._running.items()):
            if had != number and command.signal(number):
                self._running[command] = number

    def close(self) -> None:
        """End the second server."""
        if self._heavy_server is not None:
            self._heavy_server.close()

    def _start(self, line: str, cwd: str, environment: dict[str, str]) -> Command:
        from dvc.stage.run import _make_cmd, get_executable

        if words := program_words(line, environment):
            heavy = self._heavy_server if line.startswith(self._heavy) else None
            return (heavy or self._server).start(words, cwd=cwd, environment=environment, program=True)
        words = _make_cmd(get_executable(), line)
        return self._server.start(words, cwd=cwd, environment=environment, program=False)


def command_lines(stage) -> list[str]:
    """Return a stage's commands as DVC splits them; a `.dvc` file has none."""
    from dvc.stage.run import _enforce_cmd_list

    return _enforce_cmd_list(stage.cmd) if stage.cmd else []


def _ended(code: int) -> str:
    return f"exited with {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
