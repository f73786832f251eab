"""What lies in a folder of an FTP server: by MLSD (RFC 3659) where the server knows it, else name by name."""

from __future__ import annotations

import ftplib
import posixpath
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
        lines = connection.lines(f"MLSD {folder}")
    except ftplib.error_perm as error:
        if reply_code(error) in UNKNOWN_COMMAND:
            return _list_by_name(connection, folder)
        if reply_code(error) not in ("501", "550"):
            raise
        lines = []
    entries = map(_read, lines)
    return [entry for entry in entries if entry]


def _read(line: str) -> Entry | None:
    """Read a line such as ``type=file;size=3; name``; None for what is neither file nor folder."""
    words, _, name = line.partition(" ")
    facts = {key.lower(): value for key, _, value in (fact.partition("=") for fact in words.split(";"))}
    kind = facts.get("type", "").lower()
    if kind not in ("dir", "file"):
        return None
    modified = facts.get("modify")
    time = datetime.strptime(modified[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC) if modified else None
    return Entry(name, kind == "dir", int(facts["size"]) if kind == "file" else None, time)


def _list_by_name(connection: Connection, folder: str) -> list[Entry]:
    """Ask for names, then of each for its size: what has none is a folder, if one can go there."""
    (there,) = connection.burst(f"CWD {folder}")
    if isinstance(there, ftplib.Error):
        if reply_code(there) != "550":
            raise there
        return []
    try:
        found = connection.lines("NLST -a")  # of the current folder: options and a path do not go together
    except ftplib.error_perm as error:
        if reply_code(error) != "550":  # which some answer for an empty folder
            raise
        found = []
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
