"""The entry point that papermill loads while it is itself being imported; the engine's imports wait until it runs."""

from __future__ import annotations

from typing import Any

from nbformat import NotebookNode
from papermill.engines import Engine


class DaskEngine(Engine):
    """Runs a notebook as one task on a Dask cluster; registered as the papermill engine `dask`."""

    @classmethod
    def execute_notebook(cls, nb: NotebookNode, kernel_name: str, **options: Any) -> NotebookNode:
        """Run a notebook; arguments, result and errors are those of papermill's own engine."""
        from papermill_dask.client.engine import execute_notebook

        return execute_notebook(nb, kernel_name, **options)
