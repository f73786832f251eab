"""The exercises of chapter 3: a project run with another parameter, its commit, and its validation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from workshop.models.tracking import COMMIT_TAG
from workshop.teaching.exercises import exercise
from workshop.teaching.exercises.runs import finished_run

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


@exercise("3.3", "the highest floor that a run's R2 reaches")
def highest_floor(answer: str) -> str | None:
    """Compare the floor of a finished run of `validate` with the R2 that it measured."""
    run = _project_run(answer, "validate")
    if isinstance(run, str):
        return run
    trained = _project_run(run.data.params["run_id"])
    if isinstance(trained, str) or float(trained.data.params["test_fraction"]) != HELD_OUT:
        return "this validated another run than that of exercise 3.1: look at `run_id`."
    highest = math.floor(100 * run.data.metrics["validation_r2"]) / 100
    if not math.isclose(float(run.data.params["floor"]), highest):
        return f"R2 reaches a higher floor than {run.data.params['floor']}, or yours has more than two decimals."
    return None


def _project_run(run_id: object, entry_point: str = "main") -> Run | str:
    """Return the finished run of a project's entry point with this id, or the sentence that says why it is none."""
    run = finished_run(run_id)
    if isinstance(run, str):
        return run
    if run.data.tags.get("mlflow.project.entryPoint") != entry_point:
        return f"this run was not made by running a project's entry point `{entry_point}`: look at its tags."
    return run
