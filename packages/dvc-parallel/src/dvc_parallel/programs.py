"""Python programs of this environment, and the process that they are forked from; none of it imports DVC."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from subprocess import DEVNULL

Fork = tuple[socket.socket, subprocess.Popen[bytes]]
Forks = dict[tuple[str, ...], Fork]  # by Python and imported modules

PLAIN = re.compile(r"[\w@%+=:,./ -]+", re.ASCII)  # blanks, and what `shlex.quote` leaves as it is
PYTHON = re.compile(r"(python[\d.]*) +(-m +[^ -]|[^ -][^ ]*\.py( |$))")
LOCKED = re.compile(r"^ *- path: (.+)\n(?: +hash: .+\n)? +md5: (.+)$", re.MULTILINE)
YAML_LINE = re.compile(r"^ *(?:- +)?(?:cmd: +)?(.+)$", re.MULTILINE)
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
    entries = [*entry_points(group="console_scripts"), *entry_points(group="dvc_parallel.preload")]
    scripts = {entry.name for entry in entries}  # other programs are not looked for along PATH, which may be long
    lines = [line for line in lines if Path((line.split() or [""])[0]).name in scripts]
    programs = {Path(words[1]).name for line in lines if (words := program_words(line, environment))}
    return [entry.module for entry in entries if entry.name in programs]


def start_to_import(modules: Sequence[str], python: str = sys.executable) -> Fork:
    """Start a process to fork programs from, which imports ``modules``; return its socket and the process."""
    ours, theirs = socket.socketpair()
    with theirs:
        return ours, subprocess.Popen(
            [python, "-c", SERVE, str(theirs.fileno()), *modules], pass_fds=[theirs.fileno()],
            stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True,
        )  # fmt: skip


def start_early(folder: Path, modules: Sequence[str] | None, *, force: bool = False) -> Forks:
    """Start to import ``modules``, or those of the stages in ``folder``, if ``force`` or files say that some will run.

    DVC takes as long to import itself, and only then it is known which stages have changed. Until then the times of
    files tell: of dvc.lock, and of what it names. A process that is not needed ends with the run.
    """
    with contextlib.suppress(OSError, ValueError):
        text = Path(folder, "dvc.yaml").read_text()
        if sys.platform == "linux" and (force or _looks_outdated(folder)):
            if modules is None:  # each line's first word is looked for along PATH, so only when something will run
                lines = (re.sub(r"\$\{.*?\}", "x", line).strip("'\"") for line in YAML_LINE.findall(text))
                modules = imported_modules(list(lines), os.environ)
            if modules:
                return {(sys.executable, *modules): start_to_import(modules)}
    return {}


def _looks_outdated(folder: Path) -> bool:
    """Return whether a file that dvc.lock names is gone, or newer and different, as well as quick looks can tell.

    A stage that always runs writes its files again, mostly the same ones.
    """
    lock = Path(folder, "dvc.lock")
    try:
        for path, md5 in [("dvc.yaml", ""), *LOCKED.findall(lock.read_text())]:
            file = folder / path
            if file.stat().st_mtime > lock.stat().st_mtime:
                with file.open("rb") as content:  # a folder cannot be opened: an OSError, too
                    if hashlib.file_digest(content, "md5").hexdigest() != md5:
                        return True
    except OSError:
        return True
    return False
