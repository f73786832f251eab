"""The executed notebook on the client's disk: saved whole, soon after something came, and truthful about failures."""

from __future__ import annotations

import os
import time
from pathlib import Path

from papermill.engines import NotebookExecutionManager
from papermill.iorw import LocalHandler, papermill_io

from papermill_dask import compat
from papermill_dask.errors import EngineError

SAVE_SECONDS = 1.0
SAVE_SHARE = 0.05  # of the time may go into saving


class ExecutedNotebook(NotebookExecutionManager):
    """papermill's own manager, but a save never leaves half a file, and a notebook cut short says where.

    papermill marks cells that never ran as completed when a kernel dies or a cell times out.
    """

    def __init__(self, nb, **options) -> None:
        super().__init__(nb, **options)
        self._changed = False
        self._save_took = 0.0

    def save(self, **_) -> None:
        """Write the notebook beside its place and rename it there; raise EngineError when the disk is full."""
        began = time.monotonic()
        file = _local_file(self.output_path)
        target = self.output_path
        try:
            if file is not None:
                self.output_path = str(file.with_name(f".{os.getpid()}.{file.name}"))
            super().save()
            if file is not None:
                Path(self.output_path).replace(file)
        except OSError as error:
            if file is not None:
                Path(self.output_path).unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):
                raise  # no such folder: papermill's own words for it are good
            raise EngineError(
                "The executed notebook cannot be saved; what was saved before is whole.",
                value=f"{target}: {error}",
                next_step="free space, or write elsewhere, then run the notebook again",
            ) from None
        finally:
            self.output_path = target
        self._changed = False
        self._save_took = time.monotonic() - began

    def autosave_cell(self) -> None:
        """Save what came since the last save when that is due: soon, unless saving takes long or is turned off."""
        if self.autosave_cell_every == 0:
            return
        waited = (self.now() - self.last_save_time).total_seconds()
        due = min(self.autosave_cell_every, max(SAVE_SECONDS, self._save_took / SAVE_SHARE))
        if self._changed and waited >= due:
            self.save()

    def output_came(self) -> None:
        """Remember that there is something to save."""
        self._changed = True

    def cut_short(self) -> None:
        """Mark the cell that ran as failed and leave those after it pending: something ended the notebook."""
        self.nb.metadata.papermill["exception"] = True
        for index, cell in enumerate(self.nb.cells):
            if cell.metadata.papermill["status"] == self.RUNNING:
                self.cell_exception(cell, cell_index=index)
                self.cell_complete(cell, cell_index=index)

    def notebook_complete(self, **_) -> None:
        """Finish as papermill does, but leave cells pending that never ran in a notebook that was cut short."""
        pending = [cell for cell in self.nb.cells if cell.metadata.papermill["status"] == self.PENDING]
        super().notebook_complete()
        if self.nb.metadata.papermill["exception"] and pending:
            for cell in pending:
                cell.metadata.papermill["status"] = self.PENDING
            self.save()


def _local_file(path: str | None) -> Path | None:
    """Return the file that papermill would write ``path`` to; None when it is no plain file of this machine."""
    if not path or path == "-" or not isinstance(papermill_io.get_handler(path), LocalHandler):
        return None
    file = Path(compat.folder_of_papermills_files() or os.curdir, path).absolute()
    return file if not file.exists() or (file.is_file() and not file.is_symlink()) else None
