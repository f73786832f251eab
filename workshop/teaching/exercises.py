"""The exercises of the chapters: `check` compares an answer with the truth, and remembers which ones are solved.

Each exercise is a function of the answer. It calls `expect` with a condition and the sentence that the attendee reads
when the condition does not hold. Those of a chapter's last notebook have numbers such as 2.1; a taught notebook has one
cell to write, 2a for the first notebook of chapter 2.
"""

from __future__ import annotations

import json
import math
import re
import runpy
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from forecast.errors import PipelineError
from forecast.govern import gate
from forecast.problem import EXPERIMENT, INPUTS, REGISTERED_MODEL
from forecast.table.files import write_atomically
from forecast.tracking import STAGE_TAG
from papermill_dask import COMMIT_TAG

from workshop.settings import Settings, get_settings
from workshop.tracking import connect

if TYPE_CHECKING:
    from mlflow.entities import Run
    from pandas import DataFrame, Series

# Scores on the embedded sample, from which every attendee makes `germany.csv`; a test computes them by the solutions.
TOLERANCE = 0.001
WIND_GAIN = 1.235, 1.255  # from 2014 to 2015: by the means of `wind_share`, or of power and of capacity
# Chapter 1 has no seeds: least and most, wider than what twenty and more runs gave.
NEGATIVE_WIND = 0.024, 0.042
R2_OF_DEPTH_3 = 0.76, 0.81
R2_OF_NETWORK = {"solar": (0.95, 0.97), "wind": (0.74, 0.81)}
R2_OF_WEEK = {"with": (0.988, 0.914), "without": (0.900, 0.743)}  # solar and wind: means of twenty forests
HOURS_LATE = {month: int(4 <= month <= 10) for month in range(1, 13)}  # what `delay_weather` does, by month
R2_OVERESTIMATED = 0.1141
R2_OF_WIND_SPEED = 0.5869
PAIRS_WON = {12: 25, 6: 22}  # by depth: the pairs of seeds, of 25, in which 50 trees have a higher R2 than 10
BELOW_SPLIT = {
    "split", "train_linreg", "train_rf", "train_keras", "train_gradient_boosting", "compare", "promote", "report",
}  # fmt: skip
SCORE_EXERCISE = "2a"  # its answer, a function, is used by the rest of the chapter
# R2 of the four remedies without the step that the sample has between 2014 and 2015; the first with it is 0.798.
R2_WITHOUT_STEP = {
    "GW": 0.860, "GW, last year": 0.901, "capacity factor": 0.933, "capacity factor, last year": 0.925,
}  # fmt: skip
R2_OF_30_EPOCHS = 0.765, 0.795  # of several seeds
FIRST_HOUR_GW = 7.39, 11.72  # solar and wind, of the forest of capacity factors in the first held-out hour
LAST_WEEK_GW = 8.9  # mean wind power that the forest of the last year predicts
R2_OF_SUN = 0.0016  # what the height of the sun adds to a forest of 20 trees
WINNER_STAGE, R2_OF_WINNER_STAGE = "train_last_year", (0.895, 0.91)
HELD_OUT = 0.1  # the fraction that exercise 3.1 asks for
REVIEWED = "reviewed"

