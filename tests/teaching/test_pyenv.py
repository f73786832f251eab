"""The pyenv shim handles this version of Python, and passes all other calls to the real pyenv."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
VERSION = platform.python_version()
INSTALL = ["install", "--skip-existing", VERSION]
# A fake pyenv that prints its arguments.
REAL = """#!/bin/sh
if [ "$*" = root ]; then echo "{root}"; exit 0; fi
echo "real: $*"
exit 7
"""


def make_program(folder: Path, text: str) -> Path:
    """Write ``text`` as the executable ``folder``/pyenv and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyenv").write_text(text)
    (folder / "pyenv").chmod(0o755)
    return folder


@pytest.fixture
def real(tmp_path):
    """A folder with a pyenv whose own folder, `root`, has only Python 3.0.1."""
    (tmp_path / "root" / "versions" / "3.0.1" / "bin").mkdir(parents=True)
    return make_program(tmp_path / "real", REAL.format(root=tmp_path / "root"))


@pytest.fixture
def bare():
    """The folders of PATH that contain no pyenv."""
    return [Path(folder) for folder in os.environ["PATH"].split(os.pathsep) if not (Path(folder) / "pyenv").exists()]


def ask(*arguments: str, path: list[Path], **variables: str) -> subprocess.CompletedProcess:
    """Run the shim with ``path`` after its own folder on PATH."""
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", **os.environ, **variables}
    environment["PATH"] = os.pathsep.join(map(str, [BIN, *path]))
    return subprocess.run(
        [BIN / "pyenv", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_shim_provides_a_python_that_creates_environments(bare, tmp_path):
    """Without a pyenv on PATH, `install` and `root` provide this version, and an environment made with it works."""
    assert ask(*INSTALL, path=bare).returncode == 0
    python = Path(ask("root", path=bare).stdout.strip(), "versions", VERSION, "bin", "python")
    subprocess.run([python, "-m", "venv", "--without-pip", tmp_path / "new"], check=True)
    question = "import platform, ssl, sys; print(platform.python_version(), sys.base_prefix)"
    done = subprocess.run([tmp_path / "new/bin/python", "-c", question], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [VERSION, os.path.realpath(sys.base_prefix)]
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["versions"], ["install", "3.0.0"], ["shell", "a b"], []])
def test_everything_else_goes_to_the_real_pyenv(bare, real, tmp_path, arguments):
    """Arguments, output and exit code are the real pyenv's; without one (another shim does not count) it exits 1."""
    done = ask(*arguments, path=[real, *bare])
    assert (done.stdout, done.stderr, done.returncode) == (f"real: {' '.join(arguments)}\n", "", 7)
    other = make_program(tmp_path / "other", (BIN / "pyenv").read_text())
    done = ask(*arguments, path=[other, *bare])
    assert done.returncode == 1
    assert "github.com/pyenv/pyenv" in done.stderr


def test_root_has_this_version_beside_those_of_the_real_pyenv(bare, real):
    """MLflow finds this version, without a build by the real pyenv, and the real pyenv's versions."""
    done = ask(*INSTALL, path=[real, *bare])
    assert (done.stdout, done.returncode) == ("", 0)
    versions = Path(ask("root", path=[real, *bare]).stdout.strip(), "versions")
    try:
        assert os.access(versions / VERSION / "bin" / "python", os.X_OK)
        assert (versions / "3.0.1" / "bin").is_dir()
    finally:
        (versions / "3.0.1").unlink()
