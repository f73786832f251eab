"""The store: an artifact appears under its name whole, or not at all, and what is fetched is what was stored.

MLflow opens it, through `workshop.servers.plugin`, for the schemes `ftp` and `ftps` (explicit TLS, RFC 4217). It takes
the place of MLflow's own, which writes straight to the final name and cannot delete.

FTP can replace one name at once (RNFR, RNTO), but not two, so a checksum beside the artifact cannot change with it.
Therefore the checksum stands in the *name* of a mark, an empty folder `.~<artifact>.<sha256>.sha256`: it is made before
the artifact gets its name, so that at any moment what can be read has its mark. Marks of earlier contents are removed
later, when nobody can be about to need them.
"""

from __future__ import annotations

import collections
import ftplib
import hashlib
import logging
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential
from tqdm.auto import tqdm

from workshop.errors import WorkshopError
from workshop.servers.artifacts import names
from workshop.servers.artifacts.connections import BLOCK_BYTES, Connection, parse, pool_of
from workshop.servers.artifacts.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    ArtifactNameRefused,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from workshop.servers.artifacts.folders import (
    find_size,
    is_folder,
    make_folder,
    remove_empty,
    remove_file,
    remove_folder,
    remove_old_marks,
)
from workshop.servers.artifacts.listing import Entry, list_folder

AT_ONCE = 8
ATTEMPTS = 4
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 1.5
MARKS_KEPT = timedelta(hours=1)  # longer than anyone needs from making a mark to giving the artifact its name
LARGE_BYTES = 50_000_000  # from here on there is a bar
RESUMED_BYTES = 4_000_000  # from here on what has arrived before a fault is worth more than a fresh start

_logger = logging.getLogger(__name__)


