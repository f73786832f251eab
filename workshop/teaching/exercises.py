"""The exercises of the chapters: `check` compares an answer with the truth, and remembers which ones are solved.

`EXERCISES`, at the end, has them all. The truth of one is a number, or a list or dict of numbers, for `compare`; or a
function of the answer and of what else the cell gives to `check`, if it depends on the reader's own hours, model or
runs. It raises NotYetError with the sentence that the attendee reads.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import runpy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from forecast.govern import gate
from forecast.problem import EXPERIMENT, INPUTS, REGISTERED_MODEL
from forecast.terms.errors import PipelineError
from forecast.terms.files import write_atomically
from forecast.terms.parameters import trainings
from forecast.tracking import PRODUCTION, STAGE_TAG
from papermill_dask import COMMIT_TAG

from workshop.settings import Settings, get_settings
from workshop.tracking import connect

if TYPE_CHECKING:
    import numpy as np
    from mlflow.entities import Run
    from pandas import DataFrame

SCORE_EXERCISE = "2a"  # its answer, a function, is used by the rest of the chapter
TOLERANCE = 0.001
R2_OF_WEEK = {"with": (0.988, 0.914), "without": (0.900, 0.743)}  # solar and wind: means of twenty forests
# What the notebooks log, and what changes no forest.
FOREST_PARAMETERS = {
    "split", "test_fraction", "n_estimators", "max_depth", "last_hours", "n_jobs", "verbose", "oob_score", "warm_start",
}  # fmt: skip
PLAIN_FOREST = {"n_estimators": 20, "max_depth": 10, "seed": 0, "last_hours": 0}  # of `rf`: those of the project `sun`
FACTORS = {-1: "has the wrong sign", 1000: "is wrong by a factor of 1000: mind its unit",
    100: "is 100 times too large or small"}  # fmt: skip


class NotYetError(Exception):
    """An answer is not right; the text is a hint."""


class Exercise(NamedTuple):
    """An exercise: what is asked, in which notebook, the truth or a test of an answer, what a right answer means."""

    title: str
    notebook: str
    truth: Any
    lesson: str


def expect(condition: object, sentence: str) -> None:
    """Raise NotYetError with this sentence unless the condition holds."""
    if not condition:
        raise NotYetError(sentence)


def check(number: str, answer: Any = ..., *evidence: Any) -> Any:
    """Print what a right answer means, or why an answer is not right yet; remember a right one.

    ``evidence`` is what the test needs besides. A wrong answer raises nothing, so the cells below can run. Where they
    need the answer, a right one is returned, else the solution. Raises PipelineError for a number that there is not.
    """
    if number not in EXERCISES:
        step = "put the number of the exercise back into the cell of the check"
        raise PipelineError("There is no such exercise.", value=number, expected=", ".join(EXERCISES), next_step=step)
    try:
        is_filled = all(each is not ... for each in (answer, *evidence))
        expect(is_filled, "put your answer where the cell says `# Your code here`, in place of all `...`.")
        truth = EXERCISES[number].truth
        truth(answer, *evidence) if callable(truth) else compare(answer, truth)
    except (NotYetError, PipelineError) as error:  # PipelineError: such as a server that is down
        print(f"Exercise {number}, not yet: {error}")
    except Exception as error:  # noqa: BLE001 -- an answer can be anything, and must not end the notebook
        reason = f"({type(error).__name__}: {error!s:.200}). If it is right, run the cells above again."
        print(f"Exercise {number}, not yet: an answer of {kind_of(answer)} cannot be compared {reason}")
    else:
        settings = get_settings()
        write_solved({*solved(settings), number}, settings)
        print(f"Exercise {number}, solved: {EXERCISES[number].lesson}.")
        return answer if number == SCORE_EXERCISE else None
    return score_of_chapter_3() if number == SCORE_EXERCISE else None


def score_of_chapter_3() -> Callable[[DataFrame, DataFrame], dict[str, float]]:
    """Return the function `score` of `3_projects/hourly.py`, which is the solution of the exercise `SCORE_EXERCISE`."""
    return runpy.run_path(str(get_settings().root / "3_projects" / "hourly.py"))["score"]


def of_chapter(chapter: int) -> dict[str, Exercise]:
    """Return a chapter's exercises by their numbers: the cells of its notebooks, then those of its last one."""
    return {number: each for number, each in EXERCISES.items() if number.startswith(str(chapter))}


