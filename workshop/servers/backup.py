"""A backup: one tar file with all that the servers keep, made while they run and write.

The database is copied first, as it is at one moment. What it names was stored before that moment, and an artifact is
replaced by renaming alone, so that each is copied whole. Of an artifact that is replaced while the backup is made, the
backup has the later content. Credentials, keys, logs and ports belong to a machine, and are no part of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from mlflow_ftp import names
from pydantic import BaseModel, Field

from workshop.errors import BackupError
from workshop.servers.database import copy_database, find_revision
from workshop.servers.state import read_version
from workshop.settings import Settings

MANIFEST, DATABASE, ARTIFACTS = "manifest.json", "mlflow.db", "artifacts"
BLOCK_BYTES = 1 << 20
ATTEMPTS, PAUSE_SECONDS = 10, 0.2

Progress = Callable[[int, int], None]  # gets the bytes done and the bytes in all


class FileRecord(BaseModel):
    """What a file has to be."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Version(BaseModel):
    """What the list of contents of any backup says: the version of the state folder that it was made of."""

    state_version: int = Field(ge=1)


class Manifest(Version):
    """What a backup holds, by the names in the tar file; ``database_schema`` is the revision of MLflow's tables."""

    made: datetime
    database_schema: str | None
    files: dict[str, FileRecord]
    folders: list[str]

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(record.size for record in self.files.values())


def back_up(
    file: Path, settings: Settings, tell: Callable[[str], None], progress: Progress = lambda *_: None
) -> Manifest:
    """Write a backup of the state folder to a new ``file``, whole or not at all; return what is in it.

    ``tell`` hears of what is left out. Raises BackupError when there is nothing to back up, when the file is there
    already, when it cannot be written, or when an artifact is not what was stored.
    """
    version = read_version(settings)
    _refuse_what_cannot_be(file, settings)
    try:
        # In the same folder, so that the whole file only needs its name; for this user alone, and gone at the end.
        with tempfile.TemporaryDirectory(prefix=".workshop-backup-", dir=file.absolute().parent) as folder:
            snapshot, temporary = Path(folder, DATABASE), Path(folder, "backup.tar")
            manifest = _copy_database(settings, snapshot, version)
            with create(temporary) as output:
                archive = _Archive(output, manifest, progress)
                _add_all(archive, snapshot, settings, tell)
                archive.finish()
                output.flush()
                os.fsync(output.fileno())
            _refuse_existing(file)  # somebody else's, made meanwhile
            temporary.replace(file)
    except (OSError, sqlite3.Error) as error:
        raise BackupError(
            "The backup could not be made.",
            value=error,
            next_step=f"look at the room on the disk of {file.absolute().parent}, and who may write there and read "
            f"{settings.state}; nothing was left behind",
        ) from None
    return manifest


def create(file: Path) -> BinaryIO:
    """Open a new file, which is its owner's alone, to write to."""
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _refuse_what_cannot_be(file: Path, settings: Settings) -> None:
    if settings.database_uri is not None:
        raise BackupError(
            "The tracking database is on a database server, which has its own way to be backed up.",
            value="WORKSHOP_DATABASE_URI is set",
            expected=f"a database in {settings.state}",
            next_step=f"pg_dump for the database first, then copy {settings.artifacts}",
        )
    if not settings.database.exists():
        raise BackupError(
            "There is nothing to back up.",
            value=f"no database in {settings.state}",
            next_step="workshop up; or set WORKSHOP_STATE to the folder that is meant",
        )
    _refuse_existing(file)


def _refuse_existing(file: Path) -> None:
    if file.exists():
        raise BackupError("The file is there already.", value=file, next_step="name another file, or move it away")


def _copy_database(settings: Settings, snapshot: Path, version: int) -> Manifest:
    made = datetime.now(UTC)
    copy_database(settings.database, snapshot)
    with contextlib.closing(sqlite3.connect(snapshot)) as connection:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise BackupError(
            "The tracking database is damaged.",
            value=f"{settings.database}: {found}",
            next_step="restore an earlier backup; `sqlite3 FILE .recover` saves what can be read",
        )
    schema = find_revision(snapshot)
    return Manifest(state_version=version, made=made, database_schema=schema, files={}, folders=[])


# -- the tar file --------------------------------------------------------------------------------------------------
class _Archive:
    """A tar file that is being written, and the list of what is in it, which ends it."""

    def __init__(self, output: BinaryIO, manifest: Manifest, progress: Progress) -> None:
        self._output, self._manifest, self._progress = output, manifest, progress
        self._tar = tarfile.open(fileobj=output, mode="w", copybufsize=BLOCK_BYTES)  # noqa: SIM115 - `finish` does
        self._start = self._done = 0
        self.expected = 0  # bytes, for the progress

    def add_folder(self, name: str) -> None:
        """Append a folder."""
        folder = tarfile.TarInfo(name)
        folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o700, int(self._manifest.made.timestamp())
        self._tar.addfile(folder)
        self._manifest.folders.append(name)

    def add_file(self, name: str, source: BinaryIO) -> tuple[str, bool]:
        """Append what an open file holds; return its sha256 and whether it stayed the same meanwhile."""
        status = os.fstat(source.fileno())
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = status.st_size, 0o600, int(status.st_mtime)
        content = _Hashed(source, self._advance)
        self._start = self._tar.offset
        try:
            self._tar.addfile(member, content)
        except OSError as error:
            if error.errno is not None:
                raise
            return "", False  # tarfile's own: the file became shorter
        self._manifest.files[name] = FileRecord(sha256=content.sha256, size=status.st_size)
        now = os.fstat(source.fileno())
        return content.sha256, (now.st_size, now.st_mtime_ns) == (status.st_size, status.st_mtime_ns)

    def take_back(self, name: str) -> None:
        """Remove the file that was appended last, or in part."""
        self._output.seek(self._start)
        self._output.truncate()
        self._tar.offset = self._start
        self._manifest.files.pop(name, None)

    def finish(self) -> None:
        """Append the manifest: a file that has one has all before it."""
        text = self._manifest.model_dump_json(indent=1).encode()
        member = tarfile.TarInfo(MANIFEST)
        member.size, member.mode, member.mtime = len(text), 0o600, int(time.time())
        self._tar.addfile(member, io.BytesIO(text))
        self._tar.close()

    def _advance(self, count: int) -> None:
        self._done += count
        self._progress(self._done, max(self._done, self.expected))


