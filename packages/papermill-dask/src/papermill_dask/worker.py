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


# -- what a client asks --------------------------------------------------------------------------------------------
def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that must be the same on client and worker."""
    versions = {"Python": "{}.{}".format(*sys.version_info)}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def describe(marker: str | None, dask_worker: Worker) -> dict[str, Any]:
    """Return what this worker is, which kernels it has, what it runs, and whether it sees the file ``marker``."""
    from jupyter_client.kernelspec import find_kernel_specs

    running = [
        {"notebook": run.task.name, "cell": run.cell, "cells": len(run.task.notebook["cells"]),
         "since": run.since, "output": run.task.output, "key": run.key, "resources": run.task.resources}
        for run in list(RUNS.values())
    ]  # fmt: skip
    return {
        "versions": installed_versions(),
        "id": dask_worker.id,
        "kernels": sorted(find_kernel_specs()),
        "sees": marker is not None and Path(marker).exists(),
        "running": running,
        "log": _log(),
    }


def _log() -> str:
    """Return where this worker writes its log: to its standard error, which is a file on many clusters."""
    with contextlib.suppress(OSError):
        if (file := Path("/dev/fd/2").readlink()).is_file():
            return f"{socket.gethostname()}:{file}"
    return f"what its process {os.getpid()} on {socket.gethostname()} wrote to its standard error"


def listens(address: str, seconds: float) -> bool:
    """Tell whether a Dask server accepts connections, as the system does for it even when it is too busy to answer."""
    from distributed.comm.addressing import get_address_host_port

    try:
        socket.create_connection(get_address_host_port(address), seconds).close()
    except OSError:
        return False
    except ValueError:  # no address of a host: a server in this very process
        pass
    return True


# -- the task ------------------------------------------------------------------------------------------------------
def run_notebook(task: Task) -> dict[str, Any]:
    """Run a notebook in a kernel of this worker's; what happens goes to the client as events of the task's key.

    Their kinds: ``start`` and ``end`` of a cell, ``message`` of the kernel, ``log``. Returns the notebook's
    ``metadata``, whether it ``failed``, a pickled ``error`` that is no cell's, and its MLflow ``runs``.
    """
    import distributed

    from papermill_dask import preload

    worker = distributed.get_worker()
    if worker.id != task.worker:  # Dask repeats the tasks of a worker that it lost; a notebook runs once
        raise WorkerLost("The Dask worker that ran the notebook was lost.", value=worker.address, **LOST)
    preload.warm_up(worker)  # where it was started without
    key = str(worker.get_current_task())
    # The kernel works, this thread only waits: free it, so that the notebook can itself send work to this worker.
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
        if run.stopped and task.is_scratch:  # nobody may be left to ask for it
            shutil.rmtree(Path(task.folder).parent, ignore_errors=True)


def _run_cells(run: Run) -> dict[str, Any]:
    import nbformat
    from jupyter_core.utils import ensure_event_loop

    from papermill_dask.cells import CellEvents, KernelClient

    task = run.task
    environment = os.environ | task.environment
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
    except Exception as problem:  # noqa: BLE001 - whatever ends the notebook is told to the client, whole
        error = run.kernel.explain(problem, run.cell) if run.kernel else problem
    error = run.stopped or error
    failed = bool(error or manager.failed)
    if failed:
        runs.end("KILLED" if run.stopped else "FAILED")
    return {
        "metadata": manager.nb.metadata,
        "error": error and _pickled(error),
        "failed": failed,
        "runs": [{"run_id": logged["run_id"], "metrics": logged["metrics"]} for logged in runs.runs],
    }


def _pickled(error: Exception) -> bytes:
    try:
        pickle.loads(content := pickle.dumps(error))  # noqa: S301 - just made; some errors only fail on their way back
    except Exception:  # noqa: BLE001 - an error of any library, which may pickle badly for any reason
        return pickle.dumps(EngineError("The notebook failed on its worker.", value=repr(error)))
    return content


# -- what watches over it ------------------------------------------------------------------------------------------
def _watch(run: Run, over: threading.Event) -> None:
    """Stop a run when its task is cancelled, its worker closes, or the scheduler is out of reach.

    Dask cannot interrupt a task that runs, and does not tell a task whose client has gone; a worker cut off from the
    network would go on for minutes.
    """
    answered = time.monotonic()
    while not over.wait(WATCH_SECONDS):
        if run.stopped:
            run.kill()  # again and again: its kernel may be just about to start
        elif run.worker.status.name not in ("running", "paused"):
            what = "The Dask worker that ran the notebook was shut down."
            run.stopped = WorkerLost(what, value=run.worker.address, **LOST)
        else:
            try:
                is_wanted = compat.ask_for_task(run.worker, run.key, ANSWER_SECONDS) is not None
                answered, reason = time.monotonic(), None if is_wanted else "the client cancelled it, or went away"
            except (OSError, TimeoutError, RuntimeError):  # cut off, busy, or an event loop that is closed
                # No answer alone is no proof: this worker's own event loop may be held up by another task.
                is_silent = time.monotonic() - answered > SILENCE_SECONDS
                is_away = is_silent and not listens(run.worker.scheduler.address, ANSWER_SECONDS)
                reason = "the scheduler is out of reach" if is_away else None
            if reason:
                run.stopped = EngineError("The notebook was stopped on its worker.", value=reason)