def solved(settings: Settings) -> list[str]:
    """Return the numbers of the solved exercises."""
    try:
        return [number for number in json.loads((settings.state / "exercises.json").read_text()) if number in EXERCISES]
    except (FileNotFoundError, TypeError, ValueError):
        return []


def write_solved(numbers: Iterable[str], settings: Settings) -> None:
    """Write the numbers of the solved exercises."""
    write_atomically(settings.state / "exercises.json", f"{json.dumps(sorted(numbers))}\n".encode())


# -- answers and truths ----------------------------------------------------------------------------------------------
class Number(NamedTuple):
    """A right number, up to ``tolerance`` or to ``decimals`` and more; sentences on known mistakes, and on others."""

    value: float
    tolerance: float
    hint: str
    mistakes: Mapping[str, Any] = {}
    decimals: int = 2

    def fits(self, number: float) -> bool:
        """Return whether a number is right."""
        rights = [self.value, *(round(self.value, decimals) for decimals in range(self.decimals, 8))]
        return abs(number - self.value) <= self.tolerance or min(abs(number - each) for each in rights) < 1e-6

    def explain(self, number: float, name: str) -> str:
        """Return what is wrong with a number that does not fit."""
        for sentence, wrong in self.mistakes.items():
            if wrong[0] <= number <= wrong[1] if isinstance(wrong, tuple) else abs(number - wrong) <= self.tolerance:
                return sentence
        for factor, words in FACTORS.items():
            if self.fits(number * factor) or self.fits(number / factor):
                return f"{name} {words}."
        is_rounded = self._replace(decimals=1).fits(number)
        return f"{name} has too few decimals: do not round." if is_rounded else f"{name} is not right: {self.hint}"


def compare(answer: Any, truth: Any, name: str = "the answer") -> None:
    """Raise NotYetError with the first fault of an answer: its form as a whole, NaN, the order, then each number."""
    pairs = list(_pairs(answer, truth, name))
    for part, number, _ in pairs:
        expect(math.isfinite(number), f"{part} is {number}: a value is missing, or something was divided by zero.")
    wrong = [(part, number, right) for part, number, right in pairs if not right.fits(number)]
    truths = sorted({right.value: right for *_, right in pairs}.items())
    in_order = zip(truths, sorted(number for _, number, _ in pairs), strict=False)
    if wrong and len(truths) == len(pairs) and all(right.fits(number) for (_, right), number in in_order):
        raise NotYetError("the numbers are right, and their order is not: which one belongs where?")
    for part, number, right in wrong:
        raise NotYetError(right.explain(number, part))


def _pairs(answer: Any, truth: Any, name: str) -> Iterator[tuple[str, float, Number]]:
    """Yield the name of each number of an answer, the number and the right one."""
    import numpy as np

    expect(answer is not ..., f"{name} is still `...`.")
    if isinstance(truth, dict):
        if hasattr(answer, "to_dict"):  # a Series, or a table with a column for each key
            answer = {key: np.squeeze(answer[key]) for key in answer.keys()}  # noqa: SIM118 -- of a Series
        require(answer, Mapping, f"a dict with the keys {', '.join(map(repr, truth))}", name)
        missing, unknown = ([key for key in a if key not in b] for a, b in ((truth, answer), (answer, truth)))
        instead = f"; {unknown[0]!r} is not among {', '.join(map(repr, truth))}" if unknown else ""
        expect(not missing, f"{name} lacks the key {', '.join(map(repr, missing))}{instead}.")
        for key, right in truth.items():
            yield from _pairs(answer[key], right, f"`{key}`")
    elif isinstance(truth, list):
        values = np.squeeze(np.asarray(answer, dtype=object))  # also a tuple, a Series, an array of one row
        is_long = values.shape == (len(truth),)
        expect(is_long, f"{name} must be a list of {len(truth)} numbers, and has {kind_of(answer)}.")
        for count, (value, right) in enumerate(zip(values, truth, strict=True), start=1):
            yield from _pairs(value, right, f"number {count} of {name}")
    else:
        yield name, number_of(answer, name), truth


def number_of(answer: Any, name: str = "the answer") -> float:
    """Return a number of Python or NumPy, or the only one of an array or a Series; raise NotYetError for others."""
    with suppress(Exception):  # an answer can be anything
        value = answer.item() if hasattr(answer, "item") else answer
        if not isinstance(value, bool | str | bytes):
            return float(value)
    raise NotYetError(f"{name} must be a number, and has {kind_of(answer)}.")


