"""Fit a small neural network that predicts power from weather, and log it in MLflow.

This script imports only the packages in `python_env.yaml` and, from this repository, `hourly.py`.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).resolve().parent.parent))
import hourly  # in the parent folder, shared by the projects

if TYPE_CHECKING:
    import keras
    import pandas as pd


def main() -> None:
    """Train a model and log it with its parameters and metrics."""
    parameters = read_parameters()
    hourly.require_tracking_server()
    frame = hourly.read_frame(parameters["data"])
    train, test = hourly.split_by_time(frame, parameters["test_fraction"])

    os.environ.update(KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3")
    import mlflow

    model = fit(train, parameters["epochs"], parameters["hidden_units"], parameters["seed"])
    metrics = hourly.evaluate(test, model.predict(test[hourly.FEATURES].to_numpy(), verbose=0))
    packages = ["keras", "pandas", *packages_distributions()["tensorflow"]]  # either tensorflow or tensorflow-cpu
    with mlflow.start_run() as run:
        # Skip the parameters that `mlflow run` has already logged: those of the entry point.
        mlflow.log_params({name: value for name, value in parameters.items() if name not in run.data.params})
        mlflow.log_metrics(metrics)
        # Not `mlflow.keras.log_model`, which fails with an input example (MLflow 3.17). Both write the .keras format.
        mlflow.tensorflow.log_model(
            model,
            name="model",
            signature=mlflow.models.infer_signature(
                train[hourly.FEATURES].to_numpy(), train[hourly.TARGETS].to_numpy()
            ),
            input_example=train[hourly.FEATURES].head(3).to_numpy(),
            # Without this list, MLflow would spend seconds inferring the packages.
            pip_requirements=[f"{name}=={version(name)}" for name in packages],
        )
    print(f"R2 {metrics['r2']:.3f} on the last {len(test)} hours; run {run.info.run_id}")


def fit(train: pd.DataFrame, epochs: int, hidden_units: int, seed: int) -> keras.Model:
    """Return a fitted network with two hidden layers that maps weather (hours, 4) to power (hours, 2) in GW."""
    import keras

    keras.utils.set_random_seed(seed)
    inputs, outputs = train[hourly.FEATURES].to_numpy(), train[hourly.TARGETS].to_numpy()
    normalization = keras.layers.Normalization()
    normalization.adapt(inputs)
    # The output is a relu, as power is never negative. Its bias starts at the mean: a relu stuck at zero cannot learn.
    mean_GW = keras.initializers.Constant(float(outputs.mean()))
    model = keras.Sequential(
        [
            keras.Input((len(hourly.FEATURES),)),
            normalization,
            keras.layers.Dense(hidden_units, activation="relu"),
            keras.layers.Dense(hidden_units, activation="relu"),
            keras.layers.Dense(len(hourly.TARGETS), activation="relu", bias_initializer=mean_GW),
        ]
    )
    model.compile(optimizer="adam", loss="mse")
    model.fit(inputs, outputs, epochs=epochs, batch_size=256, verbose=2)
    return model


def read_parameters() -> dict[str, str | float]:
    """Return the parameters by name; exit with code 2 if one is invalid."""
    parser = hourly.make_training_parser("Fit a small neural network and log it.")
    parser.add_argument("--epochs", type=hourly.positive, default=20, help="number of passes over the training data")
    parser.add_argument("--hidden_units", type=hourly.positive, default=32, help="units per hidden layer")
    parser.add_argument("--seed", type=hourly.seed, default=0, help="random seed")
    return vars(parser.parse_args())


if __name__ == "__main__":
    main()
