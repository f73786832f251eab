"""What a client submits to a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from papermill_dask.task import Task


def run_notebook(task: Task) -> dict[str, Any]:
    """Run a notebook in a kernel of the Dask worker that executes this; send events, whose topic is the task's key.

    Their kinds: ``start`` and ``end`` of a cell, ``message`` of the kernel, ``log``. Returns the notebook's
    ``metadata``, whether it ``failed``, a pickled ``error`` unless a cell raised it, and its MLflow ``runs``.
    """
    from papermill_dask.worker import notebook  # on the worker alone

    return notebook.run(task)
