"""Log models, and load them without running their code: skops with a list of types; networks as `network` does."""

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


# What a model may hold beyond skops' own list, and the package to install for each type. The list is here and never in
# a model: a file that says which types to trust could say anything.
TRUSTED_TYPES = {
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor": "scikit-learn",
    "sklearn.tree._tree.Tree": "scikit-learn",
    "forecast.learn.models.CapacityFactorRegressor": "pvlib",
}
SKOPS_FILE = "model.skops"  # where MLflow keeps one
PROBLEM = UNITS | {"step": f"{steps.HOURS:g} h"}  # logged with a model
LOG_IT = "log it with forecast.learn.storage.log_model; if others did, find out who can write to the store"
MAX_CHARACTERS = 200  # of a signature, more than ours have: it is recorded
# Predictions are at most so many times what is possible: a linear model predicts more for a storm than there can be.
MAX_TIMES = 50


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to predict; ``kind`` is `sklearn` or `keras`.

    ``coverage`` is the share of hours that its error band was made to hold; None for a model that has no band.
    ``size_bytes`` is that of its files; None for a model without files, as is ``signature``: its columns, in and out.
    ``year_ends`` are the figures of installed capacity that it uses; those of the problem for a model that needs none.
    ``fitted`` is the model itself.
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
        """Wrap a fitted scikit-learn or Keras model, so that it predicts as it will once it is loaded."""
        if isinstance(model, CapacityFactorRegressor):
            band, coverage = (model.predict_with_band, model.coverage) if model.bands_ else (None, None)
            return cls("sklearn", model.predict, inputs, band, coverage, year_ends=model.year_ends_, fitted=model)
        if hasattr(model, "year_ends_"):
            return cls("keras", model.predict, inputs, year_ends=model.year_ends_, fitted=model)
        if type(model).__module__.startswith("keras"):
            return cls("keras", lambda weather: model.predict(weather.to_numpy("float32"), verbose=0), fitted=model)
        return cls("sklearn", model.predict, fitted=model)

    @property
    def knows_time(self) -> bool:
        """Tell whether the hour matters to the model, besides its weather."""
        return self._inputs is inputs

    def select_inputs(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the columns of a processed frame that the model is given."""
        return self._inputs(frame)

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the targets for each row (`features.INPUTS`), as a frame with the same index."""
        with one_thread():
            return self._frame(self._predict(self.select_inputs(frame)), frame)

    def predict_with_band(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[pd.DataFrame, pd.DataFrame] | None]:
        """Return the prediction, and the lower and the upper end of its error band; None for a model without a band."""
        if self._predict_with_band is None:
            return self.predict(frame), None
        with one_thread():
            predicted, low, high = self._predict_with_band(self.select_inputs(frame))
        return self._frame(predicted, frame), (self._frame(low, frame), self._frame(high, frame))

    def refit(self, frame: pd.DataFrame, parameters: Mapping[str, str]) -> Any:
        """Return a model of the same kind and hyperparameters, fitted on a processed frame.

        ``parameters`` are those of the run that trained it; a network needs its `epochs`, `learning_rate` and `seed`.
        Raises ModelError for a network that cannot be fitted again.
        """
        if self.kind == "keras":
            from forecast.learn import network

            return network.refit(self.fitted, frame, parameters)
        return clone(self.fitted).fit(self.select_inputs(frame), targets(frame))

    @staticmethod
    def _frame(values: object, frame: pd.DataFrame) -> pd.DataFrame:
        """Return predictions as a frame; raise ModelError for NaN, infinity and values far beyond what is possible."""
        predicted = pd.DataFrame(values, index=frame.index, columns=TARGETS)
        for name in TARGETS:
            numbers, most = predicted[name].to_numpy(float), MAX_TIMES * max(map(abs, RANGES[name]))
            plausible = np.abs(numbers) <= most  # false for NaN
            if not plausible.all():
                raise ModelError(
                    "The model's predictions are not plausible.",
                    value=f"{name}: {numbers[~plausible][0]:g} {UNITS[name]}",
                    expected=f"numbers from {-most:g} to {most:g} {UNITS[name]}",
                    next_step="mlflow-gate rollback",
                )
        return predicted


def predict_as_new(
    model: LoadedModel, judged: LoadedModel | None, learned_until: str | None, frame: pd.DataFrame
) -> tuple[pd.DataFrame, tuple[pd.DataFrame, pd.DataFrame] | None]:
    """Predict hours with a band, as `LoadedModel.predict_with_band`, so that errors on them say something.

    A refit has learned all hours up to ``learned_until``: these are predicted by the model that was ``judged`` in its
    place, if there is one.
    """
    if judged is None or learned_until is None:
        return model.predict_with_band(frame)
    learned = frame["utc_timestamp"] <= pd.Timestamp(learned_until)
    parts = [(judged, frame[learned]), (model, frame[~learned])]
    predicted, bands = zip(*(each.predict_with_band(hours) for each, hours in parts if len(hours)), strict=True)
    band = None if None in bands else tuple(pd.concat(ends).loc[frame.index] for ends in zip(*bands, strict=True))
    return pd.concat(predicted).loc[frame.index], band


# -- logging -----------------------------------------------------------------------------------------------------------
def log_model(model: Any, example: pd.DataFrame) -> str:
    """Log a fitted scikit-learn model or a `CapacityFactorNetwork` to the active run; return its `models:/` address.

    ``example`` are a few rows of the processed frame: from them come the signature (raw weather in, the targets
    out) and the input example.
    """
    import mlflow

    example = example.drop(columns=list(CAPACITIES.values()), errors="ignore")  # a row may leave them out
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
    """Log model, metrics and figure to the active run, and write the file ``summary``, which `compare` reads."""
    import mlflow

    mlflow.log_figure(figure, "predicted_against_measured.html")
    run, model_uri = mlflow.active_run(), log_model(model, example)
    # After the model and by its name: MLflow asks for the history of each metric that is there before.
    mlflow.log_metrics(metrics, model_id=model_uri.rpartition("/")[2])
    content = {"run_id": run.info.run_id if run else None, "model_uri": model_uri} | metrics
    Path(summary).parent.mkdir(exist_ok=True)
    Path(summary).write_text(json.dumps(content, indent=1) + "\n")


def _sklearn_options(model: Any, weather: pd.DataFrame) -> dict[str, Any]:
    import skops.io

    types = skops.io.get_untrusted_types(data=skops.io.dumps(model))
    if unknown := ", ".join(name for name in types if name not in TRUSTED_TYPES):
        step = "add these types, each with the package to install, to TRUSTED_TYPES in forecast/learn/storage.py,"
        step += " and the package to pyproject.toml and requirements.txt"
        raise ModelError("The model holds types that are not trusted.", value=unknown[:500], next_step=step)
    names = dict.fromkeys(["scikit-learn", "skops", "pandas", "numpy", *map(TRUSTED_TYPES.__getitem__, types)])
    return _interface(model, weather) | {
        "serialization_format": "skops",
        "skops_trusted_types": [*TRUSTED_TYPES],
        "pip_requirements": [f"{name}=={version(name)}" for name in names],  # which MLflow takes 7 s to infer
    }


def _interface(model: Any, weather: pd.DataFrame) -> dict[str, Any]:
    import mlflow

    outputs = pd.DataFrame(model.predict(weather), index=weather.index, columns=TARGETS)
    signature = mlflow.models.infer_signature(weather, outputs)
    return {"signature": signature, "input_example": weather, "metadata": PROBLEM}


# -- loading -----------------------------------------------------------------------------------------------------------
def load(model_uri: str, client: MlflowClient | None = None) -> LoadedModel:
    """Fetch a model from the tracking server, load it and try it out; raise ModelError when it cannot be trusted.

    ``model_uri`` names a logged model (`models:/m-...`), or a version by its number or its alias.
    """
    import mlflow
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    client = client or connect()
    # A folder of its own: MLflow leaves the one that it makes behind, and the dashboard loads often.
    with tempfile.TemporaryDirectory() as folder:
        try:
            # An alias may move in between.
            model_uri = "models:/" + "/".join(get_model_name_and_version(client, model_uri))
            fetched = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=folder))
        except Exception as error:  # noqa: BLE001 - a version registered by hand may be anywhere: what its client raises
            raise ModelError(
                "The model cannot be fetched.",
                value=f"{model_uri}: {error}",
                next_step="open it in MLflow; mlflow-gate status",
            ) from None
        return load_files(fetched, model_uri)


