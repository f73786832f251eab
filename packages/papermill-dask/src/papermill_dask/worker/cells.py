"""Runs a notebook's cells on the worker with papermill's own client, and reports each message to the client."""

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
from papermill_dask.task import Run
from papermill_dask.worker.kernels.manager import KernelManager
from papermill_dask.worker.kernels.warm import reason_for_cold_start

INTERRUPT_SECONDS = 0.5
# From the end of a cell to its last output. nbclient waits 4 s, because messages may be lost. A Unix socket loses none,
# and ten thousand messages need longer.
OUTPUT_SECONDS = 120
OUTPUT_MESSAGES = {"stream", "display_data", "execute_result", "error", "clear_output"}


class CellEvents:
    """Replaces papermill's NotebookExecutionManager on the worker: reports to the client instead of saving."""

    def __init__(self, notebook: NotebookNode, run: Run) -> None:
        self.nb, self._run = notebook, run
        self.failed: set[int] = set()

    def cell_start(self, cell: NotebookNode, cell_index: int, **_: Any) -> None:  # noqa: ARG002 - as in papermill
        """Report that a cell starts."""
        self._run.cell = cell_index + 1
        self._run.report("start", index=cell_index)

    def cell_exception(self, cell: NotebookNode, cell_index: int, **_: Any) -> None:  # noqa: ARG002 - as in papermill
        """Remember that a cell failed; the report of its end says so."""
        self.failed.add(cell_index)

    def cell_complete(self, cell: NotebookNode, cell_index: int, **_: Any) -> None:
        """Report that a cell ended, with its metadata, its number and whether it failed."""
        # papermill calls this in a `finally`: an exception (dead kernel, time-out) also means that the cell failed.
        if sys.exc_info()[0] is not None:
            self.failed.add(cell_index)
        # With this option nbclient changes outputs after the kernel's last message.
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
        """Do nothing: the client saves."""


class KernelClient(PapermillNotebookClient):
    """papermill's notebook client; its kernel never outlives the notebook, and its messages reach the Dask client.

    ``before_end`` is called before the kernel ends.
    """

    def __init__(self, manager: CellEvents, run: Run, *, before_end: Callable[[], None], **options: Any) -> None:
        options = {"iopub_timeout": OUTPUT_SECONDS} | options
        super().__init__(manager, kernel_manager_class=KernelManager, log=run.logger(), **options)
        self._run, self._before_end = run, before_end
        self._exit_code: int | None = None

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        """Report a message to the client, unless a widget takes it; then process it as papermill does."""
        kind, parent = msg["msg_type"], msg["parent_header"].get("msg_id")
        is_captured = kind in OUTPUT_MESSAGES and compat.is_captured(self, parent)
        if not is_captured and not kind.startswith("comm"):
            parts = {name: msg[name] for name in ("msg_type", "header", "metadata", "content")}
            self._run.report("message", index=cell_index, message=parts | {"parent_header": {"msg_id": parent}})
        return super().process_message(msg, cell, cell_index)

    def create_kernel_manager(self) -> KernelManager:
        """Create the manager of a kernel, which starts cold where a forked one might give another result."""
        cells = [cell.source for cell in self.nb.cells if cell.cell_type == "code"]
        manager: KernelManager = super().create_kernel_manager()
        manager.reason_for_cold_start = reason_for_cold_start(cells, Path(self._run.task.folder))
        return manager

    @contextlib.contextmanager
    def setup_kernel(self, **options: Any) -> Iterator[None]:
        """Start the kernel, and end it after the block; note its exit code if it ended by itself."""
        with super().setup_kernel(**options):
            try:
                yield
            except CellTimeoutError:
                # As with papermill's own engine, an interrupt shows where the cell was, and ends its `with` blocks.
                run_sync(self.km.interrupt_kernel)()
                time.sleep(INTERRUPT_SECONDS)
                raise
            finally:
                kernel = self.km.kernel
                self._exit_code = kernel.poll() if kernel else None
                self._before_end()

    def explain(self, problem: Exception, cell: int | None) -> Exception:
        """Return the error to show; for a kernel that died, add its exit code or signal, and the cell (from 1)."""
        if not isinstance(problem, DeadKernelError) or self._exit_code is None:
            return problem
        code = self._exit_code
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        return DeadKernelError(f"{problem}: {how}{f', in cell {cell}' if cell else ''}")
