"""Log models, and load them without running their code: with skops and a list of trusted types, or with `network`."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.base import clone

from forecast import problem
from forecast.learn.models import CapacityFactorRegressor, one_thread
from forecast.table.features import features, inputs, last_year, targets
from forecast.table.schema import CAPACITIES, FEATURES, QUANTITIES, RANGES, TARGETS, UNITS
from forecast.terms import steps
from forecast.terms.errors import ModelError
from forecast.terms.quantities import YearEnds
from forecast.tracking import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import Model
    from plotly.graph_objects import Figure


# Types to trust beyond skops' own list, and the package that each needs. The list must be here, not in the model: a
# forged model would trust its own types. Forged tree indices can still crash scikit-learn.
TRUSTED_TYPES = {
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor": "scikit-learn",
    "sklearn.tree._tree.Tree": "scikit-learn",
    "forecast.learn.models.CapacityFactorRegressor": "pvlib",
}
SKOPS_FILE = "model.skops"  # file name in MLflow's model folder
PROBLEM = UNITS | {"step": f"{steps.HOURS:g} h"}  # logged as metadata with each model
LOG_IT = "log the model with forecast.learn.storage.log_model; if you did, find out who can write to the store"
MAX_CHARACTERS = 200  # longest signature shown in the history
# A prediction may exceed the possible range by this factor: a linear model extrapolates in a storm.
MAX_FACTOR = 50


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to predict; ``kind`` is `sklearn` or `keras`; ``fitted`` is the fitted estimator or network.

    ``coverage`` is the nominal coverage of its error band, None without one. ``size_bytes`` and ``signature`` (input
    and output columns) are None for a model that was not loaded from files. ``year_ends`` are the installed capacities
    that the model uses.
    """

    kind: str
    _predict: Callable[[pd.DataFrame], object]
    _inputs: Callable[[pd.DataFrame], pd.DataFrame] = features
    _predict_with_band: Callable[[pd.DataFrame], tuple] | None = None
    coverage: float | None = None
    size_bytes: int | None = None
    signature: str | None = None
    year_ends: YearEnds = field(default_factory=problem.CAPACITY.copy)
    fitted: Any = None

    @classmethod
    def of(cls, model: Any) -> LoadedModel:
        """Wrap a fitted scikit-learn or Keras model, so that it predicts like a loaded one."""
        if isinstance(model, CapacityFactorRegressor):
            band, coverage = (model.predict_with_band, model.coverage) if model.bands_ else (None, None)
            return cls("sklearn", model.predict, inputs, band, coverage, year_ends=model.year_ends_, fitted=model)
        if hasattr(model, "year_ends_"):
            return cls("keras", model.predict, inputs, year_ends=model.year_ends_, fitted=model)
        if type(model).__module__.startswith("keras"):
            return cls("keras", lambda weather: model.predict(weather.to_numpy("float32"), verbose=0), fitted=model)
        return cls("sklearn", model.predict, fitted=model)

    @property
    def takes_time(self) -> bool:
        """Whether the timestamp is an input of the model, in addition to the weather."""
        return self._inputs is inputs

    def select_inputs(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the columns of a processed frame that are the model's inputs."""
        return self._inputs(frame)

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the predicted targets for rows with the columns `features.INPUTS`, with the same index."""
        with one_thread():
            return self._frame(self._predict(self.select_inputs(frame)), frame)

    def predict_with_band(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[pd.DataFrame, pd.DataFrame] | None]:
        """Return predictions and error bands (lower and upper bounds); the bands are None if the model has none."""
        if self._predict_with_band is None:
            return self.predict(frame), None
        with one_thread():
            predicted, low, high = self._predict_with_band(self.select_inputs(frame))
        return self._frame(predicted, frame), (self._frame(low, frame), self._frame(high, frame))

    def refit(self, frame: pd.DataFrame, parameters: Mapping[str, str]) -> Any:
        """Return a model with the same hyperparameters, fitted on a processed frame.

        A network needs `epochs`, `learning_rate` and `seed` in ``parameters``, the parameters of the run that trained
        it. Raises ModelError if the model cannot be refitted.
        """
        if self.kind == "keras":
            from forecast.learn import network

            return network.refit(self.fitted, frame, parameters)
        return clone(self.fitted).fit(self.select_inputs(frame), targets(frame))

    @staticmethod
    def _frame(values: object, frame: pd.DataFrame) -> pd.DataFrame:
        """Return predictions as a frame; raise ModelError for NaN, infinity, or values far out of range."""
        predicted = pd.DataFrame(values, index=frame.index, columns=TARGETS)
        for name in TARGETS:
            numbers, most = predicted[name].to_numpy(float), MAX_FACTOR * max(map(abs, RANGES[name]))
            plausible = np.abs(numbers) <= most  # false for NaN
            if not plausible.all():
                raise ModelError(
                    "The model's predictions are not plausible.",
                    value=f"{name}: {numbers[~plausible][0]:g} {UNITS[name]}",
                    expected=f"numbers from {-most:g} to {most:g} {UNITS[name]}",
                    next_step="mlflow-gate rollback",
                )
        return predicted


def predict_unseen(
    model: LoadedModel, evaluated: LoadedModel | None, training_end: str | None, frame: pd.DataFrame
) -> tuple[pd.DataFrame, tuple[pd.DataFrame, pd.DataFrame] | None]:
    """Like `predict_with_band`, but predict each row with a model that was not trained on it, if there is one.

    Rows up to ``training_end`` are training rows of the refit, so the ``evaluated`` model predicts them instead.
    """
    if evaluated is None or training_end is None:
        return model.predict_with_band(frame)
    is_training_row = frame["utc_timestamp"] <= pd.Timestamp(training_end)
    parts = [(evaluated, frame[is_training_row]), (model, frame[~is_training_row])]
    predicted, bands = zip(*(each.predict_with_band(rows) for each, rows in parts if len(rows)), strict=True)
    band = None if None in bands else tuple(pd.concat(ends).loc[frame.index] for ends in zip(*bands, strict=True))
    return pd.concat(predicted).loc[frame.index], band


# -- logging -----------------------------------------------------------------------------------------------------------
def log_model(model: Any, example: pd.DataFrame) -> str:
    """Log a fitted scikit-learn model or a `CapacityFactorNetwork` to the active run; return its `models:/` URI.

    ``example`` is a few rows of the processed frame, for the signature and the input example.
    """
    import mlflow

    example = example.drop(columns=list(CAPACITIES.values()), errors="ignore")  # optional columns
    loaded = LoadedModel.of(model)
    weather = loaded.select_inputs(example)
    if loaded.kind == "keras":
        from forecast.learn import network

        with tempfile.TemporaryDirectory() as folder:
            options = _interface(model, weather) | network.options(model, Path(folder))
            return mlflow.pyfunc.log_model(name="model", **options).model_uri
    return mlflow.sklearn.log_model(model, name="model", **_sklearn_options(model, weather)).model_uri


def log_training(
    model: Any, example: pd.DataFrame, metrics: dict[str, float], figure: Figure, summary: Path | str
) -> None:
    """Log model, metrics and figure to the active run, and write ``summary``, the input of the `compare` stage."""
    import mlflow

    mlflow.log_figure(figure, "predicted_against_measured.html")
    run, model_uri = mlflow.active_run(), log_model(model, example)
    # Log the metrics after the model: for metrics logged earlier, MLflow would request each one's history.
    mlflow.log_metrics(metrics, model_id=model_uri.rpartition("/")[2])
    content = {"run_id": run.info.run_id if run else None, "model_uri": model_uri} | metrics
    Path(summary).parent.mkdir(exist_ok=True)
    Path(summary).write_text(json.dumps(content, indent=1) + "\n")


def _sklearn_options(model: Any, weather: pd.DataFrame) -> dict[str, Any]:
    import skops.io

    types = skops.io.get_untrusted_types(data=skops.io.dumps(model))
    if unknown := ", ".join(name for name in types if name not in TRUSTED_TYPES):
        step = "add these types, each with its package, to TRUSTED_TYPES in forecast/learn/storage.py,"
        step += " and the package to pyproject.toml and requirements.txt"
        raise ModelError("The model contains untrusted types.", value=unknown[:500], next_step=step)
    names = dict.fromkeys(["scikit-learn", "skops", "pandas", "numpy", *map(TRUSTED_TYPES.__getitem__, types)])
    return _interface(model, weather) | {
        "serialization_format": "skops",
        "skops_trusted_types": [*TRUSTED_TYPES],
        "pip_requirements": [f"{name}=={version(name)}" for name in names],  # MLflow takes 7 s to infer them
    }


def _interface(model: Any, weather: pd.DataFrame) -> dict[str, Any]:
    import mlflow

    outputs = pd.DataFrame(model.predict(weather), index=weather.index, columns=TARGETS)
    signature = mlflow.models.infer_signature(weather, outputs)
    return {"signature": signature, "input_example": weather, "metadata": PROBLEM}


# -- loading -----------------------------------------------------------------------------------------------------------
def load(model_uri: str, client: MlflowClient | None = None) -> LoadedModel:
    """Download a model from the tracking server, load it and make a test prediction; raise ModelError on failure.

    ``model_uri`` is a logged model (`models:/m-...`), or a version by its number or alias.
    """
    import mlflow
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    client = client or connect()
    # MLflow would create a temporary folder and never delete it, and the dashboard loads models often.
    with tempfile.TemporaryDirectory() as folder:
        try:
            # Resolve the alias only once, since it may move.
            model_uri = "models:/" + "/".join(get_model_name_and_version(client, model_uri))
            folder_of_model = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=folder))
        except Exception as error:  # noqa: BLE001 - each kind of artifact store raises its own errors
            raise ModelError(
                "The model cannot be downloaded.",
                value=f"{model_uri}: {error}",
                next_step="open the model in MLflow, or run mlflow-gate status",
            ) from None
        return load_files(folder_of_model, model_uri)


def load_files(folder: Path, name: str) -> LoadedModel:
    """Load a model from its local folder (`load_folder`), with the size of its files and its signature.

    Also raises ModelError for a model with a different step or units; a model without this metadata is accepted.
    """
    from mlflow.models import Model

    logged = Model.load(folder)
    trained = PROBLEM | (logged.metadata or {})
    if changed := ", ".join(f"{key} {trained[key]}, not {now}" for key, now in PROBLEM.items() if trained[key] != now):
        what, step = "The model has another step or other units.", "promote a model with the current step and units"
        raise ModelError(what, value=f"{name}: {changed}", next_step=step)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return replace(load_folder(folder, name), size_bytes=size, signature=_signature(logged))


def load_folder(folder: Path, name: str) -> LoadedModel:
    """Load a model from its local folder and make a test prediction; errors call it ``name``.

    How it is loaded depends on the file names only, since metadata is untrusted. Raises ModelError.
    """
    readers: dict[str, Callable[[Path], Any]] = {SKOPS_FILE: _read_skops}
    with contextlib.suppress(ImportError):  # a copy of the pipeline without network.py
        from forecast.learn.network import READERS

        readers |= READERS
    try:
        for file, read in readers.items():
            if (folder / file).is_file():
                return _check_prediction(LoadedModel.of(read(folder / file)))
        value = f"none of {', '.join(readers)}"
        raise ModelError("Unsupported model format.", value=value, expected="one of these files")
    except ModelError as error:
        error.value, error.next_step = f"{name}: {error.value}", error.next_step or LOG_IT
        raise
    except Exception as error:  # noqa: BLE001 - skops, Keras and the model may raise anything
        raise ModelError("The model cannot be loaded.", value=f"{name}: {error!r:.300}", next_step=LOG_IT) from None


def _signature(logged: Model) -> str | None:
    """Return a model's input and output columns as text; None if it has no signature."""
    signature = logged.signature
    if signature is None or None in (signature.inputs, signature.outputs):
        return None
    ends = ((signature.inputs, FEATURES), (signature.outputs, TARGETS))
    return " -> ".join(", ".join(_columns(json.loads(end.to_json()), names)) for end, names in ends)[:MAX_CHARACTERS]


def _columns(schema: list[dict], names: list[str]) -> list[str]:
    """Return the column names of a schema; an unnamed tensor of matching width gets ``names``."""
    tensor = schema[0].get("tensor-spec") if len(schema) == 1 else None
    if tensor and "name" not in schema[0] and tensor["shape"] == [-1, len(names)]:
        return names
    return [column.get("name", "?") for column in schema]


def _read_skops(file: Path) -> Any:
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        return skops.io.load(file, trusted=[*TRUSTED_TYPES])
    except UntrustedTypesFoundException as error:
        value = str(error).splitlines()[0][:500]
        raise ModelError("The model contains untrusted types.", value=value) from None


def _check_prediction(model: LoadedModel) -> LoadedModel:
    """Make a test prediction for noon and midnight in a year of known capacity; return the model."""
    noon = pd.Timestamp(last_year(model.year_ends), 6, 1, 12, tz="UTC")
    weather = {name: QUANTITIES[name].usual_mean or QUANTITIES[name].possible for name in FEATURES}
    try:
        model.predict_with_band(pd.DataFrame({"utc_timestamp": [noon, noon + pd.Timedelta(hours=12)], **weather}))
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - each library raises its own error for wrong columns
        raise ModelError(
            "The model does not match the problem in forecast/problem.py.",
            value=f"{error!r:.300}",
            expected=f"inputs {', '.join(FEATURES)}; outputs {', '.join(TARGETS)}",
            next_step="if the problem has changed, check out the commit of the model's run (see mlflow-gate lineage"
            " VERSION), or promote a model for the current problem",
        ) from None
    return model
