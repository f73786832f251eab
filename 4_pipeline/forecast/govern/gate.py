"""The registered model of the problem: what `mlflow_gate` must know of it to judge, move and trace it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow_gate
import pandas as pd
from mlflow_gate import Comparison, Link, Production, Rule
from papermill_dask import COMMIT_TAG, NOTEBOOK_TAG, PAGE_TAG

from forecast import problem, tracking
from forecast.table import processed
from forecast.terms import steps
from forecast.terms.parameters import FILE, project, read_stage
from forecast.tracking import DIRTY_TAG, PRODUCTION, STAGE_TAG, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow_gate import EvaluatedModel

    from forecast.terms.parameters import Promote

PIPELINE_WHY = "pipeline"  # the reason that the pipeline gives for a promotion; a person gives another
KINDS = ("data", "commit", "stage", "notebook", "run", "refit", "model", "decision", "production")


class Registry(mlflow_gate.Registry):
    """The registered model of the problem."""

    def __init__(self, client: MlflowClient | None = None) -> None:
        def load(files: Path) -> Any:
            from forecast.learn import storage  # imports scikit-learn

            return storage.load_files(files, str(files.name))

        tags, decision = ("mlflow_gate.", STAGE_TAG, COMMIT_TAG, DIRTY_TAG), project() / "results" / "decision.json"
        options: dict[str, Any] = {"load": load, "links": _links, "tags": tags, "decision": decision}
        super().__init__(problem.REGISTERED_MODEL, PRODUCTION, lambda: client or connect(), **options)


class Gate(mlflow_gate.Gate):
    """The gate with the rules of the section `promote` of params.yaml, on the hours of data/test.parquet.

    Other limits and other hours are given by ``policy`` and ``held_out``, a processed frame.
    """

    def __init__(
        self, policy: Promote | None = None, held_out: pd.DataFrame | None = None, client: MlflowClient | None = None
    ) -> None:
        folder = project()

        def limits() -> Promote:
            return policy or read_stage(folder / FILE, "promote")

        def comparison() -> Comparison:
            fields = {"min_gain", "near_tie", "alpha", "max_gain"}
            return Comparison("r2", name="R2", **limits().model_dump(include=fields))

        def evaluate(model: Any, rows: pd.DataFrame) -> mlflow_gate.Scores:
            from forecast.learn.evaluation import judge  # imports scikit-learn

            return judge(model, rows)

        def hours() -> pd.DataFrame:
            frame = processed.read(folder / "data" / "test.parquet") if held_out is None else held_out
            return frame.set_axis(pd.DatetimeIndex(frame["utc_timestamp"], name="hour"))

        super().__init__(
            Registry(client),
            evaluate,
            hours,
            lambda: rules(limits()),
            comparison,
            lambda run, model_uri: _refit(run, model_uri) if limits().refit else None,
            candidate=folder / "results" / "candidate.json",
        )


def _refit(run: Run, model_uri: str) -> tuple[str, str]:
    """Fit the recipe of a run on data/germany.parquet; return run and model of that fit."""
    from forecast.learn import storage

    table, stage = "data/germany.parquet", run.data.tags.get(STAGE_TAG, run.info.run_name)
    facts = {"data": [table], "learned_from": table, "parameters": run.data.params, "refit_of": run.info.run_id}
    with contextlib.chdir(project()), tracking.start_run(stage, **facts) as fitted:
        frame = processed.read(table)
        model = storage.load(model_uri).refit(frame, run.data.params)
        return fitted.info.run_id, storage.log_model(model, frame.tail())


def _links(run: Run | None, tags: Mapping[str, str]) -> list[Link]:
    """Return the links of a model's lineage between its commit and its run: stage and executed notebook."""
    stage, notebook = (Link(kind, "not recorded", known=False) for kind in ("stage", "notebook"))
    if STAGE_TAG in tags:
        stage = Link("stage", tags[STAGE_TAG], dict(sorted(run.data.params.items())) if run else {})
    names = [name.removeprefix(NOTEBOOK_TAG) for name in tags if name.startswith(NOTEBOOK_TAG)]
    if names and run is not None:
        path = f"notebook/{names[0]}"
        url = tracking.run_url(run.info.run_id, run.info.experiment_id)
        url = url and f"{url}/artifacts/{tags.get(PAGE_TAG + names[0], path)}"
        notebook = Link("notebook", names[0], {"artifact": path, "sha256": tags[NOTEBOOK_TAG + names[0]]}, url=url)
    return [stage, notebook]


def rules(policy: Promote) -> dict[str, Any]:
    """Return the rules of the gate that do not depend on the model in production."""
    limits: dict[str, Any] = {}
    for target in problem.TARGETS:
        words, unit = target.words, target.unit
        low: dict[str, Any] = {"min": target.possible[0], "low": "less than is possible"}
        limits[target.metric("lowest")] = Rule(**low, name=f"lowest predicted {words}", unit=unit)
        limits[target.metric("r2")] = Rule(min=policy.min_r2[target.key], name=f"R2 of {words}")
        limits[target.metric("bias_percent")] = Rule(
            min=-policy.max_bias_percent,
            max=policy.max_bias_percent,
            name=f"mean error of {words}",
            unit="% of its mean" + " absolute value" * (target.possible[0] < 0),
            low="too little is predicted",
            high="too much is predicted",
        )
        if target.by_day:
            most = policy.max_night[target.key]
            limits[target.metric("night")] = Rule(max=most, name=f"mean {words} predicted at night", unit=unit)
    limits["latency_ms"] = Rule(max=policy.max_latency_ms, name=f"time to predict one {steps.NAME}", unit="ms")
    limits["size_MB"] = Rule(max=policy.max_size_MB, name="size of the model's files", unit="MB")
    return limits | {"inputs and outputs": _interface}


def _interface(scores: mlflow_gate.Scores) -> tuple[str, str, bool]:
    """Log the model with the signature of the pipeline's models: `forecast.learn.storage.log_model`."""
    from forecast.learn.evaluation import SIGNATURES

    targets = " and ".join(f"{target.key} in {target.unit}" for target in problem.TARGETS)
    signature = scores.facts.get("signature")
    return str(signature), f"the inputs, or time and inputs, to {targets}", signature in SIGNATURES


def stage_of(production: Production) -> str | None:
    """Return the stage that trained the version in production; None for one of another origin."""
    return production.tags.get(STAGE_TAG)


def learned_until(model: EvaluatedModel | None) -> str | None:
    """Return the start of the last hour that a model learned from, in ISO 8601; None if unknown."""
    return model.declared.get("last") if model else None


def refit_until(production: Production | None) -> str | None:
    """Return the start of the last hour that a refit in production learned; None if the version is no refit."""
    return learned_until(production) if production and production.refit_of else None


def source_of(production: Production | None) -> str | None:
    """Return the name of the source that the version in production learned from; None if unknown."""
    return (production.declared.get("source") if production else None) or None
