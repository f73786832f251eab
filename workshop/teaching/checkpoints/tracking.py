"""Chapter 2: tracked runs, a registered version, the alias on it, and a rollback."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from workshop.models.registry import ROLLED_BACK
from workshop.settings import EXPERIMENT, EXPORT, PRODUCTION, REGISTERED_MODEL
from workshop.teaching.checkpoints.evidence import Evidence
from workshop.teaching.checkpoints.step import DONE, Step, Verdict, missing, needs_store, seen
from workshop.teaching.checkpoints.store import Run, Store, Version
from workshop.teaching.outline import MODELS, chapter

CHAPTER = chapter(2)
SHARE = "capacity_factor"  # what a run predicts, in its tag `target`, when that is not GW


# -- runs ------------------------------------------------------------------------------------------------------------
def is_scored(run: Run) -> bool:
    """Tell whether a run has a score on hours that were held out, and a model."""
    return "r2" in run.metrics and bool(run.models)


def by_hand(run: Run) -> bool:
    """Tell whether it is the linear regression's."""
    return run.tags.get("model") == "linreg" and is_scored(run)


def flattered(run: Run) -> bool:
    """Tell whether it holds the score on a random split, beside which the honest one stands."""
    return run.tags.get("model") == "linreg" and "r2_random_split" in run.metrics


def by_autolog(run: Run) -> bool:
    """Tell whether autolog filled it, and the score was added."""
    return run.tags.get("model") == "keras" and "r2" in run.metrics and "epochs" in run.params


def of_capacity_factor(run: Run) -> bool:
    """Tell whether it predicts the share of what is installed."""
    return run.tags.get("target") == SHARE and is_scored(run)


def is_candidate(run: Run) -> bool:
    """Tell whether its model may go into production: it was scored, and predicts GW."""
    return run.in_place and is_scored(run) and run.tags.get("target") != SHARE


@needs_store
def tracked(notebook: str, fits: Callable[[Run], bool], evidence: Evidence, store: Store) -> Verdict:
    """Look for a finished run of the chapter that fits."""
    fitting = [run for run in store.chapter_runs if fits(run)]
    return seen([run for run in fitting if run.in_place]) or _why_not(notebook, fitting, evidence, store)


@needs_store
def forest(evidence: Evidence, store: Store) -> Verdict:
    """Look for several runs of the forest under one parent."""
    runs = [run for run in store.chapter_runs if run.tags.get("model") == "rf" and run.tags.get("target") != SHARE]
    children = [run.parent for run in runs if run.parent and run.in_place]
    parents = [run for run in runs if run.in_place and children.count(run.run_id) >= 2]
    return seen(parents) or _why_not("model_rf", runs, evidence, store)


def _why_not(notebook: str, fitting: list[Run], evidence: Evidence, store: Store) -> Verdict:
    again = f"Run {notebook}.ipynb from top to bottom"
    astray = [run.experiment for run in fitting if run.finished and run.experiment != EXPERIMENT]
    if astray:
        return missing(f"Its run is in the experiment {astray[0]}, not in {EXPERIMENT}. {again}, no cell left out.")
    if any(run.finished for run in fitting):
        return missing(f"There are fewer runs than the notebook makes. {again}.")
    if fitting:
        status = fitting[0].status.lower()
        return missing(f"The latest run is not finished, but {status}. {again}; an error stands below the cell.")
    saved = evidence.notebooks.get(f"{CHAPTER.folder}/{notebook}.ipynb")
    if saved and saved.executed:
        return missing(
            f"The notebook was run, but {store.uri} has no run of it with the tag chapter = 2. Did it stop early, or "
            f"go to another server? Its cell `print(client.tracking_uri)` says where to.{strays(evidence)}"
        )
    return missing(f"There is no such run yet. {again}.{strays(evidence)}")