def load_files(folder: Path, name: str) -> LoadedModel:
    """Load a model from its local folder, as `load_folder`, with the size of its files and its signature.

    Raises ModelError also for a model of another step or other units; one that was logged without them has the present.
    """
    from mlflow.models import Model

    logged = Model.load(folder)
    then = PROBLEM | (logged.metadata or {})
    if changed := ", ".join(f"{key} {then[key]}, not {now}" for key, now in PROBLEM.items() if then[key] != now):
        what, step = "It was trained on another step or other units than the table has.", "promote a model of these"
        raise ModelError(what, value=f"{name}: {changed}", next_step=step)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return replace(load_folder(folder, name), size_bytes=size, signature=_signature(logged))


def load_folder(folder: Path, name: str) -> LoadedModel:
    """Load a model from its local folder and let it predict two rows; ``name`` is what errors call it.

    The files that are there decide how, never what the model says of itself. Raises ModelError.
    """
    readers: dict[str, Callable[[Path], Any]] = {SKOPS_FILE: _read_skops}
    with contextlib.suppress(ImportError):  # of a copy without networks
        from forecast.learn.network import READERS

        readers |= READERS
    try:
        for file, read in readers.items():
            if (folder / file).is_file():
                return _check_prediction(LoadedModel.of(read(folder / file)))
        found = f"no {', '.join(readers)}"
        raise ModelError("This kind of model cannot be loaded here.", value=found, expected="one of these")
    except ModelError as error:
        error.value, error.next_step = f"{name}: {error.value}", error.next_step or LOG_IT
        raise
    except Exception as error:  # noqa: BLE001 - skops, Keras and the model itself raise whatever they like
        raise ModelError("The model cannot be loaded.", value=f"{name}: {error!r:.300}", next_step=LOG_IT) from None


