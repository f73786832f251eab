"""Start the commands of stages: console scripts in forks with preloaded imports, others in the shell that DVC uses."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from subprocess import DEVNULL

from dvc_parallel.compat import get_executable, shell_words
from dvc_parallel.runner import PID_BYTES

# Matches commands without shell syntax: only safe characters, spaces, and quoted text without expansions.
PLAIN = re.compile(r"""(?:[\w@%+=:,./ -]|'[^'\n]*'|"[^"$`\\\n]*")+""", re.ASCII)
# Removes the current folder from `sys.path`, because its files could shadow modules. Adds no names to `__main__`.
SERVE = """del __import__("sys").path[: not __import__("sys").flags.safe_path]
__import__("dvc_parallel.runner", fromlist=["serve"]).serve()"""


def console_script(line: str, environment: Mapping[str, str]) -> EntryPoint | None:
    """Return the entry point of a command that only calls a console script of this environment.

    Return None for other commands, for commands with shell syntax, and outside Linux, where forking is not safe.

    >>> console_script("dvc status | cat", os.environ)
    """
    name = shlex.split(line)[0] if PLAIN.fullmatch(line) and line.strip() else ""
    if sys.platform != "linux" or name not in entries("console_scripts"):
        return None
    is_ours = shutil.which(name, path=environment.get("PATH")) == str(Path(sys.executable).with_name(name))
    return entries("console_scripts")[name] if is_ours else None


@functools.cache
def entries(group: str) -> dict[str, EntryPoint]:
    """Return the installed entry points of a group by name."""
    return {entry.name: entry for entry in entry_points(group=group)}


def imported_modules(lines: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    """Return the modules of the console scripts that ``lines`` call, and their `dvc_parallel.preload` entry points."""
    names = {script.name for line in lines if (script := console_script(line, environment))}
    modules = [script.module for name, script in entries("console_scripts").items() if name in names]
    return modules + [entry.value for entry in entry_points(group="dvc_parallel.preload") if entry.name in names]


class Command:
    """A running command with the session id ``pid``. Raises OSError if the fork server has exited."""

    def __init__(self, requests: socket.socket, *request: object) -> None:
        self._report, theirs = socket.socketpair()
        self._signal = 0
        try:
            with theirs:
                socket.send_fds(requests, [b"-"], [theirs.fileno()])
            self._report.sendall(pickle.dumps(request))
            if not (pid := self._report.recv(PID_BYTES)):
                raise ConnectionError("the fork server has exited")
        except OSError:
            self._report.close()
            raise
        self.pid = int.from_bytes(pid)

    def fileno(self) -> int:
        """Return a file descriptor that becomes readable when the command exits."""
        return self._report.fileno()

    def wait(self, seconds: float | None = None) -> int:
        """Wait until the command exits; return its exit code."""
        self._report.settimeout(seconds)
        with self._report:
            return int.from_bytes(self._report.recv(1) or bytes([128 + signal.SIGKILL]))

    def send_signal(self, number: int) -> None:
        """Send a signal to all processes of the command, unless the last signal was the same."""
        if number != self._signal:
            self._signal = number
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


class Commands:
    """Starts commands that ignore the signals in ``ignored``; preloads the console scripts that ``lines`` call."""

    def __init__(self, ignored: Sequence[int] = (), lines: Sequence[str] = ()) -> None:
        self._ignored, self._lines = ignored, lines
        self._servers: dict[tuple[str, ...], tuple[socket.socket, subprocess.Popen[bytes]]] = {}  # by modules

    @functools.cached_property
    def modules(self) -> list[str]:
        """The modules to preload, computed on first use."""
        return imported_modules(self._lines, os.environ)

    def close(self) -> None:
        """Stop the fork servers; running commands continue."""
        while self._servers:
            requests, process = self._servers.popitem()[1]
            requests.close()
            process.kill()
            process.wait()

    def warm_up(self, modules: Sequence[str]) -> socket.socket:
        """Return the socket of the fork server that preloads these modules; start the server if necessary."""
        if (*modules,) not in self._servers:
            ours, theirs = socket.socketpair()
            with theirs:
                self._servers[*modules,] = ours, subprocess.Popen(
                    [sys.executable, "-c", SERVE, str(theirs.fileno()), *modules], pass_fds=[theirs.fileno()],
                    stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True,
                )  # fmt: skip
        return self._servers[*modules,][0]

    def start(self, line: str, cwd: str, environment: dict[str, str], log: Path) -> Command:
        """Start a command, which waits for the lock on ``log``; the first console script also waits for the imports."""
        arguments, shell = (cwd, environment, str(log), self._ignored), shell_words(get_executable(), line)
        with contextlib.suppress(OSError):  # the fork server was killed: start a new one below
            if self.modules and (program := console_script(line, environment)):
                path, *words = shlex.split(line)
                words.insert(0, str(Path(sys.executable).with_name(path)))
                return Command(self.warm_up(self.modules), program, words, *arguments)
            return Command(self.warm_up(()), None, shell, *arguments)
        self.close()
        return Command(self.warm_up(()), None, shell, *arguments)
