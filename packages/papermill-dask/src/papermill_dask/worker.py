"""What runs on the Dask worker: the task that is a notebook, and what the client may ask of it."""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from workshop.errors import EngineError

CONNECT_SECONDS = 2.0
LOST = {
    "expected": "a worker that lives, and is in reach, until the notebook ends",
    "next_step": "see the worker's log, then run the notebook again; it was not repeated (option `retries`)",
}
RUNS: dict[str, Run] = {}  # the notebooks that run in this worker process, by the key of their Dask task


class WorkerLost(EngineError):
    """The worker that ran the notebook is gone, or out of reach."""


@dataclass
class Task:
    """What a worker needs to run a notebook: plain data.

    ``notebook`` is the nbformat document, ``options`` the arguments of papermill's notebook client, ``topic`` the Dask
    event topic for what happens, ``stage`` the DVC stage that it is, ``max_output`` in bytes.
    """

    notebook: dict[str, Any]
    name: str
    kernel_name: str
    topic: str
    options: dict[str, Any]
    tracking_uri: str | None = None
    stage: str | None = None
    max_output: int | None = None


@dataclass
class Place:
    """Where a notebook runs: a folder on the worker, and what its kernel sees on top of the worker's own variables.

    ``is_scratch``: the folder was filled for this notebook, and its outs are to be fetched before the task may end.
    ``is_remote``: the worker is another machine than the client's, loopback is not the same.
    """

    folder: str
    environment: dict[str, str]
    umask: int
    is_scratch: bool = False
    is_remote: bool = False


@dataclass
class Run:
    """A notebook on this worker, from the moment that Dask starts its task until nothing of it is left."""

    key: str
    notebook: str
    cells: int
    stage: str | None = None
    since: float = field(default_factory=time.time)
    cell: int | None = None
    place: Place | None = None
    stopped: EngineError | None = None
    open_runs: list[str] = field(default_factory=list)
    kernel: Any = None
    released: threading.Event = field(default_factory=threading.Event)
    collected: threading.Event = field(default_factory=threading.Event)

    def stop(self, error: EngineError) -> None:
        """End the notebook with all its processes; the error says why: not wanted any more, or its worker is going."""
        self.stopped = error
        manager = getattr(self.kernel, "km", None)
        if manager is not None:
            manager.kill()
        self.released.set()
        self.collected.set()


# -- what the client asks, by `client.run` -------------------------------------------------------------------------
def release(key: str, place: Place) -> None:
    """Let a notebook start. A task that Dask repeats by itself is never released: none runs twice unasked."""
    RUNS[key].place = place
    RUNS[key].released.set()


def collected(key: str) -> None:
    """Say that the client has fetched what the notebook made."""
    RUNS[key].collected.set()


def running() -> list[dict[str, Any]]:
    """Return the notebooks that run in this worker: notebook, cell (from 1), cells, since (seconds since 1970)."""
    rows = list(RUNS.values())
    return [{"notebook": run.notebook, "cell": run.cell, "cells": run.cells, "since": run.since} for run in rows]


def runs_stage(stage: str) -> bool:
    """Tell whether a DVC stage's notebook runs in this worker."""
    return any(run.stage == stage for run in list(RUNS.values()))


# -- the task ------------------------------------------------------------------------------------------------------
def run_notebook(task: Task) -> None:
    """Run a notebook in a kernel of this worker's; all there is to know of it goes to the client as events.

    Their kinds: ``begin`` (waits for `release`), ``start`` and ``end`` of a cell, ``message`` of the kernel, ``log``,
    ``beat``, ``collect`` (waits for `collected`), and ``done`` with the notebook's metadata and what ended it early.
    """
    import distributed

    from papermill_dask import preload
    from papermill_dask.events import EventSender
    from papermill_dask.watch import Watch

    worker = distributed.get_worker()
    preload.start_readying(worker)  # where it was started without
    key = worker.get_current_task()
    # The kernel works, this thread only waits: free it, so that the notebook can itself send work to this worker.
    distributed.secede()
    events = EventSender(worker, task.topic)
    run = RUNS[key] = Run(key, task.name, len(task.notebook["cells"]), task.stage)
    try:
        with Watch(worker, run, events):
            events.send("begin", worker=worker.address, key=key)
            run.released.wait()
            ending = _run_cells(task, run, events)
            # What a notebook that failed has made is not what its stage declares.
            if not ending["failed"] and run.place.is_scratch:
                events.send("collect")
                run.collected.wait()
    finally:
        del RUNS[key]
        if run.stopped and run.place is not None and run.place.is_scratch:
            from papermill_dask.files.store import Store, home

            Store(home(worker)).remove(run.place.folder)  # nobody may be left to ask for it
    events.send("done", **ending)


