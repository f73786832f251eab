"""Fit a linear regression that predicts power from weather, and log it in MLflow.

This script imports only the packages in `python_env.yaml` and, from this repository, `hourly.py`.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
import hourly  # in the parent folder, shared by the projects


def main() -> None:
    """Train a model and log it with its parameters and metrics."""
    parameters = read_parameters()
    hourly.require_tracking_server()
    frame = hourly.read_frame(parameters["data"])
    train, test = hourly.split_by_time(frame, parameters["test_fraction"])

    import mlflow
    from sklearn.linear_model import LinearRegression

    model = LinearRegression(fit_intercept=parameters["fit_intercept"]).fit(
        train[hourly.FEATURES], train[hourly.TARGETS]
    )
    metrics = hourly.evaluate(test, model.predict(test[hourly.FEATURES]))
    with mlflow.start_run() as run:
        # Skip the parameters that `mlflow run` has already logged: those of the entry point.
        mlflow.log_params({name: value for name, value in parameters.items() if name not in run.data.params})
        mlflow.log_metrics(metrics)
        mlflow.sklearn.log_model(
            model,
            name="model",
            signature=mlflow.models.infer_signature(train[hourly.FEATURES], train[hourly.TARGETS]),
            input_example=train[hourly.FEATURES].head(3),
            # Without this list, MLflow would spend seconds inferring the packages.
            pip_requirements=[f"{name}=={version(name)}" for name in ("pandas", "scikit-learn", "skops")],
            skops_trusted_types=[],
        )
    print(f"R2 {metrics['r2']:.3f} on the last {len(test)} hours; run {run.info.run_id}")


def read_parameters() -> dict[str, str | float | bool]:
    """Return the parameters by name; exit with code 2 if one is invalid."""
    parser = hourly.make_training_parser("Fit a linear regression and log it.")
    parser.add_argument("--fit_intercept", type=hourly.boolean, default=True, help="true or false")
    return vars(parser.parse_args())


if __name__ == "__main__":
    main()
