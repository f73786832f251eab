"""One attempt to run a notebook: a Dask task on one worker, whose events update papermill's notebook."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import pickle
import queue
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from distributed import Client, Future, KilledWorker
from jupyter_client.jsonutil import parse_date
from nbclient.exceptions import CellExecutionComplete
from papermill.clientwrap import PapermillNotebookClient
from papermill.log import logger

from papermill_dask import compat, tracking
from papermill_dask.client import cluster, stage
from papermill_dask.client.connectivity import connection_problem
from papermill_dask.client.output import ExecutedNotebook
from papermill_dask.config import NotebookOptions
from papermill_dask.errors import LOST, EngineError, WorkerLost
from papermill_dask.remote import run_notebook
from papermill_dask.task import Task

FORWARDED = ("DVC_*", "MLFLOW_*", "PYDEVD_*")  # papermill's command line sets PYDEVD_*
SECRET_WORDS = ("PASSWORD", "TOKEN", "SECRET", "KEY")
POLL_SECONDS = 0.1
SILENCE_SECONDS = 3.0
PROBE_SECONDS = 1.5


class Attempt:
    """One attempt to run a notebook, as a Dask task on one worker; after `run`, ``runs`` lists its MLflow runs."""

    def __init__(
        self,
        executed: ExecutedNotebook,
        kernel_name: str,
        client: Client,
        worker: cluster.Worker,
        options: NotebookOptions,
        free_slot: Callable[[], None],
        *,
        input_path: object = None,
        start_timeout: int = 60,
        execution_timeout: int | None = None,
        **keywords: Any,
    ) -> None:
        self._executed, self._client, self.worker, self._options = executed, client, worker, options
        self._free_slot = free_slot
        # This client starts no kernel: it only processes the messages of the kernel on the worker.
        outputs = {option: keywords.pop(option, None) for option in ("log_output", "stdout_file", "stderr_file")}
        self._log = PapermillNotebookClient(
            executed, log=logger, record_timing=keywords.get("record_timing", True), **outputs
        )
        # papermill also accepts a NotebookNode as input.
        name = Path(input_path).stem if isinstance(input_path, str) else "notebook"
        # Dask's dashboard drops a key's hexadecimal suffix, so it groups the tasks by notebook name.
        self.key = f"{name}-{uuid.uuid4().hex[:8]}"
        timeout = execution_timeout or keywords.get("timeout")
        self.environment = _forwarded_environment(options)
        if worker.sees_folder:
            self.environment |= tracking.default_variables()
        document = json.loads(json.dumps(executed.nb))  # plain dicts can be unpickled without nbformat
        for index in filter(executed.is_skipped, range(len(document["cells"]))):
            document["cells"][index]["source"] = ""  # nbclient does not run empty cells
        self._task = Task(
            notebook=document,
            name=name,
            kernel_name=kernel_name,
            options=keywords | {"startup_timeout": start_timeout, "timeout": timeout},
            worker=worker.id,
            folder=str(Path.cwd()),
            environment=self.environment,
            output=cluster.output_id(executed.output_path),
            engine_options=options,
        )
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.runs: list[dict[str, Any]] = []

    def run(self) -> None:
        """Submit the task, process its events until it ends, and clean up; raise the error that stopped it, if any."""
        client, task, address = self._client, self._task, self.worker.address
        with contextlib.ExitStack() as stack:
            declaration = None
            if not self.worker.sees_folder:
                from papermill_dask.client import transfer

                declaration = stage.find_declaration(self._options, self._executed.output_path)
                if not declaration.deps and not declaration.outs:
                    logger.warning(
                        "The worker %s cannot read this folder, and no files are declared, so the notebook runs in an "
                        "empty folder. Declare files in the options deps and outs, or in the stage's dvc.yaml.", address
                    )  # fmt: skip
                task.folder = stack.enter_context(transfer.scratch_folder(client, address, Path.cwd(), declaration))
                task.is_scratch = True
            client.subscribe_topic(self.key, lambda event: self._events.put(json.loads(event[1])))
            stack.callback(compat.delete_topic, client, self.key)
            # In a lent slot, request no resources: the notebook that lends the slot already holds them.
            resources = None if self.worker.lent_by else self._options.resources or None
            future = client.submit(run_notebook, task, key=self.key, pure=False, resources=resources, workers=[address])
            # The scheduler forgets a released task, and the worker then stops it. `future.cancel()` does the same, but
            # Dask reports cancellations to all clients, which breaks new connections (see `compat.new_client`).
            stack.callback(future.release)
            future.add_done_callback(lambda _: self._events.put({"kind": "done"}))
            result = self._process_events(future)
            if declaration and not result["failed"]:  # outs of a failed notebook are incomplete
                transfer.fetch(client, address, task.folder, Path.cwd(), declaration)
        metadata = {name: value for name, value in result["metadata"].items() if name != "papermill"}
        self._executed.nb.metadata.update(nbformat.from_dict(metadata))
        self.runs = result["runs"]
        if result["error"] is not None:
            raise pickle.loads(result["error"])  # noqa: S301 - pickled by this package on the worker

    def _process_events(self, future: Future[Any]) -> dict[str, Any]:
        """Process the task's events until it has ended; return its result."""
        last_event = time.monotonic()
        while True:
            try:
                event = self._events.get(timeout=POLL_SECONDS)
            except queue.Empty:
                event = {"kind": "silence"}
            else:
                last_event = time.monotonic()
            match event["kind"]:
                case "message":
                    self._process_message(event["message"], event["index"])
                case "start" | "end" if self._executed.is_skipped(event["index"]):
                    pass
                case "start":
                    self._log.clear_before_next_output = False
                    self._executed.cell_start(self._executed.nb.cells[event["index"]], event["index"])
                case "end":
                    self._end_cell(event)
                case "cells_ended":  # the next notebook's kernel starts while this one shuts down
                    self._free_slot()
                case "log":
                    logger.log(event["level"], "%s", event["text"])
                case "done":
                    return self._result(future)
                case "silence":
                    self._executed.autosave_cell()
                    if self._client.status != "running" or time.monotonic() - last_event > SILENCE_SECONDS:
                        if reason := connection_problem(self._client, self.worker.address, PROBE_SECONDS):
                            raise WorkerLost(reason, value=self.worker.address, **LOST)
                        last_event = time.monotonic()  # reachable, only busy

    def _result(self, future: Future[Any]) -> dict[str, Any]:
        if self._client.status != "running":
            raise WorkerLost("The Dask scheduler was lost.", **LOST)
        if future.cancelled():
            raise EngineError("The notebook was stopped on its worker.", value="its Dask task was cancelled")
        try:
            return future.result()
        except (OSError, KilledWorker):  # Dask raises KilledWorker if `allowed-failures` is 0
            problem = "The Dask worker that ran the notebook was lost."
            raise WorkerLost(problem, value=self.worker.address, **LOST) from None

    def _process_message(self, message: dict[str, Any], index: int) -> None:
        cell = self._executed.nb.cells[index]
        if self._log.record_timing:
            cell.metadata.setdefault("execution", {})
        message["header"]["date"] = parse_date(message["header"]["date"])
        self._executed.has_changed = True
        with contextlib.suppress(CellExecutionComplete):
            self._log.process_message(message, cell, index)

    def _end_cell(self, event: dict[str, Any]) -> None:
        cell = self._executed.nb.cells[event["index"]]
        cell.metadata.update(event["metadata"])
        if cell.cell_type == "code":
            cell["execution_count"] = event["execution_count"]
            if event["outputs"] is not None:
                cell["outputs"] = nbformat.from_dict(event["outputs"])
        if event["failed"]:
            self._executed.cell_exception(cell, cell_index=event["index"])
        self._executed.cell_complete(cell, cell_index=event["index"])


def _forwarded_environment(options: NotebookOptions) -> dict[str, str]:
    """Return the client's environment variables to set in the kernel; secrets only if the options list them.

    Include the commit of the client's folder, because the worker may have no access to it.
    """

    def is_forwarded(name: str) -> bool:
        is_requested = any(fnmatch.fnmatchcase(name, pattern) for pattern in options.environment)
        is_default = any(fnmatch.fnmatchcase(name, pattern) for pattern in FORWARDED)
        return is_requested or (is_default and not any(word in name for word in SECRET_WORDS))

    return {name: value for name, value in os.environ.items() if is_forwarded(name)} | tracking.git_variables()
