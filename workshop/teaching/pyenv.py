"""A stand-in for `pyenv`, so that `mlflow run` finds the Python of this environment on machines without pyenv.

To build a project's environment, MLflow types `pyenv install --skip-existing VERSION` and `pyenv root`, and expects
`versions/VERSION/bin/python` below that root (mlflow/utils/virtualenv.py). When a project names no version, VERSION is
that of the Python on which MLflow runs. The stand-in answers both for this version. It hands everything else over to
the real pyenv, and shows the versions of that below the same root.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from workshop.exports import EXPORT_COMMAND

VERSION = platform.python_version()
NAME = b"workshop.teaching.pyenv"  # stands in the script of each stand-in, of this clone or another


def main() -> int:
    """Answer the command line, or hand it over to the real pyenv; return the exit code."""
    arguments, real = sys.argv[1:], find_real(os.environ.get("PATH", ""))
    if arguments == ["root"]:
        print(make_root(Path(sys.prefix, "share", "workshop-pyenv"), real))
        return 0
    if arguments == ["install", "--skip-existing", VERSION]:
        if os.environ.get("MLFLOW_TRACKING_URI"):
            return 0
        sys.exit(f"No tracking server is set in this terminal. Type at the top of the repository: {EXPORT_COMMAND}")
    if real is None:
        sys.exit(f"This stand-in for pyenv has Python {VERSION} only. Get pyenv: https://github.com/pyenv/pyenv")
    return os.execv(real, [str(real), *arguments])  # noqa: S606 -- becoming the real one is the purpose


def find_real(path: str) -> Path | None:
    """Return the first `pyenv` in the folders of ``path`` that is not such a stand-in."""
    programs = [Path(folder or ".", "pyenv").absolute() for folder in path.split(os.pathsep)]
    real = [each for each in programs if os.access(each, os.X_OK) and each.is_file() and NAME not in each.read_bytes()]
    return next(iter(real), None)


def make_root(root: Path, real: Path | None) -> Path:
    """Fill ``root`` with this version and links to those of the real pyenv; return it."""
    versions = root / "versions"
    program = versions / VERSION / "bin" / "python"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        # A script and not a link: some builds of Python, started through a link, do not find their library.
        base = os.path.realpath(sys.executable)
        temporary = program.with_name(f"python.{os.getpid()}")
        temporary.write_text(f'#!/bin/sh\nexec {shlex.quote(base)} "$@"\n')
        temporary.chmod(0o755)
        temporary.replace(program)
    if real is not None:
        others = subprocess.run([real, "root"], capture_output=True, text=True, check=False).stdout.strip()
        for other in Path(others or os.devnull, "versions").glob("*"):
            with contextlib.suppress(FileExistsError):
                (versions / other.name).symlink_to(other)
    return root
