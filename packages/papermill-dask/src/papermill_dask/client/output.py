"""The executed notebook on the client: the status of its cells, and its file."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from papermill.engines import NotebookExecutionManager
from papermill.iorw import LocalHandler, papermill_io

from papermill_dask import compat
from papermill_dask.config import tags_of
from papermill_dask.failures import FULL_DISK, EngineError

SAVE_SECONDS = 1.0
SAVE_SHARE = 0.05  # of the time, at most, for saving


class ExecutedNotebook(NotebookExecutionManager):
    """The executed notebook on the client's disk: saved whole, soon after each output, with the true status of cells.

    papermill itself marks cells that never ran as completed when a kernel dies or a cell times out.
    """

    SKIPPED = "skipped"
    output_path: str | None
    skip_tags: frozenset[str] = frozenset()
    has_changed = False
    _save_seconds = 0.0

    def notebook_start(self, **_: Any) -> None:
        """Reset the notebook as papermill does, and mark the cells that are not run."""
        super().notebook_start()
        for cell in self.nb.cells:
            if tags_of([cell]) & self.skip_tags:
                cell.metadata.papermill["status"] = self.SKIPPED

    def is_skipped(self, index: int) -> bool:
        """Return whether a cell is not run."""
        return self.nb.cells[index].metadata.papermill["status"] == self.SKIPPED

    def save(self, **_: Any) -> None:
        """Write the notebook to a hidden file, and put that in place; raise EngineError if it cannot be written."""
        began, target, file = time.monotonic(), self.output_path, _local_file(self.output_path)
        partial = file and file.with_name(f".{uuid.uuid4().hex}.ipynb")  # a name may be as long as the system allows
        try:
            if partial:
                self.output_path = str(partial)
            super().save()
            if file and partial:
                put_in_place(partial, file)
        except OSError as error:
            if partial:
                partial.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):
                raise  # no such folder: papermill's own error is clear
            raise EngineError(
                f"The executed notebook cannot be saved{'; the last saved version is whole' if partial else ''}.",
                value=f"{target}: {error}".partition("\n")[0],  # pyarrow lists each place without Java
                next_step=f"{'free space, or ' if error.errno in FULL_DISK else ''}write elsewhere; then run it again",
            ) from None
        finally:
            self.output_path = target
        self.has_changed = False
        self._save_seconds = time.monotonic() - began

    def autosave_cell(self) -> None:
        """Save new outputs when a save is due: soon, unless saving takes long or is turned off."""
        seconds = (self.now() - self.last_save_time).total_seconds()
        due = min(self.autosave_cell_every, max(SAVE_SECONDS, self._save_seconds / SAVE_SHARE))
        if self.autosave_cell_every and self.has_changed and seconds >= due:
            self.save()

    def mark_aborted(self) -> None:
        """Mark the running cell as failed and leave the cells after it pending: the notebook was ended early."""
        self.nb.metadata.papermill["exception"] = True
        for index, cell in enumerate(self.nb.cells):
            if cell.metadata.papermill["status"] == self.RUNNING:
                self.cell_exception(cell, cell_index=index)
                self.cell_complete(cell, cell_index=index)

    def notebook_complete(self, **_: Any) -> None:
        """Finish as papermill does, but leave cells pending that never ran."""
        pending_cells = [cell for cell in self.nb.cells if cell.metadata.papermill["status"] == self.PENDING]
        super().notebook_complete()
        if self.nb.metadata.papermill["exception"] and pending_cells:
            for cell in pending_cells:
                cell.metadata.papermill["status"] = self.PENDING
            self.save()


def put_in_place(new: Path, file: Path) -> None:
    """Move a new file to ``file``, whole or not at all; one that exists keeps its links, mode, owner and ACL.

    Raises OSError, and leaves both files: the old one may not be written to, or the disk is full.
    """
    try:
        stream = file.open("r+b")
    except FileNotFoundError:  # of a link, the file that it names
        shutil.move(new, os.path.realpath(file))
        return
    with stream:
        old, fresh = file.lstat(), new.stat()
        is_alone = not file.is_symlink() and old.st_nlink == 1
        if is_alone and (old.st_uid, old.st_gid) == (fresh.st_uid, fresh.st_gid):
            shutil.copystat(file, new)
            os.utime(new)
            with contextlib.suppress(OSError):  # a mount point
                new.replace(file)
                return
        content, size = new.read_bytes(), os.fstat(stream.fileno()).st_size
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error before the content changes
                os.posix_fallocate(stream.fileno(), 0, len(content))
        except OSError:
            stream.truncate(size)
            raise
        stream.write(content)
        stream.truncate()
    new.unlink()


def _local_file(path: str | None) -> Path | None:
    """Return the local file to which papermill writes ``path``; None if it is not a plain local file."""
    if not path or path == "-" or not isinstance(papermill_io.get_handler(path), LocalHandler):
        return None
    file = Path(compat.folder_of_papermills_files() or os.curdir, path).absolute()
    return file if file.is_file() or not file.exists() else None
