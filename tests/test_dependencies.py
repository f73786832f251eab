"""The lock agrees with the ranges, and works on every Python it promises."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from workplace import BIN, ROOT, by_night, clean_environment, run_program

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = ROOT / "requirements.txt"
PIPELINE = tomllib.loads((ROOT / "4_pipeline" / "pyproject.toml").read_text())
RANGES = [
    requirement
    for requirement in map(
        Requirement,
        PROJECT["project"]["dependencies"]
        + PIPELINE["project"]["dependencies"]
        + PROJECT["dependency-groups"]["tests"],
    )
    if requirement.name != "forecast" and not (ROOT / "packages" / requirement.name).exists()
]
PLATFORMS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin"]
PYTHONS = ["3.11", "3.13"]
# What each part of the project cannot do without; importing it shows that the lock fits this Python.
IMPORTS = (  # noqa: SIM905 - a list of thirty strings reads worse
    "jupyterlab papermill mlflow dvc.api dask distributed sklearn tensorflow keras dash pyftpdlib.servers sqlalchemy "
    "pandera.pandas pvlib skops.io plotly waitress supervisor.supervisord pydantic_settings workshop.cli "
    "papermill_dask.client.engine forecast.govern.gate workshop.servers.supervisor"
).split()


def pins():
    """Each pinned name with its versions: more than one where Pythons need different ones."""
    versions = {}
    for line in (LOCK.read_text() + (ROOT / "tests" / "requirements.txt").read_text()).splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ ;]+)", line):
            versions.setdefault(canonicalize_name(match[1]), []).append(match[2])
    return versions


@pytest.mark.parametrize("requirement", RANGES, ids=lambda requirement: requirement.name)
def test_lock_holds_a_version_within_each_range(requirement):
    """The locks were compiled from pyproject.toml as it stands."""
    versions = pins()[canonicalize_name(requirement.name)]
    assert all(requirement.specifier.contains(version) for version in versions)


def test_lock_holds_pins_and_this_repository_alone():
    """Exact versions from the index that the reader uses, and what lies here; no other path, no address."""
    lines = LOCK.read_text().splitlines()
    pinned = [line for line in lines if line.strip() and not line.startswith("-e ")]
    assert all(re.match(r"#|[A-Za-z0-9._\[\],-]+==\S+", line) for line in pinned)
    folders = {".", "4_pipeline"} | {f"packages/{folder.name}" for folder in (ROOT / "packages").iterdir()}
    assert {line.split()[1] for line in lines if line.startswith("-e ")} == folders
    assert "://" not in "".join(lines)


@pytest.mark.walk
@pytest.mark.parametrize("platform", [PLATFORMS[0], *by_night(*PLATFORMS[1:])])
@pytest.mark.parametrize("python", [*by_night(PYTHONS[0]), PYTHONS[1]])
def test_lock_resolves(platform, python):
    """Every pin has a wheel or a source for every Python and platform that the project promises."""
    name = "tensorflow-cpu" if platform.startswith("x86_64") else "tensorflow"
    options = ["--python-version", python, "--python-platform", platform, "--only-binary", name]
    command = [BIN / "uv", "pip", "compile", "--quiet", *options, "--no-header", "--no-annotate", "requirements.txt"]
    done = run_program(*command, cwd=ROOT, env=clean_environment())
    assert re.findall(r"^(tensorflow\S*)==", done.stdout, re.MULTILINE) == [name]


def interpreter(version: str) -> str | None:
    """Return a Python of that version, from PATH or from pyenv, or None."""
    candidates = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for candidate in filter(None, candidates):
        asked = subprocess.run([candidate, "-c", "print('ok')"], capture_output=True, text=True, check=False)
        if asked.stdout == "ok\n":
            return str(candidate)
    return None


@pytest.mark.night
@pytest.mark.timeout(900)
def test_everything_imports_and_a_notebook_runs_on_the_newest_python(tmp_path):
    """In a fresh environment of that Python: the pins install, all imports, a notebook runs with `--engine dask`."""
    python = interpreter(PYTHONS[-1])
    if python is None:
        pytest.skip(f"Python {PYTHONS[-1]} is not on this machine")
    environment = clean_environment() | {"VIRTUAL_ENV": str(tmp_path / "venv")}

    def run(*words, cwd=tmp_path):
        run_program(*words, cwd=cwd, env=environment)

    try:
        run(BIN / "uv", "venv", "--quiet", "--python", python, tmp_path / "venv")
        run(BIN / "uv", "pip", "install", "--quiet", "-r", "requirements.txt", cwd=ROOT)
        scripts = tmp_path / "venv" / "bin"
        run(scripts / "python", "-c", "\n".join(f"import {name}" for name in IMPORTS))
        run(scripts / "python", "-m", "forecast", "csv", "germany.csv")
        environment["PATH"] = f"{scripts}:{environment['PATH']}"
        notebook = nbformat.v4.new_notebook(
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        )
        tagged = nbformat.v4.new_code_cell("hours: int = 1", metadata={"tags": ["parameters"]})
        notebook.cells = [tagged, nbformat.v4.new_code_cell(SOURCE)]
        nbformat.write(notebook, tmp_path / "notebook.ipynb")
        run(scripts / "papermill", "notebook.ipynb", "executed.ipynb", "--engine", "dask", "-p", "hours", "24")
        assert "24 hours, first 2013-01-01" in (tmp_path / "executed.ipynb").read_text()
    finally:
        shutil.rmtree(tmp_path / "venv", ignore_errors=True)


SOURCE = """\
from pathlib import Path
from forecast.table import schema
germany = schema.read(Path("germany.csv")).head(hours)
print(f"{len(germany)} hours, first {germany.utc_timestamp[0]:%Y-%m-%d}")"""
