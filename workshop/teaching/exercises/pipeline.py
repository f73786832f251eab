"""The exercises of chapter 4: what a change touches, the notebook behind production, and why the gate refuses."""

from __future__ import annotations

import json

from workshop.models.tracking import connect
from workshop.settings import PRODUCTION, REGISTERED_MODEL, get_settings
from workshop.teaching.exercises import exercise

CHANGED = "split"
ASKED = "train_linreg"


@exercise("4.1", "the stages that a change can touch")
def touched_stages(answer: set[str]) -> str | None:
    """Compare with what `dvc.yaml` says: a stage is touched when it reads what a touched one writes."""
    import yaml

    if (problem := _not_names(answer)) is not None:
        return problem
    stages = yaml.safe_load((get_settings().pipeline / "dvc.yaml").read_text())["stages"]
    touched = {CHANGED}
    for _ in stages:
        written = {path for name in touched for kind in ("outs", "metrics") for path in _paths(stages[name], kind)}
        touched |= {name for name, stage in stages.items() if written & set(_paths(stage, "deps"))}
    if unknown := set(answer) - set(stages):
        return f"there is no stage {', '.join(map(repr, sorted(unknown)))}: the names stand in dvc.yaml."
    if set(answer) - touched:
        return "one of these reads nothing that the change can reach: follow the arrows from `split` on."
    if touched - set(answer):
        return "some are missing: `split` itself runs, and so does what reads the output of what runs."
    return None


@exercise("4.2", "the executed notebook behind the model in production")
def notebook_of_production(answer: tuple[str, str]) -> str | None:
    """Compare (run id, artifact path) with the run of the version in production, and what lies in its artifacts."""
    from mlflow.exceptions import MlflowException

    if not isinstance(answer, tuple | list) or len(answer) != 2:
        return "`answer` is not a pair: it should be (run_id, path)."
    client = connect()
    try:
        run_id = client.get_model_version_by_alias(REGISTERED_MODEL, PRODUCTION).run_id
    except MlflowException:
        return "nothing is in production yet: run `dvc repro` in 4_pipeline."
    notebooks = [file.path for file in client.list_artifacts(run_id, "notebook")]
    if not notebooks:
        return "the run in production is none of the pipeline's and has no executed notebook: `workshop rollback`."
    if answer[0] != run_id:
        return "this is not the run of the version in production: look at the alias `production`."
    if answer[1] not in notebooks:
        return "the run has no such artifact: list its folder `notebook`, and take the whole path."
    return None


@exercise("4.3", "the rules by which the gate refuses the linear regression")
def failed_rules(answer: set[str]) -> str | None:
    """Ask the gate about the linear regression, as `workshop promote --dry-run` does, and compare what fails."""
    from workshop.data import schema
    from workshop.models import registry
    from workshop.parameters import read_stage

    if (problem := _not_names(answer)) is not None:
        return problem
    pipeline = get_settings().pipeline
    try:
        asked = json.loads((pipeline / "results" / f"{ASKED}.json").read_text())
    except FileNotFoundError:
        return f"results/{ASKED}.json is not there: run `dvc repro` in 4_pipeline."
    limits = read_stage(pipeline / "params.yaml", "promote")
    held_out = schema.read(pipeline / "data" / "test.parquet")
    verdict, _ = registry.judge(asked["run_id"], asked["model_uri"], held_out, limits)
    failed = {rule.name for rule in verdict.rules if not rule.passed}
    known = {rule.name for rule in verdict.rules}
    if unknown := set(answer) - known:
        return f"the gate has no rule {', '.join(map(repr, sorted(unknown)))}: it asked {', '.join(sorted(known))}."
    if set(answer) - failed:
        return "one of these rules passed: look at its verdict again."
    if failed - set(answer):
        return "the model fails at least one more rule: look at each verdict."
    return None


def _not_names(answer: object) -> str | None:
    """Return what is wrong with an answer that should be a set of names."""
    if isinstance(answer, set | list | tuple | frozenset) and all(isinstance(name, str) for name in answer):
        return None if answer else "`answer` is empty: it should be a set of names."
    return f"`answer` should be a set of names, and is of type {type(answer).__name__}."


def _paths(stage: dict, kind: str) -> list[str]:
    """Return the paths of a stage's `deps`, `outs` or `metrics`, without their flags."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in stage.get(kind, [])]