class FTPArtifactRepository(ArtifactRepository):
    """Artifacts as files on an FTP server, at ``ftp://host:port/folder``.

    User and password come from the settings for the settings' own server, from ~/.netrc for any other. What is
    transient is tried again. All failures of the store are ArtifactErrors; a local file that cannot be read or written
    is Python's own OSError.
    """

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        address, folder = parse(artifact_uri)
        self.root = "/" + _normalize(folder)
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._pool = pool_of(address)
        self._made = {"/"}  # folders that are known to be there
        # Nothing from here up is removed; MLflow's folder of a run has nothing but `artifacts` in it.
        self._top = posixpath.dirname(posixpath.dirname(self.root)) if self.root.endswith("/artifacts") else self.root

    # -- MLflow's interface ----------------------------------------------------------------------------------
    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Store one file in the folder ``artifact_path``."""
        remote = self._locate(posixpath.join(artifact_path or "", Path(local_file).name))
        if self._store(Path(local_file), remote):
            self._remove_old_marks([remote])

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Store all files and folders of ``local_dir``, empty ones too, in the folder ``artifact_path``."""
        folders, files = [], []
        for folder, _, file_names in os.walk(local_dir, onerror=_raise):
            path = posixpath.join(artifact_path or "", Path(folder).relative_to(local_dir).as_posix())
            folders.append(self._locate(path))
            for name in sorted(file_names):
                file = Path(folder, name)
                if file.is_file():
                    files.append((file, self._locate(posixpath.join(path, name))))
                else:
                    _logger.warning("Not stored, because it is no regular file: %s", file)
        for folder in folders:
            self._again(lambda folder=folder: self._require_folder(folder), StoreRefused)
        with ThreadPoolExecutor(AT_ONCE, "store") as pool:
            futures = {remote: pool.submit(self._store, file, remote) for file, remote in files}
            try:
                replaced = [remote for remote, future in futures.items() if future.result()]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._remove_old_marks(replaced)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """Return what lies directly in a folder, by name; nothing for a file or for what is not there."""
        entries = self._again(lambda: self._list(self._locate(path)))
        return [
            FileInfo(posixpath.join(_normalize(path), entry.name), entry.is_folder, entry.size)
            for entry in sorted(entries)
            if not names.is_own(entry.name)
        ]

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete a file, or a folder with all in it, and the folders above that are empty then.

        What is not there counts as deleted.
        """
        remote = self._locate(artifact_path)
        self._made = {"/"}

        def delete() -> None:
            with self._pool.lend() as connection:
                if is_folder(connection, remote):
                    remove_folder(connection, remote)
                else:
                    remove_file(connection, remote)
                remove_empty(connection, posixpath.dirname(remote), self._top)

        self._again(delete, StoreRefused)

    def _is_directory(self, artifact_path: str) -> bool:
        """Tell a folder from a file; MLflow's own way takes an empty folder for a file."""
        remote = self._locate(artifact_path)

        def ask() -> bool:
            with self._pool.lend() as connection:
                return is_folder(connection, remote)

        return self._again(ask)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        """Fetch a file under a temporary name, check its content, then give it its name."""
        target = Path(local_path)
        temporary = target.with_name(names.new_temporary(target.name))
        try:
            with temporary.open("w+b") as file:
                self._again(lambda: self._fetch(remote_file_path, file), ArtifactDamaged)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    # -- storing ---------------------------------------------------------------------------------------------
    def _store(self, local_file: Path, remote: str) -> bool:
        """Upload under a temporary name, check, mark, and only then rename: readers never see a part.

        Return whether other content was replaced, of which a mark is left.
        """
        folder, name = posixpath.split(remote)
        temporary = posixpath.join(folder, names.new_temporary(name))
        with local_file.open("rb") as file:
            try:
                return self._again(lambda: self._upload(file, folder, name, temporary), StoreRefused)
            except StoreUnavailable as error:
                if not error.silent:  # to clean up on a server that hangs would only double the wait
                    self._discard(temporary)
                raise
            except BaseException:
                self._discard(temporary)
                raise

    def _upload(self, file: BinaryIO, folder: str, name: str, temporary: str) -> bool:
        self._require_folder(folder)
        remote = posixpath.join(folder, name)
        with self._pool.lend() as connection:
            offset = _arrived(connection, file, temporary)
            content = hashlib.sha256()
            connection.store(temporary, _blocks(file, content, offset, f"storing {name}"), offset or None)
            mark = posixpath.join(folder, names.mark_of(name, content.hexdigest()))
            size, before, made, marked = connection.burst(
                *(f"SIZE {temporary}", f"SIZE {remote}", f"MKD {mark}", f"CWD {mark}")  # MKD: it may be there
            )
            _check_size(size, file.tell(), name)
            if is_known := isinstance(made, ftplib.Error):  # from an earlier time: it is to look new, so that it stays
                *_, marked = connection.burst(f"RMD {mark}", f"MKD {mark}", f"CWD {mark}")
            if isinstance(marked, ftplib.Error):
                raise marked
            connection.do(f"RNFR {temporary}", f"RNTO {remote}")
        return not (is_known or isinstance(before, ftplib.Error))

    def _remove_old_marks(self, replaced: Iterable[str]) -> None:
        """Remove marks of contents that these artifacts have not had for a while; a folder is listed once."""
        prefixes = collections.defaultdict(set)
        for folder, name in map(posixpath.split, replaced):
            prefixes[folder].add(names.mark_prefix(name))
        for folder, own in prefixes.items():
            # What is not removed now is removed another time.
            with suppress(WorkshopError), self._pool.lend() as connection:
                remove_old_marks(connection, folder, own, datetime.now(UTC) - MARKS_KEPT)

    def _discard(self, temporary: str) -> None:
        """Remove what a failed upload left, if it can be."""
        with suppress(WorkshopError), self._pool.lend() as connection:
            connection.burst(f"DELE {temporary}")

    def _require_folder(self, folder: str) -> None:
        """Make a folder and those above it; one that another client makes is as good."""
        if folder in self._made:
            return
        with self._pool.lend() as connection:
            make_folder(connection, folder, self._made)

    # -- fetching --------------------------------------------------------------------------------------------
    def _fetch(self, path: str, file: BinaryIO) -> None:
        """Receive a file, after what ``file`` already has of it, and compare it with its mark."""
        remote = self._locate(path)
        folder, name = posixpath.split(remote)
        content, received = hashlib.sha256(), file.seek(0)
        while block := file.read(BLOCK_BYTES):
            content.update(block)
            received += len(block)
        with self._pool.lend() as connection:
            size = find_size(connection, remote)
            if size is None:
                raise ArtifactMissing(f"There is no artifact {path!r} in {self.artifact_uri}.")
            if received > size:  # it was replaced, and what there is belongs to another
                file.truncate(file.seek(0))
                raise _damaged(path, f"{received} bytes", f"{size} bytes")
            with _progress(size, f"fetching {name}", received) as advance:

                def take(block: bytes) -> None:
                    file.write(block)
                    content.update(block)
                    advance(len(block))

                connection.fetch(remote, take, received or None)
            if file.tell() == size and _is_marked(connection, folder, name, content.hexdigest()):
                return
        found = f"{file.tell()} bytes of {size}, sha256 {content.hexdigest()[:16]}..."
        file.truncate(file.seek(0))
        raise _damaged(path, found, "what was stored under this name")

    # -- in general ------------------------------------------------------------------------------------------
    def _again(self, work: Callable, *errors: type[Exception]):
        """Do ``work``; again, after pauses, when it failed in a way that may pass: it must be safe to repeat.

        A server that was silent until the time was over is not asked again: the user has waited long enough.
        """

        def may_pass(error: BaseException) -> bool:
            return (isinstance(error, StoreUnavailable) and not error.silent) or isinstance(error, errors)

        attempts = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
            retry=retry_if_exception(may_pass),
            before_sleep=lambda _: self._made.clear(),  # another client may have removed a folder
            reraise=True,
        )
        return attempts(work)

    def _list(self, folder: str) -> list[Entry]:
        with self._pool.lend() as connection:
            return list_folder(connection, folder)

    def _locate(self, path: str | None) -> str:
        """Return the absolute name on the server of a path below the root."""
        return posixpath.join(self.root, _normalize(path)).rstrip("/") or "/"


