"""Run notebooks on any Dask cluster: `papermill IN OUT --engine dask`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from papermill_dask.client.cluster import connect, running
    from papermill_dask.client.engine import execute_notebook
    from papermill_dask.client.sweep import Sweep, combinations, run_many
    from papermill_dask.errors import EngineError, WorkerLost
    from papermill_dask.tracking import COMMIT_TAG, NOTEBOOK_TAG, PAGE_TAG, git_state

__all__ = [
    "COMMIT_TAG", "NOTEBOOK_TAG", "PAGE_TAG", "EngineError", "Sweep", "WorkerLost", "combinations", "connect",
    "execute_notebook", "git_state", "run_many", "running",
]  # fmt: skip
_MODULES = {
    "client.cluster": ("connect", "running"), "client.engine": ("execute_notebook",),
    "errors": ("EngineError", "WorkerLost"), "client.sweep": ("Sweep", "combinations", "run_many"),
    "tracking": ("COMMIT_TAG", "NOTEBOOK_TAG", "PAGE_TAG", "git_state"),
}  # fmt: skip


def __getattr__(name: str) -> object:
    """Import the module of a public name on first use, because papermill imports this package at every start."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"papermill_dask.{module}"), name)
    raise AttributeError(name)


def __dir__() -> list[str]:
    return __all__
