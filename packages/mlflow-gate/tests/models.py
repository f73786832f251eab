"""Small models that are trained, logged and loaded like any other, and a gate for them.

A model predicts a constant, which is its mean absolute error: the target is zero on average, in eight blocks of rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlflow
import pandas as pd
import sklearn
from mlflow_gate import Comparison, Gate, Registry, Scores, log_learned
from sklearn.dummy import DummyRegressor

BLOCK_ROWS = 12
HELD_OUT = pd.DataFrame({"target": [(-1) ** (row // BLOCK_ROWS) * 0.1 for row in range(96)]}, index=range(1200, 1296))
LEARNED = range(100)


def evaluate(model: Any, held_out: pd.DataFrame) -> Scores:
    """Return the mean absolute error of all rows and of each block of rows."""
    errors = (held_out["target"] - model.predict(held_out)).abs()
    return Scores({"mae": errors.mean()}, blocks=errors.groupby(errors.index // BLOCK_ROWS).mean())


def train(constant: float, learned: Iterable[Any] | None = LEARNED, **declared: Any) -> str:
    """Log a model that predicts a constant; return its run id."""
    return train_models(constant, learned=learned, **declared)[0]


def train_models(*constants: float, learned: Iterable[Any] | None = LEARNED, **declared: Any) -> list[str]:
    """Log models that predict constants in one run; return the run id and the URI of each model."""
    with mlflow.start_run() as run:
        pins, uris = [f"scikit-learn=={sklearn.__version__}"], []
        for number, constant in enumerate(constants):
            model, name = DummyRegressor(strategy="constant", constant=constant).fit([[0]], [0]), f"model{number or ''}"
            uris.append(mlflow.sklearn.log_model(model, name=name, pip_requirements=pins).model_uri)
        if learned is not None:
            log_learned(learned, **declared)
    return [run.info.run_id, *uris]


def make_gate(name: str = "models", **options: Any) -> Gate:
    """Return a gate that allows errors up to 5; its comparison has near-ties up to 0.01."""
    registry_options = {key: options.pop(key) for key in ("load", "decision", "time_limit") if key in options}
    comparison = Comparison("mae", higher_is_better=False, near_tie=0.01)
    gate = {"evaluate": evaluate, "held_out": HELD_OUT, "rules": {"mae": {"max": 5}}, "comparison": comparison}
    return Gate(Registry(name, **registry_options), **(gate | options))