# What a right answer means.
LESSONS = {
    "1a": "each GW gave about a quarter more: this part of the growth did not come from new plants",
    "1b": "about one hour in thirty has impossible wind power, and neither R2 nor the mean absolute error shows it",
    "1c": f"the check accepts each R2 from {R2_OF_DEPTH_3[0]} to {R2_OF_DEPTH_3[1]}, because your line does not say "
    "which hours were held out: nobody can compute it again",
    "1d": "one R2 for both hid that the network predicts solar power much better than wind power",
    "1.1": f"solar has about {R2_OF_WEEK['with'][0]:.2f} in the learned week and {R2_OF_WEEK['without'][0]:.2f} in the "
    f"new one, wind {R2_OF_WEEK['with'][1]:.2f} and {R2_OF_WEEK['without'][1]:.2f}: "
    "a report of a learned week promises too much",
    "1.2": "from April to October, in summer time, the weather is an hour late, as in the real file; "
    "a lag of the whole year would not show that the winter is right",
    "1.3": f"{R2_OVERESTIMATED:.2f} of that R2 is memory of the learned hours: the model is not that good on new ones",
    "2a": "one function scores all models of this chapter, so their numbers can be compared",
    "2b": "without the step the capacity factor alone is best: what helps depends on what is in the data",
    "2c": "the run shows your parameter beside the score: nobody has to remember it",
    "2d": "a little better, although `val_loss` did not fall, because `val_loss` is mostly the step in wind power",
    "2e": "a model of capacity factors needs the capacity of the hour, and its user has to know that",
    "2f": "only the two forests of the last year pass: the other models predict too little wind",
    "2g": "the challenger predicts too little wind in this week: 9.9 GW were measured",
    "2.1": f"wind speed alone has an R2 of {R2_OF_WIND_SPEED:.2f} for wind, a little more than all four inputs of "
    "`linreg`: on these hours the other three do not help a line",
    "2.2": f"at depth 12, 50 trees win {PAIRS_WON[12]} of 25 pairs: a small lead, but not luck; "
    f"at depth 6 they win {PAIRS_WON[6]}: one run of each can show the opposite",
    "2.3": "programs that load `wind_solar@reviewed` get this version; those that load `@production` notice nothing",
    "3a": "the height of the sun adds only 0.002, all of it for wind. A forest of solar alone gains 0.003 from it, and "
    "0.005 from the hour, which tells morning from afternoon. Your winner of step 5 has an R2 of 0.927 without either",
    "3.1": "the run records the fraction: its R2 is of other hours than those of step 2, so do not compare the two",
    "3.2": "the commit leads to the code, if nothing was changed after it: with its parameters and the same data, "
    "anyone can repeat the run",
    "3.3": "with a higher floor the command would have failed: so a script can stop before it uses a weak model",
    "4.1": "`split` and all stages below it run again; DVC keeps the results of those above, `fetch` and `prepare`",
    "4.2": "a refusal names its rules, so you know what to improve, and a dry run changes nothing",
    "4.3": "one line of code raises the R2 of the forest from 0.80 to 0.90, and the pipeline judges it like all others",
}


class NotYetError(Exception):
    """An answer is not right; the text is a hint."""


class Exercise(NamedTuple):
    """An exercise: what is asked, in which notebook, and the test of an answer, which raises NotYetError."""

    title: str
    notebook: str
    test: Callable[[Any], None]


EXERCISES: dict[str, Exercise] = {}  # by their numbers


def exercise(number: str, title: str, notebook: str = "exercises") -> Callable[..., Callable[[Any], None]]:
    """Make a function of an answer the test of the exercise ``number``; it raises NotYetError."""

    def register(test: Callable[[Any], None]) -> Callable[[Any], None]:
        EXERCISES[number] = Exercise(title, notebook, test)
        return test

    return register


def expect(condition: object, sentence: str) -> None:
    """Raise NotYetError with this sentence unless the condition holds."""
    if not condition:
        raise NotYetError(sentence)


def check(number: str, answer: Any = ...) -> Any:
    """Print what a right answer means, or why an answer is not right yet; remember a right one.

    A wrong answer raises nothing, so that the cells below it can be run. Where they need the answer, a right one is
    returned, and in place of a wrong one the solution. Raises PipelineError when there is no exercise with this number.
    """
    if number not in EXERCISES:
        raise PipelineError(
            "There is no such exercise.",
            value=number,
            expected=f"one of {', '.join(EXERCISES)}",
            next_step="put the number of the exercise back into the cell of the check",
        )
    try:
        expect(answer is not ..., "put your answer where the cell says `# Your code here`.")
        EXERCISES[number].test(answer)
    except (NotYetError, PipelineError) as error:  # PipelineError: such as a server that is down
        print(f"Exercise {number}, not yet: {error}")
    except Exception:  # noqa: BLE001 -- an answer can be anything, and must not end the notebook
        kind = type(answer).__name__
        print(f"Exercise {number}, not yet: an answer of type {kind} cannot be checked; the task says what it must be.")
    else:
        settings = get_settings()
        write_solved({*solved(settings), number}, settings)
        print(f"Exercise {number}, solved: {LESSONS[number]}.")
        return answer if number == SCORE_EXERCISE else None
    return score_of_chapter_3() if number == SCORE_EXERCISE else None


