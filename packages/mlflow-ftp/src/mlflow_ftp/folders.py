"""Operations on folders and files of an FTP server that take several commands."""

from __future__ import annotations

import ftplib
import posixpath
from collections.abc import Iterable
from typing import NamedTuple

from mlflow_ftp import names
from mlflow_ftp.connections import Connection


class Entry(NamedTuple):
    """A file or a folder; ``size`` in bytes."""

    name: str
    is_folder: bool
    size: int | None = None


def is_folder(connection: Connection, path: str) -> bool:
    """Return whether a path is a folder."""
    (reply,) = connection.burst(f"CWD {path}")
    if isinstance(reply, ftplib.Error) and str(reply)[:3] != "550":
        raise reply
    return isinstance(reply, str)


def list_folder(connection: Connection, folder: str) -> list[Entry]:
    """Return the entries of ``folder``, including the store's own; an empty list when it is no folder.

    By MLSD (RFC 3659) where the server knows it, else name by name.
    """
    try:
        entries = map(_read, connection.lines(f"MLSD {folder}"))
        return [entry for entry in entries if entry]
    except ftplib.error_perm as error:
        if str(error)[:3] in ("500", "502", "504"):
            return _list_by_name(connection, folder)
        if str(error)[:3] in ("501", "550"):
            return []
        raise


def _read(line: str) -> Entry | None:
    """Read a line such as ``type=file;size=3; name``; return None for other types than files and folders."""
    words, _, name = line.partition(" ")
    facts = {key.lower(): value for key, _, value in (fact.partition("=") for fact in words.split(";"))}
    kind = facts.get("type", "").lower()
    if kind not in ("dir", "file"):
        return None
    return Entry(name, kind == "dir", int(facts["size"]) if kind == "file" else None)


def _list_by_name(connection: Connection, folder: str) -> list[Entry]:
    """Ask for the names, then for the size of each; an entry without a size is a folder."""
    if not is_folder(connection, folder):
        return []
    try:
        lines = connection.lines("NLST -a")  # of the current folder: options and a path do not go together
    except ftplib.error_perm as error:
        if str(error)[:3] != "550":  # which some answer for an empty folder
            raise
        lines = []
    listed = [name for name in map(posixpath.basename, lines) if name not in ("", ".", "..")]
    sizes = connection.burst(*(f"SIZE {posixpath.join(folder, name)}" for name in listed))
    return [
        Entry(name, False, int(size.split()[-1])) if isinstance(size, str) else Entry(name, True)
        for name, size in zip(listed, sizes, strict=True)
    ]


def make_folder(connection: Connection, folder: str) -> None:
    """Make a folder and those above it; what is there, or made by another client, is as good."""
    above = ["/".join(folder.split("/")[:depth]) for depth in range(2, folder.count("/") + 2)]
    *_, reply = connection.burst(*(f"MKD {each}" for each in above), f"CWD {folder}")
    if isinstance(reply, ftplib.Error):
        raise reply


def remove_folder(connection: Connection, folder: str) -> None:
    """Remove a folder with all that is in it, or a link to one; what is gone already is as good as removed."""
    connection.burst(f"DELE {folder}")  # removes a link, which would lead to artifacts elsewhere, and no folder
    entries = list_folder(connection, folder)
    for entry in entries:
        if entry.is_folder and not names.is_own(entry.name):
            remove_folder(connection, posixpath.join(folder, entry.name))
    flat = [entry for entry in entries if names.is_own(entry.name) or not entry.is_folder]
    # Artifacts first: one without its mark is worse than a mark without its artifact.
    _remove(connection, folder, sorted(flat, key=lambda entry: entry.is_folder))
    if folder != "/":
        _remove(connection, posixpath.dirname(folder), [Entry(posixpath.basename(folder), is_folder=True)])


def remove_file(connection: Connection, path: str) -> None:
    """Delete a file with its marks."""
    folder, name = posixpath.split(path)
    _remove(connection, folder, [Entry(name, is_folder=False)])
    prefix = names.mark_prefix(name)
    _remove(connection, folder, [entry for entry in list_folder(connection, folder) if entry.name.startswith(prefix)])


def _remove(connection: Connection, folder: str, entries: Iterable[Entry]) -> None:
    commands = {e.name: f"{'RMD' if e.is_folder else 'DELE'} {posixpath.join(folder, e.name)}" for e in entries}
    replies = dict(zip(commands, connection.burst(*commands.values()), strict=True))
    if refused := {name: reply for name, reply in replies.items() if isinstance(reply, ftplib.Error)}:
        for entry in list_folder(connection, folder):
            if entry.name in refused:
                raise refused[entry.name]
