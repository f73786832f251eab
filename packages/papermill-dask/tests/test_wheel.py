"""The wheel, installed on its own."""

from __future__ import annotations

import functools
from pathlib import Path

import nbformat
from hosts import notebook
from programs import clean_environment, install_alone, run_program

PACKAGE = Path(__file__).resolve().parent.parent
FOREIGN = ("mlflow", "dvc", "sklearn", "tensorflow", "pandas", "workshop")


def test_wheel_runs_the_readmes_commands(tmp_path):
    """In a new environment, without configuration, MLflow or DVC, a notebook and a sweep run on Dask."""
    programs = install_alone(PACKAGE, tmp_path)
    environment = clean_environment() | {"HOME": str(tmp_path)}
    run = functools.partial(run_program, cwd=tmp_path, env=environment | {"PATH": f"{programs}:{environment['PATH']}"})
    notebook(tmp_path / "in.ipynb", "# tags: parameters\ncount: int = 1", "print('a' * count)")
    run("papermill", "in.ipynb", "out.ipynb", "--engine", "dask", "-p", "count", "3", "--no-progress-bar")
    assert nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs[0].text == "aaa\n"
    rows = run("papermill-sweep", "in.ipynb", "--sweep", "count=1,2").splitlines()
    assert [row.rsplit(",", 1)[0] for row in rows] == ["count,status", "1,done", "2,done"]
    output = run("python", "-c", f"import importlib.util as u; print([n for n in {FOREIGN} if u.find_spec(n)])")
    assert output == "[]\n"
