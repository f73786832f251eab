"""Chapter 3: runs of the MLflow project `lr`: as it is, changed, validated, and from a git address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

from workshop.settings import EXPERIMENT, EXPORT
from workshop.teaching.checkpoints.evidence import Evidence
from workshop.teaching.checkpoints.step import DONE, Step, Verdict, missing, needs_store, seen
from workshop.teaching.checkpoints.store import BROUGHT_TAG, Run, Store
from workshop.teaching.checkpoints.tracking import strays
from workshop.teaching.outline import chapter

CHAPTER = chapter(3)
OTHERS = chapter(4).folder  # there, too, projects are run
PROJECT = "lr"
TABLE = f"{CHAPTER.folder}/germany.csv"
SOURCE_TAG = "mlflow.source.name"  # the project's address: file://<folder>#<project>, or that of a git repository
ENTRY_POINT_TAG = "mlflow.project.entryPoint"
PLACES = ("data", "run_id")  # parameters that say where something is, not how to train


def is_project(run: Run, root: str, entry_point: str = "main") -> bool:
    """Tell whether a run is one of the project's; those in chapter 4's scratch repository are not of this chapter."""
    name = run.tags.get(SOURCE_TAG, "").rstrip("/").rpartition("#")[2]
    scratch = Path(root).resolve() / OTHERS
    here = scratch not in (folder := _folder(run), *folder.parents)
    return here and Path(name).name == PROJECT and run.tags.get(ENTRY_POINT_TAG) == entry_point


def is_from_git(run: Run, root: str) -> bool:
    """Tell whether MLflow fetched the project from a git address; a run in this repository names its folder."""
    address, mark, _ = run.tags.get(SOURCE_TAG, "").partition("#")
    here = urlparse(address).scheme in ("", "file") and _folder(run) == Path(root).resolve()
    return bool(mark) and not here


def _folder(run: Run) -> Path:
    return Path(urlparse(run.tags.get(SOURCE_TAG, "").partition("#")[0]).path).resolve()


@needs_store
def main(evidence: Evidence, store: Store) -> Verdict:
    """Look for a run of the project as it is."""
    return _verdict(evidence, store, lambda run: is_project(run, evidence.root), "mlflow run lr")


@needs_store
def changed(evidence: Evidence, store: Store) -> Verdict:
    """Look for two runs whose parameters differ."""
    runs = [run for run in store.project_runs if is_project(run, evidence.root) and run.in_place]
    told = [{name: value for name, value in run.params.items() if name not in PLACES} for run in runs]
    if any(BROUGHT_TAG not in run.tags and own != other for run, own in zip(runs, told, strict=True) for other in told):
        return DONE
    if runs:
        return missing("All runs of lr have the same parameters. Run it with another, such as -P fit_intercept=false.")
    return main(evidence)


@needs_store
def validated(evidence: Evidence, store: Store) -> Verdict:
    """Look for a run of the entry point `validate`."""
    command = "mlflow run lr --entry-point validate -P run_id=RUN_ID"
    return _verdict(evidence, store, lambda run: is_project(run, evidence.root, "validate"), command)


@needs_store
def from_git(evidence: Evidence, store: Store) -> Verdict:
    """Look for a run whose project came from a git address."""
    fits = lambda run: is_project(run, evidence.root) and is_from_git(run, evidence.root)  # noqa: E731
    command = "mlflow run ADDRESS#3_projects/lr --version COMMIT"
    return _verdict(evidence, store, fits, command)


def _verdict(evidence: Evidence, store: Store, fits: Callable[[Run], bool], command: str) -> Verdict:
    fitting = [run for run in store.project_runs if fits(run)]
    if verdict := seen([run for run in fitting if run.in_place]):
        return verdict
    if astray := [run.experiment for run in fitting if run.finished]:
        return missing(
            f"Its run is in the experiment {astray[0]}, not in {EXPERIMENT}. "
            f"Type `{EXPORT}` and run it again: the experiment is set by it."
        )
    if TABLE not in evidence.present:
        return missing(f"The projects read {TABLE}, which is not there. Type `workshop data csv {TABLE}`.")
    if fitting:
        status = fitting[0].status.lower()
        return missing(f"Its latest run is not finished, but {status}. The terminal that ran it says why.")
    return missing(f"No such run is at {store.uri}. Type `{command}` in {CHAPTER.folder}.{strays(evidence)}")


STEPS = (
    Step("A project, run by one command", CHAPTER.readme, main, "2. Run it"),
    Step("Run again with another parameter", CHAPTER.readme, changed, "3. Change a parameter"),
    Step("A run of the entry point validate", CHAPTER.readme, validated, "5. Use another entry point"),
    Step("A run from a git address", CHAPTER.readme, from_git, "7. Run a commit from a git repository"),
)
