"""The command line: help, output and exit codes."""

from __future__ import annotations

import re
import shutil
import subprocess

import click
import pytest
from click.testing import CliRunner
from workplace import BIN, ROOT, clean_environment, run_program

from workshop.cli import COMMANDS, main

PROGRAMS = (
    "workshop", "mlflow-gate", "dvc-parallel", "papermill-sweep", "mlflow-ftp-server",
    "python -m forecast", "python -m forecast.fetch", "python -m dashboard",
)  # fmt: skip


def commands(group=main, path=()):
    """Yield every command with its arguments."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def invoke(*words):
    """Run a command in this process and return the result."""
    return CliRunner().invoke(main, [str(word) for word in words])


def test_command_has_help_with_an_example():
    """The help of each command contains an example call."""
    for words, command in commands():
        [example] = re.findall("Example:(.*)", command.help)
        assert "workshop " + " ".join(words) in example


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_has_help_and_a_version(program):
    """Each program has help with an example and a version, and exits with 2 for an unknown option."""
    words = [BIN / program.split()[0], *program.split()[1:]]
    done = [
        run_program(*words, option, cwd=ROOT / "4_pipeline", exit_code=2 * (option == "--unknown"))
        for option in ("-h", "--help", "--version", "--unknown")
    ]
    assert done[0].stdout == done[1].stdout
    assert re.search(rf"Example: +{program}", done[0].stdout)
    assert re.search(r"version \d+\.\d+", done[2].stdout)
    assert "No such option" in done[3].stderr


def test_help_has_a_line_for_each_command():
    """Each line of `workshop --help` starts with the same word as the command's help; test_layout tests its imports."""
    text = run_program(BIN / "workshop", "--help").stdout
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert re.search(rf"^  {name} +{command.help.split()[0]} ", text, re.MULTILINE), name


def test_error_suggests_a_command_and_lists_the_chapters():
    """A misspelled command gets a suggestion, an invalid chapter the list of chapters."""
    assert "Did you mean 'check'?" in invoke("checks").stderr
    assert "'9' is not one of '1', '2', '3', '4'." in invoke("check", 9).stderr


def test_next_step_can_be_typed(tmp_path):
    """If `workshop` is not on PATH, an error names its full path, which runs; else only the name."""
    environment = clean_environment() | {"WORKSHOP_STATE": str(tmp_path), "PATH": "/usr/bin:/bin"}

    def next_step(path):
        command = [BIN / "workshop", "backup", tmp_path / "no.tar"]
        done = run_program(*command, env=environment | {"PATH": path}, exit_code=None)
        return re.search("next: +type `(.*)`, or", done.stderr)[1]

    assert next_step(f"{BIN}:/usr/bin:/bin") == "workshop up"
    step = f"{next_step('/usr/bin:/bin')} --help"
    assert step != "workshop up --help"
    assert "--chapter" in subprocess.run(step, shell=True, env=environment, capture_output=True, text=True).stdout


def test_repro_names_the_cluster_that_the_shell_gives(tmp_path, monkeypatch):
    """DASK_SCHEDULER_ADDRESS overrides this clone's scheduler, and the command says so."""
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:9")
    monkeypatch.setenv("WORKSHOP_STATE", str(tmp_path))
    done = invoke("repro", "nothing")
    assert done.exit_code == 1
    assert "Dask cluster: tcp://127.0.0.1:9 (set by DASK_SCHEDULER_ADDRESS)" in done.stderr


# -- prerequisites, before anything is installed -------------------------------------------------------------------
def make(folder, *words, **environment):
    """Run a make target in a folder with copies of its input files."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml", "workshop/teaching/prerequisites.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return run_program("make", *words, cwd=folder, env=clean_environment() | environment, exit_code=None)


def python_that_says(folder, body):
    """Return a program that runs this Python after executing ``body``, to simulate another machine's Python."""
    import sys

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(body)
    program = folder / "python3"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import sys; sys.version_info = (3, 14, 0, 'final', 0)", ["Python 3.14 is not supported", "make run PYTHON="]),
        ("import sys; sys.version_info = (3, 9, 2, 'final', 0)", ["Python 3.9 is not supported", "3.11, 3.12 or 3.13"]),
        (
            "import collections, shutil; shutil.disk_usage = lambda _: collections.namedtuple('u', 'free')(1e9)",
            ["1.0 GB", "5 GB is needed"],
        ),
        ("import sys; sys.modules['ensurepip'] = None", ["cannot create virtual environments", "apt install"]),
        ("import os; os.environ['PATH'] = '/nowhere'", ["git is not installed"]),
    ],
)  # fmt: skip
def test_make_run_names_what_the_machine_lacks(tmp_path, body, words):
    """Before the installation, `make run` names what is missing and what to do, without a traceback."""
    done = make(tmp_path / "clone", "run", f"PYTHON={python_that_says(tmp_path / 'bin', body)}")
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "clone" / ".venv").exists()


def test_make_run_without_any_python_says_so(tmp_path):
    """Without Python, `make run` names the supported versions."""
    done = make(tmp_path, "run", "PYTHON=python-that-is-not-there")
    assert done.returncode == 2
    assert "python-that-is-not-there" in done.stderr
    assert "3.11, 3.12 or 3.13" in done.stderr


def test_make_stop_without_an_installation_is_no_error(tmp_path):
    """Without an installation `make stop` exits 0."""
    assert make(tmp_path, "stop").returncode == 0