def score_of_chapter_3() -> Callable[[DataFrame, DataFrame], dict[str, float]]:
    """Return the function `score` of `3_projects/hourly.py`, which is the solution of the exercise `SCORE_EXERCISE`."""
    return runpy.run_path(str(get_settings().root / "3_projects" / "hourly.py"))["score"]


def of_chapter(chapter: int) -> dict[str, Exercise]:
    """Return a chapter's exercises by their numbers: the cells of its notebooks, then those of its last one."""
    own = [number for number in EXERCISES if number.startswith(str(chapter))]
    return {number: EXERCISES[number] for number in sorted(own, key=lambda number: (number[1] == ".", number))}


def solved(settings: Settings) -> list[str]:
    """Return the numbers of the solved exercises."""
    try:
        return list(json.loads((settings.state / "exercises.json").read_text()))
    except (FileNotFoundError, ValueError):
        return []


def write_solved(numbers: Iterable[str], settings: Settings) -> None:
    """Write the numbers of the solved exercises."""
    write_atomically(settings.state / "exercises.json", f"{json.dumps(sorted(numbers))}\n".encode())


# -- chapter 1 -------------------------------------------------------------------------------------------------------
@exercise("1a", "what a GW of wind gave more", "make_processed_data")
def wind_gain(answer: float) -> None:
    """Compare the factor between two years."""
    hint = "this is how much all wind power grew: divide the means of `wind_share`."
    expect(not 1.4 < float(answer) < 1.5, hint)
    expect(_is_within(answer, WIND_GAIN), "it is not the mean `wind_share` of 2015 divided by that of 2014.")


@exercise("1b", "wind power below zero", "model_linreg")
def negative_wind(answer: float) -> None:
    """Compare the share of test hours with negative predictions with those of random splits."""
    expect(float(answer) <= 1, "a share is between 0 and 1: divide by the number of test hours.")
    expect(_is_within(answer, NEGATIVE_WIND), "it is not the share of values below zero in `y_pred[:, 1]`.")


@exercise("1c", "a line for the comments", "model_rf")
def comment_line(answer: str) -> None:
    """Read the R2 in a line of the notebook's comments, and compare it with those of random splits."""
    scores = re.findall(r"^[# ]*50 trees, depth 3: (0\.\d\d+)$", str(answer))
    expect(scores, f"the answer must be a text of the form '50 trees, depth 3: 0.86', and not {answer!r}.")
    hint = "this is not the R2 of 50 trees of depth 3: fit on `X_train` and `y_train`, and predict `X_test`."
    expect(_is_within(scores[0], R2_OF_DEPTH_3), hint)


@exercise("1d", "the R2 of solar and of wind", "model_keras")
def apart(answer: dict[str, float]) -> None:
    """Compare the R2 of each target with those of random splits and random first weights."""
    for name, limits in R2_OF_NETWORK.items():
        hint = f"the R2 of {name} differs: give `r2_score` one column of `y_test` and the same one of `y_pred`."
        expect(_is_within(answer[name], limits), hint)


@exercise("1.1", "the report's week, learned and new")
def week_of_report(answer: dict[str, list[float]]) -> None:
    """Compare the R2 of the report's forest on the last week, with and without having learned it."""
    hints = {
        "with": "fit on all `hours`, score on `week`.",
        "without": "fit on the hours without `week`, score on `week`.",
    }
    for name, truths in R2_OF_WEEK.items():
        for target, r2, truth in zip(("solar", "wind"), answer[name], truths, strict=True):
            expect(abs(float(r2) - truth) < 0.02, f"the R2 of {target} for `{name}` differs: {hints[name]}")


@exercise("1.2", "the months in which the weather is late")
def late_months(answer: dict[int, int]) -> None:
    """Compare the lag of the weather in each month."""
    for month, lag in HOURS_LATE.items():
        hint = f"the lag of month {month} differs: which shift of the radiation gives the highest correlation?"
        expect(_is_close(answer[month], lag), hint)


def delay_weather(hours: DataFrame) -> DataFrame:
    """Return a copy of the table with a fault: in part of the year, rows have the weather of an earlier row."""
    local, utc = (hours["utc_timestamp"].dt.tz_convert(zone).dt.tz_localize(None) for zone in ("Europe/Berlin", "UTC"))
    names = [quantity.name for quantity in INPUTS]
    return hours.assign(**hours[names].shift(1).where(local - utc == timedelta(hours=2), hours[names]))


