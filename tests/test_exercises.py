"""The exercises: a check passes only for the right answer; each known mistake has its own hint."""

from __future__ import annotations

import json
import linecache
import re
from itertools import product
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from forecast.problem import EXPERIMENT
from forecast.table.schema import FEATURES, TARGETS
from forecast.terms.errors import PipelineError
from forecast.tracking import STAGE_TAG
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression
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
HOURS = pd.DataFrame(RANDOM.uniform(0, 20, (1000, 4)), columns=FEATURES)
HOURS[TARGETS] = HOURS[FEATURES[:2]] ** 2 / 40 + RANDOM.normal(0, 2, (1000, 2))
PAST, LATER = HOURS[:800], HOURS[800:]


def forest(trees: int, depth: int | None, hours=PAST, **parameters) -> RandomForestRegressor:
    """Return a forest fitted on some hours."""
    model = RandomForestRegressor(trees, max_depth=depth, **{"random_state": 0} | parameters)
    return model.fit(hours[FEATURES], hours[TARGETS])


def r2_of(model, hours=LATER) -> float:
    """Return a model's R2 for some hours."""
    return r2_score(hours[TARGETS], model.predict(hours[FEATURES]))


SHALLOW, DEEP, LEAVES = forest(50, 3), forest(20, None), forest(20, None, min_samples_leaf=50)
TAIL = forest(20, None, HOURS[200:])  # as many hours as PAST
ON_PAST, ON_LATER, LINE = r2_of(DEEP, PAST), r2_of(DEEP), f"50 trees, depth 3: {r2_of(SHALLOW):.2f}"
OF_SPLIT, OF_DEEP = (PAST[FEATURES], LATER[FEATURES], LATER[TARGETS]), (DEEP, PAST, LATER)


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
    ("1a", 0.038, "a difference"), ("1a", "1.24", "type `str`"), ("1a", [1.2426], "solved"),
    ("1b", np.mean(PREDICTED[:, 0] < 0), "for solar power", *TESTED), ("1b", 100 * BELOW, "100 times", *TESTED),
    ("1b", np.mean(PREDICTED[:, 1] < 1), "below 1 GW", *TESTED), ("1b", BELOW, "4000 predictions for 2000", *TRAINED),
    ("1b", 2000 * BELOW, "divide", *TESTED), ("1b", BELOW, "solved", *TESTED), ("1b", 0.03, "is close", *TESTED),
    ("1c", f"R2 {r2_of(SHALLOW):.2f} (n_estimators=50, max_depth=3)".replace("0.", "0,"), "solved", SHALLOW, *OF_SPLIT),
    ("1c", f"# depth 3, 50 trees: {r2_of(SHALLOW):.3f}", "solved", SHALLOW, *OF_SPLIT),
    ("1c", f"max_depth=3,trees=50, random_state 0, R^2 = {r2_of(SHALLOW):.2f}", "solved", SHALLOW, *OF_SPLIT),
    ("1c", f"50 depth-3 trees: {r2_of(SHALLOW):.2f}", "solved", SHALLOW, *OF_SPLIT),
    ("1c", f"50 trees, depth 3: {r2_of(SHALLOW) + 0.01:.3f}", "but `shallow` has", SHALLOW, *OF_SPLIT),
    ("1c", BOTH, "a string", SHALLOW, *OF_SPLIT), ("1c", "depth 3, 50 trees: -0.77", "an R2", SHALLOW, *OF_SPLIT),
    ("1c", "3 trees, depth 50: 0.79", "trees", SHALLOW, *OF_SPLIT),
    ("1c", LINE, "on 200 hours, not on the 800", forest(50, 3, LATER), *OF_SPLIT),
    ("1c", LINE, "on 1000 hours", forest(50, 3, HOURS), *OF_SPLIT),
    ("1c", LINE, "n_estimators=10, not 50", forest(10, 3), *OF_SPLIT),
    ("1c", LINE, "max_depth=4, not 3", forest(50, 4), *OF_SPLIT),
    ("1c", LINE, "must be a fitted RandomForestRegressor", SHALLOW.predict(LATER[FEATURES]), *OF_SPLIT),
    ("1c", LINE, "but has the type `ExtraTreesRegressor`", ExtraTreesRegressor(50, max_depth=3), *OF_SPLIT),
    ("1c", f"50 trees, depth 3, test_size 0.20: {r2_of(SHALLOW):.2f}", "solved", SHALLOW, *OF_SPLIT),
    ("1d", R2.astype("float32").round(3), "solved", *TESTED), ("1d", list(R2), "solved", *TESTED),
    ("1d", R2[::-1], "order", *TESTED), ("1d", [BOTH], "a dict with the keys", *TESTED),
    ("1d", pd.DataFrame(R2, ["solar", "wind"]), "solved", *TESTED),
    ("1d", dict(zip(("solar", "wind"), R2.astype("float32").round(3), strict=True)), "solved", *TESTED),
    ("1a", 24.6, "in per cent"), ("2a", score(("return numbers", "return list(numbers.values())")), "must be a dict"),
    ("1b", 0.0, "not from the linear model", PREDICTED.clip(0), MEASURED), ("3a", 0, "`plain` must be", "", 0.8),
    ("2a", score(("def score(measured", "def score(measured: pd.DataFrame")), "from its first line a type"),
    ("1d", {"solar": 1, "wind": ...}, "still", *TESTED),
    ("1d", {"solar_GW": R2[0], "wind_GW": R2[1]}, "'solar_GW' is not one of 'solar', 'wind'", *TESTED),
    ("1d", {"solar": R2[0], "wind": R2[1] + 0.004}, "`wind` is wrong", *TESTED),
    ("1d", {"solar": BOTH, "wind": BOTH}, "mean of both", *TESTED),
    ("1d", {"solar": R2[0], "wind": R2[1]}, "solved", *TESTED),
    ("1d", {"wind": R2[0], "solar": R2[1]}, "order", *TESTED),
    ("1.1", {"with": [0.994, 0.944], "without": WITHOUT}, "score the forest of the task on `week` alone"),
    ("1.1", {"with": 0.95, "without": 0.82}, "`with` must be a list of 2 numbers"),
    ("1.1", {"with": np.array(WITH), "without": tuple(WITHOUT)}, "solved"),
    ("1.1", {"with": WITH, "without": WITH}, "drop its hours"), ("1.2", list(LATE.values()), "solved"),
    ("1.1", [WITH, WITHOUT], "solved"), ("1.1", pd.DataFrame([WITH, WITHOUT], ["with", "without"], TARGETS), "solved"),
    ("1.2", {str(month): lag for month, lag in LATE.items()}, "solved"), ("1.2", [0] * 11, "a dict with the keys 1, 2"),
    ("1.2", {month: -lag for month, lag in LATE.items()}, "the wrong sign"), ("1.2", dict.fromkeys(LATE, 1), "`1`"),
    ("1.2", pd.Series(LATE), "solved"), ("1.2", pd.DataFrame([LATE]), "solved"),
    ("1.3", np.nan, "missing values", *OF_DEEP), ("1.3", ON_LATER, "on `test`", *OF_DEEP),
    ("1.3", round(ON_PAST - ON_LATER, 1), "decimals", *OF_DEEP), ("1.3", ON_LATER - ON_PAST, "sign", *OF_DEEP),
    ("1.3", ON_PAST - ON_LATER, "solved", *OF_DEEP),
    ("1.3", 0.1141, "random_state=1, not 0", forest(20, None, random_state=1), PAST, LATER),
    ("1.3", 0.1141, "on 200 hours", forest(20, None, LATER), PAST, LATER),
    ("1.3", r2_of(LEAVES, PAST) - r2_of(LEAVES), "of another forest", LEAVES, PAST, LATER),
    ("1.3", r2_of(TAIL, PAST) - r2_of(TAIL), "of another forest", TAIL, PAST, LATER),
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
    ("3.1", 3, "a run or its id"), ("3.2", "0" * 32, "the pair"), ("4.1", "split", "a set of names"),
    ("3a", 0.0016, "replace every", SimpleNamespace(), ...),
    ("4.1", np.array([*exercises.downstream_of_split(get_settings()), "tracking_store"]), "solved"),
]  # fmt: skip


