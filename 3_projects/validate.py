"""Score the model of an earlier run on the hours that it did not learn from; fail when it is worse than a floor.

The entry point `validate` of all three projects. Like their `train.py` it needs what `python_env.yaml` names, and
`hourly.py` beside it.
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

# The types that a forest's file holds beyond those skops trusts by itself. Named here and not taken from the model:
# a file that says which types to trust could say anything.
TRUSTED_TYPES = ["sklearn.tree._tree.Tree"]


def main() -> None:
    """Score one model and log the scores in a run of its own."""
    parameters = read_parameters()
    hourly.require_tracking_server()
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"  # one for each few kilobytes
    import mlflow

    trained = read_run(parameters["run_id"])
    by_capacity = trained.data.tags.get("target") == "capacity_factor"
    frame = hourly.read_frame(parameters["data"], with_capacity=by_capacity)
    _, test = hourly.split_by_time(frame, float(trained.data.params["test_fraction"]))
    with tempfile.TemporaryDirectory() as folder:
        model_id = trained.outputs.model_outputs[0].model_id
        downloaded = mlflow.artifacts.download_artifacts(f"models:/{model_id}", dst_path=folder)
        predicted = predict(Path(downloaded), test[hourly.FEATURES])
    metrics = hourly.measure(test, predicted, by_capacity=by_capacity)
    with mlflow.start_run() as run:
        mlflow.log_params({name: value for name, value in parameters.items() if name not in run.data.params})
        # Names of their own: this run has no model, and must not be taken for the best one.
        mlflow.log_metrics({f"validation_{name}": value for name, value in metrics.items()})
    if not metrics["r2"] >= parameters["floor"]:
        hourly.stop(f"R2 {metrics['r2']:.3f} is below the floor of {parameters['floor']:g}: not good enough.", 1)
    held = f"R2 {metrics['r2']:.3f} on the last {len(test)} hours is at least {parameters['floor']:g}"
    print(f"{held}; validated in run {run.info.run_id}")


def read_run(run_id: str) -> Run:
    """Return the run; end with exit code 1 when there is none, or none that held hours out and logged a model."""
    import mlflow

    try:
        run = mlflow.get_run(run_id)
    except mlflow.MlflowException as error:
        hourly.stop(f"The run {run_id} cannot be read: {error.message}. Copy its id from the MLflow UI.", 1)
    if "test_fraction" not in run.data.params or not (run.outputs and run.outputs.model_outputs):
        hourly.stop(f"The run {run_id} has no test_fraction or no model: name one that trained a model.", 1)
    return run


def predict(folder: Path, weather: pd.DataFrame) -> np.ndarray:
    """Return what the model in ``folder`` predicts for solar and wind, (hours, 2); nothing in it is unpickled.

    Ends with exit code 1 when it holds anything else than a plain scikit-learn or Keras model.
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
        problem = "it is neither a scikit-learn model in the format skops nor a Keras model."
    except ImportError as error:
        problem = f"this environment lacks something ({error}). Use the project that trained it."
    except (TypeError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        problem = str(error)
    return hourly.stop(f"The model cannot be used: {problem}", 1)


def read_parameters() -> dict[str, str | float]:
    """Return the parameters by name; end with exit code 2 when one is no number or missing."""
    parser = hourly.make_parser("Score the model of an earlier run.")
    parser.add_argument("--run_id", required=True, help="the run that trained the model")
    parser.add_argument("--floor", type=float, default=0.5, help="the least R2 that will do")
    return vars(parser.parse_args())


if __name__ == "__main__":
    main()