@exercise("1.3", "how much a score on learned hours overestimates")
def learned_hours(answer: float) -> None:
    """Compare the difference of the two scores of the forest."""
    expect(
        _is_close(answer, R2_OVERESTIMATED),
        "it is not the R2 on `train` minus the R2 on `test` of the forest of the task.",
    )


def _is_within(answer: float | str, limits: tuple[float, float]) -> bool:
    return limits[0] <= float(answer) <= limits[1]


def _is_close(answer: float, truth: float) -> bool:
    return abs(float(answer) - truth) < TOLERANCE


# -- chapter 2 -------------------------------------------------------------------------------------------------------
@exercise(SCORE_EXERCISE, "a function that scores", "model_linreg")
def own_score(answer: Callable[[DataFrame, DataFrame], dict[str, float]]) -> None:
    """Compare the numbers of a function for a small table with those of chapter 3's."""
    from pandas import DataFrame

    measured = DataFrame({"solar_GW": [0.0, 2.0, 5.0, 3.0], "wind_GW": [1.0, 4.0, 9.0, 16.0]})
    predicted = DataFrame({"solar_GW": [1.0, 2.0, 4.0, 2.0], "wind_GW": [-1.0, 2.0, 9.0, 11.0]})
    expect(callable(answer), "it is not a function.")
    try:
        numbers = answer(measured, predicted)
    except Exception as error:  # noqa: BLE001 -- the function can be anything
        raise NotYetError(f"the function ends with {type(error).__name__}: {error}; fill in all dots.") from None
    for name, truth in score_of_chapter_3()(measured, predicted).items():
        expect(name in numbers, f"the dict that it returns lacks `{name}`.")
        expect(_is_close(numbers[name], truth), f"`{name}` is {numbers[name]} for a small table, and not {truth:.3g}.")


@exercise("2b", "the data without the step that was put in", "honest_split")
def without_step(answer: Series) -> None:
    """Compare the four scores with those of wind power without the step between 2014 and 2015."""
    is_unchanged = abs(float(answer["GW"]) - 0.798) < 0.005
    expect(not is_unchanged, "these are the scores of the data as given: choose another factor than 1.")
    for name, r2 in R2_WITHOUT_STEP.items():
        hint = f"the R2 of `{name}` differs: 0.8 times which factor is 1?"
        expect(abs(float(answer[name]) - r2) < 0.005, hint)


@exercise("2c", "a parameter of your own", "model_rf")
def own_parameter(answer: str) -> None:
    """Look for a parameter in a finished run of a forest that the notebook does not log."""
    run = _finished_run(answer)
    of_chapter = run.data.tags.get("chapter") == "2" and run.data.tags.get("model") == "rf"
    expect(of_chapter, "this run lacks the tags of the notebook's forests: give `tags=TAGS` to `start_run`.")
    own = run.data.params.keys() - {"split", "test_fraction", "n_estimators", "max_depth", "last_hours"}
    expect(own, "this run has no parameter besides those of the notebook: `track(model, **parameters)` logs them.")
    expect("r2" in run.data.metrics, "this run lacks the metric `r2`: call `track` inside of `with`.")


@exercise("2d", "more epochs", "model_keras")
def more_epochs(answer: float) -> None:
    """Compare an R2 with those of 30 epochs; another processor may round otherwise."""
    least, most = R2_OF_30_EPOCHS
    expect(least < float(answer) < most, f"after 30 epochs the held-out R2 is between {least} and {most}.")


@exercise("2e", "capacity factors turned into GW", "capacity_factor")
def back_in_GW(answer: list[float]) -> None:
    """Compare solar and wind power of the first held-out hour."""
    for value, truth in zip(answer, FIRST_HOUR_GW, strict=True):
        hint = f"{value} is not the power of this hour: multiply each factor by its own column of capacity."
        expect(abs(float(value) - truth) < 0.1, hint)


