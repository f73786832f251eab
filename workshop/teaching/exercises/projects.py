"""The exercises of chapter 3: a project run with another parameter, its commit, and a project of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop.models.tracking import COMMIT_TAG, connect
from workshop.teaching.exercises import exercise

if TYPE_CHECKING:
    from mlflow.entities import Run

HELD_OUT = 0.1


@exercise("3.1", "`lr` run with a tenth of the hours held out")
def another_fraction(answer: str) -> str | None:
    """Look for a finished run of the project's entry point `main` under this id."""
    run = _project_run(answer)
    if isinstance(run, str):
        return run
    if "fit_intercept" not in run.data.params:
        return "this is a run of another project than `lr`: look at the first argument of `mlflow.projects.run`."
    if float(run.data.params["test_fraction"]) != HELD_OUT:
        return f"this run has the test_fraction {run.data.params['test_fraction']}; look at `parameters=`."
    return None


@exercise("3.2", "the commit of a run found in its tags")
def commit_of_run(answer: tuple[str, str]) -> str | None:
    """Compare the second of (run id, commit) with what the run says."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        return "`answer` is not a pair: it should be (run_id, commit)."
    run = _project_run(answer[0])
    if isinstance(run, str):
        return run
    if answer[1] != run.data.tags.get(COMMIT_TAG):
        return "the run names another commit: print `run.data.tags` and look for one that ends in `commit`."
    return None


def _project_run(run_id: object) -> Run | str:
    """Return the finished run of a project's `main` with this id, or the sentence that says why it is none."""
    if not isinstance(run_id, str):
        return f"a run id is text of 32 characters, and this is of type {type(run_id).__name__}."
    from mlflow.exceptions import MlflowException

    client = connect()
    try:
        run = client.get_run(run_id)
    except MlflowException:
        return f"the tracking server at {client.tracking_uri} has no run {run_id!r}."
    if run.data.tags.get("mlflow.source.type") != "PROJECT" or run.data.tags.get("mlflow.project.entryPoint") != "main":
        return "this run was not made by running a project's entry point `main`: look at its tags."
    if run.info.status != "FINISHED":
        return f"this run has the status {run.info.status}, not FINISHED."
    return run
