"""The exercises of the chapters: `check` compares an answer with the solution and records solved exercises.

`EXERCISES`, at the end, lists them. A solution is a Number, or a list or dict of them, for `compare`, or a function
that takes the answer and the evidence passed to `check` and raises WrongAnswerError with a hint for the attendee.
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
from itertools import product
from pathlib import Path
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

SCORE_EXERCISE = "2a"  # its answer is a function that the rest of the chapter uses
TOLERANCE = 0.001
R2_OF_WEEK = {"with": (0.988, 0.914), "without": (0.900, 0.743)}  # (solar, wind), averaged over twenty forests
# Parameters that the notebooks already log, or that do not affect a forest's predictions.
FOREST_PARAMETERS = {
    "split", "test_fraction", "n_estimators", "max_depth", "last_hours", "n_jobs", "verbose", "oob_score", "warm_start",
}  # fmt: skip
PLAIN_FOREST = {"n_estimators": 20, "max_depth": 10, "seed": 0, "last_hours": 0}  # the `sun` project's values
FACTORS = {-1: "has the wrong sign", 1000: "is wrong by a factor of 1000: check the unit",
    100: "is 100 times too large or too small"}  # fmt: skip


class WrongAnswerError(Exception):
    """An answer is wrong; the message is a hint."""


class Exercise(NamedTuple):
    """An exercise; ``solution``: the right numbers or a check function; ``lesson``: printed for a right answer."""

    title: str
    notebook: str
    solution: Any
    lesson: str


def expect(condition: object, hint: str) -> None:
    """Raise WrongAnswerError with this hint unless the condition is true."""
    if not condition:
        raise WrongAnswerError(hint)


def check(number: str, answer: Any = ..., *evidence: Any) -> Any:
    """Check an answer: print a hint, or if it is right, print the lesson and record the exercise as solved.

    ``evidence``: further objects that the check needs. A wrong answer does not raise, so the cells below can run;
    an unknown number does. For SCORE_EXERCISE, whose answer later cells use, return it if right, else the solution.
    """
    if number not in EXERCISES:
        step = "restore the exercise's number in the call to `check`"
        raise PipelineError("No exercise has this number.", value=number, expected=", ".join(EXERCISES), next_step=step)
    try:
        is_filled = all(each is not ... for each in (answer, *evidence))
        expect(is_filled, "write your answer below `# Your code here` and replace every `...`.")
        solution = EXERCISES[number].solution
        solution(answer, *evidence) if callable(solution) else compare(answer, solution)
    except (WrongAnswerError, PipelineError) as error:  # PipelineError: for example, a server is down
        print(f"Exercise {number}, not yet: {error}")
    except Exception as error:  # noqa: BLE001 -- an answer can be anything, and must not stop the notebook
        reason = f"({type(error).__name__}: {error!s:.200}). If the answer is right, run the cells above again."
        print(f"Exercise {number}, not yet: your answer has {type_of(answer)}, which cannot be compared {reason}")
    else:
        settings = get_settings()
        write_solved({*solved(settings), number}, settings)
        print(f"Exercise {number}, solved: {EXERCISES[number].lesson}.")
        return answer if number == SCORE_EXERCISE else None
    return score_of_chapter_3() if number == SCORE_EXERCISE else None


def score_of_chapter_3() -> Callable[[DataFrame, DataFrame], dict[str, float]]:
    """Return the `score` function of `3_projects/hourly.py`, which is the solution of `SCORE_EXERCISE`."""
    return runpy.run_path(str(get_settings().root / "3_projects" / "hourly.py"))["score"]


def of_chapter(chapter: int) -> dict[str, Exercise]:
    """Return a chapter's exercises by number: the cells to write, then those in the `exercises` notebook."""
    return {number: each for number, each in EXERCISES.items() if number.startswith(str(chapter))}


def solved(settings: Settings) -> list[str]:
    """Return the numbers of the solved exercises."""
    try:
        return [number for number in json.loads((settings.state / "exercises.json").read_text()) if number in EXERCISES]
    except (FileNotFoundError, TypeError, ValueError):
        return []


def write_solved(numbers: Iterable[str], settings: Settings) -> None:
    """Save the numbers of the solved exercises."""
    write_atomically(settings.state / "exercises.json", f"{json.dumps(sorted(numbers))}\n".encode())


# -- answers and solutions -------------------------------------------------------------------------------------------
class Number(NamedTuple):
    """Accepts a number within ``tolerance`` or rounded to >= ``decimals``; ``mistakes``: hint -> wrong number(s)."""

    value: float
    tolerance: float
    hint: str
    mistakes: Mapping[str, Any] = {}
    decimals: int = 2

    def fits(self, number: float) -> bool:
        """Return whether a number counts as right."""
        rights = [self.value, *(round(self.value, decimals) for decimals in range(self.decimals, 8))]
        return abs(number - self.value) <= self.tolerance or min(abs(number - each) for each in rights) < 1e-6

    def explain(self, number: float, name: str) -> str:
        """Return a hint for a wrong number."""
        for hint, wrong in self.mistakes.items():
            if wrong[0] <= number <= wrong[1] if isinstance(wrong, tuple) else abs(number - wrong) <= self.tolerance:
                return hint
        for factor, fault in FACTORS.items():
            if self.fits(number * factor) or self.fits(number / factor):
                return f"{name} {fault}."
        is_rounded = self._replace(decimals=1).fits(number)
        return f"{name} has too few decimals: do not round." if is_rounded else f"{name} is wrong: {self.hint}"


