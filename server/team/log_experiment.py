"""Log an experiment to the team's MLflow, from outside the containers: `python log_experiment.py`."""

import json
import os
import random
import sys

import mlflow

STEPS = 20


def main() -> None:
    """Log a parameter, a metric for each step and an artifact to one run; MLflow prints the run's URL."""
    if "MLFLOW_TRACKING_URI" not in os.environ:
        sys.exit("MLFLOW_TRACKING_URI is not set. Next: export the URL of the team's MLflow server, as in README.md")
    mlflow.set_experiment("hello_team")
    with mlflow.start_run():
        mlflow.log_param("learning_rate", 0.1)
        for step in range(STEPS):
            mlflow.log_metric("loss", 0.9**step + random.uniform(0, 0.02), step=step)  # noqa: S311
        mlflow.log_text(json.dumps({"steps": STEPS}), "summary.json")


if __name__ == "__main__":
    main()