def require(answer: Any, kind: Any, words: str, name: str = "the answer") -> None:
    """Raise NotYetError unless an answer has the right type, which ``words`` describe."""
    expect(isinstance(answer, kind), f"{name} must be {words}, and has {kind_of(answer)}.")


def names_of(answer: Any) -> set[str]:
    """Return the names in a collection, also of things that have one; raise NotYetError for others."""
    is_many = isinstance(answer, Iterable) and not isinstance(answer, str)
    expect(is_many, f"the answer must be a set of names, and has {kind_of(answer)}.")
    return {getattr(each, "name", each) for each in answer}


def kind_of(answer: Any) -> str:
    """Return the type of an answer in words, with the size of a list, an array or a table."""
    size = getattr(answer, "shape", None) or (len(answer) if isinstance(answer, list | tuple) else None)
    return f"the type `{type(answer).__name__}`" + (f" and the size {size}" if size else "")


def require_hours(measured: DataFrame, predicted: Any) -> None:
    """Raise NotYetError unless there is a prediction of solar and wind for each hour."""
    is_table = getattr(predicted, "ndim", 0) == 2
    expect(is_table, f"the predictions must be a table of solar and wind, and have {kind_of(predicted)}.")
    rows, hours = len(predicted), len(measured)
    expect(rows == hours, f"there are {rows} predictions for {hours} held-out hours: predict these, and no others.")


def r2_of(measured: DataFrame, predicted: Any) -> list[float]:
    """Return the R2 of solar and of wind, if there is a prediction for each hour."""
    from sklearn.metrics import r2_score

    require_hours(measured, predicted)
    return [float(r2) for r2 in r2_score(measured, predicted, multioutput="raw_values")]


# -- chapter 1 -------------------------------------------------------------------------------------------------------
def _negative_wind(answer: float, y_pred: np.ndarray, y_test: DataFrame) -> None:
    import numpy as np

    require_hours(y_test, y_pred)
    solar, wind = np.asarray(y_pred).T
    expect(0.01 < (wind < 0).mean() < 0.1, "`y_pred` is not what the line predicts: run the cells above again.")
    mistakes = {
        "this is the number of hours: divide it by that of all test hours.": (wind < 0).sum(),
        "this is the share for solar power: wind is the other column.": (solar < 0).mean(),
        "this is the share of hours below 1 GW.": (wind < 1).mean(),
        "measured power is never below zero: count in the predicted one.": 0,
        "this is near: count in `y_pred`, which has the test hours, and do not round.": (0.02, 0.05),
    }
    hint = "count the values of `y_pred[:, 1]` below zero, and divide by the number of all."
    compare(answer, Number((wind < 0).mean(), 0.4 / len(wind), hint, mistakes, decimals=4))


def _comment_line(answer: str, predicted: np.ndarray, y_test: DataFrame) -> None:
    require(answer, str, "a text")
    r2 = sum(r2_of(y_test, predicted)) / 2
    scores, numbers = re.findall(r"(?<![\d-])0?[.,](\d\d+)", answer), re.findall(r"(?<![\d.,])\d+(?![.,]?\d)", answer)
    expect(len(scores) == 1, "the line must have one R2 with two decimals, such as 0.86.")
    depths = re.findall(r"depth\D{0,4}(\d+)", answer, re.IGNORECASE)
    is_swapped = depths[0] != "3" if depths else re.search(r"\b3 *trees", answer)
    expect({"3", "50"} <= set(numbers) and not is_swapped, "the line must name 50 trees and the depth 3.")
    hint = f"`predicted` has an R2 of {r2:.3f}: no forest of depth 3 has it that learned `X_train` and `y_train`."
    expect(0.76 < r2 < 0.81, hint)  # wider than twenty random splits gave
    is_same = f"{r2:.{len(scores[0])}f}".endswith(scores[0])
    expect(is_same, "the R2 in the line is not that of `predicted`: is it the R2 of other hours?")


def _apart(answer: dict[str, float], y_pred: np.ndarray, y_test: DataFrame) -> None:
    r2, hint = r2_of(y_test, y_pred), "give `r2_score` one column of `y_test` and the same one of `y_pred`."
    truths = [Number(each, 0.0001, hint, {"this is the mean of both.": sum(r2) / 2}) for each in r2]
    compare(answer, dict(zip(("solar", "wind"), truths, strict=True)))


