"""The executed notebook on the client: track cell statuses and save the file."""

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
from papermill_dask.config import cell_tags
from papermill_dask.errors import DISK_FULL, EngineError

SAVE_SECONDS = 1.0
SAVE_FRACTION = 0.05  # maximum share of the run time spent on saving


class ExecutedNotebook(NotebookExecutionManager):
    """The executed notebook: saved atomically, soon after each output, with correct cell statuses.

    If a kernel dies or a cell times out, papermill itself would mark cells that never ran as completed.
    """

    SKIPPED = "skipped"
    output_path: str | None
    skip_tags: frozenset[str] = frozenset()
    has_changed = False
    _save_seconds = 0.0

    def notebook_start(self, **_: Any) -> None:
        """Reset the notebook as papermill does, and mark the cells to skip."""
        super().notebook_start()
        for cell in self.nb.cells:
            if cell_tags([cell]) & self.skip_tags:
                cell.metadata.papermill["status"] = self.SKIPPED

    def is_skipped(self, index: int) -> bool:
        """Return whether a cell is skipped."""
        return self.nb.cells[index].metadata.papermill["status"] == self.SKIPPED

    def save(self, **_: Any) -> None:
        """Write the notebook to a hidden file that then replaces the output; raise EngineError if saving fails."""
        start, target, file = time.monotonic(), self.output_path, _local_file(self.output_path)
        partial = file and file.with_name(f".{uuid.uuid4().hex}.ipynb")  # a suffix could make the output name too long
        try:
            if partial:
                partial.parent.mkdir(parents=True, exist_ok=True)
                self.output_path = str(partial)
            super().save()
            if file and partial:
                replace_file(partial, file)
        except OSError as error:
            if partial:
                partial.unlink(missing_ok=True)
            raise EngineError(
                f"Saving the executed notebook failed{'; the last saved version is intact' if partial else ''}.",
                value=f"{target}: {error}".partition("\n")[0],  # pyarrow appends the paths it searched for Java
                next_step=f"{'free space or ' if error.errno in DISK_FULL else ''}use another path; rerun the notebook",
            ) from None
        finally:
            self.output_path = target
        self.has_changed = False
        self._save_seconds = time.monotonic() - start

    def autosave_cell(self) -> None:
        """Save new outputs if a save is due: less often if saving is slow, never if autosave is off."""
        seconds = (self.now() - self.last_save_time).total_seconds()
        interval = min(self.autosave_cell_every, max(SAVE_SECONDS, self._save_seconds / SAVE_FRACTION))
        if self.autosave_cell_every and self.has_changed and seconds >= interval:
            self.save()

    def mark_aborted(self) -> None:
        """Mark the running cell as failed; leave later cells pending."""
        self.nb.metadata.papermill["exception"] = True
        for index, cell in enumerate(self.nb.cells):
            if cell.metadata.papermill["status"] == self.RUNNING:
                self.cell_exception(cell, cell_index=index)
                self.cell_complete(cell, cell_index=index)

    def notebook_complete(self, **_: Any) -> None:
        """Finish as papermill does, but keep the status `pending` for cells that never ran."""
        pending_cells = [cell for cell in self.nb.cells if cell.metadata.papermill["status"] == self.PENDING]
        super().notebook_complete()
        if self.nb.metadata.papermill["exception"] and pending_cells:
            for cell in pending_cells:
                cell.metadata.papermill["status"] = self.PENDING
            self.save()


def replace_file(new: Path, file: Path) -> None:
    """Replace ``file`` with ``new``, completely or not at all; keep the links, mode, owner and ACL of ``file``.

    Raises OSError, and keeps both files, if ``file`` is read-only or the disk is full.
    """
    try:
        stream = file.open("r+b")
    except FileNotFoundError:  # no such file, or a link whose target does not exist yet
        shutil.move(new, os.path.realpath(file))
        return
    with stream:
        old, created = file.lstat(), new.stat()
        has_one_name = not file.is_symlink() and old.st_nlink == 1
        if has_one_name and (old.st_uid, old.st_gid) == (created.st_uid, created.st_gid):
            shutil.copystat(file, new)
            os.utime(new)
            with contextlib.suppress(OSError):  # a mount point cannot be replaced
                new.replace(file)
                return
        content, size = new.read_bytes(), os.fstat(stream.fileno()).st_size
        try:
            if hasattr(os, "posix_fallocate"):  # detect a full disk before the content changes
                os.posix_fallocate(stream.fileno(), 0, len(content))
        except OSError:
            stream.truncate(size)
            raise
        stream.write(content)
        stream.truncate()
    new.unlink()


def _local_file(path: str | None) -> Path | None:
    """Return the local file that papermill writes for ``path``; None if it is not a regular local file."""
    if not path or path == "-" or not isinstance(papermill_io.get_handler(path), LocalHandler):
        return None
    file = Path(compat.papermill_cwd() or os.curdir, path).absolute()
    return file if file.is_file() or not file.exists() else None
