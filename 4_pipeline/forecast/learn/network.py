"""Keras networks: fit, log, load in safe mode, and refit. The rest of the package works without Keras."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forecast.learn.models import LOWER_BOUNDS
from forecast.table.features import capacity_factors, derive, installed, year_ends_of
from forecast.table.schema import TARGETS
from forecast.table.split import split_by_time
from forecast.terms.errors import ModelError
from forecast.terms.quantities import YearEnds

VALIDATION_FRACTION, PATIENCE_EPOCHS = 0.15, 6
PREDICT_BATCH = 4096  # several times faster than Keras's default of 32
# The layers that a model may contain. Safe mode rejects Python code, but some Keras layers read files (CVE-2025-12058).
TRUSTED_LAYERS = {
    "keras": {"Sequential", "DTypePolicy"},
    "keras.initializers": {"Constant", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "Ones", "Zeros"},
    "keras.layers": {"Activation", "BatchNormalization", "Dense", "Dropout", "InputLayer", "Normalization"},
    "keras.regularizers": {"L1", "L1L2", "L2"},
}
MEMBERS = {"config.json", "metadata.json", "model.weights.h5"}
# Files in MLflow's model folder: a plain Keras model, or a `CapacityFactorNetwork` (next to it, capacity.json).
KERAS_FILE, NETWORK_FILE = "data/model.keras", "data/capacity_factors/network.keras"


class CapacityFactorNetwork:
    """A fitted Keras network that predicts capacity factors, wrapped to predict the targets from raw weather.

    ``year_ends`` are the installed capacities of its training data (`features.year_ends_of`).
    """

    def __init__(self, network: Any, year_ends: YearEnds) -> None:
        self.network = network
        self.year_ends_ = year_ends

    def predict(self, X: pd.DataFrame) -> pd.DataFrame:
        """Return the predicted targets; raise the same errors as `features.derive`."""
        factors = self.network.predict(derive(X).to_numpy("float32"), batch_size=PREDICT_BATCH, verbose=0)
        powers = np.clip(factors * installed(X, self.year_ends_).to_numpy(), LOWER_BOUNDS, None)
        return pd.DataFrame(powers, index=X.index, columns=TARGETS)


def fit_network(
    network: Any, frame: pd.DataFrame, *, epochs: int, learning_rate: float, callbacks: Sequence[Any] = ()
) -> dict[str, list[float]]:
    """Fit a network that maps `features.DERIVED` to capacity factors on a processed frame; return the loss history.

    The last 15 % of the rows are the validation set for early stopping, with a patience of six epochs; the best weights
    are restored. Normalization layers are adapted to the training rows.
    """
    import keras

    (train, validation), size = split_by_time(frame, VALIDATION_FRACTION), {"batch_size": 512, "verbose": 0}
    derived, validation_derived = (derive(part).to_numpy("float32") for part in (train, validation))
    factors, validation_factors = (capacity_factors(part).to_numpy("float32") for part in (train, validation))
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.adapt(derived)
    network.compile(optimizer=keras.optimizers.Adam(learning_rate), loss="mse", steps_per_execution=16)
    stop = keras.callbacks.EarlyStopping(patience=PATIENCE_EPOCHS, restore_best_weights=True)
    options = {"validation_data": (validation_derived, validation_factors), "callbacks": [stop, *callbacks]} | size
    return network.fit(derived, factors, epochs=epochs, **options).history


def refit(model: Any, frame: pd.DataFrame, parameters: Mapping[str, str]) -> CapacityFactorNetwork:
    """Return a network with the same layers, fitted on a processed frame with the parameters of the original run.

    Raises ModelError if ``model`` is of another type, or if `epochs`, `learning_rate` or `seed` is missing or invalid.
    """
    import keras

    try:
        epochs, rate, seed = int(parameters["epochs"]), float(parameters["learning_rate"]), int(parameters["seed"])
        keras.utils.set_random_seed(seed)
        network = keras.models.clone_model(model.network)
    except (AttributeError, KeyError, ValueError) as error:
        raise ModelError(
            "The model cannot be refitted.",
            value=f"{type(error).__name__}: {error}",
            expected="a `CapacityFactorNetwork` whose run logged epochs, learning_rate and seed",
            next_step="set promote.refit to false in params.yaml, or add this model type to forecast/learn/network.py",
        ) from None
    fit_network(network, frame, epochs=epochs, learning_rate=rate)
    return CapacityFactorNetwork(network, year_ends_of(frame))


# -- logging and loading -----------------------------------------------------------------------------------------------
def options(model: Any, folder: Path) -> dict[str, Any]:
    """Save a network to ``folder`` and return the arguments of `mlflow.pyfunc.log_model` for it."""
    if not isinstance(model, CapacityFactorNetwork):
        raise ModelError("Only a `CapacityFactorNetwork` can be logged.", value=type(model))
    files = folder / Path(NETWORK_FILE).parent.name
    files.mkdir()
    model.network.save(files / "network.keras")
    (files / "capacity.json").write_text(json.dumps(model.year_ends_))
    return {"loader_module": __name__, "data_path": str(files), "pip_requirements": requirements()}


def requirements() -> list[str]:
    """Return pinned requirements; an installed `tensorflow-cpu` is required on x86_64 Linux, `tensorflow` elsewhere."""
    pins = [f"{name}=={version(name)}" for name in ("keras", "pandas", "numpy", "pvlib")]
    try:
        pin = version("tensorflow-cpu")
    except PackageNotFoundError:
        return [*pins, f"tensorflow=={version('tensorflow')}"]
    pins.append(f"tensorflow-cpu=={pin}; sys_platform == 'linux' and platform_machine == 'x86_64'")
    return [*pins, f"tensorflow=={pin}; sys_platform != 'linux' or platform_machine != 'x86_64'"]


def _load_pyfunc(path: str) -> CapacityFactorNetwork:
    """Load a network for `mlflow models serve`, which calls a function of this name.

    https://mlflow.org/docs/latest/api_reference/python_api/mlflow.pyfunc.html#filesystem-format
    """
    return read_network(Path(path, "network.keras"))


def read_network(file: Path) -> CapacityFactorNetwork:
    """Read a network and its installed capacities; raise the same errors as `read_keras`."""
    return CapacityFactorNetwork(read_keras(file), json.loads(file.with_name("capacity.json").read_text()))


def read_keras(file: Path) -> Any:
    """Read a Keras model without running its code; raise ModelError for an untrusted layer or file."""
    with zipfile.ZipFile(file) as archive:
        kinds, members = set(_kinds(json.loads(archive.read("config.json")))), set(archive.namelist())
    trusted = {f"{module}.{name}" for module, names in TRUSTED_LAYERS.items() for name in names}
    if untrusted := (kinds - trusted) | (members - MEMBERS):
        names, expected = ", ".join(sorted(untrusted)), ", ".join(trusted)
        raise ModelError("The Keras model contains untrusted layers or files.", value=names[:500], expected=expected)
    import keras

    return keras.saving.load_model(file, compile=False, safe_mode=True)


def _kinds(part: Any) -> Iterator[str]:
    """Yield the class names in part of a Keras model's config, except those in `compile_config` (training only)."""
    if isinstance(part, list):
        for inner in part:
            yield from _kinds(inner)
    elif isinstance(part, dict):
        if "class_name" in part:
            registered = f" registered as {name}" if (name := part.get("registered_name")) else ""
            yield f"{part.get('module')}.{part['class_name']}{registered}"
        for key, inner in part.items():
            if key != "compile_config":
                yield from _kinds(inner)


READERS = {KERAS_FILE: read_keras, NETWORK_FILE: read_network}