def _signature(logged: Model) -> str | None:
    """Return a model's columns, in and out; None when it was logged without either."""
    signature = logged.signature
    if signature is None or None in (signature.inputs, signature.outputs):
        return None
    ends = ((signature.inputs, FEATURES), (signature.outputs, TARGETS))
    return " -> ".join(", ".join(_columns(json.loads(end.to_json()), names)) for end, names in ends)[:MAX_CHARACTERS]


def _columns(schema: list[dict], names: list[str]) -> list[str]:
    """Return a schema's names of columns; a nameless tensor of as many columns as ``names`` has those."""
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
        found = str(error).splitlines()[0][:500]
        raise ModelError("The model holds types that are not trusted.", value=found) from None


def _check_prediction(model: LoadedModel) -> LoadedModel:
    """Return a model that predicts an hour of much light and one of none, in a year that it knows."""
    noon = pd.Timestamp(last_year(model.year_ends), 6, 1, 12, tz="UTC")
    weather = {name: QUANTITIES[name].usual or QUANTITIES[name].possible for name in FEATURES}
    try:
        model.predict_with_band(pd.DataFrame({"utc_timestamp": [noon, noon + pd.Timedelta(hours=12)], **weather}))
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - each library raises its own for columns that do not fit
        raise ModelError(
            "The model does not fit the problem of forecast/problem.py.",
            value=f"{error!r:.300}",
            expected=f"{', '.join(FEATURES)} in, {', '.join(TARGETS)} out",
            next_step="if the problem was changed since: check out the commit of the model's run (mlflow-gate lineage"
            " VERSION names it), or promote a model of the present problem",
        ) from None
    return model
