"""Uploads of any client are hidden until they are whole, as with ProFTPD's HiddenStores."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path

from pyftpdlib.filesystems import AbstractedFS, FilesystemError

from mlflow_ftp.names import is_temporary, new_temporary


class Upload(io.BufferedWriter):
    """A file that is written under a temporary name; `close` removes it unless `keep` gave it its own name before."""

    def __init__(self, path: Path) -> None:
        self._path, self._hidden = path, path.with_name(new_temporary(path.name))
        raw = io.FileIO(self._hidden, "w")
        raw.name = str(path)  # the name in the log
        super().__init__(raw)

    def sync(self) -> None:
        """Write the content to the disk."""
        self.flush()
        os.fsync(self.fileno())

    def keep(self) -> None:
        """Give the file its name."""
        self._hidden.replace(self._path)

    def close(self) -> None:
        """Close the file and remove what is not whole."""
        with suppress(OSError):  # a full disk refuses the rest of the buffer again
            super().close()
        self._hidden.unlink(missing_ok=True)


class WholeFiles(AbstractedFS):
    """The chrooted folder; a client that hides an upload itself, as the store does, writes it directly."""

    def open(self, filename: str, mode: str):
        """Open a file; raise FilesystemError for an upload that would change a file in place (APPE, REST)."""
        if mode == "rb" or is_temporary(Path(filename).name):
            return super().open(filename, mode)
        if mode != "wb":
            raise FilesystemError("A file is stored whole: send it from its start")
        return Upload(Path(filename))
