"""Brings a backup back into an empty state folder, whole or not at all, every file compared with what was backed up."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import posixpath
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from workshop.errors import BackupError
from workshop.servers.backup import ARTIFACTS, BLOCK_BYTES, DATABASE, MANIFEST, Manifest, Progress, Version, create
from workshop.servers.database import journals
from workshop.servers.state import read_version, write_version
from workshop.servers.supervision import stopped
from workshop.settings import STATE_VERSION, Settings


def restore(file: Path, settings: Settings, progress: Progress = lambda *_: None) -> Manifest:
    """Put what a backup holds into the state folder; return what that was.

    Raises ServiceError when servers of that folder run; BackupError when it is not empty, when the backup is damaged,
    hostile or newer than this clone, or when it cannot be written.
    """
    if settings.database_uri is not None:
        raise BackupError(
            "The servers keep their runs on a database server, and would not see what is restored.",
            value="WORKSHOP_DATABASE_URI is set",
            next_step="unset WORKSHOP_DATABASE_URI",
        )
    _refuse_full(settings)
    try:
        with _opened(file) as tar:
            manifest, members = _read(tar, file)
            with stopped(settings):
                _refuse_full(settings)
                read_version(settings)
                new = settings.state / "restore.new"
                shutil.rmtree(new, ignore_errors=True)  # of one that was killed: only we are at work here
                try:
                    _extract(tar, members, manifest, new, progress)
                    write_version(new / settings.version_file.name, manifest.state_version)
                    _move_into_place(new, settings)
                finally:
                    shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise BackupError(
            "The backup could not be restored.",
            value=error,
            next_step=f"look at the disk of {settings.state} and who may write there; nothing was left behind",
        ) from None
    return manifest


def _refuse_full(settings: Settings) -> None:
    artifacts = settings.artifacts
    is_empty = artifacts.is_dir() and not artifacts.is_symlink() and not any(artifacts.iterdir())
    for what, is_there in (
        # A journal that a killed server left would be played into the database that takes its place.
        *((file, file.exists()) for file in (settings.database, *journals(settings.database))),
        (artifacts, (artifacts.exists() or artifacts.is_symlink()) and not is_empty),
    ):
        if is_there:
            raise BackupError(
                "A backup is restored into an empty state folder alone.",
                value=f"there is {what}",
                expected="neither a database nor artifacts",
                next_step="set WORKSHOP_STATE to another folder; or `workshop down`, and move it away",
            )


# -- reading -------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tarfile.TarFile]:
    """Open a backup; what is not one, as a whole or further in, is a BackupError."""
    try:
        with tarfile.open(file, "r:") as tar:
            yield tar
    # What tarfile and pydantic raise for bytes that make no sense to them.
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise _damaged(file, error.errors()[0]["msg"] if isinstance(error, ValidationError) else error) from None


def _damaged(file: Path, found: object) -> BackupError:
    return BackupError(
        f"The file {file} is no whole backup.",
        value=found,
        expected="a file as `workshop backup` made it, with all that its list of contents names",
        next_step="copy it here again, or take another backup; nothing was restored",
    )


def _read(tar: tarfile.TarFile, file: Path) -> tuple[Manifest, list[tarfile.TarInfo]]:
    """Return the manifest, and the members that it names: all of them, and no others."""
    members = tar.getmembers()
    if not members or members[-1].name != MANIFEST or not _is_plain(members[-1]):
        raise _damaged(file, "it does not end with its list of contents: cut off, or something else")
    # It was written last; nothing of what comes before is trusted until it has been compared.
    text = tar.extractfile(members.pop()).read()
    version = Version.model_validate_json(text).state_version  # of what is newer, no more than this is known
    if version > STATE_VERSION:
        raise BackupError(
            "The backup was made by a newer version of the workshop.",
            value=f"{file}: version {version}",
            expected=f"version {STATE_VERSION}, or an older one",
            next_step="git pull, then restore again",
        )
    for member in members:
        _refuse_hostile(member, file)
    manifest = Manifest.model_validate_json(text)
    expected = collections.Counter([*manifest.files, *manifest.folders])
    found = collections.Counter(member.name for member in members)
    _refuse_differences(file, missing=expected - found, surplus=found - expected)
    sizes = {name: record.size for name, record in manifest.files.items()} | dict.fromkeys(manifest.folders)
    changed = {member.name for member in members if sizes[member.name] != (member.size if member.isreg() else None)}
    _refuse_differences(file, changed=changed)
    if DATABASE not in manifest.files or ARTIFACTS not in manifest.folders:
        raise _damaged(file, f"it has no file {DATABASE} or no folder {ARTIFACTS}")
    return manifest, members


def _refuse_hostile(member: tarfile.TarInfo, file: Path) -> None:
    """Let nothing but files and folders pass, below where they belong.

    tarfile's own filter `data` would also let links pass, and Python has it since 3.11.4 only.
    """
    name = member.name
    inside = name in (DATABASE, ARTIFACTS) or name.startswith(f"{ARTIFACTS}/")
    plain = _is_plain(member) or member.isdir()
    if not (inside and plain and posixpath.normpath(name) == name and "\0" not in name):
        raise _damaged(file, f"{name!r} has no place in a backup" + ("" if plain else ": no regular file or folder"))


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Tell whether a member is a file whose size is that of what the backup really holds of it."""
    return member.isreg() and not member.issparse()


def _refuse_differences(file: Path, **differences) -> None:
    count = sum(map(len, differences.values()))
    if count:
        kind, entries = next((kind, entries) for kind, entries in differences.items() if entries)
        raise _damaged(file, f"{count} entries differ, the first: {min(entries)!r} is {kind}")


# -- writing -------------------------------------------------------------------------------------------------------
def _extract(
    tar: tarfile.TarFile, members: list[tarfile.TarInfo], manifest: Manifest, new: Path, progress: Progress
) -> None:
    size, free = manifest.size, shutil.disk_usage(new.parent).free
    if size > free:
        raise OSError(f"{size / 1e6:.0f} MB are needed, and {free / 1e6:.0f} MB are free")
    new.mkdir(mode=0o700)
    for folder in sorted(manifest.folders):
        (new / folder).mkdir(mode=0o700)
    changed, done = set(), 0
    for member in members:
        if member.isreg():
            content = hashlib.sha256()
            with tar.extractfile(member) as source, create(new / member.name) as output:
                while block := source.read(BLOCK_BYTES):
                    content.update(block)
                    output.write(block)
                    done += len(block)
                    progress(done, size)
            os.utime(new / member.name, (member.mtime, member.mtime))
            if content.hexdigest() != manifest.files[member.name].sha256:
                changed.add(member.name)
    _refuse_differences(Path(tar.name), changed=changed)


def _move_into_place(new: Path, settings: Settings) -> None:
    """Give all its names; the database last, for a folder that has one is a state."""
    os.sync()
    moved: list[Path] = []
    try:
        for target in (settings.version_file, settings.artifacts, settings.database):
            (new / target.name).replace(target)
            moved.append(target)
    except BaseException:
        for target in moved:
            target.replace(new / target.name)
        raise
