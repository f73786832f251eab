"""Run JupyterLab's notebook jobs on a Dask cluster: an execution manager for jupyter-scheduler (`[scheduler]` extra).

`jupyter lab --Scheduler.execution_manager_class=papermill_dask.scheduler.DaskExecutionManager`
"""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_scheduler.executors import DefaultExecutionManager
from papermill.exceptions import PapermillExecutionError

from papermill_dask import compat


class DaskExecutionManager(DefaultExecutionManager):
    """Runs a job with papermill's `dask` engine, in the job's staging folder.

    jupyter-scheduler stops a job by killing its process; the kernel on the worker is then killed, too.
    """

    def execute(self) -> None:
        """Run the job's notebook; write the output files even if the notebook fails, then raise its error."""
        job, source = self.model, Path(self.staging_paths["input"])
        parameters = {name: _parse_parameter(text) for name, text in (job.parameters or {}).items()}
        executed = Path(self.staging_paths.get("ipynb", source.with_suffix(".executed.ipynb")))
        try:
            papermill.execute_notebook(
                str(source), str(executed), parameters, engine_name="dask", cwd=str(source.parent),
                progress_bar=False,
            )  # fmt: skip
        finally:
            if executed.exists():  # there is no output if the engine rejected the job
                self.create_output_files(job, nbformat.read(executed, as_version=4))
            self.add_side_effects_files(str(source.parent))

    def on_failure(self, e: Exception) -> None:
        """Record the error of the cell or the engine, without papermill's traceback."""
        super().on_failure(RuntimeError(f"{e.ename}: {e.evalue}") if isinstance(e, PapermillExecutionError) else e)


def _parse_parameter(text: str) -> Any:
    """Parse a parameter as a Python literal, or, if it is not one, as papermill's option ``-p`` does."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return compat.parse_parameter(text)
