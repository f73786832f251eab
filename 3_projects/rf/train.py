"""Fit a random forest to the weather and log it in MLflow.

It needs what `python_env.yaml` names and `hourly.py` beside the projects, and nothing else of this repository.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
import hourly  # what the projects share lies beside them


def main() -> None:
    """Train one model and log it, with the parameters of the command line."""
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
    metrics = hourly.measure(test, model.predict(test[hourly.FEATURES]), by_capacity=by_capacity)
    with mlflow.start_run() as run:
        mlflow.set_tag("target", "capacity_factor" if by_capacity else "GW")
        # The run's commit does not show a change of this file that is not committed.
        mlflow.set_tag("MLproject", Path(__file__).with_name("MLproject").read_text())
        # `mlflow run` has logged its parameters already, as they were typed.
        mlflow.log_params({name: value for name, value in parameters.items() if name not in run.data.params})
        mlflow.log_metrics(metrics)
        mlflow.sklearn.log_model(
            model,
            name="model",
            signature=mlflow.models.infer_signature(train[hourly.FEATURES], targets),
            input_example=train[hourly.FEATURES].head(3),
            # Named, since MLflow would otherwise take seconds to find them out.
            pip_requirements=[f"{name}=={version(name)}" for name in ("pandas", "scikit-learn", "skops")],
            # A model file is opened only when it holds nothing but these types (and scikit-learn's plainer ones).
            skops_trusted_types=["sklearn.tree._tree.Tree"],
        )
    print(f"R2 {metrics['r2']:.3f} on the last {len(test)} hours; run {run.info.run_id}")


def read_parameters() -> dict[str, str | float | bool]:
    """Return the parameters by name; end with exit code 2 when one is out of range."""
    parser = hourly.make_training_parser("Fit a random forest and log it.")
    parser.add_argument("--n_estimators", type=hourly.positive, default=100, help="the number of trees")
    parser.add_argument("--max_depth", type=hourly.positive, default=10, help="the levels of a tree, at most")
    parser.add_argument("--seed", type=hourly.seed, default=0, help="the start of the random numbers")
    parser.add_argument("--last_hours", type=hourly.whole(0), default=0, help="the latest hours to learn from; 0: all")
    parser.add_argument("--by_capacity", type=hourly.truth, default=False, help="true: learn capacity factors")
    return vars(parser.parse_args())


if __name__ == "__main__":
    main()
