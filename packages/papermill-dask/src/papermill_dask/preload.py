"""Readies a Dask worker for notebooks: `dask worker --preload papermill_dask.preload`."""

from __future__ import annotations

import contextlib
import os
import threading

_readying = threading.Lock()


def dask_setup(worker) -> None:
    """Begin to get ready as soon as the worker starts; Dask calls it."""
    start_readying(worker)


def start_readying(worker) -> None:
    """Import in the background what the first notebook would wait for; once, however often it is called."""
    if _readying.acquire(blocking=False):
        # For notebooks that use the cluster on which they run: `Client()` finds it there, whoever started the worker.
        os.environ["DASK_SCHEDULER_ADDRESS"] = worker.scheduler.address
        # Read when MLflow is imported: kernels get it from here, and the warm process must not differ from them.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        threading.Thread(target=_ready, name="ready-for-notebooks", daemon=True).start()


def _ready() -> None:
    from papermill_dask import cells  # noqa: F401 - papermill's client, which each notebook needs
    from papermill_dask.kernels.warm import start_warming
    from workshop.settings import get_settings

    start_warming(get_settings().kernel_imports)
    with contextlib.suppress(ImportError):
        import mlflow  # noqa: F401 - for the executed notebooks that are logged to their runs