@dataclass
class _Hashed:
    """A file that is hashed as it is read."""

    source: BinaryIO
    advance: Callable[[int], None]
    content: object = field(default_factory=hashlib.sha256)

    def read(self, size: int) -> bytes:
        block = self.source.read(size)
        self.content.update(block)
        self.advance(len(block))
        return block

    @property
    def sha256(self) -> str:
        return self.content.hexdigest()


# -- what goes into it ---------------------------------------------------------------------------------------------
@dataclass
class _Folder:
    """A folder of artifacts: its files, and how the marks begin that lie in it."""

    path: Path
    files: list[str] = field(default_factory=list)
    prefixes: set[str] = field(default_factory=set)
    size: int = 0


def _add_all(archive: _Archive, snapshot: Path, settings: Settings, tell: Callable[[str], None]) -> None:
    folders = list(_walk(settings.artifacts, tell))
    archive.expected = snapshot.stat().st_size + sum(folder.size for folder in folders)
    with snapshot.open("rb") as source:
        archive.add_file(DATABASE, source)
    archive.add_folder(ARTIFACTS)
    for folder in folders:
        inside = folder.path.relative_to(settings.artifacts)
        if inside.parts:
            archive.add_folder(f"{ARTIFACTS}/{inside.as_posix()}")
        for name in folder.files:
            _add_artifact(archive, folder, name, (ARTIFACTS / inside / name).as_posix())


def _walk(path: Path, tell: Callable[[str], None]) -> Iterator[_Folder]:
    """Yield a folder of artifacts and those below it, without parts of uploads."""
    folder, inner = _Folder(path), []
    for entry in sorted(_scan(path), key=lambda entry: entry.name):
        _refuse_odd_name(path, entry.name)
        if names.is_own(entry.name):
            if prefix := names.prefix_of(entry.name):
                folder.prefixes.add(prefix)
        elif entry.is_dir(follow_symlinks=False):
            inner.append(path / entry.name)
        elif entry.is_file(follow_symlinks=False):
            folder.files.append(entry.name)
            with contextlib.suppress(FileNotFoundError):
                folder.size += entry.stat().st_size
        else:
            tell(f"left out, because it is no regular file: {entry.path}")
    yield folder
    for below in inner:
        yield from _walk(below, tell)


def _refuse_odd_name(folder: Path, name: str) -> None:
    """The store takes no such name, so it came by other means; the list of contents is in UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BackupError(
            "The name of an artifact is not UTF-8.",
            value=f"{name!a} in {folder}",
            next_step="rename or remove it, then make the backup again",
        ) from None


def _scan(path: Path) -> list[os.DirEntry]:
    """Return the entries of a folder; none when it has been removed.

    On tmpfs a listing lacks files that are replaced while it is made. A second one has them.
    """
    found: dict[str, os.DirEntry] = {}
    with contextlib.suppress(FileNotFoundError):
        while new := {entry.name: entry for entry in os.scandir(path) if entry.name not in found}:
            found |= new
    return list(found.values())


def _add_artifact(archive: _Archive, folder: _Folder, name: str, full_name: str) -> None:
    """Append an artifact whose content its mark confirms, with that mark; again when it was replaced meanwhile."""
    path = folder.path / name
    unconfirmed = set()
    for _ in range(ATTEMPTS):
        try:
            source = path.open("rb")
        except FileNotFoundError:  # deleted since the folder was listed
            return
        with source:
            sha256, unchanged = archive.add_file(full_name, source)
            replaced = not _is_at(source, path)
        mark = path.with_name(names.mark_of(name, sha256))
        if unchanged and mark.is_dir():
            archive.add_folder(full_name.removesuffix(name) + mark.name)
            return
        if unchanged and names.mark_prefix(name) not in folder.prefixes:  # stored by another program
            return
        archive.take_back(full_name)
        # Twice: when a content is stored again, its mark is not there for a moment.
        if unchanged and not replaced and sha256 in unconfirmed:
            raise BackupError(
                "An artifact is not what was stored.",
                value=f"{path}: sha256 {sha256}",
                expected="the sha256 in the name of one of its marks (`.~...sha256` beside it)",
                next_step="store it anew, or remove it, then make the backup again",
            )
        unconfirmed.add(sha256)
        time.sleep(PAUSE_SECONDS)
    raise BackupError(
        "An artifact is being changed all the while.",
        value=path,
        next_step="wait until whoever writes it is done, then make the backup again",
    )


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Tell whether an open file is still the one that has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