def compare(answer: Any, solution: Any, name: str = "the answer") -> None:
    """Raise WrongAnswerError for an answer's first fault; check type and size, then NaN, order and each number."""
    pairs = list(_pairs(answer, solution, name))
    for part, number, _ in pairs:
        expect(math.isfinite(number), f"{part} is {number}: check for missing values and divisions by zero.")
    wrong = [(part, number, right) for part, number, right in pairs if not right.fits(number)]
    solutions = sorted({right.value: right for *_, right in pairs}.items())
    in_order = zip(solutions, sorted(number for _, number, _ in pairs), strict=False)
    if wrong and len(solutions) == len(pairs) and all(right.fits(number) for (_, right), number in in_order):
        raise WrongAnswerError("the numbers are right, but their order is wrong: which one belongs where?")
    for part, number, right in wrong:
        raise WrongAnswerError(right.explain(number, part))


def _pairs(answer: Any, solution: Any, name: str) -> Iterator[tuple[str, float, Number]]:
    """Yield the name of each number in an answer, the number, and its solution."""
    import numpy as np

    expect(answer is not ..., f"{name} is still `...`.")
    if isinstance(solution, dict):
        texts = {str(key): key for key in solution}
        if hasattr(answer, "to_dict"):  # a Series, or a DataFrame with a column or row for each key
            answer = answer.T if not texts.keys() & set(map(str, answer.keys())) else answer
            answer = {key: np.squeeze(answer[key]) for key in answer.keys()}  # noqa: SIM118 -- a Series iterates over values
        elif isinstance(answer, list | tuple | np.ndarray) and len(answer) == len(solution):
            answer = dict(zip(solution, answer, strict=True))
        require(answer, Mapping, f"a dict with the keys {', '.join(map(repr, solution))}", name)
        answer = {texts.get(str(key), key): value for key, value in answer.items()}
        missing, unknown = ([key for key in a if key not in b] for a, b in ((solution, answer), (answer, solution)))
        unexpected = f"; {unknown[0]!r} is not one of {', '.join(map(repr, solution))}" if unknown else ""
        expect(not missing, f"{name} has no key {', '.join(map(repr, missing))}{unexpected}.")
        for key, right in solution.items():
            yield from _pairs(answer[key], right, f"`{key}`")
    elif isinstance(solution, list):
        values = np.squeeze(np.asarray(answer, dtype=object))  # accepts a tuple, a Series or a one-row 2D array, too
        has_length = values.shape == (len(solution),)
        expect(has_length, f"{name} must be a list of {len(solution)} numbers, but has {type_of(answer)}.")
        for count, (value, right) in enumerate(zip(values, solution, strict=True), start=1):
            yield from _pairs(value, right, f"number {count} of {name}")
    else:
        yield name, number_of(answer, name), solution


def number_of(answer: Any, name: str = "the answer") -> float:
    """Convert a number, or a list, array or Series of one, to float; raise WrongAnswerError for other answers."""
    import numpy as np

    with suppress(Exception):  # an answer can be anything
        value = np.asarray(answer).item()
        if not isinstance(value, bool | str | bytes):
            return float(value)
    raise WrongAnswerError(f"{name} must be a number, but has {type_of(answer)}.")


def require(answer: Any, kind: Any, description: str, name: str = "the answer") -> None:
    """Raise WrongAnswerError unless an answer has the expected type."""
    expect(isinstance(answer, kind), f"{name} must be {description}, but has {type_of(answer)}.")


def names_of(answer: Any) -> set[str]:
    """Return a collection's strings, or the ``name`` of each other item; raise WrongAnswerError for other answers."""
    is_collection = isinstance(answer, Iterable) and not isinstance(answer, str)
    expect(is_collection, f"the answer must be a set of names, but has {type_of(answer)}.")
    return {getattr(each, "name", each) for each in answer}


def type_of(answer: Any) -> str:
    """Describe an answer's type, and its size if it is a list, tuple, array or DataFrame."""
    size = getattr(answer, "shape", None) or (len(answer) if isinstance(answer, list | tuple) else None)
    return f"the type `{type(answer).__name__}`" + (f" and the size {size}" if size else "")


def require_hours(measured: DataFrame, predicted: Any) -> None:
    """Raise WrongAnswerError unless there is a prediction of solar and wind for each hour."""
    is_table = getattr(predicted, "ndim", 0) == 2
    expect(is_table, f"the predictions must be a table of solar and wind power, but have {type_of(predicted)}.")
    rows, hours = len(predicted), len(measured)
    expect(rows == hours, f"there are {rows} predictions for {hours} held-out hours: predict exactly these hours.")


