"""The wheel, installed alone in a new environment."""

from __future__ import annotations

import functools

from programs import clean_environment, install_alone, run_program
from repositories import PACKAGE, read

FOREIGN = ("workshop", "papermill", "dask", "mlflow")
PIPELINE = """
stages:
  left: {cmd: echo left > left.txt, outs: [left.txt]}
  right: {cmd: python make.py, deps: [make.py], outs: [right.txt]}
  both: {cmd: cat left.txt right.txt > both.txt, deps: [left.txt, right.txt], outs: [both.txt]}
"""


def test_wheel_alone_does_what_the_readme_shows(tmp_path):
    """A pipeline runs, `dvc repro` finds nothing to do, and no undeclared package is installed."""
    programs, repo = install_alone(PACKAGE, tmp_path), tmp_path / "place"
    repo.mkdir()
    environment = clean_environment()
    run = functools.partial(run_program, cwd=repo, env=environment | {"PATH": f"{programs}:{environment['PATH']}"})
    query = f"import importlib.util as u; print([name for name in {FOREIGN} if u.find_spec(name)])"
    assert run("python", "-c", query) == "[]\n"
    run("git", "init", "--quiet")
    run(programs / "dvc", "init", "--quiet")
    (repo / "dvc.yaml").write_text(PIPELINE)
    (repo / "make.py").write_text("open('right.txt', 'w').write('right\\n')")
    run(programs / "dvc-parallel", "repro", "-j", "2")
    assert read(repo / "both.txt") == "left\nright\n"
    assert "up to date" in run(programs / "dvc", "repro")
