"""The distribution alone: what a stranger gets who installs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nbformat
from hosts import notebook
from programs import BIN, clean_environment, required

PACKAGE = Path(__file__).resolve().parent.parent
FOREIGN = ("mlflow", "dvc", "sklearn", "tensorflow", "pandas", "workshop")


def test_wheel_alone_does_what_the_readme_shows(tmp_path):
    """In a bare environment, with nothing configured: a notebook and a sweep run on Dask, without MLflow or DVC."""
    uv = shutil.which("uv", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    required("uv", uv)
    venv = tmp_path / "venv"
    environment = clean_environment() | {"VIRTUAL_ENV": str(venv), "HOME": str(tmp_path), "UV_CACHE_DIR": cache(uv)}
    environment["PATH"] = f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def run(*words) -> str:
        done = subprocess.run(
            list(map(str, words)), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # From a copy: a build leaves a folder beside the sources.
    source = shutil.copytree(PACKAGE, tmp_path / "source", ignore=shutil.ignore_patterns("*.egg-info", "build"))
    run(uv, "build", "--quiet", "--wheel", "--out-dir", tmp_path, source)
    run(uv, "venv", "--quiet", "--python", BIN / "python", venv)
    run(uv, "pip", "install", "--quiet", next(tmp_path.glob("*.whl")))
    notebook(tmp_path / "in.ipynb", "# tags: parameters\ncount: int = 1", "print('a' * count)")
    run("papermill", "in.ipynb", "out.ipynb", "--engine", "dask", "-p", "count", "3", "--no-progress-bar")
    assert nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs[0].text == "aaa\n"
    rows = run("papermill-sweep", "in.ipynb", "--sweep", "count=1,2").splitlines()
    assert [row.rsplit(",", 1)[0] for row in rows] == ["count,status", "1,done", "2,done"]
    output = run("python", "-c", f"import importlib.util as u; print([n for n in {FOREIGN} if u.find_spec(n)])")
    assert output == "[]\n"
    shutil.rmtree(venv)


def cache(uv: str) -> str:
    """Return the folder of this user's downloads."""
    return subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
