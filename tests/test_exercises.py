"""The exercises: a check passes only for the right answer; each known mistake has its own hint."""

from __future__ import annotations

import json
import linecache
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from forecast.problem import EXPERIMENT
from forecast.table.schema import FEATURES, TARGETS
from forecast.terms.errors import PipelineError
from sklearn.ensemble import RandomForestRegressor
from sklearn.metrics import mean_absolute_error, r2_score
from walk import run_in, solution_of, solve
from workplace import ROOT

from workshop.settings import get_settings
from workshop.teaching import exercises

NOTEBOOKS = sorted(ROOT.glob("[1-4]_*/exercises.ipynb"))
TAUGHT = [path for path in sorted(ROOT.glob("[1-3]_*/*.ipynb")) if path.stem != "exercises"]
TAGS = ["exercise", "check", "hint", "solution"]


def chapter_of(path) -> int:
    """Return the chapter's number from the folder's name."""
    return int(path.parent.name[0])


def name(path) -> str:
    """Return the chapter's folder, for test ids."""
    return path.parent.name


def tagged(cells, tag) -> list:
    """Return the cells with a tag, in order."""
    return [cell for cell in cells if tag in cell.metadata.get("tags", [])]


def printed(cell) -> str:
    """Return the stdout of an executed cell."""
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