def r2_of(measured: DataFrame, predicted: Any) -> list[float]:
    """Return the R2 of solar and of wind; raise WrongAnswerError unless each hour has a prediction."""
    from sklearn.metrics import r2_score

    require_hours(measured, predicted)
    return [float(r2) for r2 in r2_score(measured, predicted, multioutput="raw_values")]


def score_of(model: Any, hours: DataFrame) -> float:
    """Return a model's R2 for a table of weather and power."""
    from forecast.table.schema import FEATURES, TARGETS

    return sum(r2_of(hours[TARGETS], model.predict(hours[FEATURES]))) / 2


def require_forest(forest: Any, name: str, hours: int | None = None, **parameters: Any) -> None:
    """Raise WrongAnswerError unless this is a forest with these parameters that was fitted on so many hours."""
    is_forest = type(forest).__name__ == "RandomForestRegressor" and hasattr(forest, "estimators_")
    expect(is_forest, f"{name} must be a fitted RandomForestRegressor, but has {type_of(forest)}.")
    for key, value in parameters.items():
        has = forest.get_params()[key]
        expect(has == value, f"{name} has {key}={has}, not {value}: fit the forest of the task.")
    learned = int(forest.estimators_[0].tree_.weighted_n_node_samples[0])  # a tree draws as many hours as it was given
    hint = f"{name} was fitted on {learned} hours, not on the {hours} training hours: fit it on these."
    expect(hours in (None, learned), hint)


# -- chapter 1 -------------------------------------------------------------------------------------------------------
def _check_negative_wind(answer: float, y_pred: np.ndarray, y_test: DataFrame) -> None:
    import numpy as np

    require_hours(y_test, y_pred)
    solar, wind = np.asarray(y_pred).T
    expect(0.01 < (wind < 0).mean() < 0.1, "`y_pred` is not from the linear model: run the cells above again.")
    mistakes = {
        "this is the number of hours: divide it by the number of all test hours.": (wind < 0).sum(),
        "this is the share for solar power: wind is the other column.": (solar < 0).mean(),
        "this is the share of hours below 1 GW: count those below zero.": (wind < 1).mean(),
        "measured power is never below zero: count the predictions below zero.": 0,
        "this is close: count the hours in `y_pred`, and do not round.": (0.02, 0.05),
    }
    hint = "count the values of `y_pred[:, 1]` below zero, and divide by the number of all values."
    compare(answer, Number((wind < 0).mean(), 0.4 / len(wind), hint, mistakes, decimals=4))


def _check_comment_line(answer: str, forest: Any, X_train: DataFrame, X_test: DataFrame, y_test: DataFrame) -> None:
    require(answer, str, "a string")
    require_forest(forest, "`shallow`", len(X_train), n_estimators=50, max_depth=3)
    r2 = score_of(forest, X_test.join(y_test))
    scores, numbers = re.findall(r"(?<![\d-])0?[.,](\d\d+)", answer), re.findall(r"(?<![\d.,])\d+(?![.,]?\d)", answer)
    expect(scores, "the line must contain an R2 with two decimals, such as 0.86.")
    depths = re.findall(r"depth\D{0,4}(\d+)", answer, re.IGNORECASE)
    is_swapped = depths[0] != "3" if depths else re.search(r"\b3 *trees", answer)
    expect({"3", "50"} <= set(numbers) and not is_swapped, "the line must mention 50 trees and depth 3.")
    is_same = any(f"{r2:.{len(score)}f}".endswith(score) for score in scores)
    expect(is_same, f"the line says R2 0.{scores[0]}, but `shallow` has {r2:.3f}: score it on `X_test` and `y_test`.")


def _check_r2_of_targets(answer: dict[str, float], y_pred: np.ndarray, y_test: DataFrame) -> None:
    r2, hint = r2_of(y_test, y_pred), "pass one column of `y_test` and the same column of `y_pred` to `r2_score`."
    solutions = [Number(each, 0.0001, hint, {"this is the mean of both targets.": sum(r2) / 2}) for each in r2]
    compare(answer, dict(zip(("solar", "wind"), solutions, strict=True)))


def delay_weather(hours: DataFrame) -> DataFrame:
    """Return a copy of the table with a fault: in summer time, each row has the previous row's weather."""
    local, utc = (hours["utc_timestamp"].dt.tz_convert(zone).dt.tz_localize(None) for zone in ("Europe/Berlin", "UTC"))
    names = [quantity.name for quantity in INPUTS]
    return hours.assign(**hours[names].shift(1).where(local - utc == timedelta(hours=2), hours[names]))


def _check_optimism(answer: float, forest: Any, train: DataFrame, test: DataFrame) -> None:
    from forecast.table.schema import FEATURES, TARGETS

    require_forest(forest, "`forest`", len(train), n_estimators=20, max_depth=None, random_state=0)
    on_train, on_test = score_of(forest, train), score_of(forest, test)
    mistakes = {
        "subtract the unrounded R2, and round the difference.": round(on_train, 2) - round(on_test, 2),
        "this is the R2 on `test` alone.": on_test, "this is the R2 on `train` alone.": on_train,
    }  # fmt: skip
    hint = "subtract the R2 of `forest` on `test` from its R2 on `train`."
    compare(answer, Number(on_train - on_test, 0.0001, hint, mistakes))
    right = type(forest)(20, random_state=0, n_jobs=-1).fit(train[FEATURES], train[TARGETS])
    hint = "this is the difference of another forest: set only the parameters of the task, and fit it on `train`."
    expect(abs(on_train - on_test - score_of(right, train) + score_of(right, test)) < 0.01, hint)


