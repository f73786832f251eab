"""The run that an answer names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop.models.tracking import connect

if TYPE_CHECKING:
    from mlflow.entities import Run


def finished_run(run_id: object) -> Run | str:
    """Return the finished run with this id, or the sentence that says why it is none."""
    if not isinstance(run_id, str):
        return f"a run id is text of 32 characters, and this is of type {type(run_id).__name__}."
    from mlflow.exceptions import MlflowException

    client = connect()
    try:
        run = client.get_run(run_id)
    except MlflowException:
        return f"the tracking server at {client.tracking_uri} has no run {run_id!r}."
    if run.info.status != "FINISHED":
        return f"this run has the status {run.info.status}, not FINISHED."
    return run
