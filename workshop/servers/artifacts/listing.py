"""What lies in a folder of an FTP server: by MLSD (RFC 3659) where the server knows it, else name by name."""

from __future__ import annotations

import ftplib
import posixpath
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from workshop.servers.artifacts.connections import Connection
from workshop.servers.artifacts.errors import reply_code

UNKNOWN_COMMAND = {"500", "502", "504"}


class Entry(NamedTuple):
    """A file or a folder; ``size`` in bytes, ``modified`` where the server tells it."""

    name: str
    is_folder: bool
    size: int | None = None
    modified: datetime | None = None


def list_folder(connection: Connection, folder: str) -> list[Entry]:
    """Return files and folders that lie directly in ``folder``, hidden ones too; nothing when it is no folder."""
    try:
        entries = list(connection.mlsd(folder))
    except ftplib.error_perm as error:
        if reply_code(error) in UNKNOWN_COMMAND:
            return _list_by_name(connection, folder)
        if reply_code(error) not in ("501", "550"):
            raise
        entries = []
    finally:
        _leave_text(connection)
    return [_read(name, facts) for name, facts in entries if facts["type"] in ("dir", "file")]


def _read(name: str, facts: dict[str, str]) -> Entry:
    modified = facts.get("modify")
    time = datetime.strptime(modified[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC) if modified else None
    if facts["type"] == "dir":
        return Entry(name, True, None, time)
    return Entry(name, False, int(facts["size"]), time)


def _leave_text(connection: Connection) -> None:
    """Go back to binary transfers: ftplib asks for lists in text."""
    with suppress(OSError, EOFError, ftplib.Error):  # a connection that is broken is told of by its own error
        connection.voidcmd("TYPE I")


def _list_by_name(connection: Connection, folder: str) -> list[Entry]:
    """Ask for names, then of each for its size: what has none is a folder, if one can go there."""
    (there,) = connection.burst(f"CWD {folder}")
    if isinstance(there, ftplib.Error):
        if reply_code(there) != "550":
            raise there
        return []
    found: list[str] = []
    try:
        connection.retrlines("NLST -a", found.append)  # of the current folder: options and a path do not go together
    except ftplib.error_perm as error:
        if reply_code(error) != "550":  # which some answer for an empty folder
            raise
    _leave_text(connection)
    names = [name for name in map(posixpath.basename, found) if name not in ("", ".", "..")]
    paths = [posixpath.join(folder, name) for name in names]
    sizes = connection.burst(*(f"SIZE {path}" for path in paths))
    unsized = [path for path, size in zip(paths, sizes, strict=True) if isinstance(size, ftplib.Error)]
    folders = {
        path
        for path, reply in zip(unsized, connection.burst(*(f"CWD {path}" for path in unsized)), strict=True)
        if not isinstance(reply, ftplib.Error)
    }
    return [
        Entry(name, path in folders, None if isinstance(size, ftplib.Error) else int(size.split()[-1]))
        for name, path, size in zip(names, paths, sizes, strict=True)
        if path in folders or not isinstance(size, ftplib.Error)
    ]
