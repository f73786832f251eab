"""A notebook on a Dask worker: the task from the client, and its run."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from papermill_dask.config import NotebookOptions
from papermill_dask.failures import EngineError

if TYPE_CHECKING:
    from distributed import Worker


@dataclass
class Task:
    """What a worker needs to run a notebook: plain data.

    ``notebook`` is the nbformat document, ``options`` are the arguments of papermill's notebook client, and ``worker``
    is the id of its worker. The kernel runs in ``folder`` and sees ``environment`` on top of the worker's own.
    ``is_scratch``: the folder is for this notebook alone. ``output`` names the output.
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
    """A notebook on this worker, from the start of its task until its processes have ended.

    ``stopped`` is the reason why it must end early.
    """

    key: str
    task: Task
    worker: Worker
    since: float = field(default_factory=time.time)
    cell: int | None = None
    stopped: EngineError | None = None
    kernel: Any = None

    def report(self, kind: str, **event: Any) -> None:
        """Send the client an event: plain data, which may have dates."""
        from jupyter_client.jsonutil import json_default

        with contextlib.suppress(RuntimeError):  # the event loop is closed: the worker is ending
            self.worker.log_event(self.key, json.dumps({"kind": kind, **event}, default=json_default))

    def logger(self) -> logging.Logger:
        """Return a logger whose records are events: the client logs them as papermill's own engine would."""
        logger = logging.Logger(self.key, logging.INFO)  # noqa: LOG001 - for one notebook, not registered
        handler = logging.Handler()
        handler.emit = lambda record: self.report("log", level=record.levelno, text=record.getMessage())  # type: ignore[method-assign]
        logger.addHandler(handler)
        return logger

    def kill(self) -> None:
        """End the notebook with all its processes."""
        if manager := getattr(self.kernel, "km", None):
            manager.kill()


RUNS: dict[str, Run] = {}  # the notebooks that run in this worker process, by the key of their Dask task
