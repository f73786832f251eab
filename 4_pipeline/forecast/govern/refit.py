"""Fit the recipe of a model again, on other hours: what the gate judged, before it goes into production."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from sklearn.base import clone

from forecast.errors import ModelError
from forecast.learn.models import CapacityFactorNetwork, fit_network
from forecast.learn.storage import LoadedModel
from forecast.table.features import targets, year_ends_of


def refit(model: LoadedModel, frame: pd.DataFrame, parameters: Mapping[str, str]) -> Any:
    """Return a model of the same kind and hyperparameters as ``model``, fitted on a processed frame.

    ``parameters`` are those of the run that trained it; a network needs its `epochs`, `learning_rate` and `seed`.
    Raises ModelError for a model that cannot be fitted again.
    """
    if isinstance(model.fitted, CapacityFactorNetwork):
        import keras

        try:
            epochs, rate, seed = int(parameters["epochs"]), float(parameters["learning_rate"]), int(parameters["seed"])
        except (KeyError, ValueError) as error:
            raise _refusal(f"its run has no usable parameter {error}") from None
        keras.utils.set_random_seed(seed)
        network = keras.models.clone_model(model.fitted.network)
        fit_network(network, frame, epochs=epochs, learning_rate=rate)
        return CapacityFactorNetwork(network, year_ends_of(frame))
    if model.kind == "keras":
        raise _refusal("a network that is no `CapacityFactorNetwork`")
    return clone(model.fitted).fit(model.select_inputs(frame), targets(frame))


def _refusal(value: str) -> ModelError:
    return ModelError(
        "The model cannot be fitted again on all hours.",
        value=value,
        expected="a scikit-learn model, or a `CapacityFactorNetwork` whose run logged epochs, learning_rate and seed",
        next_step="set promote.refit to false in params.yaml, or teach forecast/govern/refit.py this kind of model",
    )
