"""A shim for `pyenv`, so that `mlflow run` uses this environment's Python on machines without pyenv.

To build a project's environment, MLflow calls `pyenv install --skip-existing VERSION` and `pyenv root`, and expects
`versions/VERSION/bin/python` below that root (mlflow/utils/virtualenv.py). VERSION defaults to the Python that runs
MLflow. The shim handles both calls for this version, passes all others to the real pyenv, and links the real pyenv's
versions below the same root.
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
NAME = b"workshop.teaching.pyenv"  # every clone's pyenv shim contains this string; the real pyenv does not


def main() -> int:
    """Handle the command, or pass it to the real pyenv; return the exit code."""
    arguments, real = sys.argv[1:], find_real(os.environ.get("PATH", ""))
    if arguments == ["root"]:
        print(make_root(Path(sys.prefix, "share", "workshop-pyenv"), real))
        return 0
    if arguments == ["install", "--skip-existing", VERSION]:
        if os.environ.get("MLFLOW_TRACKING_URI"):
            return 0
        sys.exit(f"No tracking server is set in this terminal. In the repository root, type: {EXPORT_COMMAND}")
    if real is None:
        sys.exit(f"Only Python {VERSION} is available here. For other versions, install https://github.com/pyenv/pyenv")
    return os.execv(real, [str(real), *arguments])  # noqa: S606 -- replaces this process with the real pyenv


def find_real(path: str) -> Path | None:
    """Return the first `pyenv` on ``path`` that is not a shim."""
    programs = [Path(folder or ".", "pyenv").absolute() for folder in path.split(os.pathsep)]
    real = [each for each in programs if os.access(each, os.X_OK) and each.is_file() and NAME not in each.read_bytes()]
    return next(iter(real), None)


def make_root(root: Path, real: Path | None) -> Path:
    """Create ``root`` with this Python version and links to the real pyenv's versions; return ``root``."""
    versions = root / "versions"
    program = versions / VERSION / "bin" / "python"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        # A script, not a symbolic link: through a link, some builds of Python do not find their libraries.
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