def strays(evidence: Evidence) -> str:
    """Return a sentence about a tracking store that MLflow made for itself; empty when there is none."""
    if not evidence.strays:
        return ""
    return f" MLflow wrote to {evidence.strays[0]}: the address of the server was not set there. Type `{EXPORT}` first."


# -- the registry ----------------------------------------------------------------------------------------------------
def own_versions(store: Store, model: str | None = REGISTERED_MODEL) -> list[Version]:
    """Return the versions, of a model or of any, that were made from runs of this chapter."""
    runs = {run.run_id for run in store.chapter_runs}
    models = {f"models:/{each}" for run in store.chapter_runs for each in run.models}
    return [
        version for version in store.versions
        if model in (None, version.model) and (version.run_id in runs or version.source in models)
    ]  # fmt: skip


@needs_store
def registered(_: Evidence, store: Store) -> Verdict:
    """Look for a version that was made from a run of the chapter."""
    if verdict := seen(own_versions(store)):
        return verdict
    if elsewhere := own_versions(store, None):
        return missing(f"A run's model is registered as {elsewhere[0].model}; the name has to be {REGISTERED_MODEL}.")
    if store.versions:
        return missing("What is registered comes from the pipeline, not from a run of this chapter. Register one.")
    return missing("No model is registered yet.")


@needs_store
def in_production(_: Evidence, store: Store) -> Verdict:
    """Look whether a version of the chapter's is in production, or was."""
    versions = {version.version: version for version in own_versions(store)}
    served = {store.in_production} | {number for move in store.moves for number in (move.version, move.replaced)}
    if verdict := seen([version for number, version in versions.items() if number in served]):
        return verdict
    others = [(model, alias) for model, aliases in store.aliases.items() for alias in aliases]
    for model, alias in others:
        if alias != PRODUCTION and alias.lower() == PRODUCTION:
            return missing(f"The alias of {model} is spelled {alias}; it has to be {PRODUCTION}.")
        if alias == PRODUCTION and model != REGISTERED_MODEL:
            return missing(f"The alias {PRODUCTION} is on the model {model}; it has to be on {REGISTERED_MODEL}.")
    if store.in_production and versions:
        return missing(
            f"The alias {PRODUCTION} points at version {store.in_production}, which the pipeline made. "
            f"Move it to yours, version {next(iter(versions))}."
        )
    return missing(f"The alias {PRODUCTION} is on none of this chapter's versions.")


@needs_store
def rolled_back(_: Evidence, store: Store) -> Verdict:
    """Look for a rollback from a version of the chapter's."""
    versions = {version.version for version in own_versions(store)}
    if any(move.action == ROLLED_BACK and move.replaced in versions for move in store.moves):
        return DONE
    return missing(
        "No rollback from a version of this chapter is on record. It needs a version that was in production before. "
        "Moving the alias in the UI leaves no record: type `workshop rollback`."
    )


NOTEBOOKS = {name: f"{CHAPTER.folder}/{name}.ipynb" for name in CHAPTER.notebooks}
RUN_NOTEBOOKS = (*MODELS, "capacity_factor")  # those that leave runs
STEPS = (
    Step("The score that flatters", NOTEBOOKS["model_linreg"], partial(tracked, "model_linreg", flattered)),
    Step("A run tracked by hand, with its model", NOTEBOOKS["model_linreg"], partial(tracked, "model_linreg", by_hand)),
    Step("Several runs in one execution", NOTEBOOKS["model_rf"], forest),
    Step("A run filled by autolog", NOTEBOOKS["model_keras"], partial(tracked, "model_keras", by_autolog)),
    Step(
        "The capacity factor in place of GW",
        NOTEBOOKS["capacity_factor"],
        partial(tracked, "capacity_factor", of_capacity_factor),
    ),
    Step("A registered version", NOTEBOOKS["compare_runs"], registered),
    Step("In production, by its alias", NOTEBOOKS["compare_runs"], in_production),
    Step("Rolled back", CHAPTER.readme, rolled_back, "6. Take a mistake back"),
)
