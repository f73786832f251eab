"""The chapters and their steps: a step is done when the file, run, model version or commit that it makes exists."""

from __future__ import annotations

import configparser
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import yaml

from workshop.data.files import write_whole
from workshop.errors import ServiceError
from workshop.models.registry import FORCED, PROMOTED, ROLLED_BACK, Move
from workshop.models.tracking import STAGE_TAG, STORE_ID_TAG, connect, own_or_given_uri
from workshop.settings import EXPERIMENT, PRODUCTION, REGISTERED_MODEL, Settings
from workshop.teaching import exercises

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

PIPELINE_WHY = "pipeline"  # the reason that dvc.yaml gives for a promotion; a person gives another
PARENT_TAG = "mlflow.parentRunId"
MOST_RUNS = 2000  # of each kind; the latest ones
GIT_SECONDS = 10


@dataclass(frozen=True)
class Chapter:
    """One chapter: its number, folder, title, and how many minutes it takes."""

    number: int
    folder: str
    title: str
    minutes: int


CHAPTERS = (
    Chapter(1, "1_starting_point", "The starting point", 15),
    Chapter(2, "2_tracking", "Tracking", 35),
    Chapter(3, "3_projects", "Projects", 30),
    Chapter(4, "4_pipeline", "The pipeline", 40),
)


# -- evidence --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tracked:
    """What the tracking server holds: the store's identity, finished runs of the experiment, versions, and moves."""

    store_id: str | None = None
    chapter_runs: list[Run] = field(default_factory=list)
    project_runs: list[Run] = field(default_factory=list)
    stage_runs: list[Run] = field(default_factory=list)
    versions: list[ModelVersion] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)


@dataclass(frozen=True)
class Evidence:
    """What exists: files below ``root``, solved exercises, and what the server holds, or why it cannot be asked."""

    root: Path
    solved: frozenset[str]
    server: Tracked | ServiceError

    @property
    def tracked(self) -> Tracked:
        """What the tracking server holds; raises ServiceError when it does not answer."""
        if isinstance(self.server, ServiceError):
            raise self.server
        return self.server


def gather(settings: Settings) -> Evidence:
    """Ask the tracking server once; takes some seconds."""
    try:
        server = _ask_server(settings)
    except ServiceError as error:
        server = error
    return Evidence(settings.root, frozenset(exercises.solved(settings)), server)


def _ask_server(settings: Settings) -> Tracked:
    client = connect(own_or_given_uri(settings))
    from mlflow.exceptions import MlflowException

    from workshop.models import registry

    def search(query: str) -> list[Run]:
        ids = [experiment.experiment_id] if experiment else []
        return client.search_runs(ids, f"{query} AND attributes.status = 'FINISHED'", max_results=MOST_RUNS)

    try:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        return Tracked(
            store_id=experiment.tags.get(STORE_ID_TAG) if experiment else None,
            chapter_runs=search("tags.chapter = '2'"),
            project_runs=search("tags.`mlflow.source.type` = 'PROJECT'"),
            stage_runs=search(f"tags.`{STAGE_TAG}` LIKE 'train%'"),
            versions=client.search_model_versions(f"name = '{REGISTERED_MODEL}'"),
            moves=registry.history(client),
        )
    except MlflowException as error:
        raise ServiceError(
            f"The tracking server did not answer a question: {error.message}", next_step="workshop status"
        ) from None


# -- chapter 1 -------------------------------------------------------------------------------------------------------
def has_file(path: str, evidence: Evidence) -> bool:
    """Tell whether a file exists and is not empty."""
    file = evidence.root / path
    return file.is_file() and file.stat().st_size > 0


