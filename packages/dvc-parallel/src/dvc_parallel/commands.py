"""Start the commands of stages: Python programs in forks with their imports done, other commands in DVC's shell."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from dvc_parallel.compat import get_executable, shell_words
from dvc_parallel.programs import Forks, program_words, start_to_import
from dvc_parallel.runner import PID_BYTES
from dvc_parallel.stop import ignored_signals


class Command:
    """A running command, which is the session ``pid``. Raises OSError if the process to fork from is gone."""

    def __init__(self, requests: socket.socket, *request: object) -> None:
        self._report, theirs = socket.socketpair()
        self._signal = 0
        try:
            with theirs:
                socket.send_fds(requests, [b"-"], [theirs.fileno()])
            self._report.sendall(pickle.dumps(request))
            if not (pid := self._report.recv(PID_BYTES)):
                raise ConnectionError("the process that starts commands has ended")
        except OSError:
            self._report.close()
            raise
        self.pid = int.from_bytes(pid)

    def fileno(self) -> int:
        """Return a file descriptor that can be read once the command has ended."""
        return self._report.fileno()

    def wait(self, seconds: float | None = None) -> int:
        """Wait until the command has ended; return its exit code."""
        self._report.settimeout(seconds)
        with self._report:
            return int.from_bytes(self._report.recv(1) or bytes([128 + signal.SIGKILL]))

    def send_signal(self, number: int) -> None:
        """Send a signal to all processes of the command, unless it was the last one sent."""
        if number != self._signal:
            self._signal = number
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


class Commands:
    """Starts commands; forks Python programs from a process with ``modules`` imported, if possible one of ``forks``."""

    def __init__(
        self, modules: Sequence[str] = (), ignored: Sequence[int] | None = None, forks: Forks | None = None
    ) -> None:
        self.modules = modules
        self._ignored = ignored_signals() if ignored is None else ignored
        self._forks = forks or {}

    def close(self) -> None:
        """End the processes to fork from; commands continue."""
        while self._forks:
            requests, process = self._forks.popitem()[1]
            requests.close()
            process.kill()
            process.wait()

    def warm_up(self, modules: Sequence[str], python: str = sys.executable) -> socket.socket:
        """Return the socket of the process that imports ``modules``; start the process if there is none."""
        for (other, *imported), (requests, _) in self._forks.items():
            if other == python and bool(imported) == bool(modules) and {*modules} <= {*imported}:
                return requests
        self._forks[python, *modules] = start_to_import(modules, python)
        return self._forks[python, *modules][0]

    def start(self, line: str, cwd: str, environment: dict[str, str], log: Path, *, warm: bool) -> Command:
        """Start a command, which waits for the lock of ``log``; the first ``warm`` program waits for the imports."""
        modules = self.modules if warm else ()
        words = program_words(line, environment) if modules else None
        arguments = shell_words(get_executable(), line), cwd, environment, str(log), self._ignored
        with contextlib.suppress(OSError):  # the process to fork from was killed
            python = words and shutil.which(words[0], path=environment.get("PATH"))
            return Command(self.warm_up(modules, python) if python else self.warm_up(()), words, *arguments)
        self.close()
        return Command(self.warm_up(()), None, *arguments)