@pytest.fixture
def solved_file(servers):
    """The file of solved exercises, absent before and after."""
    file = servers.settings.state / "exercises.json"
    file.unlink(missing_ok=True)
    yield file
    file.unlink(missing_ok=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_exercises_share_a_structure(path):
    """Each exercise has a task, a cell to fill in, a check, a hint and a solution, and is numbered from 1."""
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
    """A notebook has one cell to write, with its check in the last line and a folded solution below."""
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
    """Without answers no check passes and none is recorded; with the solutions all pass and print their lessons."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    unsolved = tagged(cells, "check")
    answers = [nbformat.v4.new_code_cell(solution_of(cell)) for cell in tagged(notebook.cells, "solution")]
    checks = [nbformat.v4.new_code_cell(cell.source) for cell in unsolved]
    between = nbformat.v4.new_code_cell(f"from pathlib import Path\nassert not Path({str(solved_file)!r}).exists()")
    notebook.cells = [*cells, between, *(cell for pair in zip(answers, checks, strict=True) for cell in pair)]
    run_in(servers.root / path.parent.name, notebook, servers.environment)
    numbers = [number for number in exercises.of_chapter(chapter_of(path)) if "." in number]
    for number, before, after in zip(numbers, unsolved, checks, strict=True):
        assert printed(before).startswith(f"Exercise {number}, not yet: ")
        assert printed(after) == f"Exercise {number}, solved: {exercises.EXERCISES[number].lesson}.\n"
    assert list(json.loads(solved_file.read_text())) == numbers


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_odd_answers_get_a_hint(path, in_workplace, solved_file, capsys):
    """For an answer of any type, the check prints a hint instead of raising an error or passing."""
    odd = [None, -1, float("nan"), "no such run", {}, ("a", "b"), object()]
    for number in exercises.of_chapter(chapter_of(path)):
        for answer in odd:
            exercises.check(number, answer)
            output = capsys.readouterr().out
            assert re.match(rf"Exercise {number}, not yet: .{{10,}}", output), (answer, output)
    assert not solved_file.exists()


RANDOM = np.random.default_rng(0)
MEASURED = pd.DataFrame(RANDOM.uniform(0, 20, (2000, 2)), columns=TARGETS)
PREDICTED = MEASURED.to_numpy() + RANDOM.normal(0, 2.65, (2000, 2))
LEARNED = np.vstack([PREDICTED, PREDICTED])  # predictions for the training hours, which are more
BELOW, R2 = (PREDICTED[:, 1] < 0).mean(), r2_score(MEASURED, PREDICTED, multioutput="raw_values")
TEST = MEASURED.assign(**dict.fromkeys(FEATURES, 1.0))
BOTH, MAE, WITH, WITHOUT = R2.mean(), "mean_absolute_error", [0.988, 0.914], [0.9, 0.743]
REMEDIES = ["GW", "GW, last year", "capacity factor", "capacity factor, last year"]
LATE = {month: int(4 <= month <= 10) for month in range(1, 13)}


def network(epochs: int, steps=99) -> SimpleNamespace:
    """Return a network trained for some epochs of 99 steps."""
    parts = {"history": SimpleNamespace(params={"steps": steps}), "optimizer": SimpleNamespace(iterations=99 * epochs)}
    return SimpleNamespace(**parts, predict=lambda *_, **__: PREDICTED)


def score(*changes):
    """Return the solution of exercise 2a with some text changed, defined as in a notebook."""
    cells = nbformat.read(ROOT / "2_tracking" / "model_linreg.ipynb", as_version=4).cells
    text = solution_of(tagged(cells, "solution")[0])
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    names, name = {MAE: mean_absolute_error, "r2_score": r2_score}, f"<cell {text}>"
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    exec(compile(text, name, "exec"), names)
    return names["score"]


# Exercise, answer, part of the output of `check`, and its further arguments.
TESTED, TRAINED = (PREDICTED, MEASURED), (LEARNED, MEASURED)
ANSWERS = [
    ("1a", {1: 1.24}, "a number, but has the type `dict`"), ("1a", pd.Series([1.2, 1.3]), "size (2,)"),
    ("1a", pd.Series([1.246]), "solved"), ("1a", np.float64(1.246), "solved"), ("1a", 124.6, "100 times"),
    ("1a", 1.2, "too few decimals"), ("1a", 0.8048, "earlier year"), ("1a", 1.42, "all wind power"),
    ("1a", 0.038, "a difference"), ("1a", "1.24", "type `str`"), ("1a", 1.2426, "solved"),
    ("1b", np.mean(PREDICTED[:, 0] < 0), "for solar power", *TESTED), ("1b", 100 * BELOW, "100 times", *TESTED),
    ("1b", np.mean(PREDICTED[:, 1] < 1), "below 1 GW", *TESTED), ("1b", BELOW, "4000 predictions for 2000", *TRAINED),
    ("1b", 2000 * BELOW, "divide", *TESTED), ("1b", BELOW, "solved", *TESTED), ("1b", 0.03, "is close", *TESTED),
    ("1c", f"R2 {BOTH:.2f} (n_estimators=50, max_depth=3)".replace("0.", "0,"), "solved", *TESTED),
    ("1c", "50 trees, depth 3: 0.99", "`predicted` has an R2 of 1.000", MEASURED, MEASURED),
    ("1c", f"50 trees, depth 3: {BOTH + 0.01:.3f}", "but `predicted` has", *TESTED), ("1c", BOTH, "a string", *TESTED),
    ("1c", f"50 trees, depth 3: {BOTH:.2f}", "4000 predictions", *TRAINED),
    ("1c", f"# depth 3, 50 trees: {BOTH:.3f}", "solved", *TESTED), ("1c", "3 trees, depth 50: 0.79", "trees", *TESTED),
    ("1c", f"max_depth=3,trees=50, random_state 0, R^2 = {BOTH:.2f}", "solved", *TESTED),
    ("1c", f"50 depth-3 trees: {BOTH:.2f}", "solved", *TESTED),
    ("1d", R2.astype("float32").round(3), "a dict", *TESTED), ("1c", "depth 3, 50 trees: -0.77", "one R2", *TESTED),
    ("1d", dict(zip(("solar", "wind"), R2.astype("float32").round(3), strict=True)), "solved", *TESTED),
    ("1c", f"50 trees, depth 3: {BOTH:.2f}", "must be a table", BOTH, MEASURED), ("1a", 24.6, "in per cent"),
    ("1b", 0.0, "not from the linear model", PREDICTED.clip(0), MEASURED), ("3a", 0, "`plain` must be", "", 0.8),
    ("2a", score(("def score(measured", "def score(measured: pd.DataFrame")), "uses `pd`, but does not"),
    ("1d", {"solar": 1, "wind": ...}, "still", *TESTED),
    ("1d", {"solar_GW": R2[0], "wind_GW": R2[1]}, "'solar_GW' is not one of 'solar', 'wind'", *TESTED),
    ("1d", {"solar": R2[0], "wind": R2[1] + 0.004}, "`wind` is wrong", *TESTED),
    ("1d", {"solar": BOTH, "wind": BOTH}, "mean of both", *TESTED),
    ("1d", {"solar": R2[0], "wind": R2[1]}, "solved", *TESTED),
    ("1d", {"wind": R2[0], "solar": R2[1]}, "order", *TESTED),
    ("1.1", {"with": [0.994, 0.944], "without": WITHOUT}, "score the forest of the task on `week` alone"),
    ("1.1", {"with": 0.95, "without": 0.82}, "`with` must be a list of 2 numbers"),
    ("1.1", {"with": np.array(WITH), "without": tuple(WITHOUT)}, "solved"),
    ("1.1", {"with": WITH, "without": WITH}, "drop its hours"), ("1.2", list(LATE.values()), "a dict with"),
    ("1.2", {month: -lag for month, lag in LATE.items()}, "the wrong sign"), ("1.2", dict.fromkeys(LATE, 1), "`1`"),
    ("1.2", pd.Series(LATE), "solved"), ("1.2", pd.DataFrame([LATE]), "solved"), ("1.3", np.nan, "missing values"),
    ("1.3", 0.865, "on `test`"), ("1.3", 0.1, "decimals"), ("1.3", -0.1141, "sign"), ("1.3", 0.98 - 0.87, "solved"),
    ("2a", score(("predicted_GW - GW", "GW - predicted_GW")), "`bias_solar` has the wrong sign"),
    ("2a", score((f"{MAE}(GW, predicted_GW)", f"{MAE}(...)")), "replace the remaining"), ("2a", score(), "solved"),
    ("2a", score(("(predicted_GW - GW).mean()", "...")), "`bias_solar` is still"),
    ("2a", score(("return numbers", "return")), "must be a dict"), ("2a", {"r2": 1}, "the function `score`"),
    ("2a", score((f"    from sklearn.metrics import {MAE}, r2_score\n", "")), "uses `r2_score`, but does not"),
    ("2b", pd.Series([0.7316, 0.9008, 0.8637, 0.9252], REMEDIES), "makes the step larger"),
    ("2b", pd.Series([0.7984, 0.9008, 0.9111, 0.9252], REMEDIES), "original data"),
    ("2b", pd.Series([0.8605, 0.9008, 0.9333, 0.9252], REMEDIES), "solved"), ("2b", 1.25, "a dict with the keys 'GW'"),
    ("2d", BOTH, "27 epochs", network(30, steps=110), TEST), ("2d", 0.774, "is wrong", network(30), TEST),
    ("2d", 0.774, "12 epochs", network(12), TEST), ("2d", BOTH, "48 epochs", network(48), TEST),
    ("2d", ..., "replace", network(12), TEST), ("2d", BOTH, "solved", network(30), TEST), ("2e", [11.7, 7.4], "order"),
    ("2e", np.ones((7003, 2)), "size (7003, 2)"), ("2e", np.array([[7.39, 11.72]]), "solved"),
    ("2e", [0.185, 0.255], "multiply it"), ("2e", [8.48, 10.2], "swap the columns"), ("2e", [7.39, 11.72], "solved"),
    ("2e", [7390, 11720], "of 1000"),
    ("2f", MEASURED, "must be a string, but has the type `DataFrame` and the size (2000, 2)"),
    ("2.2", {"12": 25, "6": 22}, "'12' is not one of"), ("2.2", {12: 1.0, 6: 0.88}, "do not divide"),
    ("2.2", {12: 0, 6: 3}, "wins of 10 trees"), ("2.2", {12: 25, 6: 22}, "solved"),
    ("3.1", SimpleNamespace(run_id=""), "a string"), ("3.2", "0" * 32, "the pair"), ("4.1", "split", "a set of names"),
    ("3a", 0.0016, "replace every", SimpleNamespace(), ...),
    ("4.1", np.array([*exercises.downstream_of_split(get_settings())]), "solved"),
]  # fmt: skip


@pytest.mark.parametrize("number", dict.fromkeys(row[0] for row in ANSWERS))
def test_answers_get_their_hints(number, tmp_path, monkeypatch, capsys):
    """A right answer of any natural type solves an exercise; every other answer gets its hint, in one line."""
    monkeypatch.setenv("WORKSHOP_STATE", str(tmp_path))
    for answer, words, *evidence in (row[1:] for row in ANSWERS if row[0] == number):
        assert callable(exercises.check(number, answer, *evidence)) == (number == "2a")
        assert re.fullmatch(rf"Exercise {number}, .*{re.escape(words)}.{{,400}}\n", capsys.readouterr().out), words
        (tmp_path / "exercises.json").unlink(missing_ok=words != "solved")


def test_parameter_must_have_changed_the_forest(in_workplace, solved_file, capsys):
    """A parameter that the forest does not have, a default value, or the R2 of another model does not solve 2c."""
    import mlflow

    mlflow.set_tracking_uri(in_workplace.tracking_uri)
    mlflow.set_experiment(EXPERIMENT)
    forest = RandomForestRegressor(2, min_samples_leaf=20, random_state=0).fit(TEST[FEATURES], MEASURED)
    r2 = r2_score(MEASURED, forest.predict(TEST[FEATURES]))
    for parameters, metric, words in (
        ({"min_samples_leaf": 20}, r2, "solved"), ({"min_samples_leaf": 20}, 0.9, "not the R2 of its forest"),
        ({"min_samples_leaf": 10}, r2, "not fitted with min_samples_leaf"), ({"max_features": 1.0}, r2, "default"),
        ({"n_estimators": 2}, r2, "no new parameter"), ({"min_samples_leaf": 20}, None, "no model or no"),
    ):  # fmt: skip
        with mlflow.start_run(tags={"chapter": "2", "model": "rf"}) as run:
            mlflow.log_params(parameters)
            mlflow.log_metric("r2", metric or r2)
            if metric:
                types = ["sklearn.tree._tree.Tree"]
                mlflow.sklearn.log_model(forest, name="model", pip_requirements=[], skops_trusted_types=types)
        exercises.check("2c", run.info.run_id, TEST)
        assert words in capsys.readouterr().out
        mlflow.delete_run(run.info.run_id)


@pytest.mark.walk
def test_notebook_of_a_class_runs(servers):
    """The notebook for a class runs after `make run`."""
    path = servers.root / "workshop" / "teaching" / "class.ipynb"
    run_in(path.parent, nbformat.read(path, as_version=4), servers.environment)


def test_unknown_exercise_is_an_error_with_the_known_ones():
    """The error for an unknown number lists the existing ones."""
    for number in ("3.9", "9.1", "three", ""):
        with pytest.raises(PipelineError, match="No exercise has this number") as raised:
            exercises.check(number, 1)
        assert ", ".join(exercises.EXERCISES) in str(raised.value)


def test_stopped_server_is_reported(monkeypatch, capsys, tmp_path):
    """With the tracking server down, a check that needs it says what to type, and records nothing."""
    monkeypatch.setenv("WORKSHOP_STATE", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    exercises.check("3.1", "0" * 32)
    output = capsys.readouterr().out
    assert "not yet" in output
    assert "workshop up" in output
    assert exercises.solved(get_settings()) == []