@exercise("2f", "a query of your own", "compare_runs")
def own_query(answer: str) -> None:
    """Run a query; compare what it finds with the finished runs of the chapter whose `r2_wind` is above 0.8."""
    from mlflow.exceptions import MlflowException

    client = connect()
    experiments = [each.experiment_id for each in client.search_experiments() if each.name == EXPERIMENT]
    try:
        by_id = {run.info.run_id: run for run in client.search_runs(experiments, str(answer))}
    except MlflowException as error:
        raise NotYetError(f"MLflow cannot read the query {answer!r}: {error.message}") from None
    expect(by_id, "the query finds no run.")
    for run in by_id.values():
        of_chapter = run.data.tags.get("chapter") == "2" and run.info.status == "FINISHED"
        expect(of_chapter, f"the query also finds `{run.info.run_name}`, which failed or is of another chapter.")
        expect(run.data.metrics.get("r2_wind", 0) > 0.8, f"the query also finds `{run.info.run_name}`.")
    runs = client.search_runs(experiments, "tags.chapter = '2' and attributes.status = 'FINISHED'")
    others = [run for run in runs if run.data.metrics.get("r2_wind", 0) > 0.8 and run.info.run_id not in by_id]
    expect(not others, "the query misses a run with an `r2_wind` above 0.8.")


@exercise("2g", "the challenger's prediction", "get_prod_model")
def of_challenger(answer: float) -> None:
    """Compare the mean wind power of the last week."""
    hint = "it is not the mean of the challenger's `wind_GW` in this week: load the version with the alias challenger."
    expect(abs(float(answer) - LAST_WEEK_GW) < 0.1, hint)


@exercise("2.1", "a run of your own, with parameter, metric and tag")
def own_run(answer: str) -> None:
    """Look at what a finished run holds."""
    run = _finished_run(answer)
    experiment = connect().get_experiment(run.info.experiment_id).name
    expect(
        experiment == EXPERIMENT,
        f"this run is not in the experiment {EXPERIMENT}: `mlflow.set_experiment` comes first.",
    )
    expect(run.data.tags.get("exercise") == "2.1", "this run lacks the tag `exercise` = 2.1.")
    expect(run.data.params.get("features") == "windspeed", "this run lacks the parameter `features` = windspeed.")
    expect("r2_wind" in run.data.metrics, "this run lacks the metric `r2_wind`.")
    expect(
        _is_close(run.data.metrics["r2_wind"], R2_OF_WIND_SPEED),
        "the metric `r2_wind` of this run is another number: train and score as the task says, for wind alone.",
    )


@exercise("2.2", "a small lead: luck or not")
def small_leads(answer: dict[int, int]) -> None:
    """Compare the numbers of pairs that 50 trees win against 10; another processor may round close ones otherwise."""
    for depth, pairs in PAIRS_WON.items():
        hint = f"the number for depth {depth} differs: compare each score of 50 trees with each of 10 trees."
        expect(abs(answer[depth] - pairs) <= 2, hint)


@exercise("2.3", "an alias for the latest version")
def reviewed(answer: str) -> None:
    """Compare the version that the alias points at with the latest one."""
    client = connect()
    versions = client.search_model_versions(f"name = '{REGISTERED_MODEL}'")
    latest = max((int(version.version) for version in versions), default=None)
    expect(str(answer) == str(latest), f"it is not the number of the latest version of `{REGISTERED_MODEL}`.")
    version = client.get_registered_model(REGISTERED_MODEL).aliases.get(REVIEWED)
    expect(str(version) == str(latest), f"the alias `{REVIEWED}` is not on the latest version.")


def _finished_run(run_id: object) -> Run:
    """Return the finished run with this id."""
    client = connect()
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(str(run_id))
    except MlflowException:
        raise NotYetError(f"the tracking server at {client.tracking_uri} has no run {run_id!r}.") from None
    values = ", ".join(f"{name}={value}" for name, value in run.data.params.items())
    expect(run.info.status == "FINISHED", f"this run has the status {run.info.status}, not FINISHED. It got {values}.")
    return run


# -- chapter 3 -------------------------------------------------------------------------------------------------------
@exercise("3a", "what one more input brings", "reproduce")
def gain_of_sun(answer: float) -> None:
    """Compare the difference of two R2; another processor may round otherwise."""
    expect(float(answer) > 0, "it is not positive: subtract the R2 of your run from that of `theirs`.")
    hint = "the difference is another one: does your run of `rf` have `n_estimators` 20, and nothing else changed?"
    expect(abs(float(answer) - R2_OF_SUN) < 0.0005, hint)