@pytest.mark.parametrize("number", dict.fromkeys(row[0] for row in ANSWERS))
def test_answers_get_their_hints(number, tmp_path, monkeypatch, capsys):
    """A right answer of any natural type solves an exercise; every other answer gets its hint, in one line."""
    monkeypatch.setenv("WORKSHOP_STATE", str(tmp_path))
    for answer, words, *evidence in (row[1:] for row in ANSWERS if row[0] == number):
        assert callable(exercises.check(number, answer, *evidence)) == (number == "2a")
        assert re.fullmatch(rf"Exercise {number}, .*{re.escape(words)}.{{,400}}\n", capsys.readouterr().out), words
        (tmp_path / "exercises.json").unlink(missing_ok=words != "solved")


def test_wins_are_counted_among_the_forests_of_the_task(tmp_path, monkeypatch, capsys):
    """The wins of other forests do not solve 2.2; the right wins do, as a dict with any keys or a list."""
    monkeypatch.setenv("WORKSHOP_STATE", str(tmp_path))
    keys = [*product((12, 6), (10, 50), range(5))]
    forests = [forest(trees, depth, random_state=seed) for depth, trees, seed in keys]
    scores = dict(zip(keys, map(r2_of, forests), strict=True))
    pairs = [*product(range(5), repeat=2)]
    wins = {depth: sum(scores[depth, 50, i] > scores[depth, 10, j] for i, j in pairs) for depth in (12, 6)}
    for answer, words, given in (
        (wins, "solved", forests), ({str(depth): each for depth, each in wins.items()}, "solved", forests),
        ([*wins.values()], "solved", tuple(forests)), ({12: wins[12] - 1, 6: wins[6]}, "`12` is wrong", forests),
        ({depth: each / 25 for depth, each in wins.items()}, "do not divide", forests),
        ({depth: 25 - each for depth, each in wins.items()}, "wins of 10 trees", forests),
        (wins, "a list of twenty forests", [*forests[1:], forest(20, 12)]),
        (wins, "on 200 hours", [*forests[1:], forest(10, 12, LATER)]),
        (wins, "must be a list of forests", forests[0]), (wins, "a fitted RandomForest", [*scores.values()]),
    ):  # fmt: skip
        exercises.check("2.2", answer, given, PAST, LATER)
        assert words in capsys.readouterr().out, words


