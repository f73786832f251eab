"""Notebooks on the workers that `workshop up` starts; the engine itself is tested in its package."""

from __future__ import annotations

import nbformat
import pytest
from workplace import BIN, git


@pytest.fixture
def papermill(servers, tmp_path):
    """A function that runs a one-cell notebook on the running cluster and returns the cell's outputs as text."""

    def run(source, **options) -> str:
        document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        document.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(document, tmp_path / "in.ipynb")
        words = [BIN / "papermill", tmp_path / "in.ipynb", tmp_path / "out.ipynb", "--engine", "dask"]
        servers.run(*words, **({"cwd": tmp_path} | options))
        return "".join(output.text for output in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[0].outputs)

    return run


def test_notebook_writes_files_for_others_to_read(papermill, tmp_path):
    """The servers' own files are private; a notebook's files have the user's default mode."""
    papermill("print(open('by_notebook', 'w').close())")
    (tmp_path / "by_test").touch()
    assert (tmp_path / "by_notebook").stat().st_mode == (tmp_path / "by_test").stat().st_mode


def test_runs_carry_the_commit_and_state_of_the_clients_folder(servers, papermill, tmp_path):
    """The worker runs in another repository, as when DVC runs an experiment in a copy (`--temp`)."""
    copy = tmp_path / "copy"
    (copy / "4_pipeline").mkdir(parents=True)
    for file in ("pyproject.toml", "4_pipeline/params.yaml"):
        (copy / file).write_text("1\n")

    for words in (("init",), ("add", "--all"), ("commit", "--message", "First")):
        git(copy, *words)
    (copy / "4_pipeline" / "params.yaml").write_text("2\n")
    environment = {name: value for name, value in servers.environment.items() if name != "WORKSHOP_ROOT"}
    printed = papermill(
        "from forecast.tracking import git_tags\nprint(*git_tags().values())",
        cwd=copy / "4_pipeline", env=environment,
    )  # fmt: skip
    assert printed == f"{git(copy, 'rev-parse', 'HEAD').strip()} true\n"
