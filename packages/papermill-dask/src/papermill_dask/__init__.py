"""Notebooks on any Dask cluster: `papermill IN OUT --engine dask`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from papermill_dask.cluster import connect, running, select, survey
    from papermill_dask.config import NotebookOptions
    from papermill_dask.engine import execute_notebook
    from papermill_dask.errors import EngineError, WorkerLost
    from papermill_dask.sweep import Sweep, run_many

__all__ = [
    "EngineError",
    "NotebookOptions",
    "Sweep",
    "WorkerLost",
    "connect",
    "execute_notebook",
    "run_many",
    "running",
    "select",
    "survey",
]
_MODULES = {
    "cluster": ("connect", "running", "select", "survey"),
    "config": ("NotebookOptions",),
    "engine": ("execute_notebook",),
    "errors": ("EngineError", "WorkerLost"),
    "sweep": ("Sweep", "run_many"),
}


def __getattr__(name: str):
    """Import what is asked for: `import papermill_dask` alone stays light, as each `import papermill` comes by here."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"papermill_dask.{module}"), name)
    raise AttributeError(name)
