"""On the Dask worker: the task that runs a notebook, its watch, and answers to a client."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pickle
import shutil
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from papermill_dask import compat, tracking
from papermill_dask.failures import LOST, EngineError, WorkerLost
from papermill_dask.task import Run, Task

if TYPE_CHECKING:
    from distributed import Worker

PACKAGES = ("papermill", "papermill-dask", "nbclient", "jupyter_client", "ipykernel")
WATCH_SECONDS = 0.4
ANSWER_SECONDS = 2.0
SILENCE_SECONDS = 4.0  # without an answer before the scheduler's address is tried
RUNS: dict[str, Run] = {}  # the notebooks that run in this worker process, by the key of their Dask task


# -- answers to a client -------------------------------------------------------------------------------------------
def installed_versions() -> dict[str, str]:
    """Return the versions of Python and the packages that must be equal on client and worker."""
    versions = {"Python": "{}.{}".format(*sys.version_info)}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def describe(marker: str | None, dask_worker: Worker) -> dict[str, Any]:
    """Return this worker's versions, kernels, notebooks and log, and whether it sees the file ``marker``."""
    from jupyter_client.kernelspec import find_kernel_specs

    rows = [
        {"notebook": run.task.name, "cell": run.cell, "cells": len(run.task.notebook["cells"]),
         "since": run.since, "output": run.task.output, "key": run.key, "resources": run.task.resources}
        for run in list(RUNS.values())
    ]  # fmt: skip
    return {
        "versions": installed_versions(),
        "id": dask_worker.id,
        "kernels": sorted(find_kernel_specs()),
        "sees": marker is not None and Path(marker).exists(),
        "running": rows,
        "log": _log(),
    }


def _log() -> str:
    """Return the place of this worker's log: its standard error, which is a file on many clusters."""
    with contextlib.suppress(OSError):
        if (file := Path("/dev/fd/2").readlink()).is_file():
            return f"{socket.gethostname()}:{file}"
    return f"what its process {os.getpid()} on {socket.gethostname()} wrote to its standard error"


def listens(address: str, seconds: float) -> bool:
    """Return whether a Dask server accepts connections; the system accepts them even if the server is busy."""
    from distributed.comm.addressing import get_address_host_port

    try:
        socket.create_connection(get_address_host_port(address), seconds).close()
    except OSError:
        return False
    except ValueError:  # no address of a host: a server in this process
        pass
    return True


# -- the task ------------------------------------------------------------------------------------------------------
def run_notebook(task: Task) -> dict[str, Any]:
    """Run a notebook in a kernel of this worker; send the client events, whose topic is the task's key.

    Their kinds: ``start`` and ``end`` of a cell, ``message`` of the kernel, ``log``. Returns the notebook's
    ``metadata``, whether it ``failed``, a pickled ``error`` unless a cell raised it, and its MLflow ``runs``.
    """
    import distributed

    from papermill_dask.worker.warm_up import warm_up

    worker = distributed.get_worker()
    if worker.id != task.worker:  # Dask repeats the tasks of a lost worker; a notebook runs once
        raise WorkerLost("The Dask worker that ran the notebook was lost.", value=worker.address, **LOST)
    warm_up(worker)  # if the worker was started without the preload
    key = str(worker.get_current_task())
    # This thread only waits for the kernel: free it, so that the notebook can send work to this worker.
    distributed.secede()
    run = RUNS[key] = Run(key, task, worker)
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(run, over), name=f"watch-{key}", daemon=True)
    watch.start()
    try:
        return _run_cells(run)
    finally:
        over.set()
        watch.join()
        del RUNS[key]
        if run.stopped and task.is_scratch:  # the client, which would remove it, may be gone
            shutil.rmtree(Path(task.folder).parent, ignore_errors=True)


def _run_cells(run: Run) -> dict[str, Any]:
    import nbformat
    from jupyter_core.utils import ensure_event_loop

    from papermill_dask.worker.cells import CellEvents, KernelClient
    from papermill_dask.worker.warm_up import environment_of

    task = run.task
    environment = environment_of(run.worker) | task.environment
    runs = tracking.NotebookRuns(run.key, environment)
    manager = CellEvents(nbformat.from_dict(task.notebook), run)
    error = None
    try:
        runs.check_reachable(run.logger())
        run.kernel = KernelClient(manager, run, before_end=runs.find, kernel_name=task.kernel_name, **task.options)
        if not run.stopped:
            # nbclient leaves the loop of this thread, with three open files, to the garbage collector.
            with contextlib.closing(ensure_event_loop()):
                run.kernel.execute(cwd=task.folder, env=environment | {tracking.TASK_VARIABLE: run.key})
    except Exception as problem:  # noqa: BLE001 - the client gets every error
        error = run.kernel.explain(problem, run.cell) if run.kernel else problem
    error = run.stopped or error
    failed = bool(error or manager.failed)
    if failed:
        runs.end("KILLED" if run.stopped else "FAILED")
    return {
        "metadata": manager.nb.metadata,
        "error": error and _pickled(error),
        "failed": failed,
        "runs": [{"run_id": mlflow_run["run_id"], "metrics": mlflow_run["metrics"]} for mlflow_run in runs.runs],
    }


def _pickled(error: Exception) -> bytes:
    try:
        pickle.loads(content := pickle.dumps(error))  # noqa: S301 - pickled here; some errors only fail here
    except Exception:  # noqa: BLE001 - pickling runs any library's code
        return pickle.dumps(EngineError("The notebook failed on its worker.", value=repr(error)))
    return content


# -- the watch ----------------------------------------------------------------------------------------------------
def _watch(run: Run, over: threading.Event) -> None:
    """Stop a run when its task is cancelled, its worker closes, or the scheduler is out of reach.

    Dask cannot interrupt a running task, and does not notify a task whose client has gone; without the network a worker
    would continue for minutes.
    """
    answer_time = time.monotonic()
    while not over.wait(WATCH_SECONDS):
        if run.stopped:
            run.kill()  # repeatedly: its kernel may be about to start
        elif run.worker.status.name not in ("running", "paused"):
            what = "The Dask worker that ran the notebook was shut down."
            run.stopped = WorkerLost(what, value=run.worker.address, **LOST)
        else:
            try:
                is_wanted = compat.ask_for_task(run.worker, run.key, ANSWER_SECONDS) is not None
                answer_time, reason = time.monotonic(), None if is_wanted else "the client cancelled it, or went away"
            except (OSError, TimeoutError, RuntimeError):  # no network, a busy scheduler, or a closed event loop
                # A missing answer is no proof: another task may block this worker's own event loop.
                is_silent = time.monotonic() - answer_time > SILENCE_SECONDS
                is_away = is_silent and not listens(run.worker.scheduler.address, ANSWER_SECONDS)
                reason = "the scheduler is out of reach" if is_away else None
            if reason:
                run.stopped = EngineError("The notebook was stopped on its worker.", value=reason)
