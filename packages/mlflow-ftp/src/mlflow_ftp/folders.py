"""Folder and file operations that need more than one FTP command."""

from __future__ import annotations

import ftplib
import posixpath
import re
from collections.abc import Iterable
from typing import NamedTuple

from mlflow_ftp import names
from mlflow_ftp.artifact_errors import StoreRefused
from mlflow_ftp.connections import Connection

LINE = re.compile(  # a line of LIST output, in Unix or Windows format
    r"(?:[-d]|(?P<link>l))[-\w]{9}\S* +\d+ +\S+ +\S+ +\d+ +(?:[^\W\d]\S* +\d+|\d+\.? +[^\W\d]\S*) +[\d:]{4,5} "
    r"(?P<unix>.+?)(?(link) -> .+)|\d\d-\d\d-\d+ +\d\d:\d\d\w* +(?:<DIR> {10}|\d+ )(?P<windows>.+)"
)


def raise_refusal(*replies: str | Exception) -> None:
    """If the replies end in one or more errors, raise the first of these errors: it caused the others."""
    reason = None
    for reply in replies:
        reason = None if isinstance(reply, str) else reason or reply
    if reason:
        raise reason


class Entry(NamedTuple):
    """A file or folder in a listing; ``size`` is in bytes."""

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
    """Return the entries of ``folder``, including temporary files and marks; an empty list if it is not a folder."""
    try:
        return list(filter(None, map(_read, connection.lines(f"MLSD {folder}"))))
    except ftplib.error_perm as error:
        if str(error)[:3] in ("500", "502", "504"):
            return _list_without_mlsd(connection, folder)
        if str(error)[:3] in ("501", "550"):
            return []
        raise


def _read(line: str) -> Entry | None:
    """Parse a line such as ``type=file;size=3; name``; return None unless it is a file or a folder."""
    facts_text, _, name = line.partition(" ")
    facts = {key.lower(): value for key, _, value in (fact.partition("=") for fact in facts_text.split(";"))}
    kind = facts.get("type", "").lower()
    if kind not in ("dir", "file"):
        return None
    return Entry(name, kind == "dir", int(facts["size"]) if kind == "file" else None)


def _list_without_mlsd(connection: Connection, folder: str) -> list[Entry]:
    """List a folder with LIST if all lines can be parsed, else with NLST; raise StoreRefused if both fail."""
    if not is_folder(connection, folder):
        return []
    listings = []
    for command in (
        "LIST -a",
        "LIST",
        "NLST -a",
        "NLST",
    ):  # without a path, because not all servers accept options with one: `is_folder` has sent CWD
        try:
            listings.append([line for line in connection.lines(command) if not re.fullmatch(r"total \d+", line)])
        except ftplib.error_perm as error:
            if "no files" not in str(error).lower():  # some servers' reply for an empty folder
                continue
            listings.append([])
        entry_names = [match["unix"] or match["windows"] for match in map(LINE.fullmatch, listings[-1]) if match]
        if command.startswith("NLST"):
            entry_names = [posixpath.basename(line) for line in listings[-1]]
        if len(entry_names) == len(listings[-1]) > 0:
            return _describe(connection, folder, [name for name in entry_names if name not in ("", ".", "..")])
    if any(listings) or not listings:
        what = f"The server's listing of the folder {folder!r} cannot be parsed."
        raise StoreRefused(what, value=listings or "refused", expected="MLSD, LIST in Unix or Windows format, or NLST")
    return []


def _describe(connection: Connection, folder: str, entry_names: list[str]) -> list[Entry]:
    """Return an `Entry` for each name, with the size if it is a file and the server supports SIZE."""
    commands = [f"{command} {posixpath.join(folder, name)}" for command in ("CWD", "SIZE") for name in entry_names]
    replies = connection.burst(*commands)
    sizes = [int(reply.split()[-1]) if isinstance(reply, str) else None for reply in replies[len(entry_names) :]]
    folders = [isinstance(reply, str) for reply in replies]
    return [Entry(name, folders[i], None if folders[i] else sizes[i]) for i, name in enumerate(entry_names)]


def lists_hidden_names(connection: Connection, folder: str) -> bool:
    """Return whether the server lists names that start with a dot, such as marks; test it with a temporary folder."""
    probe = posixpath.join(folder, names.new_temporary("probe"))
    (reply,) = connection.burst(f"MKD {probe}")
    try:
        return isinstance(reply, ftplib.Error) or any(e.name[0] == "." for e in list_folder(connection, folder))
    finally:
        connection.burst(f"RMD {probe}")


def make_folder(connection: Connection, folder: str) -> None:
    """Create a folder and any missing parents."""
    paths = ["/".join(folder.split("/")[:depth]) for depth in range(2, folder.count("/") + 2)]
    raise_refusal(*connection.burst(*(f"{command} {path}" for path in paths for command in ("MKD", "CWD"))))


def remove_folder(connection: Connection, folder: str) -> None:
    """Remove a folder with its contents, or only the link if it is a symlink; a missing folder is not an error."""
    connection.burst(f"DELE {folder}")  # deletes a symlink, but fails for a real folder
    entries = list_folder(connection, folder)
    for entry in entries:
        if entry.is_folder and not names.is_own(entry.name):
            remove_folder(connection, posixpath.join(folder, entry.name))
    leaves = [entry for entry in entries if names.is_own(entry.name) or not entry.is_folder]
    # Remove artifacts before marks: an artifact without its mark could not be verified.
    _remove(connection, folder, sorted(leaves, key=lambda entry: entry.is_folder))
    if folder != "/":
        _remove(connection, posixpath.dirname(folder), [Entry(posixpath.basename(folder), is_folder=True)])


def remove_file(connection: Connection, path: str) -> None:
    """Delete a file and its marks."""
    folder, name = posixpath.split(path)
    _remove(connection, folder, [Entry(name, is_folder=False)])
    prefix = names.mark_prefix(name)
    _remove(connection, folder, [entry for entry in list_folder(connection, folder) if entry.name.startswith(prefix)])


def _remove(connection: Connection, folder: str, entries: Iterable[Entry]) -> None:
    commands = {e.name: f"{'RMD' if e.is_folder else 'DELE'} {posixpath.join(folder, e.name)}" for e in entries}
    replies = dict(zip(commands, connection.burst(*commands.values()), strict=True))
    if refusals := {name: reply for name, reply in replies.items() if isinstance(reply, ftplib.Error)}:
        for entry in list_folder(connection, folder):
            if entry.name in refusals:
                raise refusals[entry.name]
