"""Start the commands of stages: Python programs in forks with their imports done, other commands in DVC's shell."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from subprocess import DEVNULL

from dvc_parallel.compat import get_executable, shell_words
from dvc_parallel.runner import PID_BYTES
from dvc_parallel.stop import ignored_signals

PLAIN = re.compile(r"[\w@%+=:,./ -]+", re.ASCII)  # blanks, and what `shlex.quote` leaves as it is
PYTHON = re.compile(r"(python[\d.]*) +(-m +[^ -]|[^ -][^ ]*\.py( |$))")
# Without the current folder, where a file may have the name of a module, and without names in `__main__`.
SERVE = """del __import__("sys").path[: not __import__("sys").flags.safe_path]
__import__("dvc_parallel.runner", fromlist=["serve"]).serve()"""


def program_words(line: str, environment: Mapping[str, str]) -> list[str] | None:
    """Return the words of a plain call of a Python program of this environment: Python, file or `-m`, arguments.

    Return None for other commands: quotes and other signs need a shell. Forks are safe only on Linux.
    """
    name, *words = line.split() or [""]
    program = shutil.which(name, path=environment.get("PATH", os.defpath)) if "/" not in name else None
    if not program or not PLAIN.fullmatch(line) or sys.platform != "linux":
        return None
    if not PYTHON.match(line):
        with Path(program).open("rb") as file:
            name, words = file.readline(4096).decode(errors="replace").removeprefix("#!").strip(), [program, *words]
        program = name
    path, this = Path(program), Path(sys.executable)
    return [name, *words] if path.parent == this.parent and path.exists() and path.samefile(this) else None


def imported_modules(lines: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return the modules of the console scripts among the commands, and those that packages add to these scripts."""
    programs = {Path(words[1]).name for line in lines if (words := program_words(line, environment))}
    entries = [*entry_points(group="console_scripts"), *entry_points(group="dvc_parallel.preload")]
    return [entry.module for entry in entries if entry.name in programs]


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
    """Starts commands; forks Python programs from a process with ``modules`` imported."""

    def __init__(self, modules: Sequence[str] = (), ignored: Sequence[int] | None = None) -> None:
        self.modules = modules
        self._ignored = ignored_signals() if ignored is None else ignored
        self._forks: dict[tuple[str, ...], tuple[socket.socket, subprocess.Popen[bytes]]] = {}

    def close(self) -> None:
        """End the processes to fork from; commands continue."""
        while self._forks:
            requests, process = self._forks.popitem()[1]
            requests.close()
            process.kill()
            process.wait()

    def warm_up(self, modules: Sequence[str], python: str = sys.executable) -> socket.socket:
        """Return the socket of the process that imports ``modules``; start the process if there is none."""
        key = (python, *modules)
        if key not in self._forks:
            ours, theirs = socket.socketpair()
            with theirs:
                self._forks[key] = ours, subprocess.Popen(
                    [python, "-c", SERVE, str(theirs.fileno()), *modules], pass_fds=[theirs.fileno()],
                    stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True,
                )  # fmt: skip
        return self._forks[key][0]

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