# -- chapter 2 -------------------------------------------------------------------------------------------------------
def _check_score_function(answer: Callable[[DataFrame, DataFrame], dict[str, float]]) -> None:
    """Execute only the function's source, as `scores.py` will; check the scores that it returns for a small table."""
    from pandas import DataFrame

    measured = DataFrame({"solar_GW": [0.0, 2.0, 5.0, 3.0], "wind_GW": [1.0, 4.0, 9.0, 16.0]})
    predicted = DataFrame({"solar_GW": [1.0, 2.0, 4.0, 2.0], "wind_GW": [-1.0, 2.0, 9.0, 11.0]})
    expect(getattr(answer, "__name__", "") == "score", f"pass the function `score`: the answer has {type_of(answer)}.")
    source, namespace = "", dict[str, Any]()
    try:
        source = inspect.getsource(answer)
        exec(compile(source, "scores.py", "exec", dont_inherit=True), namespace)  # noqa: S102 -- the attendee's own code
        numbers = namespace["score"](measured.copy(), predicted.copy())
    except NameError as error:
        hint = "but does not define it. Check the spelling. `scores.py` has no other code: import inside the function, "
        hint += "and remove from its first line a type that needs an import."
        raise WrongAnswerError(f"the function uses `{error.name}`, {hint}") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- the function can raise anything
        is_open = isinstance(error, TypeError) and ("(...)" in source or "= ..." in source)
        hint = "replace the remaining `...`." if is_open else f"the function raises {type(error).__name__}: {error}"
        raise WrongAnswerError(hint) from None
    require(numbers, dict, "a dict", "the return value of `score`")
    right = score_of_chapter_3()(measured, predicted)
    solution = {name: Number(r2, TOLERANCE, f"for a small table it must be {r2:.3g}.") for name, r2 in right.items()}
    compare(numbers, solution, "the return value of `score`")


def _check_logged_parameter(answer: str, germany: DataFrame) -> None:
    """Check that a finished run logged an additional parameter and fitted its forest with it on the training hours."""
    from forecast.table.schema import FEATURES, TARGETS
    from sklearn.base import clone
    from sklearn.model_selection import train_test_split

    run = finished_run(answer)
    of_chapter = run.data.tags.get("chapter") == "2" and run.data.tags.get("model") == "rf"
    expect(of_chapter, "this run does not have the tags of the notebook's forests: pass `tags=TAGS` to `start_run`.")
    extra = {name: value for name, value in run.data.params.items() if name not in FOREST_PARAMETERS}
    expect(extra, "this run has no new parameter that changes a forest: log one that the notebook does not log yet.")
    forest = forest_of(run, "`track`", n_estimators=10, max_depth=12)
    fitted, others = (model.get_params() for model in (forest, type(forest)(random_state=0)))
    used = [name for name, value in extra.items() if name in fitted and str(fitted[name]) == value]
    expect(used, f"the forest of this run was not fitted with {', '.join(extra)}: pass the parameter to `fit`, too.")
    is_changed = any(repr(fitted[name]) != repr(others[name]) for name in used)  # repr tells max_features=1 from 1.0
    expect(is_changed, f"{', '.join(used)} has the value of the notebook's forests: choose another value.")
    train, test = train_test_split(germany, test_size=0.2, shuffle=False)
    r2, right = (score_of(each, test) for each in (forest, clone(forest).fit(train[FEATURES], train[TARGETS])))
    hint = f"the forest of this run has an R2 of {r2:.3f} on `test`, but {right:.3f} if fitted on the training hours: "
    hint += "fit it on all of these, and on no others, and delete this run (`mlflow.delete_run`) before you compare."
    expect(abs(r2 - right) < 0.01, hint)  # without `random_state`, two forests differ by less
    hint = f"this run's `r2` is not the R2 of its forest on `test` ({r2:.3f}): let `track` log it, not your code."
    expect(abs(run.data.metrics["r2"] - r2) < TOLERANCE, hint)


def _check_epochs(answer: float, model: Any, test: DataFrame) -> None:
    """Require 30 epochs, derived from the optimizer's steps; compare the answer with the R2 of the predictions."""
    from forecast.table.schema import FEATURES, TARGETS

    number_of(answer)
    expect(hasattr(model, "optimizer"), "`model` is the history that `fit` returns: call `fit` without `model =`.")
    epochs = int(model.optimizer.iterations) / model.history.params["steps"]
    hint = f"`model` was trained for {epochs:.3g} epochs (at its last batch size), not for 12 and then 18 with the "
    hint += "same `batch_size` and `validation_split`. Run the notebook again from its first cell, and compile once."
    expect(math.isclose(epochs, 30), hint)
    r2 = sum(r2_of(test[TARGETS], model.predict(test[FEATURES].to_numpy(), verbose=0))) / 2
    compare(answer, Number(r2, 0.0001, "predict `test` again after training, and score these predictions.", decimals=3))


