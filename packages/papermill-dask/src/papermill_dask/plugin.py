"""Entry point that papermill loads during its own import, so the engine itself is imported only on first use."""

from __future__ import annotations

from typing import Any

from nbformat import NotebookNode
from papermill.engines import Engine


class DaskEngine(Engine):
    """papermill's `dask` engine: runs a notebook as one task on a Dask cluster."""

    @classmethod
    def execute_notebook(cls, nb: NotebookNode, kernel_name: str, **options: Any) -> NotebookNode:
        """Run a notebook, with the same arguments, result and errors as papermill's own engine."""
        from papermill_dask.client.engine import execute_notebook

        return execute_notebook(nb, kernel_name, **options)