def delay_weather(hours: DataFrame) -> DataFrame:
    """Return a copy of the table with a fault: in part of the year, rows have the weather of an earlier row."""
    local, utc = (hours["utc_timestamp"].dt.tz_convert(zone).dt.tz_localize(None) for zone in ("Europe/Berlin", "UTC"))
    names = [quantity.name for quantity in INPUTS]
    return hours.assign(**hours[names].shift(1).where(local - utc == timedelta(hours=2), hours[names]))


# -- chapter 2 -------------------------------------------------------------------------------------------------------
def _own_score(answer: Callable[[DataFrame, DataFrame], dict[str, float]]) -> None:
    """Run the function's lines alone, as `scores.py` will hold them; compare its numbers for a small table."""
    from pandas import DataFrame

    measured = DataFrame({"solar_GW": [0.0, 2.0, 5.0, 3.0], "wind_GW": [1.0, 4.0, 9.0, 16.0]})
    predicted = DataFrame({"solar_GW": [1.0, 2.0, 4.0, 2.0], "wind_GW": [-1.0, 2.0, 9.0, 11.0]})
    expect(getattr(answer, "__name__", "") == "score", f"give a function named `score`: it has {kind_of(answer)}.")
    source, alone = "", dict[str, Any]()
    try:
        source = inspect.getsource(answer)
        exec(compile(source, "scores.py", "exec", dont_inherit=True), alone)  # noqa: S102 -- the reader's own lines
        numbers = alone["score"](measured.copy(), predicted.copy())
    except NameError as error:
        hint = "which is not in it. It is kept alone in a file: import inside of it, and look at the spelling."
        raise NotYetError(f"the function uses `{error.name}`, {hint}") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- the function can be anything
        is_open = isinstance(error, TypeError) and ("(...)" in source or "= ..." in source)
        hint = "some `...` are left." if is_open else f"the function fails with {type(error).__name__}: {error}"
        raise NotYetError(hint) from None
    right = score_of_chapter_3()(measured, predicted)
    truth = {name: Number(each, TOLERANCE, f"for a small table it must be {each:.3g}.") for name, each in right.items()}
    compare(numbers, truth, "what `score` returns")


def _own_parameter(answer: str, test: DataFrame) -> None:
    """Look for a parameter that the notebook does not log in a finished run, and in the forest that the run logged."""
    from forecast.learn.storage import load
    from forecast.table.schema import TARGETS

    run = finished_run(answer)
    of_chapter = run.data.tags.get("chapter") == "2" and run.data.tags.get("model") == "rf"
    expect(of_chapter, "this run lacks the tags of the notebook's forests: give `tags=TAGS` to `start_run`.")
    extra = {name: value for name, value in run.data.params.items() if name not in FOREST_PARAMETERS}
    expect(extra, "this run has no parameter besides those that the notebook logs or that change no forest: log one.")
    models = run.outputs.model_outputs if run.outputs else []
    expect(models and "r2" in run.data.metrics, "this run lacks a model or its `r2`: call `track` inside of `with`.")
    forest = load(f"models:/{models[-1].model_id}", connect())
    expect(hasattr(forest.fitted, "estimators_"), "the model of this run is no forest.")
    fitted, usual = (model.get_params() for model in (forest.fitted, type(forest.fitted)()))
    used = [name for name, value in extra.items() if name in fitted and str(fitted[name]) == value]
    expect(used, f"the forest of this run was not fitted with {', '.join(extra)}: give the parameter to `fit`, too.")
    is_other = any(repr(fitted[name]) != repr(usual[name]) for name in used)  # 1 is one feature, and 1.0 are all
    expect(is_other, "the parameter has its usual value, which changes nothing.")
    r2 = sum(r2_of(test[TARGETS], forest.predict(test))) / 2
    hint = "the `r2` of this run is not that of its forest on `test`: `track` logs it, so log none yourself."
    expect(abs(run.data.metrics["r2"] - r2) < TOLERANCE, hint)


