"""Models that are loaded without running anything of theirs: skops with a fixed list of types, Keras in safe mode.

What their files may hold is checked before either opens them: see ``inspection`` and ``network``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from workshop.data.capacity import YEAR_ENDS_GW, YearEnds, last_year
from workshop.data.features import DERIVED, features, inputs
from workshop.data.files import checksum
from workshop.data.schema import FEATURES, TARGETS
from workshop.data.thresholds import USUAL_MEANS
from workshop.errors import ModelError
from workshop.models import inspection, source
from workshop.models.regressor import CapacityFactorNetwork, CapacityFactorRegressor

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

# What a scikit-learn model of ours may hold beyond skops' own list. Named here, never by the model: a file that
# says which types to trust could say anything.
TRUSTED_TYPES = [
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    "workshop.models.regressor.CapacityFactorRegressor",
]
SKLEARN_REQUIREMENTS = ("scikit-learn", "skops", "pandas", "numpy")
MODELS = "models:/"  # the scheme of logged models and of registered versions
DIGEST_TAG = "workshop.sha256"
MOST_PREDICTED_GW = 10_000.0  # above or below zero: a linear model says more for a storm than any country has
DERIVING_REQUIREMENTS = ("pvlib",)
KERAS_REQUIREMENTS = ("keras", "tensorflow", "pandas", "numpy")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to predict; ``kind`` is `sklearn` or `keras`.

    ``coverage`` is the share of hours that its error band was made to hold; None for a model that has no band.
    ``size_bytes`` is that of its files; None for one that has none yet. ``year_ends`` are the figures of installed
    capacity that it goes by; those of Germany for one that asks for none.
    """

    kind: str
    _predict: Callable[[pd.DataFrame], object]
    _inputs: Callable[[pd.DataFrame], pd.DataFrame] = features
    _predict_with_band: Callable[[pd.DataFrame], tuple] | None = None
    coverage: float | None = None
    size_bytes: int | None = None
    year_ends: YearEnds = field(default_factory=YEAR_ENDS_GW.copy)

    @classmethod
    def of(cls, model: object) -> LoadedModel:
        """Wrap a fitted scikit-learn or Keras model, so that it predicts as it will once it is loaded."""
        if isinstance(model, CapacityFactorNetwork):
            return cls("keras", model.predict, inputs, year_ends=model.year_ends_)
        if type(model).__module__.startswith("keras"):
            return cls("keras", lambda weather: model.predict(weather.to_numpy("float32"), verbose=0))
        if isinstance(model, CapacityFactorRegressor):
            band = (model.predict_with_band, model.coverage) if model.bands_ else ()
            return cls("sklearn", model.predict, inputs, *band, year_ends=model.year_ends_)
        return cls("sklearn", model.predict)

    @property
    def knows_time(self) -> bool:
        """Tell whether the hour matters to the model, besides its weather."""
        return self._inputs is inputs

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return ``solar_GW`` and ``wind_GW`` for each row (`features.INPUTS`), as a frame with the same index."""
        return self._frame(self._predict(self._inputs(frame)), frame)

    def predict_band(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame] | None:
        """Return the lower and the upper end of the model's error band, each as what `predict` returns.

        None for a model that does not say how unsure it is.
        """
        return self.predict_with_band(frame)[1]

    def predict_with_band(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[pd.DataFrame, pd.DataFrame] | None]:
        """Return what `predict` and `predict_band` return, computed once."""
        if self._predict_with_band is None:
            return self.predict(frame), None
        predicted, low, high = self._predict_with_band(self._inputs(frame))
        return self._frame(predicted, frame), (self._frame(low, frame), self._frame(high, frame))

    @staticmethod
    def _frame(values: object, frame: pd.DataFrame) -> pd.DataFrame:
        """Return predictions as a frame; raise ModelError for those that are no number, or that no country has."""
        import numpy as np
        import pandas as pd

        predicted = pd.DataFrame(values, index=frame.index, columns=TARGETS)
        numbers = predicted.to_numpy(float)
        plausible = np.abs(numbers) <= MOST_PREDICTED_GW  # NaN is not
        if not plausible.all():
            raise ModelError(
                "The model's predictions are not plausible.",
                value=f"{numbers[~plausible][0]:g} GW",
                expected=f"numbers from {-MOST_PREDICTED_GW:g} to {MOST_PREDICTED_GW:g} GW",
                next_step="workshop rollback",
            )
        return predicted


def requirements(names: tuple[str, ...]) -> list[str]:
    """Return exact pins of the installed versions, as MLflow's ``pip_requirements`` (inferring them takes 7 s)."""
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in names]


