"""The distribution alone: what a stranger gets who installs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from repositories import BIN, PACKAGE, clean_environment, read

FOREIGN = ("workshop", "papermill", "dask", "mlflow")
PIPELINE = """
stages:
  left: {cmd: echo left > left.txt, outs: [left.txt]}
  right: {cmd: python make.py, deps: [make.py], outs: [right.txt]}
  both: {cmd: cat left.txt right.txt > both.txt, deps: [left.txt, right.txt], outs: [both.txt]}
"""


def test_wheel_alone_does_what_the_readme_shows(tmp_path):
    """In a bare environment: a pipeline runs, `dvc repro` finds nothing to do, and nothing foreign is installed."""
    uv = shutil.which("uv", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if not uv:
        pytest.skip("uv is not on this machine")
    venv, place = tmp_path / "venv", tmp_path / "place"
    place.mkdir()
    environment = clean_environment() | {"VIRTUAL_ENV": str(venv)}
    environment["PATH"] = f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def run(*words) -> str:
        done = subprocess.run(
            list(map(str, words)), cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    source = shutil.copytree(PACKAGE, tmp_path / "source", ignore=shutil.ignore_patterns("*.egg-info", "build"))
    run(uv, "build", "--wheel", "--quiet", "--out-dir", tmp_path, source)
    run(uv, "venv", "--quiet", venv)
    run(uv, "pip", "install", "--quiet", *tmp_path.glob("*.whl"))
    installed = {re.split("==| @ ", line)[0] for line in run(uv, "pip", "freeze").splitlines()}
    assert "dvc-parallel" in installed
    assert not installed & set(FOREIGN)
    run("git", "init", "--quiet")
    run(venv / "bin" / "dvc", "init", "--quiet")
    (place / "dvc.yaml").write_text(PIPELINE)
    (place / "make.py").write_text("open('right.txt', 'w').write('right\\n')")
    run(venv / "bin" / "dvc-parallel", "repro", "-j", "2")
    assert read(place / "both.txt") == "left\nright\n"
    assert "up to date" in run(venv / "bin" / "dvc", "repro")
