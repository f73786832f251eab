"""Chapter 4: the pipeline ran here, and again; a person promoted and rolled back; an experiment; a remote."""

from __future__ import annotations

from collections import defaultdict

from workshop.models.registry import FORCED, PROMOTED, ROLLED_BACK, Move
from workshop.models.tracking import STAGE_TAG
from workshop.teaching.checkpoints.evidence import Evidence
from workshop.teaching.checkpoints.step import DONE, Step, Verdict, missing, needs_store, unknown
from workshop.teaching.checkpoints.store import Store
from workshop.teaching.outline import chapter

CHAPTER = chapter(4)
PIPELINE_WHY = "pipeline"  # the reason that dvc.yaml gives; a person gives another


@needs_store
def ran(evidence: Evidence, store: Store) -> Verdict:
    """Look whether all that dvc.lock names is here, and was logged to this tracking store."""
    pipeline = evidence.pipeline
    if pipeline.absent:
        count = f" and {len(pipeline.absent) - 1} more" if len(pipeline.absent) > 1 else ""
        return missing(f"{pipeline.absent[0]}{count} of its outputs are missing. Type `dvc repro` in {CHAPTER.folder}.")
    if pipeline.store is None or pipeline.store != store.identity:
        return missing(
            f"Its outputs are here, but were logged to another tracking store than that of {store.uri}, or to one that "
            f"was wiped. Type `dvc repro` in {CHAPTER.folder}."
        )
    return DONE


@needs_store
def ran_again(_: Evidence, store: Store) -> Verdict:
    """Look for a stage whose finished runs differ in a parameter."""
    stages = defaultdict(list)
    for run in store.stage_runs:
        if run.parent is None:  # else it is one of a sweep
            stages[run.tags[STAGE_TAG]].append(run.params)
    if any(params != runs[0] for runs in stages.values() for params in runs):
        return DONE
    return missing(
        f"No stage has two runs with different parameters. Change one in {CHAPTER.folder}/params.yaml, save the file, "
        "and type `dvc repro`. A stage that was run with these values before is taken from the cache: choose others."
    )


def by_person(move: Move) -> bool:
    """Tell whether somebody typed this promotion; the pipeline gives its name as the reason."""
    return move.action == FORCED or (move.action == PROMOTED and move.why != PIPELINE_WHY)


@needs_store
def promoted(_: Evidence, store: Store) -> Verdict:
    """Look for a promotion by a person."""
    if any(map(by_person, store.moves)):
        return DONE
    return missing(
        "The history knows of no promotion by a person. The gate may have refused it (exit code 3, and it says why): "
        "`workshop promote --force --why REASON` overrules it. `--dry-run` changes nothing."
    )


@needs_store
def rolled_back(_: Evidence, store: Store) -> Verdict:
    """Look for a rollback after a promotion by a person."""
    first = next((move.number for move in store.moves if by_person(move)), None)
    if first is None:
        return missing("It comes after a promotion of your own, which is not there yet.")
    if any(move.action == ROLLED_BACK and move.number > first for move in store.moves):
        return DONE
    return missing("What you promoted was not rolled back since. Type `workshop rollback`.")


def experiment(evidence: Evidence) -> Verdict:
    """Look for an experiment of DVC's."""
    if evidence.pipeline.experiments:
        return DONE
    return missing(
        f"DVC keeps no experiment here (`dvc exp show`). Type `dvc exp run` in {CHAPTER.folder}, with a changed "
        "parameter. One that was removed, or run in a scratch repository, is not seen."
    )


def pushed(evidence: Evidence) -> Verdict:
    """Look into the remote for the pipeline's files."""
    remote = evidence.pipeline.remote
    if remote is None:
        return missing("No remote is configured. Type `dvc remote add --local --default NAME FOLDER`, then `dvc push`.")
    if remote.holds is None:
        return unknown(f"The remote {remote.name} is no local folder, so nobody looked. Type `dvc status --cloud`.")
    if remote.holds == 0:
        return missing(f"The remote {remote.name} holds none of the pipeline's files. Type `dvc push`.")
    return DONE


STEPS = (
    Step("The pipeline ran here", CHAPTER.readme, ran, "Before you start"),
    Step("A stage ran again with a changed parameter", CHAPTER.readme, ran_again, "4. Change one parameter"),
    Step("A model promoted by you", CHAPTER.readme, promoted, "5. Watch the gate"),
    Step("Your promotion rolled back", CHAPTER.readme, rolled_back, "5. Watch the gate"),
    Step("Data pushed to a remote", CHAPTER.readme, pushed, "8. Keep data where others can fetch it"),
    Step("An experiment with dvc exp run", CHAPTER.readme, experiment, "9. Try values as experiments"),
)
