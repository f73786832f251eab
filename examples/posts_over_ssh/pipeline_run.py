"""Log to MLflow: one run per commit and set of parameters, with a nested run per stage."""

from __future__ import annotations

import hashlib
from pathlib import Path

import mlflow
import yaml
from mlflow.tracking.context.registry import resolve_tags

EXPERIMENT = "posts_over_ssh"


def start(stage: str) -> None:
    """Start a stage's run, nested in the pipeline's run for this commit and these parameters (created if missing)."""
    mlflow.set_experiment(EXPERIMENT)
    tags = resolve_tags()  # include the cluster task's tag, so that the engine can end the runs of a killed task
    text = Path("params.yaml").read_text()
    state = hashlib.md5(f"{tags.get('mlflow.source.git.commit')} {text}".encode()).hexdigest()  # noqa: S324
    runs = mlflow.search_runs(filter_string=f"tags.posts_state = '{state}'", output_format="list", max_results=1)
    if runs:
        mlflow.start_run(runs[0].info.run_id, tags=tags)
    else:
        mlflow.start_run(run_name="pipeline", tags=tags | {"posts_state": state})
        mlflow.log_params(_flatten(yaml.safe_load(text)))
    mlflow.start_run(run_name=stage, nested=True)


def end(**metrics: float) -> None:
    """Log metrics to the stage's run and the pipeline's run, and end both."""
    while mlflow.active_run():
        mlflow.log_metrics(metrics)
        mlflow.end_run()


def _flatten(params: dict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for name, value in params.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
