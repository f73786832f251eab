"""Models that are loaded without running anything of theirs: skops with a fixed list of types, Keras in safe mode."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from workshop.data.features import features
from workshop.data.schema import FEATURES, TARGETS
from workshop.errors import ModelError

if TYPE_CHECKING:
    import pandas as pd

# What a scikit-learn model of ours may hold beyond skops' own list. Named here, never by the model: a file that
# says which types to trust could say anything.
TRUSTED_TYPES = ["sklearn.tree._tree.Tree"]
SKLEARN_REQUIREMENTS = ("scikit-learn", "skops", "pandas", "numpy")
KERAS_REQUIREMENTS = ("keras", "tensorflow", "pandas", "numpy")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to predict; ``kind`` is `sklearn` or `keras`."""

    kind: str
    _predict: Callable[[pd.DataFrame], object]

    @classmethod
    def of(cls, model: object) -> LoadedModel:
        """Wrap a fitted scikit-learn or Keras model, so that it predicts as it will once it is loaded."""
        if type(model).__module__.startswith("keras"):
            return cls("keras", lambda inputs: model.predict(inputs.to_numpy("float32"), verbose=0))
        return cls("sklearn", model.predict)

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return ``solar_GW`` and ``wind_GW`` for each row of weather, as a frame with the same index."""
        import pandas as pd

        return pd.DataFrame(self._predict(features(frame)), index=frame.index, columns=TARGETS)


def requirements(names: tuple[str, ...]) -> list[str]:
    """Return exact pins of the installed versions, as MLflow's ``pip_requirements`` (inferring them takes 7 s)."""
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in names]


def log_model(model: object, example: pd.DataFrame) -> str:
    """Log a fitted scikit-learn or Keras model to the active run; return its `models:/` address.

    ``example`` are a few rows of the processed frame: from them come the signature (the four features in, the
    two targets in GW out) and the input example.
    """
    import mlflow

    inputs = features(example)
    if type(model).__module__.startswith("keras"):
        outputs = model.predict(inputs.to_numpy("float32"), verbose=0)
        # float64, as frames and JSON bring it: a tensor signature is strict, and one of float32 refuses every frame.
        signature = mlflow.models.infer_signature(inputs.to_numpy(), outputs)
        return mlflow.keras.log_model(
            model, name="model", signature=signature, pip_requirements=requirements(KERAS_REQUIREMENTS)
        ).model_uri
    return mlflow.sklearn.log_model(model, name="model", **_options(model, inputs)).model_uri


def _options(model, inputs: pd.DataFrame) -> dict[str, Any]:
    """Return how MLflow shall keep a scikit-learn model: with its signature and input example, by skops."""
    import mlflow
    import pandas as pd

    outputs = pd.DataFrame(model.predict(inputs), index=inputs.index, columns=TARGETS)
    return {
        "signature": mlflow.models.infer_signature(inputs, outputs),
        "input_example": inputs,
        "skops_trusted_types": TRUSTED_TYPES,
        "pip_requirements": requirements(SKLEARN_REQUIREMENTS),
    }


def rehearse() -> None:
    """Keep and load a throw-away model: MLflow and skops look up much the first time, which takes half a second.

    The warm processes of workers do it once for all kernels.
    """
    import mlflow
    import pandas as pd
    from sklearn.tree import DecisionTreeRegressor

    inputs = pd.DataFrame([[0.0] * len(FEATURES), [1.0] * len(FEATURES)], columns=FEATURES)
    model = DecisionTreeRegressor().fit(inputs, [[0.0] * len(TARGETS), [1.0] * len(TARGETS)])
    with tempfile.TemporaryDirectory() as folder:
        mlflow.sklearn.save_model(model, f"{folder}/model", **_options(model, inputs))
        load_folder(Path(folder, "model"), "rehearsal")


def load(model_uri: str) -> LoadedModel:
    """Fetch a model from the tracking server and load it; raise ModelError when it is not of a trusted kind."""
    import mlflow

    from workshop.models.tracking import connect

    connect()
    # A folder of our own: MLflow leaves the one that it makes behind, and whoever follows the alias loads often.
    with tempfile.TemporaryDirectory() as folder:
        try:
            fetched = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=folder))
        except mlflow.exceptions.MlflowException as error:
            raise ModelError(
                "The model cannot be fetched.", value=f"{model_uri}: {error.message}", next_step="workshop status"
            ) from None
        return load_folder(fetched, model_uri)


def load_folder(folder: Path, name: str) -> LoadedModel:
    """Load a model from its local folder; ``name`` is what errors call it."""
    try:
        flavors = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ModelError("The model has no readable MLmodel file.", value=f"{name}: {error}") from None
    if "sklearn" in flavors and flavors["sklearn"].get("serialization_format") == "skops":
        file = _inside(folder, flavors["sklearn"]["pickled_model"], name)
        return LoadedModel.of(_load_skops(file, name))
    if "keras" in flavors or "tensorflow" in flavors:
        return LoadedModel.of(_load_keras(folder, name))
    raise ModelError(
        "The model is not of a kind that is loaded here.",
        value=f"{name}: {', '.join(flavors)}",
        expected="scikit-learn saved by skops, or Keras; nothing that is unpickled",
        next_step="log it with workshop.models.loading.log_model",
    )


def _inside(folder: Path, relative: str, name: str) -> Path:
    file = (folder / relative).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ModelError("The model names a file outside its own folder.", value=f"{name}: {relative}")
    return file


def _load_skops(file: Path, name: str):
    import zipfile

    from skops.io import get_untrusted_types
    from skops.io import load as skops_load
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        unknown = set(get_untrusted_types(file=file)) - set(TRUSTED_TYPES)
        if unknown:
            raise ModelError(
                "The model holds types that are not trusted.",
                value=f"{name}: {', '.join(sorted(unknown))}",
                expected=f"scikit-learn's own and {', '.join(TRUSTED_TYPES)}",
            )
        return skops_load(file, trusted=TRUSTED_TYPES)
    except (OSError, zipfile.BadZipFile, UntrustedTypesFoundException, KeyError, TypeError, ValueError) as error:
        raise ModelError("The model's file is damaged.", value=f"{name}: {error}") from None


def _load_keras(folder: Path, name: str):
    import keras

    files = sorted(folder.rglob("*.keras"))
    if len(files) != 1:
        raise ModelError("The model holds no single .keras file.", value=f"{name}: {len(files)} of them")
    try:
        return keras.saving.load_model(files[0], compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError("The Keras model cannot be loaded in safe mode.", value=f"{name}: {error}") from None