@exercise("3.1", "`lr` run with a tenth of the hours held out")
def another_fraction(answer: str) -> None:
    """Find a finished run of the project's entry point `main` with this id."""
    params = _project_run(answer).data.params
    expect(
        "fit_intercept" in params,
        "this is a run of another project than `lr`: look at the first argument of `mlflow.projects.run`.",
    )
    fraction = params["test_fraction"]
    task = f"{HELD_OUT} is asked for: `parameters` is a dict with the key `test_fraction`."
    expect(float(fraction) == HELD_OUT, f"this run has the test_fraction {fraction}; {task}")


@exercise("3.2", "the commit of a run found in its tags")
def commit_of_run(answer: tuple[str, str]) -> None:
    """Compare the second of (run id, commit) with the run's tag."""
    run_id, commit = answer
    expect(
        commit == _project_run(run_id).data.tags.get(COMMIT_TAG),
        "the run names another commit: print `run.data.tags` and look for one that ends in `commit`.",
    )


@exercise("3.3", "the highest floor that a run's R2 reaches")
def highest_floor(answer: str) -> None:
    """Compare the floor of a finished run of `validate` with the R2 that it measured."""
    validated = _project_run(answer, "validate").data
    another_fraction(validated.params["run_id"])
    highest, floor = math.floor(100 * validated.metrics["validation_r2"]) / 100, validated.params["floor"]
    expect(
        math.isclose(float(floor), highest),
        f"R2 reaches a higher floor than {floor}, or yours has more than two decimals.",
    )


def _project_run(run_id: object, entry_point: str = "main") -> Run:
    """Return the finished run of a project's entry point with this id."""
    run = _finished_run(run_id)
    expect(
        run.data.tags.get("mlflow.project.entryPoint") == entry_point,
        f"this run was not made by running a project's entry point `{entry_point}`: look at its tags.",
    )
    return run


# -- chapter 4 -------------------------------------------------------------------------------------------------------
@exercise("4.1", "the stages that a change can touch")
def touched_stages(answer: set[str]) -> None:
    """Compare with the stage `split` and all that read, directly or not, what it writes."""
    expect(set(answer) <= BELOW_SPLIT, "one of these is no stage that the change can reach: follow the arrows.")
    expect(
        set(answer) >= BELOW_SPLIT,
        "some are missing: `split` itself runs, and so does each stage that reads the output of a stage that runs.",
    )


@exercise("4.2", "the rules by which the gate refuses the linear regression")
def failed_rules(answer: set[str]) -> None:
    """Ask the gate about the linear regression, as `mlflow-gate promote --dry-run` does, and compare what fails."""
    pipeline = get_settings().pipeline
    file = pipeline / "results" / "trained" / "train_linreg.json"
    expect(file.exists(), f"results/trained/{file.name} does not exist: run `dvc repro` in 4_pipeline.")
    candidate = json.loads(file.read_text())
    decision, _ = gate.Registry(client=connect()).judge(candidate["run_id"], candidate["model_uri"])
    failed, names = {each.name for each in decision.failed}, ", ".join(each.name for each in decision.findings)
    expect(set(answer) <= failed, f"one of these rules passed, or is no rule. The gate asked {names}.")
    expect(failed <= set(answer), "the model fails at least one more rule: look at each verdict.")


@exercise("4.3", "your winner of chapter 2 as a stage")
def winner_as_stage(answer: str) -> None:
    """Look at the stage and the score of a finished run."""
    run = _finished_run(answer)
    stage = run.data.tags.get(STAGE_TAG)
    expect(stage, "this is not a run of the pipeline: `results/trained/train_last_year.json` names the run.")
    expect(stage == WINNER_STAGE, f"this is a run of `{stage}`: write `{WINNER_STAGE}` in `start_run`.")
    r2, (least, most) = run.data.metrics["r2"], R2_OF_WINNER_STAGE
    hint = f"its R2 is {r2:.3f}, not about 0.899: does `train = train.tail(8760)` stand above the line with `forest`?"
    expect(least < r2 < most, hint)
