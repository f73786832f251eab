"""What runs on the Dask worker: the notebook's kernel, and the events that tell the client of each cell."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import nbformat
import psutil

from workshop.errors import EngineError

WATCH_SECONDS = 0.5


def run_notebook(
    notebook: dict[str, Any],
    kernel_name: str,
    topic: str,
    cwd: str,
    environment: dict[str, str],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Run a notebook in a kernel that is a child of this worker; return ``{"notebook", "events", "error"}``.

    ``notebook`` is the nbformat document as a dict, ``topic`` the Dask event topic on which each cell's start and
    end is told, ``environment`` what the kernel sees on top of the worker's own variables, ``options`` the
    arguments of papermill's notebook client. What goes wrong while cells run is returned as ``error``, so that
    the partly run notebook comes back with it; raises EngineError when the worker cannot see ``cwd``.
    """
    import distributed
    from papermill.clientwrap import PapermillNotebookClient

    worker = distributed.get_worker()
    if not Path(cwd).is_dir():
        raise EngineError(
            f"The worker {worker.address} cannot see the notebook's folder.",
            value=cwd,
            expected="a folder that client and worker both see",
            next_step="run the worker on this machine (`workshop up`) or share the folder with it",
        )
    key = worker.get_current_task()
    # The kernel works, this thread only waits: free it, so that the notebook can itself send work to this worker.
    distributed.secede()
    manager = CellEvents(nbformat.from_dict(notebook), lambda message: worker.log_event(topic, message))
    client = PapermillNotebookClient(manager, kernel_name=kernel_name, **options)
    error: BaseException | None = None
    with _ended_with_task(worker, key, client):
        try:
            client.execute(cwd=cwd, env=os.environ | environment)
        except Exception as problem:  # noqa: BLE001 - whatever ends the notebook is told to the client, whole
            error = problem
    return {"notebook": manager.nb, "events": manager.sent, "error": error}


class CellEvents:
    """Stands in for papermill's NotebookExecutionManager on the worker: tells the client instead of saving."""

    def __init__(self, notebook: nbformat.NotebookNode, send) -> None:
        self.nb = notebook
        self.sent = 0
        self._send = send
        self._failed: set[int] = set()

    def _tell(self, **message: Any) -> None:
        self._send({"number": self.sent, **message})
        self.sent += 1

    def cell_start(self, cell, cell_index, **_) -> None:  # noqa: ARG002 - papermill's signature
        """Tell that a cell begins."""
        self._tell(kind="start", index=cell_index)

    def cell_exception(self, cell, cell_index, **_) -> None:  # noqa: ARG002 - papermill's signature
        """Remember that a cell failed; its end will say so."""
        self._failed.add(cell_index)

    def cell_complete(self, cell, cell_index, **_) -> None:
        """Tell that a cell ended, with all that it now holds."""
        self._tell(kind="end", index=cell_index, cell=dict(cell), failed=cell_index in self._failed)

    def autosave_cell(self) -> None:
        """Do nothing: saving is the client's."""


class _ended_with_task:  # noqa: N801 - reads as a verb at the `with`
    """Kills the kernel, with all it started, when the task is no longer wanted.

    Dask cannot interrupt a task that runs; a client that cancels, or goes away, would leave the notebook running.
    """

    def __init__(self, worker, key, client) -> None:
        self._worker, self._key, self._client = worker, key, client
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{key}", daemon=True)

    def __enter__(self) -> None:
        self._watcher.start()

    def __exit__(self, *_) -> None:
        self._over.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            task = self._worker.state.tasks.get(self._key)
            if task is None or task.state == "cancelled":
                self._kill_kernel()

    def _kill_kernel(self) -> None:
        provisioner = getattr(self._client.km, "provisioner", None)
        if pid := getattr(provisioner, "pid", None):
            try:
                kernel = psutil.Process(pid)
                family = [kernel, *kernel.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in family:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