def _more_epochs(answer: float, model: Any, test: DataFrame) -> None:
    """Count the epochs of a network by the steps of its optimizer; compare the R2 with that of its predictions."""
    from forecast.table.schema import FEATURES, TARGETS

    number_of(answer)
    expect(hasattr(model, "optimizer"), "`model` is what `fit` returns: call `fit` without `model =`.")
    epochs = int(model.optimizer.iterations) / model.history.params["steps"]
    hint = f"`model` has learned as many batches as {epochs:.3g} epochs like its last, not 12 and 18 more with the "
    hint += "same `batch_size` and `validation_split`. Run the notebook again from its first cell, and compile once."
    expect(math.isclose(epochs, 30), hint)
    r2 = sum(r2_of(test[TARGETS], model.predict(test[FEATURES].to_numpy(), verbose=0))) / 2
    compare(answer, Number(r2, 0.0001, "score what `model` predicts for `test` now, after the training.", decimals=3))


def _own_query(answer: str) -> None:
    from mlflow.exceptions import MlflowException

    require(answer, str, "a text")
    expect("r2_wind" in answer, "the query does not ask for `r2_wind`.")
    client = connect()
    experiments = [each.experiment_id for each in client.search_experiments() if each.name == EXPERIMENT]
    right = "tags.chapter = '2' and attributes.status = 'FINISHED' and metrics.r2_wind > 0.8"
    try:
        runs, right_runs = (client.search_runs(experiments, query) for query in (answer, right))
    except MlflowException as error:
        raise NotYetError(f"MLflow cannot read the query {answer!r:.200}: {error.message:.300}") from None
    expect(runs, "the query finds no run.")
    ids = {run.info.run_id for run in right_runs}
    for run in runs:
        expect(run.info.run_id in ids, f"the query also finds `{run.info.run_name}`: status, chapter, or R2 differ.")
    expect(len(runs) == len(right_runs), "the query misses a run with an `r2_wind` above 0.8.")


def _of_challenger(answer: float, week: DataFrame) -> None:
    from forecast.learn.storage import load

    number_of(answer)
    client = connect()
    names = (f"models:/{REGISTERED_MODEL}@{alias}" for alias in ("challenger", PRODUCTION))
    expect("challenger" in client.get_registered_model(REGISTERED_MODEL).aliases, "run compare_runs: no challenger.")
    challenger, production = (load(name, client).predict(week).mean() for name in names)
    mistakes = {
        "this is the prediction of the version in production: load the challenger.": production["wind_GW"],
        "this is the mean solar power: take the wind power.": challenger["solar_GW"],
        "this is the mean of solar and wind power: take the wind power.": challenger.mean(),
        "this is the measured power.": week["wind_GW"].mean(),
    }
    compare(answer, Number(challenger["wind_GW"], 0.05, "predict `week`, and take the mean of `wind_GW`.", mistakes))


def _own_run(answer: str) -> None:
    run = finished_run(answer)
    is_there = connect().get_experiment(run.info.experiment_id).name == EXPERIMENT
    expect(is_there, f"this run is not in the experiment {EXPERIMENT}: `mlflow.set_experiment` comes first.")
    expect(run.data.tags.get("exercise") == "2.1", "this run lacks the tag `exercise` = 2.1.")
    feature = run.data.params.get("features", "").strip("[]'")
    expect(feature == "windspeed", "this run lacks the parameter `features` = windspeed.")
    mistakes = {
        "`r2_wind` is that of more inputs: learn from the wind speed alone.": 0.5668,
        "`r2_wind` is that of the hours from which the model learned.": 0.7163,
    }
    truth = Number(0.5869, TOLERANCE, "train and score as the task says, for wind alone.", mistakes)
    compare(run.data.metrics, {"r2_wind": truth}, "the list of this run's metrics")


def _reviewed(answer: str) -> None:
    client = connect()
    answer = answer if isinstance(answer, str) else f"{number_of(answer):g}"
    versions = client.search_model_versions(f"name = '{REGISTERED_MODEL}'")
    latest = max((int(version.version) for version in versions), default=None)
    expect(str(answer) == str(latest), f"it is not the number of the latest version of `{REGISTERED_MODEL}`.")
    version = client.get_registered_model(REGISTERED_MODEL).aliases.get("reviewed")
    expect(str(version) == str(latest), "the alias `reviewed` is not on the latest version.")


def finished_run(answer: Any) -> Run:
    """Return the finished run with this id."""
    require(answer, str, "the id of a run, which is a text")
    client = connect()
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(answer)
    except MlflowException:
        raise NotYetError(f"the tracking server at {client.tracking_uri} has no run {answer!r:.100}.") from None
    values = ", ".join(f"{name}={value}" for name, value in run.data.params.items()) or "no parameters"
    expect(run.info.status == "FINISHED", f"this run has the status {run.info.status}, not FINISHED. It got {values}.")
    return run


