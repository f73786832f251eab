"""The task that a client sends to a worker, and its run on the worker."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from papermill_dask.config import NotebookOptions
from papermill_dask.errors import EngineError

if TYPE_CHECKING:
    from distributed import Worker


@dataclass
class Task:
    """Everything a worker needs to run a notebook, as plain data.

    ``notebook`` is the nbformat document, ``options`` are arguments of papermill's notebook client, ``worker`` is the
    target worker's id. The kernel runs in ``folder``, with ``environment`` added to the worker's variables.
    ``is_scratch`` marks ``folder`` as temporary and private to this notebook; ``output`` identifies the output file.
    """

    notebook: dict[str, Any]
    name: str
    kernel_name: str
    options: dict[str, Any]
    worker: str | None
    folder: str
    environment: dict[str, str]
    output: str | None = None
    engine_options: NotebookOptions = field(default_factory=NotebookOptions)
    is_scratch: bool = False


@dataclass
class Run:
    """The run of a notebook on this worker, from the start of its task until all its processes have ended.

    ``stop_reason`` is the error to raise if the notebook is stopped early; ``is_ending`` is set after the last cell.
    """

    key: str
    task: Task
    worker: Worker
    since: float = field(default_factory=time.time)
    cell: int | None = None
    stop_reason: EngineError | None = None
    is_ending: bool = False
    kernel: Any = None

    def report(self, kind: str, **event: Any) -> None:
        """Send an event to the client as JSON, with dates as ISO strings."""
        from jupyter_client.jsonutil import json_default

        with contextlib.suppress(RuntimeError):  # the worker is closing: no event loop
            self.worker.log_event(self.key, json.dumps({"kind": kind, **event}, default=json_default))

    def logger(self) -> logging.Logger:
        """Return a logger that sends its records to the client, which logs them."""
        logger = logging.Logger(self.key, logging.INFO)  # noqa: LOG001 - `getLogger` would keep it after the notebook
        handler = logging.Handler()
        handler.emit = lambda record: self.report("log", level=record.levelno, text=record.getMessage())  # type: ignore[method-assign]
        logger.addHandler(handler)
        return logger

    def kill(self) -> None:
        """Kill the kernel and all its descendants."""
        if manager := getattr(self.kernel, "km", None):
            manager.kill()


RUNS: dict[str, Run] = {}  # the notebooks running in this worker process, by Dask key
