"""One attempt at a notebook: a task on one worker, followed by its events and shown in papermill's notebook."""

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
from jupyter_client.jsonutil import parse_date
from nbclient.exceptions import CellExecutionComplete
from papermill.clientwrap import PapermillNotebookClient
from papermill.log import logger
from papermill.utils import merge_kwargs, remove_args

from papermill_dask import compat, tracking
from papermill_dask.cluster import Worker, lost_contact, this_output
from papermill_dask.config import NotebookOptions
from papermill_dask.errors import LOST, EngineError, WorkerLost
from papermill_dask.executed import ExecutedNotebook
from papermill_dask.worker import Task, run_notebook

FORWARDED = ("DVC_*", "MLFLOW_*")
SECRET_WORDS = ("PASSWORD", "TOKEN", "SECRET", "KEY")
POLL_SECONDS = 0.1
SILENCE_SECONDS = 3.0
PROBE_SECONDS = 1.5


class Attempt:
    """One run of a notebook on one worker, told by the worker's events and shown in papermill's notebook."""

    def __init__(
        self,
        executed: ExecutedNotebook,
        kernel_name: str,
        client,
        worker: Worker,
        options: NotebookOptions,
        *,
        log_output=False,
        stdout_file=None,
        stderr_file=None,
        start_timeout=60,
        execution_timeout=None,
        input_path=None,
        task=None,
        **keywords: Any,
    ) -> None:
        self._executed, self._client, self.worker, self._options = executed, client, worker, options
        # Never starts a kernel: it does with the kernel's messages what it would do if it had one.
        self._log = PapermillNotebookClient(
            executed,
            log=logger,
            log_output=log_output,
            stdout_file=stdout_file,
            stderr_file=stderr_file,
            record_timing=keywords.get("record_timing", True),
        )
        # papermill also takes a notebook itself as input.
        name = Path(input_path).stem if isinstance(input_path, str) else "notebook"
        # Dask's pages group tasks by what stands before the hexadecimal part: the notebook's name.
        self.key = task or f"{name}-{uuid.uuid4().hex[:8]}"
        self._task = Task(
            notebook=json.loads(json.dumps(executed.nb)),  # plain dicts, which unpickle without nbformat
            name=name,
            kernel_name=kernel_name,
            topic=f"{name}-{uuid.uuid4().hex}",
            options=merge_kwargs(
                remove_args(["timeout", "startup_timeout"], **keywords),
                timeout=execution_timeout or keywords.get("timeout"),
                startup_timeout=start_timeout,
            ),
            worker=worker.id,
            folder=str(Path.cwd()),
            environment=forwarded_environment(options),
            umask=umask(),
            output=this_output(executed.output_path),
            is_remote=not worker.is_local,
            max_output=options.max_output,
        )
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.runs: list[dict[str, Any]] = []  # of the notebook in MLflow, when it has ended

    def run(self) -> None:
        """Submit the task, follow it to its end, and leave nothing of it; raises what ended it early."""
        client, task, address = self._client, self._task, self.worker.address
        future = declaration = None
        try:
            if not self.worker.sees_folder:
                declaration = self._send_files()
            client.subscribe_topic(task.topic, self._receive)
            future = client.submit(
                run_notebook,
                task,
                key=self.key,
                pure=False,
                retries=0,
                resources=self._options.resources or None,
                workers=[address],
                allow_other_workers=False,
            )
            future.add_done_callback(lambda _: self._events.put({"kind": "done"}))
            ending = self._follow(future)
            if declaration and not ending["failed"]:  # what a notebook that failed has made is not what was declared
                from papermill_dask.files import fetch

                fetch(client, address, task.folder, Path.cwd(), declaration)
        except WorkerLost:
            task.is_scratch = False  # out of reach: the worker, or the next one there, removes it
            raise
        finally:
            if client.status == "running":
                if future is not None:
                    future.cancel()  # does nothing to what is done; what still runs is ended by its worker
                self._remove_files()
                compat.forget(client, task.topic)
        metadata = {name: value for name, value in ending["metadata"].items() if name != "papermill"}
        self._executed.nb.metadata.update(nbformat.from_dict(metadata))
        self.runs = ending["runs"]
        if ending["error"] is not None:
            raise pickle.loads(ending["error"])  # noqa: S301 - from the cluster, which runs our code

    def _follow(self, future) -> dict[str, Any]:
        """Show the task's events until it has ended; return what it returned."""
        heard = time.monotonic()
        while True:
            try:
                event = self._events.get(timeout=POLL_SECONDS)
            except queue.Empty:
                event = {"kind": "silence"}
            else:
                heard = time.monotonic()
            match event["kind"]:
                case "message":
                    self._show(event["message"], event["index"])
                case "start":
                    self._log.clear_before_next_output = False
                    self._executed.cell_start(self._executed.nb.cells[event["index"]], event["index"])
                case "end":
                    self._end_cell(event)
                case "log":
                    logger.log(event["level"], "%s", event["text"])
                case "lost":
                    raise WorkerLost(
                        "The Dask worker that ran the notebook was lost.", value=self.worker.address, **LOST
                    )
                case "done":
                    return self._result(future)
                case "silence":
                    self._executed.autosave_cell()
                    if self._client.status != "running":
                        raise WorkerLost("The Dask scheduler was lost.", **LOST)
                    if time.monotonic() - heard > SILENCE_SECONDS:
                        if reason := lost_contact(self._client, self.worker.address, PROBE_SECONDS):
                            raise self._lost(reason)
                        heard = time.monotonic()  # it is there, and busy

    def _result(self, future) -> dict[str, Any]:
        if self._client.status != "running":
            raise WorkerLost("The Dask scheduler was lost.", **LOST)
        if future.cancelled():
            raise EngineError("The notebook was stopped on its worker.", value="its task was cancelled")
        try:
            return future.result()
        except OSError as error:
            raise self._lost(f"The Dask worker that ran the notebook was lost ({error!r}).") from None

    def _lost(self, what: str) -> WorkerLost:
        return WorkerLost(what, value=self.worker.address, **LOST)

    # -- events ------------------------------------------------------------------------------------------------
    def _receive(self, event: tuple[float, str]) -> None:
        self._events.put(json.loads(event[1]))

    def _show(self, message: dict[str, Any], index: int) -> None:
        cell = self._executed.nb.cells[index]
        if self._log.record_timing:
            cell.metadata.setdefault("execution", {})
        message["header"]["date"] = parse_date(message["header"]["date"])
        self._executed.output_came()
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

    # -- files, where there is no shared disk ------------------------------------------------------------------
    def _send_files(self):
        """Bring what is declared to the worker; return the declaration."""
        from papermill_dask.files import send
        from papermill_dask.stage import declaration

        declared = declaration(self._options, self._executed.output_path)
        if not declared.deps and not declared.outs:
            logger.warning(
                "The worker %s does not see this folder, and nothing is declared to travel: the notebook runs in an "
                "empty folder (options deps and outs, or the stage in dvc.yaml).", self.worker.address
            )  # fmt: skip
        self._task.folder = send(self._client, self.worker.address, Path.cwd(), declared)
        self._task.is_scratch = True
        return declared

    def _remove_files(self) -> None:
        if self._task.is_scratch:
            from papermill_dask.files import remove

            with contextlib.suppress(EngineError):  # the worker removes what is left by itself, later
                remove(self._client, self.worker.address, self._task.folder)


def umask() -> int:
    """Return the umask of this process, which a program can only read by setting another for a moment."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def forwarded_environment(options: NotebookOptions) -> dict[str, str]:
    """Return the variables that the kernel shall see as the client does; secrets stay at home unless asked for.

    The commit is that of the client's folder: the worker may know another, or none.
    """
    found = {
        name: value
        for name, value in os.environ.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in options.environment)
        or (
            any(fnmatch.fnmatchcase(name, pattern) for pattern in FORWARDED)
            and not any(word in name for word in SECRET_WORDS)
        )
    }
    return found | tracking.git_variables()
