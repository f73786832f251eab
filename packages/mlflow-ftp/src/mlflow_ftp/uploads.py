"""Uploads of any client are hidden until they are whole, as with ProFTPD's HiddenStores."""

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
    """A file that is written; a full disk is noticed by `flush`, and `close` does not report it a second time."""

    def __init__(self, path: Path, name: str) -> None:
        raw = io.FileIO(path, "w")
        raw.name = name  # the name in the log
        super().__init__(raw)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            super().close()


class Upload(Incoming):
    """A file that is written under a temporary name; `close` removes it unless `keep` gave it its own name before."""

    def __init__(self, path: Path) -> None:
        self._path, self._hidden = path, path.with_name(new_temporary(path.name))
        super().__init__(self._hidden, str(path))

    def keep(self, is_whole: bool) -> None:
        """Write the file to the disk and give it its name; raise an OSError if it is not whole."""
        self.flush()
        os.fsync(self.fileno())
        if not is_whole:
            raise ConnectionAbortedError(errno.ECONNABORTED, "Connection lost")
        self._hidden.replace(self._path)

    def close(self) -> None:
        """Close the file and remove what is not whole."""
        super().close()
        self._hidden.unlink(missing_ok=True)


class WholeFiles(AbstractedFS):
    """The chrooted folder; a client that hides an upload itself, as the store does, writes it directly."""

    def open(self, filename: str, mode: str) -> IO[Any]:
        """Open a file; raise FilesystemError for an upload that would change a file in place (APPE, REST)."""
        is_part = is_temporary(Path(filename).name)
        if mode == "wb":
            return Incoming(Path(filename), filename) if is_part else Upload(Path(filename))
        if mode != "rb" and not is_part:
            raise FilesystemError("A file is stored whole: send it from its start")
        return super().open(filename, mode)

    def remove(self, path: str) -> None:
        """Delete a file of the chrooted folder; of a link, which may lead out of it, the link."""
        file = Path(self.ftp2fs(path))
        if not self.validpath(str(file.parent)):
            raise FilesystemError("Its folder is outside")
        file.unlink()
