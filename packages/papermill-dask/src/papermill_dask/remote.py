"""The function that a client submits to a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from papermill_dask.task import Task


def run_notebook(task: Task) -> dict[str, Any]:
    """Run a notebook in a kernel on this Dask worker, and log Dask events under the task's key.

    Kinds of events: ``start`` and ``end`` of a cell, a kernel's ``message``, a ``log`` record, ``cells_ended``. Returns
    the notebook's ``metadata``, whether it ``failed``, its pickled ``error`` (None for a cell's own error) and its
    MLflow ``runs``.
    """
    from papermill_dask.worker import notebook  # imported on the worker only

    return notebook.run(task)
