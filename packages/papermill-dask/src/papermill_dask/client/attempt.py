"""One run of a notebook on one worker: a Dask task, whose events update papermill's notebook."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import pickle
import queue
import time
import uuid
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
from papermill_dask.client.contact import lost_contact
from papermill_dask.client.output import ExecutedNotebook
from papermill_dask.config import NotebookOptions
from papermill_dask.failures import LOST, EngineError, WorkerLost
from papermill_dask.remote import run_notebook
from papermill_dask.task import Task

FORWARDED = ("DVC_*", "MLFLOW_*", "PYDEVD_*")  # papermill's command line sets the last
SECRET_WORDS = ("PASSWORD", "TOKEN", "SECRET", "KEY")
POLL_SECONDS = 0.1
SILENCE_SECONDS = 3.0
PROBE_SECONDS = 1.5


class Attempt:
    """One run of a notebook on one worker: a Dask task, whose events update papermill's notebook."""

    def __init__(
        self,
        executed: ExecutedNotebook,
        kernel_name: str,
        client: Client,
        worker: cluster.Worker,
        options: NotebookOptions,
        *,
        input_path: object = None,
        start_timeout: int = 60,
        execution_timeout: int | None = None,
        **keywords: Any,
    ) -> None:
        self._executed, self._client, self.worker, self._options = executed, client, worker, options
        # This client starts no kernel: it processes the messages of the kernel on the worker.
        outputs = {option: keywords.pop(option, None) for option in ("log_output", "stdout_file", "stderr_file")}
        self._log = PapermillNotebookClient(
            executed, log=logger, record_timing=keywords.get("record_timing", True), **outputs
        )
        # papermill also takes a notebook itself as input.
        name = Path(input_path).stem if isinstance(input_path, str) else "notebook"
        # Dask's pages group tasks by the part before the hexadecimal one: the notebook's name.
        self.key = f"{name}-{uuid.uuid4().hex[:8]}"
        timeout = execution_timeout or keywords.get("timeout")
        self.environment = _forwarded_environment(options)
        if worker.sees_folder:
            self.environment |= tracking.default_variables()
        document = json.loads(json.dumps(executed.nb))  # plain dicts, which unpickle without nbformat
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
            output=cluster.this_output(executed.output_path),
            engine_options=options,
        )
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.runs: list[dict[str, Any]] = []  # the notebook's MLflow runs, once it has ended

    def run(self) -> None:
        """Submit the task, follow it to its end, and clean up; raise the error that ended it early."""
        client, task, address = self._client, self._task, self.worker.address
        with contextlib.ExitStack() as stack:
            declaration = None
            if not self.worker.sees_folder:
                from papermill_dask.client import transfer

                declaration = stage.declaration(self._options, self._executed.output_path)
                if not declaration.deps and not declaration.outs:
                    logger.warning(
                        "The worker %s does not see this folder, and no files are declared: the notebook runs "
                        "in an empty folder (options deps and outs, or the stage in dvc.yaml).", address
                    )  # fmt: skip
                task.folder = stack.enter_context(transfer.scratch_folder(client, address, Path.cwd(), declaration))
                task.is_scratch = True
            client.subscribe_topic(self.key, lambda event: self._events.put(json.loads(event[1])))
            stack.callback(compat.forget, client, self.key)
            # The notebook that lends the slot holds the resources already.
            resources = None if self.worker.lent_by else self._options.resources or None
            future = client.submit(run_notebook, task, key=self.key, pure=False, resources=resources, workers=[address])
            # The scheduler forgets a released task, and the worker then stops one that runs. `future.cancel()` would do
            # the same, but Dask reports it to all clients, which breaks connecting ones (`compat.new_client`).
            stack.callback(future.release)
            future.add_done_callback(lambda _: self._events.put({"kind": "done"}))
            ending = self._follow(future)
            if declaration and not ending["failed"]:  # a failed notebook's files are not the declared outs
                transfer.fetch(client, address, task.folder, Path.cwd(), declaration)
        metadata = {name: value for name, value in ending["metadata"].items() if name != "papermill"}
        self._executed.nb.metadata.update(nbformat.from_dict(metadata))
        self.runs = ending["runs"]
        if ending["error"] is not None:
            raise pickle.loads(ending["error"])  # noqa: S301 - from the cluster, which runs our code

    def _follow(self, future: Future[Any]) -> dict[str, Any]:
        """Show the task's events until it has ended; return its result."""
        last = time.monotonic()
        while True:
            try:
                event = self._events.get(timeout=POLL_SECONDS)
            except queue.Empty:
                event = {"kind": "silence"}
            else:
                last = time.monotonic()
            match event["kind"]:
                case "message":
                    self._show(event["message"], event["index"])
                case "start" | "end" if self._executed.is_skipped(event["index"]):
                    pass
                case "start":
                    self._log.clear_before_next_output = False
                    self._executed.cell_start(self._executed.nb.cells[event["index"]], event["index"])
                case "end":
                    self._end_cell(event)
                case "log":
                    logger.log(event["level"], "%s", event["text"])
                case "done":
                    return self._result(future)
                case "silence":
                    self._executed.autosave_cell()
                    if self._client.status != "running" or time.monotonic() - last > SILENCE_SECONDS:
                        if reason := lost_contact(self._client, self.worker.address, PROBE_SECONDS):
                            raise WorkerLost(reason, value=self.worker.address, **LOST)
                        last = time.monotonic()  # it is busy

    def _result(self, future: Future[Any]) -> dict[str, Any]:
        if self._client.status != "running":
            raise WorkerLost("The Dask scheduler was lost.", **LOST)
        if future.cancelled():
            raise EngineError("The notebook was stopped on its worker.", value="its task was cancelled")
        try:
            return future.result()
        except (OSError, KilledWorker):  # KilledWorker if the scheduler allows no failures
            what = "The Dask worker that ran the notebook was lost."
            raise WorkerLost(what, value=self.worker.address, **LOST) from None

    def _show(self, message: dict[str, Any], index: int) -> None:
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
    """Return the client's variables for the kernel; secrets only if the options name them.

    The commit is that of the client's folder, which the worker may not see.
    """

    def is_forwarded(name: str) -> bool:
        is_asked = any(fnmatch.fnmatchcase(name, pattern) for pattern in options.environment)
        is_usual = any(fnmatch.fnmatchcase(name, pattern) for pattern in FORWARDED)
        return is_asked or (is_usual and not any(word in name for word in SECRET_WORDS))

    return {name: value for name, value in os.environ.items() if is_forwarded(name)} | tracking.git_variables()
