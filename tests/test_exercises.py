"""The exercises: no check passes before it is solved, each does with its solution, and odd answers get a hint."""

from __future__ import annotations

import json
import re

import nbformat
import pytest
from forecast.errors import PipelineError
from nbclient import NotebookClient
from walk import solution_of, solve
from workplace import ROOT

from workshop.settings import get_settings
from workshop.teaching import exercises

NOTEBOOKS = sorted(ROOT.glob("[1-4]_*/exercises.ipynb"))
TAUGHT = [path for path in sorted(ROOT.glob("[1-3]_*/*.ipynb")) if path.stem != "exercises"]
TAGS = ["exercise", "check", "hint", "solution"]
SECONDS = 300  # for one cell, on a busy machine


def chapter_of(path) -> int:
    """The number that a chapter's folder begins with."""
    return int(path.parent.name[0])


def name(path) -> str:
    """A chapter's folder in test ids."""
    return path.parent.name


def tagged(cells, tag) -> list:
    """The cells with a tag, in their order."""
    return [cell for cell in cells if tag in cell.metadata.get("tags", [])]


def printed(cell) -> str:
    """What an executed cell printed."""
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


@pytest.fixture
def solved_file(servers):
    """The file of solved exercises, absent before and after."""
    file = servers.settings.state / "exercises.json"
    file.unlink(missing_ok=True)
    yield file
    file.unlink(missing_ok=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_exercises_have_their_form(path):
    """Each exercise is a task, a cell to fill in, its check, a hint and a solution, numbered from 1."""
    cells = nbformat.read(path, as_version=4).cells
    parts = [(tag, cell) for cell in cells for tag in cell.metadata.get("tags", [])]
    numbers = [number for number in exercises.of_chapter(chapter_of(path)) if "." in number]
    assert numbers == [f"{chapter_of(path)}.{count}" for count in range(1, len(numbers) + 1)]
    assert 2 <= len(numbers) <= 3
    assert [tag for tag, _ in parts] == TAGS * len(numbers)
    for number, (answer, check, hint, solution) in zip(
        numbers, zip(*[iter(cell for _, cell in parts)] * len(TAGS), strict=True), strict=True
    ):
        assert f"## Exercise {number}" in cells[cells.index(answer) - 1].source
        assert answer.source.startswith("# Your code here")
        assert check.source.startswith(f'check("{number}", ')
        for cell, title in ((hint, "Hint"), (solution, "Solution")):
            assert cell.source.startswith(f"<details><summary>{title}</summary>\n\n")
            assert cell.source.endswith("\n</details>")
        assert solution_of(solution) not in answer.source


@pytest.mark.parametrize("path", TAUGHT, ids=lambda path: str(path.relative_to(ROOT)))
def test_taught_notebook_has_one_cell_to_write(path):
    """A cell with its check in the last line, and a folded solution below; nothing else is asked for."""
    notebook = nbformat.read(path, as_version=4)
    [answer], [solution] = tagged(notebook.cells, "exercise"), tagged(notebook.cells, "solution")
    of_chapter = exercises.of_chapter(chapter_of(path))
    [number] = [number for number, each in of_chapter.items() if each.notebook == path.stem]
    assert answer.source.startswith("# Your code here")
    assert f'check("{number}", ' in answer.source.splitlines()[-1]
    assert solution.source.startswith("<details><summary>Solution</summary>\n\n")
    solve(notebook)
    assert f'check("{number}", ' in answer.source.splitlines()[-1]
    assert "..." not in answer.source


@pytest.mark.walk
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_exercises_are_solved_by_their_solutions_only(path, servers, solved_file):
    """Run as it is, no check passes and none is kept; with the solutions, all do, and say what was learned."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    unsolved = tagged(cells, "check")
    answers = [nbformat.v4.new_code_cell(solution_of(cell)) for cell in tagged(notebook.cells, "solution")]
    checks = [nbformat.v4.new_code_cell(cell.source) for cell in unsolved]
    between = nbformat.v4.new_code_cell(f"from pathlib import Path\nassert not Path({str(solved_file)!r}).exists()")
    solving = [cell for pair in zip(answers, checks, strict=True) for cell in pair]
    notebook.cells = [*cells, between, *solving]
    folder = servers.root / path.parent.name
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute(env=servers.environment)
    numbers = [number for number in exercises.of_chapter(chapter_of(path)) if "." in number]
    for number, before, after in zip(numbers, unsolved, checks, strict=True):
        assert printed(before).startswith(f"Exercise {number}, not yet: ")
        assert printed(after) == f"Exercise {number}, solved: {exercises.LESSONS[number]}.\n"
    assert list(json.loads(solved_file.read_text())) == numbers


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_odd_answers_are_told_in_words(path, in_workplace, solved_file, capsys):
    """Whatever an answer is, its check raises nothing, passes nothing, and says something."""
    odd = [None, -1, float("nan"), "no such run", {}, ("a", "b"), object()]
    for number in exercises.of_chapter(chapter_of(path)):
        for answer in odd:
            exercises.check(number, answer)
            output = capsys.readouterr().out
            assert re.match(rf"Exercise {number}, not yet: .{{10,}}", output), (answer, output)
    assert not solved_file.exists()


def test_unknown_exercise_is_told_with_the_known_ones():
    """A number that was changed by mistake is named, with those that there are."""
    for number in ("3.9", "9.1", "three", ""):
        with pytest.raises(PipelineError, match="no such exercise") as raised:
            exercises.check(number, 1)
        assert ", ".join(exercises.EXERCISES) in str(raised.value)


def test_stopped_server_is_told_in_words(monkeypatch, capsys, tmp_path):
    """With the tracking server down, a check that needs it says what to type, and keeps nothing."""
    monkeypatch.setenv("WORKSHOP_STATE", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    exercises.check("3.1", "0" * 32)
    output = capsys.readouterr().out
    assert "not yet" in output
    assert "workshop up" in output
    assert exercises.solved(get_settings()) == []
