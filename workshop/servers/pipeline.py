"""Runs chapter 4's pipeline on the servers, as many stages at once as the cluster has room for notebooks."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import dvc_parallel

from workshop.settings import Settings

# What the stages' programs import, those of notebooks and our own: three to four seconds of a cold start.
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
        jobs=jobs or (notebooks_at_once(settings) if shell_first else settings.dask_workers),
        preload=PRELOAD,
        environment=servers | {"PATH": path, "PYTHONUNBUFFERED": "1"},
        **options,
    )


def notebooks_at_once(settings: Settings) -> int:
    """Return how many notebooks the cluster runs at once; a cluster that is not our own is asked."""
    own = settings.model_copy(update={"dask_scheduler_address": None}).scheduler_address
    if settings.given_scheduler_address in (None, own):
        return settings.dask_workers
    from papermill_dask import connect

    with connect() as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
    declared = sum(int(worker["resources"].get("notebook", 0)) for worker in workers)
    return declared or sum(worker["nthreads"] for worker in workers)
