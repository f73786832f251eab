"""A worker's description of itself, for the client: versions, kernels, running notebooks and log file."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from papermill_dask.task import RUNS

if TYPE_CHECKING:
    from distributed import Worker

PACKAGES = ("papermill", "papermill-dask", "nbclient", "jupyter_client", "ipykernel")


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that must match on client and worker."""
    versions = {"Python": "{}.{}".format(*sys.version_info)}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def describe(marker: str | None, dask_worker: Worker) -> dict[str, Any]:
    """Describe this worker, and whether it sees the file ``marker`` on the client's disk."""
    from jupyter_client.kernelspec import find_kernel_specs

    running = [
        {"notebook": run.task.name, "cell": run.cell, "cells": len(run.task.notebook["cells"]),
         "since": run.since, "output": run.task.output, "key": run.key, "resources": run.task.engine_options.resources}
        for run in list(RUNS.values())
    ]  # fmt: skip
    return {
        "versions": installed_versions(),
        "id": dask_worker.id,
        "kernels": sorted(find_kernel_specs()),
        "sees": marker is not None and Path(marker).exists(),
        "running": running,
        "log": _log_location(),
    }


def _log_location() -> str:
    """Return the location of this worker's log: standard error, which many clusters redirect to a file."""
    with contextlib.suppress(OSError):
        if (file := Path("/dev/fd/2").readlink()).is_file():
            return f"{socket.gethostname()}:{file}"
    return f"standard error of process {os.getpid()} on {socket.gethostname()}"
