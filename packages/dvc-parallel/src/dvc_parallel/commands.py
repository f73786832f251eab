"""Starts the commands of stages: Python programs warm, where that is asked for, anything else in DVC's shell."""

from __future__ import annotations

import codecs
import contextlib
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path

from dvc_parallel import preload, runner
from dvc_parallel.compat import get_executable, shell_words

READ_BYTES = 1 << 16
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
EXPANDED = re.compile(r"[$`\\\n]")
SHELL_SYNTAX = re.compile(r"[*?\[\]{}~<>|&;()#!]")
IMPORTED = re.compile(r"^from (\S+) import ", re.MULTILINE)


def program_words(line: str, environment: Mapping[str, str]) -> list[str] | None:
    """Return the words of a plain call of a Python program of this environment, the file or `-m` first; else None.

    Anything that a shell might expand or act on counts as needing one, and so does a program that PATH finds elsewhere.
    """
    if not line.strip() or EXPANDED.search(line) or SHELL_SYNTAX.search(QUOTED.sub("", line)):
        return None
    try:
        name, *words = shlex.split(line)
    except ValueError:
        return None
    found = shutil.which(name, path=environment.get("PATH", os.defpath)) if "/" not in name else None
    if not found or Path(found).parent != Path(sys.executable).parent:
        return None
    if re.fullmatch(r"python[\d.]*", name):
        return words if words and (words[0][0] != "-" or (words[0] == "-m" and len(words) > 1)) else None
    with Path(found).open("rb") as file:
        return [found, *words] if b"python" in file.readline() else None


def named_modules(lines: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return the modules that the console scripts among the commands import."""
    programs = [words[0] for line in lines if (words := program_words(line, environment)) and words[0][0] == "/"]
    found = [IMPORTED.search(Path(program).read_text()) for program in dict.fromkeys(programs)]
    return [match[1] for match in found if match]


class Commands:
    """Starts commands; Python programs from a process that has ``modules`` imported, if there are any.

    Forking is safe where the imports leave no threads behind that matter: on Linux.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["dvc_parallel.preload"])
        self._modules = modules if sys.platform == "linux" else ()
        self._starting = threading.Lock()
        self._asker, self._alive = os.pipe()  # the second end closes with this process, however it ends

    def start(self, line: str, lock: Path, cwd: str, environment: dict[str, str], *, warm: bool) -> Command:
        """Start a command of a stage, in a session of its own, once no other copy of the stage holds ``lock``."""
        words = program_words(line, environment) if warm and self._modules else None
        reader, writer = self._context.Pipe(duplex=False)
        with writer:
            if words:
                arguments = (words, cwd, environment, writer, str(lock))
                process = self._context.Process(target=runner.run_program, args=arguments)
                with contextlib.suppress(OSError, EOFError):  # the process to fork from was killed
                    self._ensure_server()
                    process.start()
                    return Command(reader, process)
            words = [sys.executable, "-IS", runner.__file__, str(self._asker), str(lock)]
            process = subprocess.Popen(
                [*words, *shell_words(get_executable(), line)], cwd=cwd, env=environment, pass_fds=[self._asker],
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=writer.fileno(), stderr=writer.fileno(),
            )  # fmt: skip
            return Command(reader, process)

    def _ensure_server(self) -> None:
        """Start the process to fork from, where there is none; it begins with its imports."""
        with self._starting:
            os.environ[preload.MODULES] = " ".join(self._modules)
            try:
                forkserver.ensure_running()
            finally:
                del os.environ[preload.MODULES]

    def close(self) -> None:
        """Let go of what is still running: it ends."""
        os.close(self._alive)
        os.close(self._asker)


class Command:
    """A command that runs."""

    def __init__(self, reader: Connection, process: subprocess.Popen | multiprocessing.process.BaseProcess) -> None:
        self._reader, self._process = reader, process
        self.returncode: int | None = None

    def read(self) -> Iterator[str]:
        """Yield what the command prints until it ended; then ``returncode`` is set, negative for a signal.

        Does not wait for processes that the command left behind with its output open.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        ended, ends = os.pipe()
        waiter = threading.Thread(target=self._wait, args=(ends,))
        waiter.start()
        with self._reader:
            os.set_blocking(self._reader.fileno(), False)
            sources = {self._reader.fileno(), ended}
            while ended in sources:
                sources -= {ended} & set(wait(sources))
                with contextlib.suppress(BlockingIOError):
                    data = os.read(self._reader.fileno(), READ_BYTES)
                    yield decoder.decode(data)
                    if not data:
                        sources.discard(self._reader.fileno())
        waiter.join()
        os.close(ended)

    def _wait(self, ends: int) -> None:
        if isinstance(self._process, subprocess.Popen):
            self.returncode = self._process.wait()
        else:
            self._process.join()
            self.returncode = self._process.exitcode
        os.close(ends)

    def signal(self, number: int) -> bool:
        """Send a signal to the command's whole session; return whether it was there to get it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
            return True
        return False

    def end_session(self) -> None:
        """End what a command that failed has left behind: a shell's background jobs do not hear Ctrl-C."""
        patience = time.monotonic() + runner.END_SECONDS
        while self.signal(signal.SIGTERM) and time.monotonic() < patience:
            time.sleep(0.05)
        self.signal(signal.SIGKILL)