def _check_query(answer: str) -> None:
    from mlflow.exceptions import MlflowException

    require(answer, str, "a string")
    is_above = re.search(r"r2_wind\W?\s*>\s*0?\.80*(?!\d)", answer)
    hint = "the query needs three conditions: on the tag `chapter`, on the status, and `r2_wind` above 0.8."
    expect(is_above and "chapter" in answer and "FINISHED" in answer, hint)
    client = connect()
    experiments = [each.experiment_id for each in client.search_experiments() if each.name == EXPERIMENT]
    right = "tags.chapter = '2' and attributes.status = 'FINISHED' and metrics.r2_wind > 0.8"
    try:
        runs, right_runs = (client.search_runs(experiments, query) for query in (answer, right))
    except MlflowException as error:
        raise WrongAnswerError(f"MLflow cannot parse the query {answer!r:.200}: {error.message:.300}") from None
    expect(runs, "the query finds no run: check its conditions one by one.")
    ids = {run.info.run_id for run in right_runs}
    for run in runs:
        expect(run.info.run_id in ids, f"the query also finds `{run.info.run_name}`: check status, chapter and R2.")
    expect(len(runs) == len(right_runs), "the query misses a run with an `r2_wind` above 0.8.")


def _check_challenger(answer: float, week: DataFrame) -> None:
    from forecast.learn.storage import load

    number_of(answer)
    client = connect()
    names = (f"models:/{REGISTERED_MODEL}@{alias}" for alias in ("challenger", PRODUCTION))
    expect("challenger" in client.get_registered_model(REGISTERED_MODEL).aliases, "no challenger: run `compare_runs`.")
    challenger, production = (load(name, client).predict(week).mean() for name in names)
    mistakes = {
        "this is the prediction of the version in production: load the challenger.": production["wind_GW"],
        "this is the mean solar power: take the wind power.": challenger["solar_GW"],
        "this is the mean of solar and wind power: take the wind power.": challenger.mean(),
        "this is the measured power: take the predicted one.": week["wind_GW"].mean(),
    }
    compare(answer, Number(challenger["wind_GW"], 0.05, "predict `week`, and take the mean of `wind_GW`.", mistakes))


def _check_run(answer: str, model: Any, test: DataFrame) -> None:
    import numpy as np
    from sklearn.metrics import r2_score

    run = finished_run(answer)
    is_in_experiment = connect().get_experiment(run.info.experiment_id).name == EXPERIMENT
    expect(is_in_experiment, f"this run is not in the experiment {EXPERIMENT}: call `mlflow.set_experiment` first.")
    tag, feature = run.data.tags.get("exercise"), run.data.params.get("features", "None").strip("()[], '\"")
    expect(tag == "2.1", f"this run must have the tag `exercise` = 2.1, but has {tag}.")
    expect(feature == "windspeed", f"this run must have the parameter `features` = windspeed, but has {feature}.")
    is_line = np.size(getattr(model, "coef_", ())) == 1
    expect(is_line, "`model` must be a `LinearRegression` that predicts `wind_GW` from `windspeed` alone.")
    r2 = r2_score(test["wind_GW"], np.squeeze(model.predict(test[["windspeed"]])))
    compare(r2, Number(0.5869, TOLERANCE, "fit `model` on `train`."), "the R2 of `model` on `test`")
    mistakes = {
        "`r2_wind` is the score of a model with more inputs: use only the wind speed.": 0.5668,
        "`r2_wind` is the score on the training hours: score the held-out hours.": 0.7163,
    }
    solution = Number(r2, 0.0001, "log the R2 of `model` on `test`.", mistakes)
    compare(run.data.metrics, {"r2_wind": solution}, "the dict of this run's metrics")


def _check_wins(answer: dict[int, int], forests: list[Any], train: DataFrame, test: DataFrame) -> None:
    """Compare the answer with the wins among the scores of the twenty forests."""
    require(forests, list | tuple, "a list of forests", "`forests`")
    scores = {}
    for forest in forests:
        require_forest(forest, "one of `forests`", len(train), min_samples_leaf=1, max_features=1.0, bootstrap=True)
        values = forest.get_params()
        scores[values["max_depth"], values["n_estimators"], values["random_state"]] = score_of(forest, test)
    is_whole = scores.keys() == set(product((6, 12), (10, 50), range(5)))
    hint = "one with 10 and one with 50 trees for each of the depths 6 and 12 and the seeds 0 to 4"
    expect(is_whole, f"`forests` must be a list of twenty forests: {hint}.")
    solution, hint = {}, "compare each of the five scores of 50 trees with each score of 10 trees."
    for depth in (12, 6):
        wins = sum(scores[depth, 50, many] > scores[depth, 10, few] for many, few in product(range(5), repeat=2))
        mistakes = {"count the pairs, do not divide.": wins / 25, "are these the wins of 10 trees?": 25 - wins}
        solution[depth] = Number(wins, 0, hint, mistakes)
    compare(answer, solution)