def _run_cells(task: Task, run: Run, events) -> dict[str, Any]:
    """Run the cells; return the notebook's ``metadata``, whether it ``failed``, and an ``error`` that is no cell's."""
    import nbformat

    from papermill_dask.cells import CellEvents

    manager = CellEvents(
        nbformat.from_dict(task.notebook), events, run, sends_outputs=bool(task.options.get("coalesce_streams"))
    )
    error = None
    try:
        if not run.stopped:
            _run_kernel(task, run, events, manager)
    except Exception as problem:  # noqa: BLE001 - whatever ends the notebook is told to the client, whole
        error = run.kernel.explain(problem, run.cell) if run.kernel else problem
    error = run.stopped or error
    _end_runs(run, task.tracking_uri)
    failed = bool(error or manager.failed)
    return {"metadata": manager.nb.metadata, "error": error and _pickled(error), "failed": failed}


def _run_kernel(task: Task, run: Run, events, manager) -> None:
    from papermill_dask.cells import KernelClient
    from workshop.models.tracking import TASK_VARIABLE

    def find_open_runs(*, failed: bool) -> None:
        if failed and task.tracking_uri:
            run.open_runs = _open_runs(run.key, task.tracking_uri)

    if run.place.is_remote:
        _check_reachable(task.tracking_uri)
    run.kernel = KernelClient(
        manager,
        events,
        max_output=task.max_output,
        before_end=find_open_runs,
        kernel_name=task.kernel_name,
        **task.options,
    )
    environment = os.environ | run.place.environment | {TASK_VARIABLE: run.key}
    run.kernel.execute(cwd=run.place.folder, env=environment, umask=run.place.umask)


def _check_reachable(tracking_uri: str | None) -> None:
    """Raise EngineError when the tracking server has a loopback address that means another machine than this."""
    from urllib.parse import urlsplit

    parts = urlsplit(tracking_uri or "")
    if parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        return
    try:
        socket.create_connection((parts.hostname, parts.port or 80), timeout=CONNECT_SECONDS).close()
    except OSError:
        raise EngineError(
            f"The worker on {socket.gethostname()} cannot reach the MLflow tracking server.",
            value=f"MLFLOW_TRACKING_URI={tracking_uri}: loopback, which is another machine there than here",
            expected="an address that the workers reach, too",
            next_step="set MLFLOW_TRACKING_URI to one; unset it for a notebook that tracks nothing",
        ) from None


def _open_runs(key: str, tracking_uri: str) -> list[str]:
    from workshop.models.tracking import open_runs

    with contextlib.suppress(Exception):  # a tracking server that fails must not hide how the notebook ended
        return open_runs(key, tracking_uri)
    return []


def _end_runs(run: Run, tracking_uri: str | None) -> None:
    if not run.open_runs:
        return
    from workshop.models.tracking import end_runs

    with contextlib.suppress(Exception):  # as above
        end_runs(run.open_runs, "KILLED" if run.stopped else "FAILED", tracking_uri)


def _pickled(error: Exception) -> str:
    try:
        content = pickle.dumps(error)
        pickle.loads(content)  # noqa: S301 - just made here; some errors only fail on their way back
    except Exception:  # noqa: BLE001 - an error of any library, which may pickle badly for any reason
        content = pickle.dumps(EngineError("The notebook failed on its worker.", value=repr(error)))
    return base64.b64encode(content).decode()
