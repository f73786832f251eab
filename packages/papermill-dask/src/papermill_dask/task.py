"""A notebook on a Dask worker: the task that the client sends, and its run."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from papermill_dask.failures import EngineError

if TYPE_CHECKING:
    from distributed import Worker


@dataclass
class Task:
    """What a worker needs to run a notebook: plain data.

    ``notebook`` is the nbformat document, ``options`` the arguments of papermill's notebook client, ``worker`` the id
    of the worker that it is for. The kernel runs in ``folder`` and sees ``environment`` on top of the worker's own.
    ``is_scratch``: the folder was filled for this notebook. ``output`` names the output, ``resources`` are Dask's.
    """

    notebook: dict[str, Any]
    name: str
    kernel_name: str
    options: dict[str, Any]
    worker: str | None
    folder: str
    environment: dict[str, str]
    output: str | None = None
    resources: dict[str, float] = field(default_factory=dict)
    is_scratch: bool = False


@dataclass
class Run:
    """A notebook on this worker, from the moment that Dask starts its task until nothing of it is left.

    ``stopped`` says why it must end: not wanted any more, or its worker is going.
    """

    key: str
    task: Task
    worker: Worker
    since: float = field(default_factory=time.time)
    cell: int | None = None
    stopped: EngineError | None = None
    kernel: Any = None

    def report(self, kind: str, **event: Any) -> None:
        """Send the client an event: plain data, dates among them."""
        from jupyter_client.jsonutil import json_default

        with contextlib.suppress(RuntimeError):  # an event loop that is closed: the worker is going
            self.worker.log_event(self.key, json.dumps({"kind": kind, **event}, default=json_default))

    def logger(self) -> logging.Logger:
        """Return a logger whose records are events: the client logs them where papermill's own engine would have."""
        logger = logging.Logger(self.key, logging.INFO)  # noqa: LOG001 - one a notebook, not one for ever
        handler = logging.Handler()
        handler.emit = lambda record: self.report("log", level=record.levelno, text=record.getMessage())  # type: ignore[method-assign]
        logger.addHandler(handler)
        return logger

    def kill(self) -> None:
        """End the notebook with all its processes."""
        if manager := getattr(self.kernel, "km", None):
            manager.kill()
