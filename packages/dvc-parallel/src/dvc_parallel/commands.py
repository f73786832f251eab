"""Starts the commands of stages: Python programs in forks that have the imports done, other commands in DVC's shell."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from dvc_parallel import runner
from dvc_parallel.compat import get_executable, shell_words

PLAIN = re.compile(r"[\w@%+=:,./ -]+", re.ASCII)  # blanks, and what `shlex.quote` leaves as it is
FORK_SERVER = multiprocessing.get_context("forkserver")
SPAWN = multiprocessing.get_context("spawn")


def program_words(line: str, environment: Mapping[str, str]) -> list[str] | None:
    """Return the words of a plain call of a Python program of this environment, the file or `-m` first; else None.

    A command with quotes or anything else that means something to a shell needs one, and so does a program that PATH
    finds elsewhere.
    """
    name, *words = line.split() or [""]
    program = shutil.which(name, path=environment.get("PATH", os.defpath)) if "/" not in name else None
    if not PLAIN.fullmatch(line) or not program or Path(program).parent != Path(sys.executable).parent:
        return None
    if re.fullmatch(r"python[\d.]*", name):
        return words if words and (words[0][0] != "-" or (words[0] == "-m" and len(words) > 1)) else None
    with Path(program).open("rb") as file:
        return [program, *words] if b"python" in file.readline() else None


def imported_modules(lines: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return the modules that the console scripts among the commands import, and what packages add to these scripts."""
    programs = {Path(words[0]).name for line in lines if (words := program_words(line, environment))}
    entries = [*entry_points(group="console_scripts"), *entry_points(group="dvc_parallel.preload")]
    return [entry.module for entry in entries if entry.name in programs]


def begin(stack: contextlib.ExitStack, modules: Sequence[str]) -> tuple[BaseProcess, Connection]:
    """Start a process that imports modules, then does `runner.run` with what it is sent, or ends with ``stack``."""
    receiver, sender = SPAWN.Pipe(duplex=False)
    with receiver:
        return _started(SPAWN.Process(target=runner.run_next, args=(modules, receiver))), stack.enter_context(sender)


class Commands:
    """Starts commands; Python programs in forks of a process that has imported ``modules``, if there are any.

    A fork is safe where the imports leave no threads behind that matter: on Linux. ``begun`` is a process to fork the
    first program from that is not ``warm``.
    """

    def __init__(self, modules: Sequence[str], begun: tuple[BaseProcess, Connection] | None = None) -> None:
        self._begun = begun
        self._modules = modules if sys.platform == "linux" else ()
        self._is_warm = not self._modules  # forking takes no time for imports, now or any more
        FORK_SERVER.set_forkserver_preload(["dvc_parallel.runner", *self._modules])

    def start(self, line: str, cwd: str, environment: dict[str, str], log: Path, *, warm: bool) -> BaseProcess:
        """Start a command, which waits until no other process holds ``log``; all of it is a session.

        ``warm``: a Python program starts in a fork; the first such call takes as long as the imports.
        """
        words = program_words(line, environment) if self._modules else None
        arguments = shell_words(get_executable(), line), cwd, environment, log
        with contextlib.suppress(OSError, EOFError):  # the process to fork from was killed
            if (words and warm) or self._is_warm:
                self._is_warm = True
                return _started(FORK_SERVER.Process(target=runner.run, args=(words, *arguments)))
            if words and self._begun:
                (process, sender), self._begun = self._begun, None
                sender.send((words, *arguments))
                return process
        return _started(SPAWN.Process(target=runner.run, args=(None, *arguments)))


def _started(process: BaseProcess) -> BaseProcess:
    resource_tracker.ensure_running()  # which would unblock the signal
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # for the time until `runner.run` ignores it
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return process