@pytest.fixture
def log_run(in_workplace, solved_file):
    """A function that logs a finished run in the experiment; its runs are deleted afterwards."""
    import mlflow

    mlflow.set_tracking_uri(in_workplace.tracking_uri)
    mlflow.set_experiment(EXPERIMENT)
    runs = []

    def log_run(tags, params, metrics, model=None):
        with mlflow.start_run(tags=tags) as run:
            mlflow.log_params(params)
            mlflow.log_metrics(metrics)
            if model:
                types = ["sklearn.tree._tree.Tree"]
                mlflow.sklearn.log_model(model, name="model", pip_requirements=[], skops_trusted_types=types)
        runs.append(run)
        return run

    yield log_run
    for run in runs:
        mlflow.delete_run(run.info.run_id)


def test_parameter_must_have_changed_the_forest(log_run, capsys):
    """2c needs a parameter that changed the forest, the training hours, and the R2 of this forest."""
    cells = nbformat.read(ROOT / "2_tracking" / "model_rf.ipynb", as_version=4).cells
    names = {"train": PAST, "FEATURES": FEATURES, "TARGETS": TARGETS}
    exec(next(cell.source for cell in cells if cell.id == "fit"), names)
    base, leaf = {"n_estimators": 10, "max_depth": 12}, {"min_samples_leaf": 20}
    model, seeded = names["fit"](**base, **leaf), names["fit"](**base, random_state=1)
    learned = forest(10, 12, LATER, **leaf)
    for parameters, metrics, fitted, words in (
        (leaf, {}, model, "solved"), ({"random_state": 1}, {}, seeded, "solved"),
        (leaf, {"r2": 0.9}, model, "not the R2 of its forest"), (base, {}, model, "no new parameter"),
        ({"min_samples_leaf": 10}, {}, model, "not fitted with min_samples_leaf"),
        ({"max_features": 1.0}, {}, model, "value of the notebook's forests"),
        ({"random_state": 0}, {}, model, "value of the notebook's forests"),
        (leaf, {}, learned, "if fitted on the training hours: fit it on all of these"),
        (leaf, {}, forest(10, 12, HOURS, **leaf), "if fitted on the training hours"),
        (leaf, {}, forest(50, 12, **leaf), "n_estimators=50, not 10"), (leaf, {"r2": 0.8}, None, "no model or no"),
        (leaf, {}, LinearRegression().fit(PAST[FEATURES], PAST[TARGETS]), "must be a fitted RandomForestRegressor"),
    ):  # fmt: skip
        metrics = metrics or {"r2": r2_of(fitted)}
        run = log_run({"chapter": "2", "model": "rf"}, parameters, metrics, fitted)
        exercises.check("2c", run, HOURS)
        assert words in capsys.readouterr().out, words
    exercises.check("2c", f" {run.info.run_id}", HOURS)
    assert "must be a fitted RandomForestRegressor" in capsys.readouterr().out


