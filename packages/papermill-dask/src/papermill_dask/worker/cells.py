"""Run a notebook's cells on the worker with papermill's notebook client, and forward the kernel's messages."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jupyter_core.utils import run_sync
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient

from papermill_dask import compat
from papermill_dask.task import RUNS, Run
from papermill_dask.worker.kernels.manager import KernelManager
from papermill_dask.worker.kernels.warm import reason_for_cold_start

INTERRUPT_SECONDS = 0.5
# Timeout for a cell's last output. nbclient's default is 4 s, because messages may be lost. Unix sockets lose none, but
# ten thousand messages take longer than 4 s.
OUTPUT_SECONDS = 120
OUTPUT_MESSAGES = {"stream", "display_data", "execute_result", "error", "clear_output"}


class CellEvents:
    """Replaces papermill's NotebookExecutionManager: sends events to the client instead of saving the notebook."""

    def __init__(self, notebook: NotebookNode, run: Run) -> None:
        self.nb, self._run = notebook, run
        self.failed: set[int] = set()

    def cell_start(self, cell: NotebookNode, cell_index: int, **_: Any) -> None:  # noqa: ARG002 - as in papermill
        """Report the start of a cell."""
        self._run.cell = cell_index + 1
        self._run.report("start", index=cell_index)

    def cell_exception(self, cell: NotebookNode, cell_index: int, **_: Any) -> None:  # noqa: ARG002 - as in papermill
        """Record that a cell failed; `cell_complete` reports it."""
        self.failed.add(cell_index)

    def cell_complete(self, cell: NotebookNode, cell_index: int, **_: Any) -> None:
        """Report the end of a cell: metadata, execution count and success."""
        # papermill calls this in a `finally` block: if an exception is active (dead kernel, timeout), the cell failed.
        if sys.exc_info()[0] is not None:
            self.failed.add(cell_index)
        # With `coalesce_streams`, nbclient still changes the outputs after the last message, so send the outputs, too.
        outputs = cell.get("outputs") if self._run.task.options.get("coalesce_streams") else None
        self._run.report(
            "end",
            index=cell_index,
            metadata={name: value for name, value in cell.metadata.items() if name != "papermill"},
            execution_count=cell.get("execution_count"),
            failed=cell_index in self.failed,
            outputs=outputs,
        )

    def autosave_cell(self) -> None:
        """Do nothing; the client saves the notebook."""


class KernelClient(PapermillNotebookClient):
    """papermill's notebook client, with a supervised kernel whose messages are forwarded to the Dask client.

    ``before_shutdown`` is called before the kernel shuts down.
    """

    def __init__(self, manager: CellEvents, run: Run, *, before_shutdown: Callable[[], None], **options: Any) -> None:
        options = {"iopub_timeout": OUTPUT_SECONDS} | options
        super().__init__(manager, kernel_manager_class=KernelManager, log=run.logger(), **options)
        self._run, self._before_shutdown = run, before_shutdown
        self._exit_code: int | None = None

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        """Forward a message to the client, unless a widget captures it; then process it as papermill does."""
        kind, parent = msg["msg_type"], msg["parent_header"].get("msg_id")
        is_captured = kind in OUTPUT_MESSAGES and compat.is_captured(self, parent)
        if not is_captured and not kind.startswith("comm"):
            parts = {name: msg[name] for name in ("msg_type", "header", "metadata", "content")}
            self._run.report("message", index=cell_index, message=parts | {"parent_header": {"msg_id": parent}})
        return super().process_message(msg, cell, cell_index)

    def create_kernel_manager(self) -> KernelManager:
        """Create the kernel manager; make it start the kernel cold if a forked kernel might give different results."""
        cells = [cell.source for cell in self.nb.cells if cell.cell_type == "code"]
        manager: KernelManager = super().create_kernel_manager()
        manager.reason_for_cold_start = reason_for_cold_start(cells, Path(self._run.task.folder))
        return manager

    @contextlib.contextmanager
    def setup_kernel(self, **options: Any) -> Iterator[None]:
        """Start the kernel and shut it down after the block; record its exit code if it died."""
        with super().setup_kernel(**options):
            try:
                yield
            except CellTimeoutError:
                self._run.is_ending = True  # reports no end below: the cell may ignore the interrupt
                # Interrupt the kernel as papermill does, so the traceback has the current line and `with` blocks exit.
                run_sync(self.km.interrupt_kernel)()
                time.sleep(INTERRUPT_SECONDS)
                raise
            finally:
                kernel = self.km.kernel
                self._exit_code = kernel.poll() if kernel else None
                # One kernel more than the worker has slots may be alive, and the resources are held to the end.
                if not self._run.task.engine_options.resources and not any(
                    run.is_ending for run in list(RUNS.values())
                ):
                    self._run.report("cells_ended")
                self._run.is_ending = True
                self._before_shutdown()

    def describe_error(self, problem: Exception, cell: int | None) -> Exception:
        """Return the error to report; for a dead kernel, add its exit code or signal and the cell's number (from 1)."""
        if not isinstance(problem, DeadKernelError) or self._exit_code is None:
            return problem
        code = self._exit_code
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        return DeadKernelError(f"{problem}: {how}{f', in cell {cell}' if cell else ''}")