# -- chapter 3 -------------------------------------------------------------------------------------------------------
def _gain_of_sun(answer: float, theirs: Run, plain: Any) -> None:
    """Compare the difference of the R2 of two runs, of which the second must be of the same forest."""
    number_of(answer)
    run_id = getattr(getattr(plain, "info", plain), "run_id", plain)
    expect(isinstance(run_id, str), f"`plain` must be what `mlflow.projects.run` returns, and has {kind_of(plain)}.")
    run = project_run(run_id).data
    expect(run.params.keys() >= PLAIN_FOREST.keys(), "`plain` is a run of another project than `rf`.")
    parameters = PLAIN_FOREST | {"test_fraction": theirs.data.params["test_fraction"]}
    others = [name for name, value in parameters.items() if float(run.params[name]) != float(value)]
    others += ["by_capacity"] * (run.tags.get("target") == "capacity_factor")
    expect(not others, f"`plain` differs from `theirs` in {', '.join(others)}: the task names what to change.")
    expect(run_id != theirs.info.run_id, "`plain` and `theirs` are one run: `theirs` has the height of the sun.")
    gain = theirs.data.metrics["r2"] - run.metrics["r2"]
    compare(answer, Number(gain, 0.0001, "take the R2 of `theirs` and that of `plain`, as logged.", decimals=3))


def _another_fraction(answer: str, task: str = "`parameters` is a dict with the key `test_fraction`.") -> None:
    params = project_run(answer).data.params
    hint = "this is a run of another project than `lr`: look at the first argument of `mlflow.projects.run`."
    expect("fit_intercept" in params, hint)
    fraction = params["test_fraction"]
    expect(float(fraction) == 0.1, f"this run has the test_fraction {fraction}; 0.1 is asked for: {task}")


def _commit_of_run(answer: tuple[str, str]) -> None:
    is_pair = isinstance(answer, tuple | list) and [type(each) for each in answer] == [str, str]
    expect(is_pair, f"the answer must be the pair `(run_id, commit)` of two texts, and has {kind_of(answer)}.")
    run_id, commit = (each.strip() for each in answer)
    expect(len(run_id) != 40, "the first must be the run's id, and is the commit.")
    right = project_run(run_id).data.tags.get(COMMIT_TAG, "")
    is_short = len(right) > len(commit) >= 4 and right.startswith(commit)
    expect(not is_short, "this is the beginning of the right commit: give all of it.")
    expect(commit and commit == right, "the run names another commit: which of `run.data.tags` ends in `commit`?")


def _highest_floor(answer: str) -> None:
    validated = project_run(answer, "validate").data
    _another_fraction(validated.params["run_id"], "validate the run of exercise 3.1.")
    highest, floor = math.floor(100 * validated.metrics["validation_r2"]) / 100, validated.params["floor"]
    hint = f"R2 reaches a higher floor than {floor}, or yours has more than two decimals."
    expect(math.isclose(float(floor), highest), hint)


def project_run(answer: Any, entry_point: str = "main") -> Run:
    """Return the finished run of a project's entry point with this id."""
    run = finished_run(answer)
    hint = f"this run was not made by running a project's entry point `{entry_point}`: look at its tags."
    expect(run.data.tags.get("mlflow.project.entryPoint") == entry_point, hint)
    return run


# -- chapter 4 -------------------------------------------------------------------------------------------------------
def below_split(settings: Settings) -> set[str]:
    """Return the stages that a change of `split` reaches."""
    return {"split", *trainings(settings.pipeline), "compare", "promote", "report"}


def _touched_stages(answer: set[str]) -> None:
    names, below = names_of(answer), below_split(get_settings())
    expect(names <= below, "one of these is no stage that the change can reach: follow the arrows.")
    hint = "some are missing: `split` itself runs, and so does each stage that reads the output of a stage that runs."
    expect(names >= below, hint)