def log_model(model: object, example: pd.DataFrame) -> str:
    """Log a fitted scikit-learn or Keras model to the active run; return its `models:/` address.

    ``example`` are a few rows of the processed frame: from them come the signature (raw weather in, the two targets in
    GW out) and the input example. A model that derives features takes the code for it along, see ``source``.
    """
    import mlflow

    flavor, weather, digests = mlflow.sklearn, LoadedModel.of(model)._inputs(example), []

    def save_model(path: str, **options: Any) -> None:
        flavor.save_model(path=path, **options)
        digests.append(digest_of(Path(path)))  # of what is uploaded next

    with tempfile.TemporaryDirectory() as folder, _no_bytecode():
        if isinstance(model, CapacityFactorNetwork):
            flavor, options = mlflow.pyfunc, _network_options(model, weather, Path(folder))
        elif type(model).__module__.startswith("keras"):
            outputs = model.predict(weather.to_numpy("float32"), verbose=0)
            # float64, as frames and JSON bring it: a tensor signature is strict, one of float32 refuses every frame.
            signature = mlflow.models.infer_signature(weather.to_numpy(), outputs)
            options = {"model": model, "signature": signature, "pip_requirements": requirements(KERAS_REQUIREMENTS)}
            flavor = mlflow.keras
        else:
            options = {"sk_model": model} | _options(model, weather, Path(folder))
        saving = SimpleNamespace(save_model=save_model, __name__=flavor.__name__)
        logged = mlflow.models.Model.log(None, saving, name="model", **options)
    mlflow.MlflowClient().set_logged_model_tags(logged.model_id, {DIGEST_TAG: digests[0]})
    return logged.model_uri


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    """Keep Python from leaving `__pycache__` beside the code that MLflow tries out before it logs it with the model."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def digest_of(folder: Path) -> str:
    """Return the sha256 of a model's manifest: a line for each of its files, as `sha256sum` writes it, by name.

    It is kept with the model in the tracking database, so that whoever can change the files cannot change it.
    """
    added = inspection.ADDED_ON_DOWNLOAD
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in added)
    lines = [f"{checksum(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _options(model, weather: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Return how MLflow shall keep a scikit-learn model: with its signature and input example, by skops."""
    derives = isinstance(model, CapacityFactorRegressor)
    return _papers(model, weather) | {
        "skops_trusted_types": TRUSTED_TYPES,
        "pip_requirements": requirements(SKLEARN_REQUIREMENTS + DERIVING_REQUIREMENTS * derives),
        "code_paths": [str(source.copy_into(folder))] if derives else None,
    }


