"""Folders and files on an FTP server: what takes several commands to say."""

from __future__ import annotations

import ftplib
import posixpath
from collections.abc import Iterable
from datetime import datetime

from workshop.servers.artifacts import names
from workshop.servers.artifacts.connections import Connection
from workshop.servers.artifacts.errors import reply_code
from workshop.servers.artifacts.listing import Entry, list_folder


def is_folder(connection: Connection, path: str) -> bool:
    """Tell whether there is a folder; a file, or nothing, is none."""
    (reply,) = connection.burst(f"CWD {path}")
    if isinstance(reply, ftplib.Error) and reply_code(reply) != "550":
        raise reply
    return not isinstance(reply, ftplib.Error)


def find_size(connection: Connection, path: str) -> int | None:
    """Return a file's size in bytes, or None when there is no such file."""
    (reply,) = connection.burst(f"SIZE {path}")
    if isinstance(reply, ftplib.Error):
        if reply_code(reply) != "550":
            raise reply
        return None
    return int(reply.split()[-1])


def make_folder(connection: Connection, folder: str, made: set[str]) -> None:
    """Make a folder and those above it, unless noted in ``made``; one that another client makes is as good."""
    if folder in made:
        return
    if not is_folder(connection, folder):
        make_folder(connection, posixpath.dirname(folder), made)
        (reply,) = connection.burst(f"MKD {folder}")
        if isinstance(reply, ftplib.Error) and not is_folder(connection, folder):
            raise reply
    made.add(folder)


def remove_folder(connection: Connection, folder: str) -> None:
    """Remove a folder with all that is in it; what is gone already is as good as removed."""
    entries = list_folder(connection, folder)
    for entry in entries:
        if entry.is_folder and not names.is_own(entry.name):
            remove_folder(connection, posixpath.join(folder, entry.name))
    flat = [entry for entry in entries if names.is_own(entry.name) or not entry.is_folder]
    # Artifacts first: one without its mark is worse than a mark without its artifact.
    _remove_all(connection, folder, sorted(flat, key=lambda entry: entry.is_folder))
    if folder != "/":
        (reply,) = connection.burst(f"RMD {folder}")
        if isinstance(reply, ftplib.Error) and is_folder(connection, folder):
            raise reply


def remove_empty(connection: Connection, folder: str, top: str) -> None:
    """Remove a folder and those above it, below ``top``, as far as they are empty."""
    while len(folder) > len(top) and isinstance(connection.burst(f"RMD {folder}")[0], str):
        folder = posixpath.dirname(folder)


def _remove_all(connection: Connection, folder: str, entries: Iterable[Entry]) -> None:
    entries = list(entries)
    paths = [posixpath.join(folder, entry.name) for entry in entries]
    commands = [f"{'RMD' if entry.is_folder else 'DELE'} {path}" for entry, path in zip(entries, paths, strict=True)]
    for entry, path, reply in zip(entries, paths, connection.burst(*commands), strict=True):
        if isinstance(reply, ftplib.Error):
            there = is_folder(connection, path) if entry.is_folder else find_size(connection, path) is not None
            if there:
                raise reply


def remove_file(connection: Connection, path: str) -> None:
    """Delete a file with its marks."""
    folder, name = posixpath.split(path)
    (reply,) = connection.burst(f"DELE {path}")
    if isinstance(reply, ftplib.Error) and find_size(connection, path) is not None:
        raise reply
    prefix = names.mark_prefix(name)
    marks = [entry for entry in list_folder(connection, folder) if entry.name.startswith(prefix)]
    _remove_all(connection, folder, marks)


def remove_old_marks(connection: Connection, folder: str, prefixes: set[str], before: datetime) -> None:
    """Remove marks that begin so and were made ``before``, but for the latest of each artifact."""
    marks = [entry for entry in list_folder(connection, folder) if entry.is_folder and names.MARK.fullmatch(entry.name)]
    latest: dict[str, datetime] = {}
    for entry in marks:
        if entry.modified is not None:  # else nothing is known of its age
            prefix = names.prefix_of(entry.name)
            latest[prefix] = max(latest.get(prefix, entry.modified), entry.modified)
    old = [
        entry
        for entry in marks
        if (prefix := names.prefix_of(entry.name)) in prefixes
        and entry.modified is not None
        and entry.modified < min(before, latest[prefix])
    ]
    _remove_all(connection, folder, old)
