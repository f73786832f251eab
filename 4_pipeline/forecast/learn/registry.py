"""The registered model of the problem: what `mlflow_gate` must know of it to judge, move and trace it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import mlflow_gate
import pandas as pd
from mlflow_gate import Contest, Decision, Learned, Link, Production
from mlflow_gate.rules import Limits

from forecast import problem
from forecast.table import schema
from forecast.store import connect
from forecast.tracking import (
    CODE_TAG,
    COMMIT_TAG,
    DATA_TAG,
    DIRTY_TAG,
    EXPERIMENT_TAG,
    LEARNED_TAG,
    OVERRIDES_TAG,
    learned,
    learned_from,
    learned_hash,
)
from forecast.parameters import read_stage
from forecast.problem import REGISTERED_MODEL
from workshop.settings import PRODUCTION, STAGE_TAG, get_settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from forecast.parameters import Promote

PIPELINE_WHY = "pipeline"  # the reason that the pipeline gives for a promotion; a person gives another
LINEAGE_TAGS = (
    DATA_TAG, LEARNED_TAG, STAGE_TAG, CODE_TAG, COMMIT_TAG, DIRTY_TAG, EXPERIMENT_TAG, OVERRIDES_TAG,
)  # fmt: skip
METRIC = "r2"


class Registry(mlflow_gate.Registry):
    """The registered model with the rules of the section `promote` of params.yaml, judged on data/test.parquet.

    Other limits and other hours are given by ``policy`` and ``held_out``, a processed frame.
    """

    def __init__(
        self, policy: Promote | None = None, held_out: pd.DataFrame | None = None, client: MlflowClient | None = None
    ) -> None:
        from forecast.learn.evaluation import judge  # imports scikit-learn

        results = get_settings().pipeline / "results"
        super().__init__(
            REGISTERED_MODEL,
            PRODUCTION,
            evaluate=judge,
            held_out=lambda: _by_hour(
                schema.read(results.parent / "data" / "test.parquet") if held_out is None else held_out
            ),
            contest=Contest(METRIC, name="R2"),
            tags=LINEAGE_TAGS,
            candidate=results / "candidate.json",
            decision=results / "decision.json",
        )
        self._policy, self._client = policy, client

    def connect(self) -> MlflowClient:
        """Return a client; raise ServiceError within seconds when the tracking server does not answer."""
        return connect()

    def load(self, model_uri: str) -> Any:
        """Load a model without running its code; raise ModelError when it cannot be trusted."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's words on this machine's processor
        from forecast.learn import storage# imports scikit-learn

        return storage.load(model_uri, self.client)

    def learned(self, _run_id: str, tags: Mapping[str, str]) -> Learned | None:
        """Return the hours that a run's model learned from; None when its tags do not say these and the table."""
        hours, source = learned(tags), learned_from(tags) or ""
        if hours is None or learned_hash(tags) is None:
            return None
        population = "modelled" if source.startswith("modelled ") else "measured"
        return Learned(*hours, source=source, population=population)

    def judge(self, run_id: str, model_uri: str | None = None) -> tuple[Decision, Production | None]:
        """Put a candidate before the gate; raise ParameterError when params.yaml cannot be read."""
        policy = self._policy or read_stage(get_settings().pipeline / "params.yaml", "promote")
        self.rules = rules(policy)
        limits = {name: getattr(policy, name) for name in ("min_gain", "near_tie", "alpha", "max_gain")}
        self.contest = Contest(METRIC, name="R2", **limits)
        return super().judge(run_id, model_uri)

    def origin(self, run: Run | None, tags: Mapping[str, str]) -> list[Link]:
        """Return the links of a model's lineage up to its run."""
        from forecast.learn import lineage

        return lineage.origin(run, tags)

    @property
    def checks(self) -> dict:
        """The check of each kind of link."""
        from forecast.learn import lineage

        return super().checks | lineage.CHECKS


def rules(policy: Promote) -> dict[str, Any]:
    """Return the rules of the gate that do not depend on the model in production."""
    limits: dict[str, Any] = {
        "lowest_GW": Limits(min=0, name="lowest predicted power", unit="GW", low="power below zero")
    }
    for target in problem.TARGETS:
        limits[target.r2] = Limits(min=getattr(policy, f"min_{target.r2}"), name=f"R2 of {target.words}")
        limits[target.bias] = Limits(
            min=-policy.max_bias_percent,
            max=policy.max_bias_percent,
            name=f"mean error of {target.words}",
            unit="% of its mean",
            low="too little is predicted",
            high="too much is predicted",
        )
        if target.by_day:
            most = getattr(policy, f"max_{target.night}")
            limits[target.night] = Limits(max=most, name=f"mean {target.words} predicted at night", unit="GW")
    limits["latency_ms"] = Limits(max=policy.max_latency_ms, name="time to predict one hour", unit="ms")
    limits["size_MB"] = Limits(max=policy.max_size_MB, name="size of the model's files", unit="MB")
    return limits | {"inputs and outputs": _interface}


def _interface(scores: mlflow_gate.Scores) -> tuple[str, str, bool]:
    """Log the model with the signature of chapter 4: `forecast.learn.storage.log_model`."""
    from forecast.learn.evaluation import SIGNATURES

    targets = " and ".join(target.key for target in problem.TARGETS)
    signature = scores.facts.get("signature")
    return str(signature), f"weather, or hour and weather, to GW of {targets}", signature in SIGNATURES


def production(known: Production | None = None, client: MlflowClient | None = None) -> Production | None:
    """Return the version in production, or None; ``known`` is the last answer that the caller got."""
    return Registry(client=client).production(known)


def stage_of(production: Production) -> str | None:
    """Return the stage that trained the version in production; None for one of another origin."""
    return production.tags.get(STAGE_TAG)


def learned_until(production: Production) -> str | None:
    """Return the start of the last hour that the version in production learned from, in ISO 8601; None if unknown."""
    return (learned(production.tags) or (None, None))[1]


def _by_hour(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a processed frame whose index names its hours."""
    return frame.set_axis(pd.DatetimeIndex(frame["utc_timestamp"], name="hour"))