def _network_options(model: CapacityFactorNetwork, weather: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Return how MLflow shall keep a network that is given raw weather: its file, and what MLflow runs to serve it."""
    network, capacity = (folder / Path(file).name for file in (inspection.NETWORK_FILE, inspection.CAPACITY_FILE))
    model.network.save(network)
    capacity.write_text(json.dumps(model.year_ends_))
    return _papers(model, weather) | {
        "python_model": str(Path(__file__).with_name(inspection.SERVED_FILE)),
        "artifacts": {"network": str(network), "capacity": str(capacity)},
        "pip_requirements": requirements(KERAS_REQUIREMENTS + DERIVING_REQUIREMENTS),
        "code_paths": [str(source.copy_into(folder))],
    }


def _papers(model, weather: pd.DataFrame) -> dict[str, Any]:
    import mlflow
    import pandas as pd

    outputs = pd.DataFrame(model.predict(weather), index=weather.index, columns=TARGETS)
    return {"signature": mlflow.models.infer_signature(weather, outputs), "input_example": weather}


def rehearse() -> None:
    """Keep and load a throw-away model: MLflow and skops look up much the first time, which takes half a second.

    The warm processes of workers do it once for all kernels.
    """
    import mlflow
    import pandas as pd
    from sklearn.tree import DecisionTreeRegressor

    weather = pd.DataFrame([[0.0] * len(FEATURES), [1.0] * len(FEATURES)], columns=FEATURES)
    model = DecisionTreeRegressor().fit(weather, [[0.0] * len(TARGETS), [1.0] * len(TARGETS)])
    with tempfile.TemporaryDirectory() as folder:
        mlflow.sklearn.save_model(model, f"{folder}/model", **_options(model, weather, Path(folder)))
        load_folder(Path(folder, "model"), "rehearsal")


def load(model_uri: str) -> LoadedModel:
    """Fetch a model from the tracking server, load it and try it out; raise ModelError when it cannot be trusted.

    ``model_uri`` names a logged model (`models:/m-...`), or a version by its number or its alias.
    """
    import mlflow
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    from workshop.models.tracking import connect

    client = connect()
    # A folder of our own: MLflow leaves the one that it makes behind, and whoever follows the alias loads often.
    with tempfile.TemporaryDirectory() as folder:
        try:
            # An alias may move in between.
            model_uri = MODELS + "/".join(get_model_name_and_version(client, model_uri))
            fetched = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=folder))
        except (mlflow.exceptions.MlflowException, OSError, ImportError) as error:
            # ImportError: the files of a version registered by hand may be where only other packages can fetch them.
            raise ModelError(
                "The model cannot be fetched.", value=f"{model_uri}: {error}", next_step="workshop status"
            ) from None
        _check_digest(client, fetched, model_uri)
        size = sum(file.stat().st_size for file in fetched.rglob("*") if file.is_file())
        return replace(load_folder(fetched, model_uri), size_bytes=size)


def _check_digest(client: MlflowClient, folder: Path, model_uri: str) -> None:
    """Raise ModelError when a model's files are not those that were logged; one logged by other means has no digest."""
    from mlflow.exceptions import MlflowException

    *names, last = model_uri.removeprefix(MODELS).split("/")
    try:
        # A version's own field `model_id` is empty when it is read again; its source is the logged model.
        source = client.get_model_version(names[0], last).source if names else model_uri
        model_id = source.removeprefix(MODELS)
        is_logged = source.startswith(MODELS) and "/" not in model_id
        expected = client.get_logged_model(model_id).tags.get(DIGEST_TAG) if is_logged else None
    except MlflowException as error:
        raise ModelError(
            "The model's record cannot be read.", value=f"{model_uri}: {error.message}", next_step="workshop status"
        ) from None
    if expected is None:
        logger.warning("%s was logged by other means than `loading.log_model`: its files cannot be checked.", model_uri)
    elif (found := digest_of(folder)) != expected:
        raise ModelError(
            "The model's files are not those that were logged.",
            value=f"{model_uri}: sha256 {found[:16]}...",
            expected=f"sha256 {expected[:16]}..., as the tracking server has it",
            next_step="train and log it anew; find out who can write to the artifact store",
        )


def load_folder(folder: Path, name: str) -> LoadedModel:
    """Load a model from its local folder; ``name`` is what errors call it.

    Raise ModelError, before anything of the model is built, when its files hold what no model of ours has.
    """
    inspection.check_folder(folder, name)
    flavors = inspection.read_flavors(folder, name)
    source.compare(folder, name)
    sklearn = flavors.get("sklearn", {})
    if sklearn.get("serialization_format") == "skops" and sklearn.get("pickled_model") == inspection.SKOPS_FILE:
        return _tried_out(_load_skops(folder / inspection.SKOPS_FILE, name), name)
    if not sklearn and ("keras" in flavors or "tensorflow" in flavors):
        return _tried_out(_load_keras(folder / inspection.KERAS_FILE, name, FEATURES), name)
    if list(flavors) == ["python_function"] and (folder / inspection.NETWORK_FILE).is_file():
        year_ends = inspection.read_capacity(folder, name)
        network = _load_keras(folder / inspection.NETWORK_FILE, name, DERIVED)
        return _tried_out(CapacityFactorNetwork(network, year_ends), name)
    raise inspection.refusal(
        name,
        "The model is not of a kind that is loaded here.",
        f"{', '.join(flavors)} {sklearn.get('serialization_format', '')} {sklearn.get('pickled_model', '')}",
        f"scikit-learn saved by skops as {inspection.SKOPS_FILE}, or Keras; nothing that is unpickled",
    )


def _load_skops(file: Path, name: str):
    from skops.io import load as skops_load

    inspection.check_skops(file, name)
    try:
        model = skops_load(file, trusted=TRUSTED_TYPES)
        inspection.check_estimator(model, name)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the library makes of the file is told in words
        raise inspection.refusal(name, "The model's file is damaged.", repr(error)) from None
    return model


def _tried_out(fitted: object, name: str) -> LoadedModel:
    """Return a model that has predicted for two hours, of little and of much weather, of a year that it knows."""
    import pandas as pd

    model = LoadedModel.of(fitted)
    noon = pd.Timestamp(last_year(model.year_ends), 6, 1, 12, tz="UTC")
    weather = {feature: USUAL_MEANS[feature] for feature in FEATURES}
    try:
        model.predict_with_band(pd.DataFrame({"utc_timestamp": [noon, noon + pd.Timedelta(hours=12)], **weather}))
    except ModelError as error:
        error.value = f"{name}: {error.value}"
        raise
    except Exception as error:  # noqa: BLE001 - likewise
        raise inspection.refusal(name, "The model fails when it is asked.", repr(error)) from None
    return model


def _load_keras(file: Path, name: str, columns: list[str]):
    """Load a network that is given ``columns`` and returns a number for each target."""
    from workshop.models import network

    network.check_network(file, name)
    import keras

    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # noqa: BLE001 - whatever the library makes of the file is told in words
        raise inspection.refusal(name, "The Keras model cannot be loaded in safe mode.", repr(error)) from None
    shape, expected = (model.input_shape[-1], model.output_shape[-1]), (len(columns), len(TARGETS))
    if shape != expected:
        raise inspection.refusal(
            name,
            "The Keras model takes or returns something else.",
            "{} numbers to {}".format(*shape),
            f"{', '.join(columns)} to {', '.join(TARGETS)}",
        )
    return model
