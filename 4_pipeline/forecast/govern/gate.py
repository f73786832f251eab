"""The pipeline's registered model and its promotion gate, on top of `mlflow_gate`."""

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

PIPELINE_WHY = "pipeline"  # the reason shown in the history for promotions by the pipeline
KINDS = ("data", "commit", "stage", "notebook", "run", "refit", "model", "decision", "production")


class Registry(mlflow_gate.Registry):
    """The registered model that predicts the targets of `problem`."""

    def __init__(self, client: MlflowClient | None = None) -> None:
        def load(files: Path) -> Any:
            from forecast.learn import storage  # imports scikit-learn

            return storage.load_files(files, str(files.name))

        tags, decision = ("mlflow_gate.", STAGE_TAG, COMMIT_TAG, DIRTY_TAG), project() / "results" / "decision.json"
        options: dict[str, Any] = {"load": load, "links": _links, "tags": tags, "decision": decision}
        super().__init__(problem.REGISTERED_MODEL, PRODUCTION, lambda: client or connect(), **options)


class Gate(mlflow_gate.Gate):
    """The gate with the limits in the `promote` section of params.yaml; it evaluates on data/test.parquet.

    ``policy`` replaces these limits, and ``held_out`` (a processed frame) replaces the rows of this file.
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
            from forecast.learn import evaluation  # imports scikit-learn

            return evaluation.evaluate(model, rows)

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
    """Refit a run's model on data/germany.parquet; return the new run's id and the new model's URI."""
    from forecast.learn import storage

    table, stage = "data/germany.parquet", run.data.tags.get(STAGE_TAG, run.info.run_name)
    facts = {"data": [table], "learned_from": table, "parameters": run.data.params, "refit_of": run.info.run_id}
    with contextlib.chdir(project()), tracking.start_run(stage, **facts) as refit_run:
        frame = processed.read(table)
        model = storage.load(model_uri).refit(frame, run.data.params)
        return refit_run.info.run_id, storage.log_model(model, frame.tail())


def _links(run: Run | None, tags: Mapping[str, str]) -> list[Link]:
    """Return the lineage links between commit and run: the stage and the executed notebook."""
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
    """Return the gate's rules that do not depend on the champion."""
    limits: dict[str, Any] = {}
    for target in problem.TARGETS:
        title, unit = target.words, target.unit
        low: dict[str, Any] = {"min": target.possible[0], "low": "below the possible range"}
        limits[target.metric("lowest")] = Rule(**low, name=f"lowest predicted {title}", unit=unit)
        limits[target.metric("r2")] = Rule(min=policy.min_r2[target.key], name=f"R2 of {title}")
        limits[target.metric("bias_percent")] = Rule(
            min=-policy.max_bias_percent,
            max=policy.max_bias_percent,
            name=f"mean error of {title}",
            unit="% of its mean" + " absolute value" * (target.possible[0] < 0),
            low="predictions are too low",
            high="predictions are too high",
        )
        if target.by_day:
            limit = policy.max_night[target.key]
            limits[target.metric("night")] = Rule(max=limit, name=f"mean {title} predicted at night", unit=unit)
    limits["latency_ms"] = Rule(max=policy.max_latency_ms, name=f"time to predict one {steps.NAME}", unit="ms")
    limits["size_MB"] = Rule(max=policy.max_size_MB, name="size of the model's files", unit="MB")
    return limits | {"inputs and outputs": _interface}


def _interface(scores: mlflow_gate.Scores) -> tuple[str, str, bool]:
    """Log the model with `forecast.learn.storage.log_model`, to give it the signature of the pipeline's models."""
    from forecast.learn.evaluation import SIGNATURES

    targets = " and ".join(f"{target.key} in {target.unit}" for target in problem.TARGETS)
    signature = scores.facts.get("signature")
    return str(signature), f"the inputs, or time and inputs, to {targets}", signature in SIGNATURES


def stage_of(production: Production) -> str | None:
    """Return the stage that trained the version in production; None if it was not trained by the pipeline."""
    return production.tags.get(STAGE_TAG)


def training_end(model: EvaluatedModel | None) -> str | None:
    """Return a model's last training timestamp, in ISO 8601; None if unknown."""
    return model.declared.get("last") if model else None


def refit_until(production: Production | None) -> str | None:
    """Return the last training timestamp of a refit in production; None if the version is not a refit."""
    return training_end(production) if production and production.refit_of else None


def source_of(production: Production | None) -> str | None:
    """Return the data source of the version in production; None if unknown."""
    return (production.declared.get("source") if production else None) or None
