"""Hidden uploads: a file appears only when it is complete, as with ProFTPD's HiddenStores."""

from __future__ import annotations

import errno
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from pyftpdlib.filesystems import AbstractedFS, FilesystemError

from mlflow_ftp.names import is_temporary, new_temporary


class Incoming(io.BufferedWriter):
    """The file of an upload; `flush` raises disk errors, and `close` does not raise them again."""

    def __init__(self, path: Path, name: str) -> None:
        raw = io.FileIO(path, "w")
        raw.name = name  # the log shows this name
        super().__init__(raw)

    def close(self) -> None:
        """Close the file; ignore a disk error, which `flush` has raised."""
        with suppress(OSError):
            super().close()


class Upload(Incoming):
    """A file with a temporary name; `close` deletes the file unless `keep` has renamed it."""

    def __init__(self, path: Path) -> None:
        self._path, self._hidden = path, path.with_name(new_temporary(path.name))
        super().__init__(self._hidden, str(path))

    def sync(self, is_complete: bool) -> None:
        """Write the file to disk; raise OSError if the upload is incomplete."""
        self.flush()
        os.fsync(self.fileno())
        if not is_complete:
            raise ConnectionAbortedError(errno.ECONNABORTED, "Connection lost")

    def keep(self) -> None:
        """Rename the file to its final name."""
        self._hidden.replace(self._path)

    def close(self) -> None:
        """Close the file, and remove it unless it was renamed."""
        super().close()
        self._hidden.unlink(missing_ok=True)


class WholeFiles(AbstractedFS):
    """The served folder: an upload is hidden until complete, unless its name is already temporary, as in the store."""

    def open(self, filename: str, mode: str) -> IO[Any]:
        """Open a file; raise FilesystemError for an upload that would modify a file in place (APPE, REST)."""
        is_part = is_temporary(Path(filename).name)
        if mode == "wb":
            return Incoming(Path(filename), filename) if is_part else Upload(Path(filename))
        if mode != "rb" and not is_part:
            raise FilesystemError("Partial uploads are not supported: send the whole file")
        return super().open(filename, mode)

    def remove(self, path: str) -> None:
        """Delete a file in the served folder, or only the link if it is a symlink."""
        file = Path(self.ftp2fs(path))
        if not self.validpath(str(file.parent)):
            raise FilesystemError("The folder of the file is outside the served folder")
        file.unlink()
