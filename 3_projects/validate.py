"""Score the model of an earlier run on the held-out hours; fail if its R2 is below a floor.

This is the `validate` entry point of `lr`, `rf` and `keras`. Like their `train.py`, it imports only `hourly.py` and
the packages in `python_env.yaml`.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import hourly

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from mlflow.entities import Run

# The types in a random forest's model file that skops does not trust by default. They are listed here, because the
# file itself must not decide which types are trusted.
TRUSTED_TYPES = ["sklearn.tree._tree.Tree"]


def main() -> None:
    """Score a model and log the scores in a new run."""
    parameters = read_parameters()
    hourly.require_tracking_server()
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"  # no progress bar: the files are small
    import mlflow

    training_run = read_run(parameters["run_id"])
    by_capacity = training_run.data.tags.get("target") == "capacity_factor"
    frame = hourly.read_frame(parameters["data"], with_capacity=by_capacity)
    _, test = hourly.split_by_time(frame, float(training_run.data.params["test_fraction"]))
    with tempfile.TemporaryDirectory() as folder:
        model_id = training_run.outputs.model_outputs[0].model_id
        downloaded = mlflow.artifacts.download_artifacts(f"models:/{model_id}", dst_path=folder)
        predicted = predict(Path(downloaded), test[hourly.FEATURES])
    metrics = hourly.evaluate(test, predicted, by_capacity=by_capacity)
    with mlflow.start_run() as run:
        mlflow.log_params({name: value for name, value in parameters.items() if name not in run.data.params})
        # Prefix the metrics, so that a search for the best R2 does not return this run, which has no model.
        mlflow.log_metrics({f"validation_{name}": value for name, value in metrics.items()})
    if not metrics["r2"] >= parameters["floor"]:
        hourly.stop(f"R2 {metrics['r2']:.3f} is below the floor of {parameters['floor']:g}.", 1)
    message = f"R2 {metrics['r2']:.3f} on the last {len(test)} hours is at least {parameters['floor']:g}"
    print(f"{message}; validated in run {run.info.run_id}")


def read_run(run_id: str) -> Run:
    """Return the run; exit with code 1 if it does not exist or lacks a `test_fraction` or a model."""
    import mlflow

    try:
        run = mlflow.get_run(run_id)
    except mlflow.MlflowException as error:
        hourly.stop(f"Run {run_id} cannot be read: {error.message}. Copy the run's id from the MLflow UI.", 1)
    if "test_fraction" not in run.data.params or not (run.outputs and run.outputs.model_outputs):
        hourly.stop(f"Run {run_id} lacks a test_fraction or a model. Choose a run that trained a model.", 1)
    return run


def predict(folder: Path, weather: pd.DataFrame) -> np.ndarray:
    """Return the predictions (hours, 2) of the model in ``folder``, without unpickling anything.

    Exit with code 1 unless the model is in skops (scikit-learn) or Keras format and contains only trusted types.
    """
    try:
        if (folder / "model.skops").is_file():
            import skops.io

            return skops.io.load(folder / "model.skops", trusted=TRUSTED_TYPES).predict(weather)
        if (folder / "data" / "model.keras").is_file():
            os.environ.update(KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3")
            import keras

            model = keras.saving.load_model(folder / "data" / "model.keras", safe_mode=True)
            return model.predict(weather.to_numpy(), verbose=0)
        problem = "it is neither a scikit-learn model in skops format nor a Keras model."
    except ImportError as error:
        problem = f"a package is missing from this environment ({error}). Use the project that trained the model."
    except (TypeError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        problem = str(error)
    return hourly.stop(f"The model cannot be loaded: {problem}", 1)


def read_parameters() -> dict[str, str | float]:
    """Return the parameters by name; exit with code 2 if one is invalid or missing."""
    parser = hourly.make_parser("Score the model of an earlier run.")
    parser.add_argument("--run_id", required=True, help="id of the run that trained the model")
    parser.add_argument("--floor", type=float, default=0.5, help="minimum R2")
    return vars(parser.parse_args())


if __name__ == "__main__":
    main()