def test_query_has_the_conditions_of_the_task(log_run, capsys):
    """A query that finds the right runs by other conditions does not solve 2f."""
    for r2, hours in ((0.9, 8760), (0.86, 8760), (0.7, 0)):
        log_run({"chapter": "2"}, {"last_hours": hours}, {"r2_wind": r2})
    finished = "tags.chapter = '2' and attributes.status = 'FINISHED' and "
    for query, words in (
        (finished + "metrics.r2_wind > 0.8", "solved"), (finished + "metrics.r2_wind > 0.85", "three conditions"),
        ("metrics.`r2_wind` > .80 and status = 'FINISHED' and tag.chapter = '2'", "solved"),
        (finished + "params.last_hours = '8760' and metrics.r2_wind > 0", "three conditions"),
        ("metrics.r2_wind > 0.8", "three conditions"),
        (finished + "metrics.r2_wind > 0.8 and metrics.r2_wind > 0.88", "misses a run"),
    ):  # fmt: skip
        exercises.check("2f", query)
        assert words in capsys.readouterr().out, query


def test_logged_score_is_that_of_the_model(log_run, germany_csv, capsys):
    """A score that no model reached does not solve 2.1."""
    germany = pd.read_csv(germany_csv)
    train, test = germany[:-7004], germany[-7004:]
    model, other = (LinearRegression().fit(each[["windspeed"]], each["wind_GW"]) for each in (train, test))
    more = LinearRegression().fit(train[FEATURES], train["wind_GW"])
    r2 = model.score(test[["windspeed"]], test["wind_GW"])
    for score, given, words in (
        (r2, model, "solved"), (round(r2, 3), model, "solved"), (r2, None, "must be a `LinearRegression`"),
        (r2, other, "fit `model` on `train`"), (r2, more, "must be a `LinearRegression`"),
        (0.5668, model, "more inputs"), (0.7163, model, "on the training hours"), (0.8, model, "log the R2"),
    ):  # fmt: skip
        run = log_run({"exercise": "2.1"}, {"features": "windspeed"}, {"r2_wind": score})
        exercises.check("2.1", run, given, test)
        assert words in capsys.readouterr().out, words


def test_runs_of_projects_have_the_parameters_of_the_task(log_run, capsys):
    """A run of another project, or with another parameter, does not solve 3.1 to 3.3."""

    def of_project(project="lr", entry_point="main", metrics=None, **changes):
        tags = {"mlflow.project.entryPoint": entry_point, "mlflow.source.name": f"/3_projects/{project}"}
        params = {"test_fraction": "0.1", "fit_intercept": "True", "data": "../germany.csv"} | changes
        return log_run(tags | {exercises.COMMIT_TAG: "a" * 40}, params, metrics or {"r2": 0.778})

    def validation(run, floor=0.77, r2=0.778):
        return of_project("lr", "validate", {"validation_r2": r2}, run_id=run.info.run_id, floor=floor)

    right, forest, no_intercept = of_project(), of_project("rf"), of_project(fit_intercept="false")
    other_data, longer = of_project(data="../not_germany.csv"), of_project(test_fraction="0.2")
    for number, answer, words in (
        ("3.1", right, "solved"), ("3.1", SimpleNamespace(run_id=right.info.run_id), "solved"),
        ("3.1", of_project("#3_projects/lr"), "solved"), ("3.1", forest, "not a run of the `lr` project"),
        ("3.1", no_intercept, "change only `test_fraction`"), ("3.1", other_data, "change only `test_fraction`"),
        ("3.1", longer, "not 0.1"), ("3.2", (right, "a" * 40), "solved"), ("3.2", (right, "aaaa"), "full hash"),
        ("3.2", [right.info.run_id, "a" * 40], "solved"), ("3.2", (forest, "a" * 40), "the `lr` project"),
        ("3.2", (longer, "a" * 40), "run of exercise 3.1"), ("3.3", validation(right), "solved"),
        ("3.3", validation(right, 0.76), "not the highest floor"), ("3.3", validation(longer), "run of exercise 3.1"),
        ("3.3", validation(right, r2=0.79), "leave out the parameter `data`"),
        ("3.3", validation(no_intercept), "change only"), ("3.3", validation(forest), "the `lr` project"),
    ):  # fmt: skip
        exercises.check(number, answer)
        assert words in capsys.readouterr().out, (number, words)
    exercises.connect().delete_run(right.info.run_id)
    exercises.check("3.1", right)
    assert "this run was deleted" in capsys.readouterr().out


def test_challenger_has_a_model_of_the_last_year(log_run, capsys):
    """A score without its model, or with a forest of other hours, does not solve 4.3."""
    year = HOURS.sample(8760, replace=True, random_state=0)
    for model, r2, words in (
        (forest(2, 3, year), 0.9, "solved"), (None, 0.9, "no model or no `r2`"), (forest(2, 3, year), 0.8, "its R2 is"),
        (forest(2, 3), 0.9, "on 800 hours, not on the 8760"),
    ):  # fmt: skip
        run = log_run({STAGE_TAG: "train_last_year"}, {}, {"r2": r2}, model)
        exercises.check("4.3", run)
        assert words in capsys.readouterr().out, words


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