def _failed_rules(answer: set[str]) -> None:
    """Ask the gate about the linear regression, as `mlflow-gate promote --dry-run` does, and compare what fails."""
    chosen = names_of(answer)
    file = get_settings().pipeline / "results" / "trained" / "train_linreg.json"
    expect(file.exists(), f"results/trained/{file.name} does not exist: run `dvc repro` in 4_pipeline.")
    candidate = json.loads(file.read_text())
    decision, _ = gate.Gate(client=connect()).evaluate(candidate["run_id"], candidate["model_uri"])
    names = {each.label: each.name for each in decision.findings}  # a label is what the table in the terminal has
    chosen, failed = {names.get(name, name) for name in chosen}, {each.name for each in decision.failed}
    expect(chosen <= failed, f"one of these rules passed, or is no rule. The gate asked {', '.join(names.values())}.")
    expect(failed <= chosen, "the model fails at least one more rule: look at each verdict.")


def _challenger_as_stage(answer: str) -> None:
    run = finished_run(answer)
    stage = run.data.tags.get(STAGE_TAG)
    expect(stage, "this is not a run of the pipeline: `results/trained/train_last_year.json` names the run.")
    hint = "`train_last_year.json` names the run; in its notebook `start_run` must have `train_last_year`."
    expect(stage == "train_last_year", f"this is a run of `{stage}`: {hint}")
    r2 = run.data.metrics["r2"]
    hint = f"its R2 is {r2:.3f}, not about 0.899: does `train = train.tail(8760)` stand above the line with `forest`?"
    expect(0.895 < r2 < 0.91, hint)


