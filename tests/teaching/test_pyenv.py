"""The stand-in for pyenv: what it answers itself and what it hands over."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
VERSION = platform.python_version()
QUESTIONS = (["install", "--skip-existing", VERSION], ["root"])

# A pyenv that tells what it was asked, for machines that have none.
REAL = """#!/bin/sh
if [ "$*" = root ]; then echo "{root}"; exit 0; fi
echo "real: $*"
exit 7
"""


def make_program(folder: Path, text: str) -> Path:
    """Write ``text`` as the executable ``folder``/pyenv and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "pyenv"
    program.write_text(text)
    program.chmod(0o755)
    return folder


@pytest.fixture
def real(tmp_path):
    """A folder with a pyenv whose own folder, `root`, has only Python 3.0.1."""
    (tmp_path / "root" / "versions" / "3.0.1" / "bin").mkdir(parents=True)
    return make_program(tmp_path / "real", REAL.format(root=tmp_path / "root"))


@pytest.fixture
def bare():
    """The folders of PATH that hold no pyenv."""
    return [Path(folder) for folder in os.environ["PATH"].split(os.pathsep) if not (Path(folder) / "pyenv").exists()]


def ask(*arguments: str, path: list[Path], person: bool = False, **given: str) -> subprocess.CompletedProcess:
    """Run the stand-in with ``path`` after its own folder; a ``person`` asks through a shell, others from Python."""
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", **os.environ, **given}
    environment["PATH"] = os.pathsep.join(map(str, [BIN, *path]))
    environment.pop("WORKSHOP_PYENV_HANDED_OVER", None)
    command = ["sh", "-c", '"$@"; exit $?', "sh", BIN / "pyenv", *arguments] if person else [BIN / "pyenv", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_stand_in_alone_gives_a_python_that_makes_environments(bare, tmp_path):
    """With no pyenv on PATH, `install` and `root` lead to this version, and an environment made with it works."""
    installed, root = (ask(*question, path=bare) for question in QUESTIONS)
    assert (installed.returncode, installed.stderr, root.returncode) == (0, "", 0)
    python = Path(root.stdout.strip(), "versions", VERSION, "bin", "python")
    subprocess.run([python, "-m", "venv", "--without-pip", tmp_path / "new"], check=True)
    question = "import platform, ssl, sys; print(platform.python_version(), sys.base_prefix)"
    told = subprocess.run([tmp_path / "new/bin/python", "-c", question], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [VERSION, os.path.realpath(sys.base_prefix)]
    assert told.stderr == ""


@pytest.mark.parametrize("arguments", [["install", "3.0.0"], ["versions"], []])
def test_stand_in_alone_says_what_it_cannot_do(bare, arguments):
    """With no pyenv on PATH, anything else ends with exit code 1, in words that name the way out."""
    told = ask(*arguments, path=bare)
    assert told.returncode == 1
    assert "stand-in" in told.stderr
    assert "github.com/pyenv/pyenv" in told.stderr


@pytest.mark.parametrize("person", [True, False])
@pytest.mark.parametrize("arguments", [["versions"], ["install", "3.0.0"], ["shell", "a b"], []])
def test_stand_in_hands_over_all_else(bare, real, arguments, person):
    """Whatever is not about this version goes to the real pyenv: the same arguments, output and exit code."""
    told = ask(*arguments, path=[real, *bare], person=person)
    assert (told.stdout, told.stderr, told.returncode) == (f"real: {' '.join(arguments)}\n", "", 7)


def test_stand_in_gives_a_person_the_real_answers(bare, real, tmp_path):
    """Typed in a shell, both questions are the real pyenv's to answer, even when it lacks this version."""
    installed, root = (ask(*question, path=[real, *bare], person=True) for question in QUESTIONS)
    assert (installed.stdout, installed.returncode) == (f"real: install --skip-existing {VERSION}\n", 7)
    assert root.stdout.strip() == str(tmp_path / "root")


def test_stand_in_helps_mlflow_when_the_real_pyenv_lacks_the_version(bare, real):
    """Asked from Python, `install` builds nothing, and `root` has this version beside those of the real pyenv."""
    installed, root = (ask(*question, path=[real, *bare]) for question in QUESTIONS)
    assert (installed.stdout, installed.returncode) == ("", 0)
    versions = Path(root.stdout.strip(), "versions")
    assert os.access(versions / VERSION / "bin" / "python", os.X_OK)
    try:
        assert (versions / "3.0.1" / "bin").is_dir()
    finally:
        (versions / "3.0.1").unlink()


def test_stand_in_leaves_mlflow_to_a_real_pyenv_with_the_version(bare, real, tmp_path):
    """Asked from Python, a real pyenv that has this version answers both questions."""
    python = tmp_path / "root" / "versions" / VERSION / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    installed, root = (ask(*question, path=[real, *bare]) for question in QUESTIONS)
    assert installed.stdout == f"real: install --skip-existing {VERSION}\n"
    assert root.stdout.strip() == str(tmp_path / "root")


@pytest.mark.parametrize("question", QUESTIONS)
def test_stand_in_refuses_where_no_tracking_server_is_set(bare, real, question):
    """Asked from Python in a terminal that is not set up, it names the line to type; a person gets an answer."""
    for path in (bare, [real, *bare]):
        told = ask(*question, path=path, MLFLOW_TRACKING_URI="")
        assert (told.stdout, told.returncode) == ("", 1)
        assert 'eval "$(.venv/bin/workshop config --export)"' in told.stderr
        assert ask("root", path=path, person=True, MLFLOW_TRACKING_URI="").returncode == 0


def test_stand_in_is_not_taken_for_a_real_pyenv(bare, tmp_path):
    """The stand-in of another clone further down PATH is passed over."""
    other = make_program(tmp_path / "other", (BIN / "pyenv").read_text())
    told = ask("versions", path=[other, *bare])
    assert told.returncode == 1
    assert "stand-in" in told.stderr


@pytest.mark.parametrize("arguments", [["versions"], ["root"]])
def test_stand_in_ends_a_circle(bare, tmp_path, arguments):
    """A `pyenv` on PATH that calls the stand-in again ends with exit code or answer, never goes on for ever."""
    circle = make_program(tmp_path / "circle", f'#!/bin/sh\nexec "{BIN / "pyenv"}" "$@"\n')
    told = ask(*arguments, path=[circle, *bare], person=arguments == ["versions"])
    assert told.returncode == (1 if arguments == ["versions"] else 0)
