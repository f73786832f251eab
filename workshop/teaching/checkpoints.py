"""The steps of the chapters, and the checks for whether they are done.

A step is done if its result exists: a file, run, model version or commit. The checks read files and query the tracking
server. `Step.where` is a notebook or a heading of a README; for chapter 2 it also selects the notebooks that
`workshop up --chapter 3` runs (`chapter_files`).
"""

from __future__ import annotations

import configparser
import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlparse

import yaml
from forecast.govern import gate
from forecast.govern.gate import PIPELINE_WHY
from forecast.problem import EXPERIMENT, REGISTERED_MODEL
from forecast.terms.errors import ServiceError
from forecast.terms.files import write_atomically
from forecast.tracking import PRODUCTION, STAGE_TAG, STORE_ID_TAG
from mlflow_gate import Move

from workshop.settings import Settings
from workshop.teaching import exercises
from workshop.tracking import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

PARENT_TAG = "mlflow.parentRunId"
PROMOTED, FORCED, ROLLED_BACK = "promoted", "forced", "rolled back"  # values of `mlflow_gate.Move.action`
LR, SCRATCH = "3_projects/lr", "4_pipeline/scratch#lr"  # project URI suffixes; scratch is a git repository itself
EXERCISE = "Exercise"  # prefix of exercise titles
MAX_RUNS = 2000  # limit for each query, latest runs first


class Chapter(NamedTuple):
    """A chapter; ``minutes``: to read and run it, to also write the cells, and to also solve the exercises."""

    number: int
    folder: str
    title: str
    minutes: tuple[int, int, int]


CHAPTERS = (
    Chapter(1, "1_starting_point", "The starting point", (35, 55, 85)),
    Chapter(2, "2_tracking", "Tracking", (80, 115, 155)),
    Chapter(3, "3_projects", "Projects", (45, 55, 80)),
    Chapter(4, "4_pipeline", "The pipeline", (95, 95, 125)),
)


class State:
    """An attendee's progress: files below ``root``, solved exercises, and the MLflow client or a connection error."""

    def __init__(self, root: Path, solved: Iterable[str], server: MlflowClient | ServiceError) -> None:
        self.root, self.solved, self._server = root, solved, server

    @property
    def client(self) -> MlflowClient:
        """The MLflow client; raises ServiceError if the tracking server does not respond."""
        if isinstance(self._server, ServiceError):
            raise self._server
        return self._server

    def runs(self, query: str, status: str = "FINISHED") -> list[Run]:
        """Return the runs of the workshop's experiment that match an MLflow filter and a status."""
        ids = [self.experiment.experiment_id] if self.experiment else []
        return self.client.search_runs(ids, f"{query} AND attributes.status = '{status}'", max_results=MAX_RUNS)

    @cached_property
    def experiment(self) -> Experiment | None:
        """The workshop's experiment, None if it does not exist."""
        return self.client.get_experiment_by_name(EXPERIMENT)

    @cached_property
    def moves(self) -> list[Move]:
        """The recorded moves of the production alias, oldest first."""
        return gate.Registry(self.client).history()

    @cached_property
    def chapter_versions(self) -> set[str]:
        """The registered versions of models logged by runs of chapter 2."""
        runs = self.runs("tags.chapter = '2'")
        ids, sources = {run.info.run_id for run in runs}, model_uris(runs)
        versions = self.client.search_model_versions(f"name = '{REGISTERED_MODEL}'")
        return {str(each.version) for each in versions if each.run_id in ids or each.source in sources}


def state_of(settings: Settings) -> State:
    """Return the attendee's progress in this clone; if the tracking server is down, `State.client` raises the error."""
    server: MlflowClient | ServiceError
    try:
        server = connect(settings)
    except ServiceError as error:
        server = error
    return State(settings.root, exercises.solved(settings), server)


# -- chapter 1 -------------------------------------------------------------------------------------------------------
def has_file(path: str, state: State) -> bool:
    """Return whether a file exists and is not empty."""
    file = state.root / path
    return file.is_file() and file.stat().st_size > 0