def _check_alias(answer: str) -> None:
    client = connect()
    answer = answer if isinstance(answer, str) else f"{number_of(answer):g}"
    versions = client.search_model_versions(f"name = '{REGISTERED_MODEL}'")
    latest = max((int(version.version) for version in versions), default=None)
    expect(str(answer) == str(latest), f"{answer} is not the number of the latest version of `{REGISTERED_MODEL}`.")
    version = client.get_registered_model(REGISTERED_MODEL).aliases.get("reviewed")
    expect(str(version) == str(latest), f"the alias `reviewed` is set to version {version}: set it to the latest one.")


def run_id_of(answer: Any, name: str = "the answer") -> str:
    """Return the id of a run, or of what `start_run` or `mlflow.projects.run` returns; an id is returned as it is."""
    run_id = getattr(getattr(answer, "info", answer), "run_id", answer)
    require(run_id, str, "a run or its id (a string)", name)
    return run_id.strip()


def finished_run(answer: Any) -> Run:
    """Return the finished run with this id; raise WrongAnswerError if there is none."""
    run_id, client = run_id_of(answer), connect()
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException:
        raise WrongAnswerError(f"the tracking server at {client.tracking_uri} has no run {run_id!r:.100}.") from None
    values = ", ".join(f"{name}={value}" for name, value in run.data.params.items()) or "none"
    expect(run.info.lifecycle_stage == "active", "this run was deleted: give another one.")
    expect(run.info.status == "FINISHED", f"this run is {run.info.status}, not FINISHED. Its parameters: {values}.")
    return run


def forest_of(run: Run, logger: str, hours: int | None = None, **parameters: Any) -> Any:
    """Return the forest that a run logged; raise WrongAnswerError if there is none, no `r2`, or another forest."""
    from forecast.learn.storage import load

    models = run.outputs.model_outputs if run.outputs else []
    expect(models and "r2" in run.data.metrics, f"this run has no model or no `r2`: let {logger} log them in the run.")
    forest = load(f"models:/{models[-1].model_id}", connect()).fitted
    require_forest(forest, "the model of this run", hours, **parameters)
    return forest


# -- chapter 3 -------------------------------------------------------------------------------------------------------
def _check_gain_of_sun(answer: float, theirs: Run, plain: Any) -> None:
    """Compare the answer with the difference in R2 between two runs, whose forests must have the same parameters."""
    number_of(answer)
    run_id = run_id_of(plain, "`plain`")
    run = project_run(run_id, "rf").data
    parameters = PLAIN_FOREST | {"test_fraction": theirs.data.params["test_fraction"]}
    others = [name for name, value in parameters.items() if float(run.params[name]) != float(value)]
    others += ["by_capacity"] * (run.tags.get("target") == "capacity_factor")
    expect(not others, f"`plain` differs from `theirs` in {', '.join(others)}: change only what the task specifies.")
    expect(run_id != theirs.info.run_id, "`plain` is the same run as `theirs`: run `rf`, without the solar elevation.")
    gain = theirs.data.metrics["r2"] - run.metrics["r2"]
    compare(answer, Number(gain, 0.0001, "subtract `plain`'s logged R2 from the logged R2 of `theirs`.", decimals=3))


def _check_fraction(answer: Any, task: str = "pass a dict with the key `test_fraction` as `parameters`.") -> Run:
    run = project_run(answer, "lr")
    fraction, data = run.data.params["test_fraction"], run.data.params["data"]
    expect(float(fraction) == 0.1, f"this run has a test_fraction of {fraction}, not 0.1: {task}")
    is_default = run.data.params["fit_intercept"].lower() == "true" and Path(data).name == "germany.csv"
    expect(is_default, "this run has another `fit_intercept` or `data`: change only `test_fraction`.")
    return run


def _check_commit(answer: tuple[str, str]) -> None:
    is_pair = isinstance(answer, tuple | list) and len(answer) == 2 and isinstance(answer[1], str)
    expect(is_pair, f"the answer must be the pair `(run_id, commit)`, but has {type_of(answer)}.")
    run_id, commit = run_id_of(answer[0], "the first element"), answer[1].strip()
    expect(len(run_id) != 40, "the first element is a commit: it must be the run's id.")
    right = project_run(run_id, "lr").data.tags.get(COMMIT_TAG, "")
    is_short = len(right) > len(commit) >= 4 and right.startswith(commit)
    expect(not is_short, "this is only the beginning of the right commit: give the full hash.")
    expect(commit and commit == right, "the run has a different commit: which key of `run.data.tags` ends in `commit`?")
    _check_fraction(run_id, "give the run of exercise 3.1.")


def _check_floor(answer: str) -> None:
    validated = project_run(answer, entry_point="validate").data
    r2 = _check_fraction(validated.params["run_id"], "validate the run of exercise 3.1.").data.metrics["r2"]
    is_same = math.isclose(validated.metrics["validation_r2"], r2, abs_tol=1e-6)
    expect(is_same, "this validation has another R2 than the run of exercise 3.1: leave out the parameter `data`.")
    floor = validated.params["floor"]
    hint = f"{floor} is not the highest floor with two decimals that this R2 reaches: try a higher or a rounded one."
    expect(math.isclose(float(floor), math.floor(100 * r2 + 1e-9) / 100), hint)


