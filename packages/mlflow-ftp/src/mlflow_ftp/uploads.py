"""Hide the uploads of all clients until they are whole, as ProFTPD's HiddenStores does."""

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
    """A file of an upload; `flush` raises the error of a full disk, and `close` does not raise it again."""

    def __init__(self, path: Path, name: str) -> None:
        raw = io.FileIO(path, "w")
        raw.name = name  # the name in the log
        super().__init__(raw)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            super().close()


class Upload(Incoming):
    """A file under a temporary name; `close` removes it unless `keep` has given it its own name."""

    def __init__(self, path: Path) -> None:
        self._path, self._hidden = path, path.with_name(new_temporary(path.name))
        super().__init__(self._hidden, str(path))

    def sync(self, is_whole: bool) -> None:
        """Write the file to the disk; raise an OSError if it is not whole."""
        self.flush()
        os.fsync(self.fileno())
        if not is_whole:
            raise ConnectionAbortedError(errno.ECONNABORTED, "Connection lost")

    def keep(self) -> None:
        """Give the file its own name."""
        self._hidden.replace(self._path)

    def close(self) -> None:
        """Close the file, and remove it if it is not whole."""
        super().close()
        self._hidden.unlink(missing_ok=True)


class WholeFiles(AbstractedFS):
    """The served folder; a client that uses temporary names itself, as the store does, writes directly."""

    def open(self, filename: str, mode: str) -> IO[Any]:
        """Open a file; raise FilesystemError for an upload that would change a file in place (APPE, REST)."""
        is_part = is_temporary(Path(filename).name)
        if mode == "wb":
            return Incoming(Path(filename), filename) if is_part else Upload(Path(filename))
        if mode != "rb" and not is_part:
            raise FilesystemError("A file is stored whole: send it from its start")
        return super().open(filename, mode)

    def remove(self, path: str) -> None:
        """Delete a file in the served folder; delete only the link if the file is one."""
        file = Path(self.ftp2fs(path))
        if not self.validpath(str(file.parent)):
            raise FilesystemError("The folder of the file is outside the served folder")
        file.unlink()
