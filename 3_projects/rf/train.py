"""Fit a random forest that predicts power from weather, and log it in MLflow.

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
    by_capacity = parameters["by_capacity"]
    frame = hourly.read_frame(parameters["data"], with_capacity=by_capacity)
    train, test = hourly.split_by_time(frame, parameters["test_fraction"])
    train = train.tail(parameters["last_hours"] or len(train))
    targets = hourly.capacity_factors(train) if by_capacity else train[hourly.TARGETS]

    import mlflow
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(
        n_estimators=parameters["n_estimators"],
        max_depth=parameters["max_depth"],
        random_state=parameters["seed"],
    ).fit(train[hourly.FEATURES], targets)
    metrics = hourly.evaluate(test, model.predict(test[hourly.FEATURES]), by_capacity=by_capacity)
    with mlflow.start_run() as run:
        mlflow.set_tag("target", "capacity_factor" if by_capacity else "GW")
        # Record MLproject, as the run's commit may lack its changes: step 5 of the README edits it without a commit.
        mlflow.set_tag("MLproject", Path(__file__).with_name("MLproject").read_text())
        # Skip the parameters that `mlflow run` has already logged: those of the entry point.
        mlflow.log_params({name: value for name, value in parameters.items() if name not in run.data.params})
        mlflow.log_metrics(metrics)
        mlflow.sklearn.log_model(
            model,
            name="model",
            signature=mlflow.models.infer_signature(train[hourly.FEATURES], targets),
            input_example=train[hourly.FEATURES].head(3),
            # Without this list, MLflow would spend seconds inferring the packages.
            pip_requirements=[f"{name}=={version(name)}" for name in ("pandas", "scikit-learn", "skops")],
            # The only type in a random forest that skops does not trust by default.
            skops_trusted_types=["sklearn.tree._tree.Tree"],
        )
    print(f"R2 {metrics['r2']:.3f} on the last {len(test)} hours; run {run.info.run_id}")


def read_parameters() -> dict[str, str | float | bool]:
    """Return the parameters by name; exit with code 2 if one is invalid."""
    parser = hourly.make_training_parser("Fit a random forest and log it.")
    parser.add_argument("--n_estimators", type=hourly.positive, default=100, help="number of trees")
    parser.add_argument("--max_depth", type=hourly.positive, default=10, help="maximum depth of a tree")
    parser.add_argument("--seed", type=hourly.seed, default=0, help="random seed")
    parser.add_argument("--last_hours", type=hourly.integer(0), default=0, help="train on the last N hours (0: all)")
    parser.add_argument("--by_capacity", type=hourly.boolean, default=False, help="if true, train on capacity factors")
    return vars(parser.parse_args())


if __name__ == "__main__":
    main()
