"""The form of the notebooks; the tests of each chapter run them."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics

import pytest
from workplace import BIN, ROOT, git, run_program

NOTEBOOKS = sorted(ROOT.glob("[1-4]_*/**/*.ipynb"))
MADE = {".ipynb_checkpoints", "executed", ".environment", "a_year"}
NOTEBOOKS = [path for path in NOTEBOOKS if not MADE & set(path.parts)]
TAUGHT = [path for path in NOTEBOOKS if path.relative_to(ROOT).parts[0] != "1_starting_point"]
PIPELINE = [path for path in NOTEBOOKS if path.parent.name == "4_pipeline" and path.stem != "exercises"]


def name(path):
    """Return a notebook's name for test ids."""
    return str(path.relative_to(ROOT))


def cells(path, kind):
    """Return the cells of a type, with the source of each as one string."""
    return [
        cell | {"source": "".join(cell["source"])}
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == kind
    ]


def test_git_compares_notebooks_with_and_without_nbdime(tmp_path):
    """In a new clone `git diff` shows lines; after `nbdime config-git --enable` it shows cells."""
    notebook = tmp_path / "split.ipynb"
    for path in (ROOT / ".gitattributes", ROOT / "4_pipeline" / "split.ipynb"):
        shutil.copy(path, tmp_path)
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "A clone"]):
        git(tmp_path, *words)
    text = notebook.read_text()
    git(tmp_path, "switch", "--quiet", "--create", "other")
    notebook.write_text(text.replace("In this notebook you will", "Here you will"))
    assert '+    "Here you will' in git(tmp_path, "diff")
    git(tmp_path, "commit", "--quiet", "--all", "--message", "Other words")
    git(tmp_path, "switch", "--quiet", "-")
    git(tmp_path, "merge", "--quiet", "--no-ff", "other")
    notebook.write_text(text)
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    run_program(BIN / "nbdime", "config-git", "--enable", cwd=tmp_path, env=environment)
    assert "## modified /cells/0/source" in run_program("git", "diff", cwd=tmp_path, env=environment).stdout
    assert git(tmp_path, "status", "--porcelain") == " M split.ipynb\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_is_committed_clean(path):
    """Notebooks have no outputs or execution counts, stable ids, and only kernel metadata and tags."""
    document = json.loads(path.read_text())
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    assert set(document["metadata"]) <= {"kernelspec", "language_info"}
    assert document["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in document["cells"]:
        assert set(cell["metadata"]) <= {"tags", "jupyter"}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_has_title_aims_recap_question_and_next(path):
    """All notebooks share these parts."""
    text = [cell["source"] for cell in cells(path, "markdown")]
    assert text[0].startswith("# ")
    assert any("In this notebook you will" in part for part in text)
    end = text[-1]
    assert "Recap" in end
    assert "question" in end.lower()
    assert re.search(r"\[[^\]]+\]\([^)]+\)", end)


@pytest.mark.parametrize("path", TAUGHT, ids=name)
def test_notebook_cells_are_short_and_explained(path):
    """Code cells have at most 15 lines, half of them at most 5, and there is about one text cell per code cell."""
    code = cells(path, "code")
    lengths = [len([line for line in cell["source"].splitlines() if line.strip()]) for cell in code]
    assert max(lengths) <= 15
    assert statistics.median(lengths) <= 5
    assert len(cells(path, "markdown")) >= 0.8 * len(code)


@pytest.mark.parametrize("path", PIPELINE, ids=name)
def test_pipeline_parameters_have_types_and_descriptions(path):
    """Each line of the `parameters` cell has a name, a type, a value and a comment."""
    tagged = [cell for cell in cells(path, "code") if "parameters" in cell["metadata"].get("tags", [])]
    lines = [line for cell in tagged for line in cell["source"].splitlines()]
    assert all(re.fullmatch(r"\w+: (int|float|str|bool) = .+  # .+", line) for line in lines), lines


@pytest.mark.parametrize("path", PIPELINE, ids=name)
def test_pipeline_notebook_has_no_addresses(path):
    """Servers come from environment variables, and paths are relative."""
    for cell in cells(path, "code"):
        assert not re.search(r"https?://|ftp://|tcp://|localhost|127\.0\.0\.1|password|['\"]/|\.\./", cell["source"])