def has_run(path: str, evidence: Evidence) -> bool:
    """Tell whether a notebook was saved with all its cells executed, none of them with an error."""
    try:
        cells = json.loads((evidence.root / path).read_bytes())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
        errors = [out for cell in code for out in cell["outputs"] if out["output_type"] == "error"]
        return bool(code) and not errors and all(cell["execution_count"] is not None for cell in code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


# -- chapter 2 -------------------------------------------------------------------------------------------------------
def chapter_runs(evidence: Evidence, *logged: str, **tags: str) -> list[Run]:
    """Return the runs of chapter 2 that have these tags, and logged these parameters and metrics."""
    return [
        run
        for run in evidence.tracked.chapter_runs
        if run.data.tags.items() >= tags.items() and {*run.data.params, *run.data.metrics}.issuperset(logged)
    ]


def models_of(runs: list[Run]) -> list[str]:
    """Return the addresses of the models that runs logged."""
    return [f"models:/{model.model_id}" for run in runs if run.outputs for model in run.outputs.model_outputs]


def has_flattered_run(evidence: Evidence) -> bool:
    """Tell whether a run has the score of the linear regression on a random split."""
    return bool(chapter_runs(evidence, "r2_random_split", model="linreg"))


def has_tracked_run(evidence: Evidence) -> bool:
    """Tell whether a run has the honest score of the linear regression, and its model."""
    return bool(models_of(chapter_runs(evidence, "r2", model="linreg")))


def has_autolog_run(evidence: Evidence) -> bool:
    """Tell whether a run of the network has a score, and a parameter that autolog writes."""
    return bool(chapter_runs(evidence, "r2", "epochs", model="keras"))


def has_capacity_factor_run(evidence: Evidence) -> bool:
    """Tell whether a run has a model of capacity factors, and its score."""
    return bool(models_of(chapter_runs(evidence, "r2", target="capacity_factor")))


def has_forest_runs(evidence: Evidence) -> bool:
    """Tell whether a run of the forest has at least two runs below it."""
    parents = [run.data.tags.get(PARENT_TAG) for run in chapter_runs(evidence, model="rf")]
    return any(parents.count(parent) >= 2 for parent in parents if parent)


def chapter_versions(evidence: Evidence) -> set[str]:
    """Return the registered versions that come from runs of chapter 2."""
    runs = chapter_runs(evidence)
    ids, sources = {run.info.run_id for run in runs}, models_of(runs)
    return {str(each.version) for each in evidence.tracked.versions if each.run_id in ids or each.source in sources}


def was_in_production(evidence: Evidence) -> bool:
    """Tell whether a version of chapter 2 is or was in production."""
    served = {version for move in evidence.tracked.moves for version in (move.version, move.replaced)}
    return bool(served & chapter_versions(evidence))


def was_rolled_back(evidence: Evidence) -> bool:
    """Tell whether a rollback replaced a version of chapter 2."""
    versions = chapter_versions(evidence)
    return any(move.action == ROLLED_BACK and move.replaced in versions for move in evidence.tracked.moves)


# -- chapter 3 -------------------------------------------------------------------------------------------------------
def runs_of_lr(entry_point: str, evidence: Evidence) -> list[Run]:
    """Return the runs of an entry point of chapter 3's project `lr`."""
    return [
        run for run in evidence.tracked.project_runs
        if run.data.tags.get("mlflow.source.name", "").rstrip("/").endswith("3_projects/lr")
        and run.data.tags.get("mlflow.project.entryPoint") == entry_point
    ]  # fmt: skip


def has_changed_run(evidence: Evidence) -> bool:
    """Tell whether two runs of `lr` differ in a parameter other than the place of the data."""
    runs = [run.data.params.items() - {("data", run.data.params.get("data"))} for run in runs_of_lr("main", evidence)]
    return any(params != runs[0] for params in runs)


def has_run_from_git(evidence: Evidence) -> bool:
    """Tell whether MLflow fetched `lr` from a git address; the source of other runs is this repository's folder."""
    sources = [run.data.tags["mlflow.source.name"].partition("#") for run in runs_of_lr("main", evidence)]
    return any(mark and Path(urlparse(at).path).resolve() != evidence.root.resolve() for at, mark, _ in sources)


# -- chapter 4 -------------------------------------------------------------------------------------------------------
def has_run_pipeline(evidence: Evidence) -> bool:
    """Tell whether all outputs in dvc.lock exist, and the pipeline logged its runs to this tracking store."""
    folder = evidence.root / "4_pipeline"
    outs = _outputs(folder)
    try:
        store_id = json.loads((folder / "data" / "tracking_store.json").read_text())["store_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(outs) and all((folder / out["path"]).exists() for out in outs) and store_id == evidence.tracked.store_id


def _outputs(folder: Path) -> list[dict[str, Any]]:
    try:
        stages = yaml.safe_load((folder / "dvc.lock").read_bytes())["stages"].values()
        return [out for stage in stages for out in stage.get("outs", [])]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return []


def has_changed_stage(evidence: Evidence) -> bool:
    """Tell whether two runs of one stage differ in a parameter; runs of a search below another run do not count."""
    first: dict[str, dict[str, str]] = {}
    runs = [run.data for run in evidence.tracked.stage_runs if PARENT_TAG not in run.data.tags]
    return any(run.params != first.setdefault(run.tags[STAGE_TAG], run.params) for run in runs)


def promoted_by_person(evidence: Evidence) -> list[Move]:
    """Return the promotions that a person typed."""
    return [
        move
        for move in evidence.tracked.moves
        if move.action == FORCED or (move.action == PROMOTED and move.why != PIPELINE_WHY)
    ]


def was_promoted_and_rolled_back(evidence: Evidence) -> bool:
    """Tell whether a rollback followed a promotion by a person."""
    first = min((move.number for move in promoted_by_person(evidence)), default=None)
    back = [move.number for move in evidence.tracked.moves if move.action == ROLLED_BACK]
    return first is not None and any(number > first for number in back)


def has_pushed(evidence: Evidence) -> bool | None:
    """Tell whether DVC's remote holds an output of the pipeline; None when the remote is not a local folder."""
    dvc = evidence.root / ".dvc"
    config = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        config.read([dvc / "config", dvc / "config.local"])
    except (configparser.Error, ValueError):
        return False
    named = {section.strip("'"): config[section].get("url", "") for section in config.sections()}
    remotes = {name[len('remote "') : -1]: url for name, url in named.items() if name.startswith('remote "') and url}
    url = urlparse(remotes.get(config.get("core", "remote", fallback=next(iter(remotes), "")), ""))
    if url.scheme not in ("", "file"):
        return None
    hashes = [out.get("md5", "") for out in _outputs(evidence.root / "4_pipeline")]
    stored = dvc / url.path / "files" / "md5"
    return bool(url.path) and any((stored / each[:2] / each[2:]).exists() for each in hashes if each)


def has_experiment(evidence: Evidence) -> bool:
    """Tell whether git keeps an experiment of DVC: refs/exps/<start of a commit>/<its rest>/<name>."""
    command = ["git", "for-each-ref", "refs/exps/??/*/*"]
    try:
        done = subprocess.run(command, cwd=evidence.root, capture_output=True, check=False, timeout=GIT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return False
    return bool(done.stdout.strip()) and not done.returncode


# -- steps -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Step:
    """One thing to do: its title, its place (a page, or `page#heading`), the test that it is done, and what to do.

    ``is_done`` returns what proves it, or None when nobody can tell; it raises ServiceError when the tracking server
    does not answer.
    """

    title: str
    where: str
    is_done: Callable[[Evidence], object]
    not_yet: str


RUN_AND_SAVE = (
    "Choose Run > Run All Cells, wait for the last cell, and save with Ctrl-S. No cell may end with an error."
)
RUN = (
    f"The experiment {EXPERIMENT} has no such finished run. Run the notebook from its first cell to its last. "
    "If you did: `workshop doctor` finds runs that went elsewhere."
)
TYPE = f"The experiment {EXPERIMENT} has no such finished run. Type in 3_projects: "
ROLL_BACK = (
    "Type `workshop rollback` while a version of this chapter is in production that replaced another one. "
    "A move of the alias in the UI leaves no record."
)
REPRODUCE = "An output is missing, or the runs went to another tracking store. Type `dvc repro` in 4_pipeline."
CHANGE = (
    "Change a parameter of a training stage in 4_pipeline/params.yaml, save the file, and type `dvc repro`. "
    "DVC does not run a stage again with values that it has seen before: choose others."
)
PUSH = (
    "Type `dvc remote add --local --default NAME FOLDER`, then `dvc push`. "
    "Only a remote in a local folder is looked at; for others there is `dvc status --cloud`."
)
GATE = "4_pipeline/README.md#5. Watch the gate"
TABLE, REPORT = "1_starting_point/germany.csv", "1_starting_point/report/report.html"
STEPS = {
    1: (
        Step(
            "Weather and power in one table", "1_starting_point/make_processed_data.ipynb", partial(has_file, TABLE),
            "Run the notebook. Its last cell writes germany.csv.",
        ),
        *(
            Step(title, path, partial(has_run, path), RUN_AND_SAVE)
            for title, path in (
                ("A linear regression", "1_starting_point/model_linreg.ipynb"),
                ("A random forest", "1_starting_point/model_rf.ipynb"),
                ("A neural network", "1_starting_point/model_keras.ipynb"),
            )
        ),
        Step(
            "The weekly report", "1_starting_point/README.md", partial(has_file, REPORT),
            "Type `python make_report.py` in the folder 1_starting_point/report.",
        ),
    ),
    2: (
        Step("The score that flatters", "2_tracking/model_linreg.ipynb", has_flattered_run, RUN),
        Step("A run tracked by hand, with its model", "2_tracking/model_linreg.ipynb", has_tracked_run, RUN),
        Step("Several runs in one execution", "2_tracking/model_rf.ipynb", has_forest_runs, RUN),
        Step("A run filled by autolog", "2_tracking/model_keras.ipynb", has_autolog_run, RUN),
        Step("The capacity factor in place of GW", "2_tracking/capacity_factor.ipynb", has_capacity_factor_run, RUN),
        Step(
            "A registered version", "2_tracking/compare_runs.ipynb", chapter_versions,
            f"Register the model of a run of this chapter under the name {REGISTERED_MODEL}.",
        ),
        Step(
            "In production, by its alias", "2_tracking/compare_runs.ipynb", was_in_production,
            f"Set the alias {PRODUCTION} of {REGISTERED_MODEL} to a version that comes from a run of this chapter.",
        ),
        Step("Rolled back", "2_tracking/README.md#6. Take a mistake back", was_rolled_back, ROLL_BACK),
    ),
    3: (
        Step(
            "A project, run by one command", "3_projects/README.md#2. Run it", partial(runs_of_lr, "main"),
            f"{TYPE}`mlflow run lr`. It reads germany.csv, which `workshop data csv 3_projects/germany.csv` writes.",
        ),
        Step(
            "Run again with another parameter", "3_projects/README.md#3. Change a parameter", has_changed_run,
            f"{TYPE}`mlflow run lr -P fit_intercept=false`.",
        ),
        Step(
            "A run of the entry point validate", "3_projects/README.md#5. Use another entry point",
            partial(runs_of_lr, "validate"), f"{TYPE}`mlflow run lr --entry-point validate -P run_id=RUN_ID`.",
        ),
        Step(
            "A run from a git address", "3_projects/README.md#7. Run a commit from a git repository", has_run_from_git,
            f"{TYPE}`mlflow run ADDRESS#3_projects/lr --version COMMIT`.",
        ),
    ),
    4: (
        Step("The pipeline ran here", "4_pipeline/README.md#Before you start", has_run_pipeline, REPRODUCE),
        Step(
            "A stage ran again with a changed parameter", "4_pipeline/README.md#4. Change one parameter",
            has_changed_stage, CHANGE,
        ),
        Step(
            "A model promoted by you", GATE, promoted_by_person,
            "Type `workshop promote --why REASON`. If the gate refuses (exit code 3), `--force` overrules it.",
        ),
        Step(
            "Your promotion rolled back", GATE, was_promoted_and_rolled_back,
            "Promote a model yourself, then type `workshop rollback`.",
        ),
        Step(
            "Data pushed to a remote", "4_pipeline/README.md#8. Keep data where others can fetch it", has_pushed, PUSH
        ),
        Step(
            "An experiment with dvc exp run", "4_pipeline/README.md#9. Try values as experiments", has_experiment,
            "Type `dvc exp run` with a changed parameter in 4_pipeline. `dvc exp show` lists the experiments.",
        ),
    ),
}  # fmt: skip


def exercise_steps(chapter: int) -> list[Step]:
    """Return the exercises of a chapter as steps."""
    return [
        Step(
            f"Exercise {number}: {title}", f"{CHAPTERS[chapter - 1].folder}/exercises.ipynb",
            lambda evidence, number=number: number in evidence.solved,
            f'Run its cells. The cell `check("{number}", answer)` has to print "solved".',
        )
        for number, title in exercises.titles(chapter).items()
    ]  # fmt: skip


# -- progress --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Checkpoint:
    """A step that was looked at; ``done`` is None when nobody can tell. ``reason`` is empty when it is done."""

    chapter: int
    title: str
    where: str
    done: bool | None
    reason: str

    @property
    def link(self) -> str:
        """The target of a link that JupyterLab follows; the anchor of a heading is its text with dashes."""
        return self.where.replace(" ", "-")

    @property
    def place(self) -> str:
        """The page and its heading, for people."""
        return self.where.replace("#", ", ")


@dataclass(frozen=True)
class Progress:
    """All steps as they were found, and the chapter at which the attendee began (`workshop up --chapter`)."""

    checkpoints: tuple[Checkpoint, ...]
    first_chapter: int = 1

    def of(self, chapter: int) -> list[Checkpoint]:
        """Return the steps of a chapter in order."""
        return [checkpoint for checkpoint in self.checkpoints if checkpoint.chapter == chapter]

    def next_of(self, *chapters: int) -> Checkpoint | None:
        """Return the first open step of some chapters, or of all where these are done; skipped chapters come last."""
        open_ones = [checkpoint for checkpoint in self.checkpoints if not checkpoint.done]
        within = [checkpoint for checkpoint in open_ones if checkpoint.chapter in chapters]
        return min(within or open_ones, key=lambda each: each.chapter < self.first_chapter, default=None)


def examine(settings: Settings) -> Progress:
    """Look at every step; takes some seconds."""
    try:
        first_chapter = int(_first_chapter_file(settings).read_text())
    except (OSError, ValueError):
        first_chapter = 1
    return Progress(tuple(look(gather(settings))), first_chapter)


def look(evidence: Evidence) -> Iterator[Checkpoint]:
    """Yield each step with what the evidence says of it."""
    for chapter, steps in STEPS.items():
        for step in (*steps, *exercise_steps(chapter)):
            try:
                proof, reason = step.is_done(evidence), step.not_yet
                done = None if proof is None else bool(proof)
            except ServiceError as error:
                done, reason = None, f"{error.what} Next: {error.next_step}"
            yield Checkpoint(chapter, step.title, step.where, done, "" if done else reason)


def begin_at(settings: Settings, chapter: int) -> None:
    """Remember that the attendee began at a chapter: its steps are shown as next before those of earlier ones."""
    write_whole(_first_chapter_file(settings), f"{chapter}\n".encode())


def _first_chapter_file(settings: Settings) -> Path:
    return settings.state / "first_chapter"
