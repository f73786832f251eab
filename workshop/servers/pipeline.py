"""Runs chapter 4's pipeline on the servers, by default as many stages at once as there are Dask workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import dvc_parallel

from workshop.settings import Settings

# Modules that the programs of the stages import, in three to four seconds of a cold start.
PRELOAD = (
    "workshop.cli.data", "workshop.cli.models", "workshop.cli.pipeline", "requests", "nbformat", "pyarrow.fs",
    "nbclient", "papermill.__main__", "distributed", "papermill_dask.engine", "papermill_dask.worker",
)  # fmt: skip


def reproduce(
    settings: Settings, targets: Sequence[str] = (), *, jobs: int | None = None, shell_first: bool = False, **options
) -> dict[str, dvc_parallel.State]:
    """Bring the pipeline up to date as `dvc_parallel.reproduce` does, which gets the ``options``.

    ``shell_first``: use the server and the cluster that the shell names, if any, as a `dvc repro` typed there does.
    """
    servers = {name: value for name, value in settings.exports().items() if not (shell_first and os.environ.get(name))}
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", os.defpath)
    return dvc_parallel.reproduce(
        targets,
        jobs=jobs or settings.dask_workers,
        preload=PRELOAD,
        environment=servers | {"PATH": path, "PYTHONUNBUFFERED": "1"},
        **options,
    )