def _normalize(path: str | None) -> str:
    """Return a relative path without detours, "" for the root; raise ArtifactNameRefused for one that leads out."""
    normal = posixpath.normpath(path or ".")
    parts = normal.split("/")
    if (
        parts[0] in {"", ".."}
        or re.search("[\0\r\n]", normal)  # they would end the FTP command
        or re.search("[\ud800-\udfff]", normal)  # not UTF-8 on the local disk
        or any(names.is_own(part) for part in parts)
    ):
        raise ArtifactNameRefused(
            "The artifact's name cannot be used.",
            value=ascii(path),
            expected="a relative path in UTF-8, without '..', line breaks and the store's own temporary names",
        )
    return "" if normal == "." else normal


def _damaged(path: str, found: str, expected: str) -> ArtifactDamaged:
    return ArtifactDamaged(
        f"The artifact {path!r} is not what was stored.",
        value=found,
        expected=expected,
        next_step="fetch it again; if that does not help, the server's disk has changed it: make it anew",
    )


@contextmanager
def _progress(size: int, what: str, done: int = 0) -> Iterator[Callable[[int], object]]:
    """Yield what takes note of progress: on a bar, for what takes a while and where somebody looks.

    A server has none, not even a hidden one: all bars of a process share a lock, which was seen to be lost for good
    with many threads.
    """
    if size < LARGE_BYTES or not sys.stderr.isatty():
        yield lambda _: None
        return
    with tqdm(total=size, initial=done, desc=what, unit="B", unit_scale=True) as bar:
        yield bar.update


def _blocks(file: BinaryIO, content, offset: int, what: str) -> Iterator[bytes]:
    """Yield what is left to send of a file; all of it goes into ``content``, a hash."""
    file.seek(0)
    with _progress(os.fstat(file.fileno()).st_size, what, offset) as advance:
        while block := file.read(min(BLOCK_BYTES, offset - file.tell()) if file.tell() < offset else BLOCK_BYTES):
            content.update(block)
            if file.tell() > offset:
                advance(len(block))
                yield block


def _raise(error: OSError) -> None:
    raise error


def _arrived(connection: Connection, file: BinaryIO, temporary: str) -> int:
    """Return how much of a large file an earlier attempt has brought, in bytes."""
    size = os.fstat(file.fileno()).st_size
    if size < RESUMED_BYTES or not file.tell():
        return 0
    arrived = find_size(connection, temporary) or 0
    return arrived if arrived <= size else 0


def _check_size(reply: str | ftplib.Error, sent: int, name: str) -> None:
    if isinstance(reply, ftplib.Error):
        raise reply
    stored = reply.split()[-1]
    if stored != str(sent):
        raise StoreError(
            f"The artifact {name!r} was not stored whole.",
            value=f"{stored} bytes",
            expected=f"{sent} bytes",
            next_step="store it again, and look for a full disk on the server",
        )


def _is_marked(connection: Connection, folder: str, name: str, sha256: str) -> bool:
    """Tell whether an artifact may have a content; one that never had a mark may have any."""
    (reply,) = connection.burst(f"CWD {posixpath.join(folder, names.mark_of(name, sha256))}")
    if not isinstance(reply, ftplib.Error):
        return True
    prefix = names.mark_prefix(name)
    if any(entry.name.startswith(prefix) for entry in list_folder(connection, folder)):
        return False
    _logger.warning("The artifact %s was stored by another program, without a checksum.", name)
    return True