# -- all --------------------------------------------------------------------------------------------------------------
# By their numbers: the cells to write of a chapter, then the exercises of its last notebook. Scores are those of the
# embedded sample, from which every attendee makes `germany.csv`; a test computes them by the solutions.
WEEK = "score the forest of the task on `week` alone."
EXERCISES = {
    "1a": Exercise("what a GW of wind gave more", "make_processed_data",
        lesson="each GW gave about a quarter more: this part of the growth did not come from new plants",
        truth=Number(1.245, 0.01, "divide the mean `wind_share` of one year by that of the other.", {
            "this is how much all wind power grew: divide the means of `wind_share`.": (1.4, 1.5),
            "this is the earlier year divided by the later one.": (0.795, 0.81),
            "this is a share, a difference, or the growth alone: a factor is a quotient of two shares.": (0.01, 0.3),
            "this is the growth in per cent: a factor is a quotient.": (20, 30),
        })),
    "1b": Exercise("wind power below zero", "model_linreg", _negative_wind,
        "about one hour in thirty has impossible wind power, and neither R2 nor the mean absolute error shows it"),
    "1c": Exercise("a line for the comments", "model_rf", _comment_line,
        "the line is right, and does not say which hours were held out: nobody can compute its R2 again"),
    "1d": Exercise("the R2 of solar and of wind", "model_keras", _apart,
        "one R2 for both hid that the network predicts solar power much better than wind power"),
    "1.1": Exercise("the report's week, learned and new", "exercises",
        lesson="solar has about 0.99 in the learned week and 0.90 in the new one, wind 0.91 and 0.74: "
        "a report of a learned week promises too much",
        truth={
            name: [Number(r2, 0.02, WEEK, {sentence: wrong}) for r2, wrong in zip(R2_OF_WEEK[name], wrong, strict=True)]
            for name, sentence, wrong in (
                ("with", "this forest has not learned the week.", R2_OF_WEEK["without"]),
                ("without", "this forest has learned the week: drop its hours first.", R2_OF_WEEK["with"]),
            )
        }),
    "1.2": Exercise("the months in which the weather is late", "exercises",
        lesson="from April to October, in summer time, the weather is an hour late, as in the real file; "
        "a lag of the whole year would not show that the winter is right",
        truth={month: Number(int(4 <= month <= 10), 0, "which shift of the radiation gives the highest correlation?")
            for month in range(1, 13)}),
    "1.3": Exercise("how much a score on learned hours overestimates", "exercises",
        lesson="0.11 of that R2 is memory of the learned hours: the model is not that good on new ones",
        truth=Number(0.1141, TOLERANCE, "subtract one R2 of the task's forest from the other.", {
            "subtract the two R2 as they are, and round after it.": (0.1195, 0.1205),
            "this is the R2 on `test` alone.": (0.86, 0.87), "this is the R2 on `train` alone.": (0.97, 0.99),
        })),
    SCORE_EXERCISE: Exercise("a function that scores", "model_linreg", _own_score,
        "one function scores all models of this chapter, so their numbers can be compared"),
    "2b": Exercise("the data without the step that was put in", "honest_split",
        lesson="without the step the capacity factor alone is best: what helps depends on what is in the data",
        truth={
            name: Number(r2, 0.005, "0.8 times which factor is 1?", {
                "these are the scores of the data as given: choose another factor than 1.": before,
                "this factor makes the step larger: the early wind power must grow.": (0.6, before - 0.005),
            })
            for name, r2, before in (
                ("GW", 0.860, 0.798), ("GW, last year", 0.901, 0), ("capacity factor", 0.933, 0),
                ("capacity factor, last year", 0.925, 0),
            )
        }),
    "2c": Exercise("a parameter of your own", "model_rf", _own_parameter,
        "the run shows your parameter beside the score: nobody has to remember it"),
    "2d": Exercise("more epochs", "model_keras", _more_epochs,
        "a little better, although `val_loss` did not fall, because `val_loss` is mostly the step in wind power"),
    "2e": Exercise("capacity factors turned into GW", "capacity_factor",
        lesson="a model of capacity factors needs the capacity of the hour, and its user has to know that",
        truth=[
            Number(GW, 0.1, "multiply each factor of the first held-out hour by its own column of capacity.", {
                "this is the capacity factor: multiply it by the capacity.": factor,
                "this is another model, or the measured power: ask the model of `logged`.": other,
                "this factor is multiplied by the other column of capacity.": exchanged,
            })
            for GW, factor, other, exchanged in ((7.39, 0.185, 7.36, 8.48), (11.72, 0.255, 11.26, 10.21))
        ]),
    "2f": Exercise("a query of your own", "compare_runs", _own_query,
        "only the two forests of the last year pass: the other models predict too little wind"),
    "2g": Exercise("the challenger's prediction", "get_prod_model", _of_challenger,
        "the challenger predicts too little wind in this week: 9.9 GW were measured"),
    "2.1": Exercise("a run of your own, with parameter, metric and tag", "exercises", _own_run,
        "wind speed alone has an R2 of 0.59 for wind, a little more than all four inputs of `linreg`: on these "
        "hours the other three do not help a line"),
    "2.2": Exercise("a small lead: luck or not", "exercises",
        lesson="at depth 12, 50 trees win 25 of 25 pairs: a small lead, but not luck; at depth 6 they win 22: "
        "one run of each can show the opposite",
        truth={  # another processor may round close ones otherwise
            depth: Number(pairs, 2, "compare each of the five scores of 50 trees with each of 10 trees.", {
                "count the pairs, and do not divide.": (0.01, 1), "whose wins are these?": (0, 27 - pairs),
            })
            for depth, pairs in {12: 25, 6: 22}.items()
        }),
    "2.3": Exercise("an alias for the latest version", "exercises", _reviewed,
        "programs that load `wind_solar@reviewed` get this version; those that load `@production` notice nothing"),
    "3a": Exercise("what one more input brings", "reproduce", _gain_of_sun,
        "the height of the sun adds only 0.002, all of it for wind. A forest of solar alone gains 0.003 from it, "
        "and 0.005 from the hour, which tells morning from afternoon. Your winner of step 5 has an R2 of 0.927 "
        "without either"),
    "3.1": Exercise("`lr` run with a tenth of the hours held out", "exercises", _another_fraction,
        "the run records the fraction: its R2 is of other hours than those of step 2, so do not compare the two"),
    "3.2": Exercise("the commit of a run found in its tags", "exercises", _commit_of_run,
        "the commit leads to the code, if nothing was changed after it: with its parameters and the same data, "
        "anyone can repeat the run"),
    "3.3": Exercise("the highest floor that a run's R2 reaches", "exercises", _highest_floor,
        "with a higher floor the command would have failed: so a script can stop before it uses a weak model"),
    "4.1": Exercise("the stages that a change can touch", "exercises", _touched_stages,
        "`split` and all stages below it run again; DVC keeps the results of those above, `fetch` and `prepare`"),
    "4.2": Exercise("the rules by which the gate refuses the linear regression", "exercises", _failed_rules,
        "a refusal names its rules, so you know what to improve, and a dry run changes nothing"),
    "4.3": Exercise("your challenger of chapter 2 as a stage", "exercises", _challenger_as_stage,
        "one line raises the R2 of the forest from 0.80 to 0.90, and the pipeline judges it like all others"),
}  # fmt: skip