def project_run(answer: Any, project: str = ".*", entry_point: str = "main") -> Run:
    """Return the finished run of a project's entry point with this id; raise WrongAnswerError if there is none."""
    run = finished_run(answer)
    hint = f"this is not a run of a project's `{entry_point}` entry point: look at the run's tags."
    expect(run.data.tags.get("mlflow.project.entryPoint") == entry_point, hint)
    is_of_project = re.search(
        rf"(^|[/#]){project}/?$", run.data.tags.get("mlflow.source.name", "")
    )  # a folder or a git URL
    expect(is_of_project, f"this is not a run of the `{project}` project: check the first argument of `run`.")
    return run


# -- chapter 4 -------------------------------------------------------------------------------------------------------
def downstream_of_split(settings: Settings) -> set[str]:
    """Return `split` and all stages downstream of it."""
    return {"split", *trainings(settings.pipeline), "compare", "promote", "report"}


def _check_affected_stages(answer: set[str]) -> None:
    names, downstream = names_of(answer) - {"tracking_store"}, downstream_of_split(get_settings())  # it always runs
    unaffected = sorted(map(str, names - downstream))
    expect(not unaffected, f"the change does not affect {', '.join(unaffected)}: follow the arrows of the graph.")
    hint = "some stages are missing: `split` runs again, and so does each stage that depends on one that runs again."
    expect(names >= downstream, hint)


def _check_failed_rules(answer: set[str]) -> None:
    """Evaluate the linear regression like `mlflow-gate promote --dry-run`; compare the failed rules with the answer."""
    chosen = names_of(answer)
    file = get_settings().pipeline / "results" / "trained" / "train_linreg.json"
    expect(file.exists(), f"results/trained/{file.name} does not exist: run `dvc repro` in 4_pipeline.")
    candidate = json.loads(file.read_text())
    decision, _ = gate.Gate(client=connect()).evaluate(candidate["run_id"], candidate["model_uri"])
    names = {each.label: each.name for each in decision.findings}  # also accept the labels that the terminal shows
    chosen, failed = {names.get(name, name) for name in chosen}, {each.name for each in decision.failed}
    others = sorted(map(str, chosen - failed))
    expect(not others, f"{', '.join(others)}: not a failed rule. The gate's rules: {', '.join(names.values())}.")
    expect(failed <= chosen, "the model fails at least one more rule: check the result of each rule.")


def _check_challenger_stage(answer: str) -> None:
    run = finished_run(answer)
    stage = run.data.tags.get(STAGE_TAG)
    expect(stage, "this is not a run of the pipeline: use the run id in `results/trained/train_last_year.json`.")
    hint = "use the run id in `train_last_year.json`; its notebook must pass `train_last_year` to `start_run`."
    expect(stage == "train_last_year", f"this is a run of `{stage}`: {hint}")
    forest_of(run, "`log_training`", 8760)
    r2 = run.data.metrics["r2"]
    hint = f"its R2 is {r2:.3f}, not about 0.899: put `train = train.tail(8760)` above the line with `forest`."
    expect(0.895 < r2 < 0.91, hint)