def has_executed(path: str, state: State) -> bool:
    """Return whether a notebook was saved with all code cells executed and no error."""
    try:
        cells = json.loads((state.root / path).read_bytes())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
        errors = [out for cell in code for out in cell["outputs"] if out["output_type"] == "error"]
        return bool(code) and not errors and all(cell["execution_count"] is not None for cell in code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


# -- chapter 2 -------------------------------------------------------------------------------------------------------
def tracked_runs(query: str, state: State) -> list[Run]:
    """Return the runs of chapter 2's notebooks that match an MLflow filter."""
    return state.runs(f"tags.chapter = '2' AND {query}")


def tracked_models(query: str, state: State) -> list[str]:
    """Return the URIs of the models logged by chapter 2's runs that match a filter."""
    return model_uris(tracked_runs(query, state))


def model_uris(runs: Iterable[Run]) -> list[str]:
    """Return the URIs of the models that the runs logged."""
    return [f"models:/{model.model_id}" for run in runs if run.outputs for model in run.outputs.model_outputs]


def has_forest_runs(state: State) -> bool:
    """Return whether a run of the random forest has at least two child runs."""
    parents = Counter(run.data.tags.get(PARENT_TAG) for run in tracked_runs("tags.model = 'rf'", state))
    return any(count >= 2 for parent, count in parents.items() if parent)


def was_in_production(state: State) -> bool:
    """Return whether a version from chapter 2 is or was in production."""
    return any({move.version, move.replaced} & state.chapter_versions for move in state.moves)


def was_rolled_back(state: State) -> bool:
    """Return whether a rollback replaced a version from chapter 2."""
    return any(move.action == ROLLED_BACK and move.replaced in state.chapter_versions for move in state.moves)


# -- chapter 3 -------------------------------------------------------------------------------------------------------
def project_runs(project: str, entry_point: str, state: State, status: str = "FINISHED") -> list[Run]:
    """Return the runs of a project's entry point; ``project`` is the end of the project's URI."""
    runs = state.runs(f"tags.`mlflow.project.entryPoint` = '{entry_point}'", status)
    return [run for run in runs if run.data.tags.get("mlflow.source.name", "").rstrip("/").endswith(project)]


runs_of_lr, runs_of_forest = partial(project_runs, LR), partial(project_runs, "3_projects/rf")


def has_other_intercept(project: str, state: State) -> bool:
    """Return whether a project's runs differ in `fit_intercept`; other parameters, as in exercise 3.1, do not count."""
    return len({run.data.params.get("fit_intercept") for run in project_runs(project, "main", state)}) > 1


def has_run_winner(state: State) -> bool:
    """Return whether `rf`, with `by_capacity` in MLproject, was trained on the last year's capacity factors."""
    # MLflow also passes undeclared parameters, so the run's parameters do not prove that MLproject was changed.
    runs = [run.data for run in runs_of_forest("main", state) if "{by_capacity}" in run.data.tags.get("MLproject", "")]
    values = ((run.params.get("last_hours"), run.params.get("by_capacity", "").lower()) for run in runs)
    return ("8760", "true") in values


def has_run_from_git(state: State) -> bool:
    """Return whether MLflow fetched `lr` from a Git URL instead of running this repository's folder."""
    sources = [run.data.tags["mlflow.source.name"].partition("#") for run in runs_of_lr("main", state)]
    return any(mark and Path(urlparse(uri).path).resolve() != state.root.resolve() for uri, mark, _ in sources)


# -- chapter 4 -------------------------------------------------------------------------------------------------------
def has_run_pipeline(state: State) -> bool:
    """Return whether all outputs in dvc.lock exist and the runs were logged to this tracking store."""
    folder = state.root / "4_pipeline"
    outputs = _outputs(folder)
    try:
        store_id = json.loads((folder / "data" / "tracking_store.json").read_text())["store_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    is_this_store = state.experiment is not None and state.experiment.tags.get(STORE_ID_TAG) == store_id
    return is_this_store and bool(outputs) and all((folder / output["path"]).exists() for output in outputs)


def _outputs(folder: Path) -> list[dict[str, str]]:
    try:
        stages = yaml.safe_load((folder / "dvc.lock").read_bytes())["stages"].values()
        return [output for stage in stages for output in stage.get("outs", [])]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return []


def has_changed_stage(state: State) -> bool:
    """Return whether two runs of a stage differ in a parameter; child runs (of a search) are ignored."""
    first: dict[str, dict[str, str]] = {}
    runs = [run.data for run in state.runs(f"tags.`{STAGE_TAG}` LIKE 'train%'") if PARENT_TAG not in run.data.tags]
    return any(run.params != first.setdefault(run.tags[STAGE_TAG], run.params) for run in runs)


def promoted_by_person(state: State) -> list[Move]:
    """Return the promotions made by a person, not by the pipeline."""
    by_pipeline = (PROMOTED, PIPELINE_WHY)
    return [m for m in state.moves if m.action in (PROMOTED, FORCED) and (m.action, m.why) != by_pipeline]


def was_promoted_and_rolled_back(state: State) -> bool:
    """Return whether a rollback followed a promotion by a person."""
    promotions = promoted_by_person(state)
    return any(move.action == ROLLED_BACK and move.number > promotions[0].number for move in state.moves if promotions)


def was_forced_again_and_rolled_back(state: State) -> bool:
    """Return whether a rollback followed a second forced promotion (the first one belongs to step 5)."""
    # The version shows nothing: if step 5 registered the forest, its refit is not repeated on the faulty data.
    forced = [move.number for move in promoted_by_person(state) if move.action == FORCED][1:2]
    return any(move.action == ROLLED_BACK and [move.number] > forced for move in state.moves if forced)


def has_committed(state: State) -> bool:
    """Return whether dvc.lock was committed after the first promotion by a person."""
    since = next((move.when for move in promoted_by_person(state) if move.when), None)
    command = ["git", "-C", str(state.root), "rev-list", "-1", f"--since={since}", "HEAD", "--", "4_pipeline/dvc.lock"]
    return bool(since and subprocess.run(command, capture_output=True, check=False).stdout)


def has_pushed(state: State) -> bool | None:
    """Return whether a DVC remote contains an output of the pipeline; None if unknown, as for cloud remotes."""
    config = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        config.read([state.root / ".dvc" / "config", state.root / ".dvc" / "config.local"])
    except (configparser.Error, ValueError):
        return False
    urls = [urlparse(config[name]["url"]) for name in config.sections() if "url" in config[name]]
    folders = [state.root / ".dvc" / url.path for url in urls if url.scheme in ("", "file")]
    hashes = [output.get("md5", "") for output in _outputs(state.root / "4_pipeline")]
    is_stored = any((folder / "files" / "md5" / md5[:2] / md5[2:]).is_file() for folder in folders for md5 in hashes)
    return is_stored or (False if len(folders) == len(urls) else None)


def has_experiment(state: State) -> bool:
    """Return whether DVC saved an experiment as a git ref: refs/exps/<2 digits of a commit>/<other 38>/<name>."""
    command = ["git", "-C", str(state.root), "for-each-ref", "refs/exps/??/*/*"]
    return bool(subprocess.run(command, capture_output=True, check=False).stdout.strip())


# -- steps -----------------------------------------------------------------------------------------------------------
class Step(NamedTuple):
    """A step of a chapter; ``where`` is `page` or `page#heading`.

    ``is_done`` returns a truthy value if the step is done, None if unknown; it raises ServiceError if the tracking
    server does not respond.
    """

    title: str
    where: str
    is_done: Callable[[State], object]
    hint: str


SAVE = "Choose Run > Run All Cells, wait for the last cell, and save with Ctrl-S. No cell may fail."
RUN = (
    f"The experiment {EXPERIMENT} has no finished run of this notebook. Run all its cells from the top. "
    "If you already did, type `workshop doctor`: it finds runs that were logged elsewhere."
)
TYPE = f"The experiment {EXPERIMENT} has no finished run of this step. In 3_projects, type: "
GATE = "4_pipeline/README.md#5. Watch the gate"
TABLE, REPORT = "1_starting_point/germany.csv", "1_starting_point/report/report.html"
LINREG, COMPARE = "2_tracking/model_linreg.ipynb", "2_tracking/compare_runs.ipynb"
REPRODUCE, VERSIONED = "3_projects/reproduce.ipynb", "4_pipeline/scratch/germany.csv.dvc"
STEPS = {
    1: (
        Step(
            "Weather and power in one table", "1_starting_point/make_processed_data.ipynb", partial(has_file, TABLE),
            "Run the notebook. Its last cell writes germany.csv.",
        ),
        *(
            Step(title, f"1_starting_point/{name}.ipynb", partial(has_executed, f"1_starting_point/{name}.ipynb"), SAVE)
            for title, name in (
                ("A linear regression", "model_linreg"), ("A random forest", "model_rf"),
                ("A neural network", "model_keras"),
            )
        ),
        Step(
            "The weekly report", "1_starting_point/README.md", partial(has_file, REPORT),
            "In 1_starting_point, type `python make_report.py` in report/ and `python app.py` in dashboard/.",
        ),
    ),
    2: (
        Step(
            "A run tracked by hand, with its model", LINREG,
            partial(tracked_models, "tags.model = 'linreg' AND metrics.r2 <= 1"), RUN,
        ),
        Step(
            "A score that is too high", "2_tracking/honest_split.ipynb",
            partial(tracked_runs, "tags.model = 'linreg' AND metrics.r2_random_split <= 1"), RUN,
        ),
        Step("Several runs in one execution", "2_tracking/model_rf.ipynb", has_forest_runs, RUN),
        Step(
            "A run logged by autolog", "2_tracking/model_keras.ipynb",
            partial(tracked_runs, "tags.model = 'keras' AND metrics.r2 <= 1 AND params.epochs != ''"), RUN,
        ),
        Step(
            "The capacity factor instead of GW", "2_tracking/capacity_factor.ipynb",
            partial(tracked_models, "tags.target = 'capacity_factor' AND metrics.r2 <= 1"), RUN,
        ),
        Step(
            "A registered version", COMPARE, lambda state: state.chapter_versions,
            f"Register a model that a run of chapter 2 logged, under the name {REGISTERED_MODEL}.",
        ),
        Step(
            "Your version in production", "2_tracking/README.md#6. Roll back a mistake", was_in_production,
            f"Set the alias {PRODUCTION} of {REGISTERED_MODEL} to a version from a run of chapter 2.",
        ),
        Step(
            "A rollback", "2_tracking/README.md#6. Roll back a mistake", was_rolled_back,
            "Type `mlflow-gate rollback` when a version from chapter 2 has replaced another version in production. "
            "Moving the alias in the UI does not count as a rollback.",
        ),
    ),
    3: (
        Step(
            "A project run with one command", "3_projects/README.md#2. Run it", partial(runs_of_lr, "main"),
            f"{TYPE}`mlflow run lr`. If germany.csv is missing, first type `python -m forecast csv germany.csv`.",
        ),
        Step(
            "A run with another parameter", "3_projects/README.md#3. Change a parameter",
            partial(has_other_intercept, LR), f"{TYPE}`mlflow run lr -P fit_intercept=false`.",
        ),
        Step(
            "A run in your own environment", "3_projects/README.md#4. Use your own environment",
            lambda state: any("mlflow.project.env" not in run.data.tags for run in runs_of_forest("main", state)),
            f"{TYPE}`mlflow run rf --env-manager local`.",
        ),
        Step(
            "Your winner as a project", "3_projects/README.md#5. Package your winner", has_run_winner,
            f"{TYPE}`mlflow run rf --env-manager local -P last_hours=8760 -P by_capacity=true`. "
            "`rf/MLproject` must declare `by_capacity` and pass it to the command.",
        ),
        Step(
            "A run of the validate entry point", "3_projects/README.md#6. Use another entry point",
            partial(runs_of_lr, "validate"), f"{TYPE}`mlflow run lr --entry-point validate -P run_id=RUN_ID`.",
        ),
        Step(
            "A failed run", "3_projects/README.md#7. Make it fail", partial(runs_of_forest, "main", status="FAILED"),
            "There is no failed run of rf. In 3_projects, type: `mlflow run rf --env-manager local -P n_estimators=0`.",
        ),
        Step(
            "A run from a Git URL", "3_projects/README.md#8. Run a commit from a git repository", has_run_from_git,
            f"{TYPE}`mlflow run URL#3_projects/lr --version COMMIT`.",
        ),
        Step("A colleague's run, reproduced", REPRODUCE, partial(has_executed, REPRODUCE), SAVE),
    ),
    4: (
        Step(
            "The pipeline has run here", "4_pipeline/README.md#Before you start", has_run_pipeline,
            "An output is missing, or the runs were logged to another tracking server. Type `dvc repro` in 4_pipeline.",
        ),
        Step(
            "Versioned data", "4_pipeline/README.md#1. Version data",
            lambda state: has_file(VERSIONED, state) or project_runs(SCRATCH, "main", state),  # the file may be deleted
            "Type the commands of this section: `dvc add germany.csv` in 4_pipeline/scratch writes germany.csv.dvc.",
        ),
        Step(
            "Stages defined by hand", "4_pipeline/README.md#2. Define two stages by hand",
            partial(has_other_intercept, SCRATCH),
            "In 4_pipeline/scratch, type `dvc repro` with `fit_intercept: true` in params.yaml, then again with false.",
        ),
        Step(
            "A stage run again with a changed parameter", "4_pipeline/README.md#4. Change one parameter",
            has_changed_stage,
            "Change a parameter of a training stage in 4_pipeline/params.yaml, save the file, and type `dvc repro`. "
            "Choose a new value: for values used before, DVC restores the results instead of running the stage.",
        ),
        Step(
            "A model promoted by you", GATE, promoted_by_person,
            "Type `mlflow-gate promote --why REASON`. If the gate refuses (exit code 3), add `--force` to override it.",
        ),
        Step(
            "Your promotion rolled back", GATE, was_promoted_and_rolled_back,
            "Promote a model yourself, then type `mlflow-gate rollback`.",
        ),
        Step(
            "A gate rule changed by you", GATE,
            lambda state: any(move.action == PROMOTED for move in promoted_by_person(state)),
            "Set `near_tie: 0.0` under `promote` in 4_pipeline/params.yaml; type `mlflow-gate promote --why REASON`. "
            "The candidate has to pass the gate without `--force`.",
        ),
        Step(
            "The original parameters, run and committed",
            "4_pipeline/README.md#6. Trace a number to its notebook", has_committed,
            "After step 5, type `git checkout params.yaml` and `dvc repro`, and commit dvc.lock.",
        ),
        Step(
            "A bad quarter seen, its model rolled back", "4_pipeline/README.md#7. Watch the model over time",
            was_forced_again_and_rolled_back,
            "With `source: csv` in 4_pipeline/params.yaml and the bad quarter in own/germany.csv, type "
            "`dvc repro prepare` and `mlflow-gate promote results/trained/train_rf.json --force --why REASON`. "
            "Then restore the data and type `mlflow-gate rollback`. Do step 5 first: it forces a promotion, too.",
        ),
        Step(
            "A training run that lost its worker", "4_pipeline/README.md#8. Break something",
            lambda state: state.runs(f"tags.`{STAGE_TAG}` = 'train_rf' AND params.n_estimators = '300'", "FAILED"),
            "Set `n_estimators: 300` under `train_rf`, type `dvc repro`, and kill the worker while the forest trains.",
        ),
        Step(
            "Data pushed to a remote", "4_pipeline/README.md#9. Share data", has_pushed,
            "Type `dvc remote add --local --default NAME FOLDER`, then `dvc push`. "
            "Only remotes in local folders are checked; check others with `dvc status --cloud`.",
        ),
        Step(
            "An experiment with dvc exp run", "4_pipeline/README.md#10. Run experiments", has_experiment,
            "In 4_pipeline, type `dvc exp run` with a changed parameter; `dvc exp show` lists the experiments.",
        ),
    ),
}  # fmt: skip


def steps_of(chapter: Chapter) -> Iterator[Step]:
    """Yield the steps of a chapter, then its exercises."""
    yield from STEPS[chapter.number]
    for number, each in exercises.of_chapter(chapter.number).items():
        hint = f'Run the cells of the exercise until `check("{number}", ...)` prints "solved".'
        is_solved = partial(lambda number, state: number in state.solved, number)
        yield Step(f"{EXERCISE} {number}: {each.title}", f"{chapter.folder}/{each.notebook}.ipynb", is_solved, hint)


# -- progress --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Checkpoint:
    """The result of a step's check; ``done`` is None if unknown, ``reason`` is empty if the step is done."""

    chapter: int
    title: str
    where: str
    done: bool | None
    reason: str
    minutes: int  # the chapter's minutes divided by its number of steps

    @property
    def link(self) -> str:
        """The link target; in JupyterLab, a heading's anchor is its text with dashes instead of spaces."""
        return self.where.replace(" ", "-")

    @property
    def place(self) -> str:
        """The page and heading, for display."""
        return self.where.replace("#", ", ")


def examine(state: State) -> list[Checkpoint]:
    """Check every step (takes a few seconds)."""
    checkpoints = []
    for chapter in CHAPTERS:
        steps = list(steps_of(chapter))
        minutes = round(chapter.minutes[-1] / len(steps))
        for step in steps:
            try:
                result, reason = step.is_done(state), step.hint
                done = None if result is None else bool(result)
            except ServiceError as error:
                done, reason = None, f"{error.what} Next: {error.next_step}"
            except import_module("mlflow.exceptions").MlflowException as error:  # a slow import (1 s): on errors only
                done, reason = None, f"The tracking server did not respond: {error.message} Next: workshop status"
            reason = "" if done else reason
            checkpoints.append(Checkpoint(chapter.number, step.title, step.where, done, reason, minutes))
    return checkpoints


def next_step(checkpoints: Iterable[Checkpoint], first_chapter: int = 1) -> Checkpoint | None:
    """Return the first open step after the last done step, or else a skipped one; prefer the same chapter.

    Exercises do not count as the last done step, because they follow all steps of their chapter in the list; nor
    does *Before you start* of chapter 4, which `make run` completes.
    """
    steps = list(checkpoints)
    done = [step for step in steps if step.done and "#Before you start" not in step.where]
    done = [step for step in done if not step.title.startswith(EXERCISE)]
    last, chapter = (steps.index(done[-1]) + 1, done[-1].chapter) if done else (0, first_chapter)
    open_steps = [step for step in steps[last:] + steps[:last] if not step.done]
    # Start at the chapter of the last done step and wrap around; chapters before ``first_chapter`` come last.
    return min(
        open_steps,
        key=lambda each: (each.chapter < first_chapter, (each.chapter - chapter) % len(CHAPTERS)),
        default=None,
    )


def summary(checkpoints: Iterable[Checkpoint]) -> str:
    """Summarize the steps' results, for example `3 of 8 done, 1 unknown`."""
    counts = Counter(checkpoint.done for checkpoint in checkpoints)
    unknown = f", {counts[None]} unknown" if counts[None] else ""
    return f"{counts[True]} of {counts.total()} done{unknown}"


def save_first_chapter(settings: Settings, chapter: int) -> None:
    """Save the chapter that the attendee started with (`workshop up --chapter`)."""
    write_atomically(settings.state / "first_chapter", f"{chapter}\n".encode())


def first_chapter(settings: Settings) -> int:
    """Return the chapter that the attendee started with (default 1)."""
    try:
        return int((settings.state / "first_chapter").read_text())
    except (OSError, ValueError):
        return 1
