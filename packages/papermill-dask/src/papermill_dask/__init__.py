"""Notebooks on any Dask cluster: `papermill IN OUT --engine dask`."""

from __future__ import annotations

import importlib

_MODULES = {
    "COMMIT_TAG": "tracking",
    "EngineError": "failures",
    "NOTEBOOK_TAG": "tracking",
    "NotebookOptions": "config",
    "Sweep": "sweep",
    "WorkerLost": "failures",
    "combinations": "sweep",
    "connect": "cluster",
    "execute_notebook": "engine",
    "git_state": "tracking",
    "run_many": "sweep",
    "running": "cluster",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    """Import the module of a public name; `import papermill_dask` alone stays light, as `import papermill` does it."""
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"papermill_dask.{_MODULES[name]}"), name)