# -- all exercises ----------------------------------------------------------------------------------------------------
# By number; for each chapter, the cells to write, then those of its notebook `exercises`. The expected scores are
# for the built-in sample, from which every attendee makes `germany.csv`; a test computes them with the solutions.
WEEK = "score the forest of the task on `week` alone."
EXERCISES = {
    "1a": Exercise("the growth of wind power per installed GW", "make_processed_data",
        lesson="each GW of capacity generated about a quarter more: new plants do not explain this part of the growth",
        solution=Number(1.245, 0.007, "divide the mean `wind_share` of one year by the mean of the other year.", {
            "this is the growth of all wind power: divide the means of `wind_share`.": (1.4, 1.5),
            "this is the earlier year divided by the later one: swap them.": (0.795, 0.81),
            "this is a share, a difference or a growth rate: the factor is the ratio of two shares.": (0.01, 0.3),
            "this is the growth in per cent: the factor is a ratio.": (20, 30),
        })),
    "1b": Exercise("wind power below zero", "model_linreg", _check_negative_wind,
        "about one hour in thirty has impossible wind power, and neither R2 nor the mean absolute error shows it"),
    "1c": Exercise("a line for the comments", "model_rf", _check_comment_line,
        "the line is right, but does not say which hours were held out: nobody can reproduce its R2"),
    "1d": Exercise("the R2 of solar and of wind", "model_keras", _check_r2_of_targets,
        "one R2 for both targets hid that the network predicts solar power much better than wind power"),
    "1.1": Exercise("the R2 of the report's week, in the training data and held out", "exercises",
        lesson="with the week in the training data, R2 is about 0.99 for solar and 0.91 for wind; held out, 0.90 and "
        "0.74: a report on training data is too optimistic",
        solution={
            name: [Number(r2, 0.02, WEEK, {hint: wrong}) for r2, wrong in zip(R2_OF_WEEK[name], wrong, strict=True)]
            for name, hint, wrong in (
                ("with", "this forest was trained without the week: keep its hours.", R2_OF_WEEK["without"]),
                ("without", "this forest was trained on the week: drop its hours first.", R2_OF_WEEK["with"]),
            )
        }),
    "1.2": Exercise("the months in which the weather is late", "exercises",
        lesson="from April to October, in summer time, the weather is an hour late, as in the real file; "
        "a single lag for the whole year would hide that the winter is right",
        solution={month: Number(int(4 <= month <= 10), 0, "which shift of the radiation gives the highest correlation?")
            for month in range(1, 13)}),
    "1.3": Exercise("how much a score on training hours overestimates the model", "exercises", _check_optimism,
        "the training R2 is 0.11 too high, because the forest memorized these hours: expect less on new hours"),
    SCORE_EXERCISE: Exercise("a score function", "model_linreg", _check_score_function,
        "one function scores all models of this chapter, so their scores can be compared"),
    "2b": Exercise("the data without the artificial step", "honest_split",
        lesson="without the step, the capacity factor alone scores best: which method helps depends on the data",
        solution={
            name: Number(r2, 0.005, "which factor times 0.8 is 1?", {
                "these are the scores of the original data: choose another factor than 1.": before,
                "this factor makes the step larger: the early wind power must grow.": (0.6, before - 0.005),
            })
            for name, r2, before in (
                ("GW", 0.860, 0.798), ("GW, last year", 0.901, 0), ("capacity factor", 0.933, 0),
                ("capacity factor, last year", 0.925, 0),
            )
        }),
    "2c": Exercise("your own parameter", "model_rf", _check_logged_parameter,
        "the run shows your parameter beside the score: nobody has to remember it"),
    "2d": Exercise("more epochs", "model_keras", _check_epochs,
        "R2 is a little higher, although `val_loss` did not fall: much of this loss comes from the step in wind "
        "power and from new plants, which no input shows"),
    "2e": Exercise("capacity factors converted to GW", "capacity_factor",
        lesson="to get GW, the user of a capacity-factor model has to know the capacity in each hour",
        solution=[
            Number(GW, 0.1, "multiply each factor of the first held-out hour by the same target's capacity.", {
                "this is the capacity factor: multiply it by the capacity.": factor,
                "this is from another model, or measured power: predict with the model of `logged`.": other,
                "this factor is multiplied by the other target's capacity: swap the columns.": exchanged,
            })
            for GW, factor, other, exchanged in ((7.39, 0.185, 7.36, 8.48), (11.72, 0.255, 11.26, 10.21))
        ]),
    "2f": Exercise("your own query", "compare_runs", _check_query,
        "only the two forests trained on the last year match: the other models predict too little wind power"),
    "2g": Exercise("the challenger's prediction", "get_prod_model", _check_challenger,
        "the challenger predicts too little wind power in this week: the measured mean is 9.9 GW"),
    "2.1": Exercise("your own run, with a parameter, a metric and a tag", "exercises", _check_run,
        "with wind speed alone, R2 is 0.59 for wind, a little higher than with all four inputs of `linreg`: on these "
        "hours the other three inputs do not help a linear model; on most others of the sample they help a little"),
    "2.2": Exercise("a small lead: is it luck?", "exercises", _check_wins,
        "at depth 12, 50 trees win 25 of 25 pairs: a small lead, but not luck; at depth 6 they win 22: "
        "a single pair of runs can show the opposite"),
    "2.3": Exercise("an alias for the latest version", "exercises", _check_alias,
        "programs that load `wind_solar@reviewed` get this version; nothing changes for `@production`"),
    "3a": Exercise("the gain from one more input", "reproduce", _check_gain_of_sun,
        "the solar elevation adds only 0.002 to the R2, and only for wind. A forest for solar alone gains 0.003 from "
        "it, and 0.005 from the hour, which tells morning from afternoon. Your winner of step 5 has an R2 of 0.927 "
        "with neither input"),
    "3.1": Exercise("an `lr` run with a tenth of the hours held out", "exercises", _check_fraction,
        "the run records the fraction: its R2 is for other hours than in step 2, so do not compare the two"),
    "3.2": Exercise("the commit of a run, from its tags", "exercises", _check_commit,
        "the commit identifies the code, unless there were uncommitted changes: with the run's parameters and the "
        "same data, anyone can repeat the run"),
    "3.3": Exercise("the highest floor that a run's R2 reaches", "exercises", _check_floor,
        "with a higher floor the command fails, so a script can stop before it uses a weak model"),
    "4.1": Exercise("the stages that a change affects", "exercises", _check_affected_stages,
        "`split` and all stages downstream of it run again; DVC keeps the results of `fetch` and `prepare`"),
    "4.2": Exercise("the rules that the linear regression fails", "exercises", _check_failed_rules,
        "a refusal lists the failed rules, so you know what to improve, and a dry run changes nothing"),
    "4.3": Exercise("your challenger from chapter 2 as a pipeline stage", "exercises", _check_challenger_stage,
        "one line raises the R2 of the forest from 0.80 to 0.90, and the pipeline evaluates it like any other model"),
}  # fmt: skip
