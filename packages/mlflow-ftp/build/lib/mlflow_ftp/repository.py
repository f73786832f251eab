"""The store: an artifact appears under its name whole, or not at all, and what is fetched is what was stored.

MLflow opens it for the schemes `ftp` and `ftps` (explicit TLS, RFC 4217). It takes the place of MLflow's own, which
writes straight to the final name and cannot delete.

FTP can replace one name at once (RNFR, RNTO), but not two, so a checksum beside the artifact cannot change with it.
Therefore the checksum stands in the *name* of a mark, an empty folder `.~<artifact>.<sha256>.sha256`: it is made before
the artifact gets its name, so that at any moment what can be read has its mark. Marks of earlier contents are removed
later, when nobody can be about to need them.
"""

from __future__ import annotations

import ftplib
import hashlib
import logging
import os
import posixpath
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from mlflow_ftp import folders, names
from mlflow_ftp.connections import BLOCK_BYTES, Connection, lend, parse
from mlflow_ftp.errors import (
    ArtifactDamaged,
    ArtifactError,
    ArtifactMissing,
    ArtifactNameRefused,
    StoreRefused,
    StoreUnavailable,
)

AT_ONCE = 8
PAUSES_SECONDS = (0.25, 0.5, 1.0)
RESUMED_BYTES = 4_000_000  # from here on what has arrived before a fault is worth more than a fresh start

_logger = logging.getLogger(__name__)


class FTPArtifactRepository(ArtifactRepository):
    """Artifacts as files on an FTP server, at ``ftp://host:port/folder``.

    User and password come from the environment, or from a netrc file. What may pass is tried again. All failures of the
    store are ArtifactErrors; a local file that cannot be read or written is Python's own OSError.
    """

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        self.address, folder = parse(artifact_uri)
        self.root = "/" + _normalize(folder)
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        # Nothing from here up is removed; MLflow's folder of a run has nothing but `artifacts` in it.
        self._top = posixpath.dirname(posixpath.dirname(self.root)) if self.root.endswith("/artifacts") else self.root

    # -- MLflow's interface ----------------------------------------------------------------------------------
    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Store one file in the folder ``artifact_path``."""
        self._store(Path(local_file), self._locate(posixpath.join(artifact_path or "", Path(local_file).name)))

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Store all files and folders of ``local_dir``, empty ones too, in the folder ``artifact_path``."""
        files = {}
        for folder, _, file_names in os.walk(local_dir, onerror=_raise):
            path = posixpath.join(artifact_path or "", Path(folder).relative_to(local_dir).as_posix())
            remote = self._locate(path)
            self._again(lambda connection, remote=remote: folders.make_folder(connection, remote), StoreRefused)
            for name in sorted(file_names):
                file = Path(folder, name)
                if file.is_file():
                    files[file] = self._locate(posixpath.join(path, name))
                else:
                    _logger.warning("Not stored, because it is no regular file: %s", file)
        with ThreadPoolExecutor(AT_ONCE, "store") as pool:
            futures = [pool.submit(self._store, file, remote) for file, remote in files.items()]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """Return what lies directly in a folder, by name; nothing for a file or for what is not there."""
        entries = self._again(lambda connection: folders.list_folder(connection, self._locate(path)))
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

        def delete(connection: Connection) -> None:
            if folders.is_folder(connection, remote):
                folders.remove_folder(connection, remote)
            else:
                folders.remove_file(connection, remote)
            folders.remove_empty(connection, posixpath.dirname(remote), self._top)

        self._again(delete, StoreRefused)

    def _is_directory(self, artifact_path: str) -> bool:
        """Tell a folder from a file; MLflow's own way takes an empty folder for a file."""
        return self._again(lambda connection: folders.is_folder(connection, self._locate(artifact_path)))

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        """Fetch a file under a temporary name, check its content, then give it its name."""
        target = Path(local_path)
        temporary = target.with_name(names.new_temporary(target.name))
        try:
            with temporary.open("w+b") as file:
                self._again(lambda connection: self._fetch(connection, remote_file_path, file), ArtifactDamaged)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    # -- storing ---------------------------------------------------------------------------------------------
    def _store(self, local_file: Path, remote: str) -> None:
        """Upload under a temporary name, check, mark, and only then rename: readers never see a part."""
        folder, name = posixpath.split(remote)
        temporary = posixpath.join(folder, names.new_temporary(name))
        with local_file.open("rb") as file:
            try:
                replaced = self._again(
                    lambda connection: self._upload(connection, file, remote, temporary), StoreRefused
                )
            except BaseException as error:
                if not getattr(error, "silent", False):  # to clean up on a server that hangs would only double the wait
                    with suppress(ArtifactError), lend(self.address) as connection:
                        connection.burst(f"DELE {temporary}")
                raise
        if replaced:
            with suppress(ArtifactError), lend(self.address) as connection:  # else they are removed another time
                folders.remove_old_marks(connection, folder, replaced)

    def _upload(self, connection: Connection, file: BinaryIO, remote: str, temporary: str) -> str | None:
        """Return the name of the mark when other content was replaced."""
        folder, name = posixpath.split(remote)
        content, offset = hashlib.sha256(), _arrived(connection, file, temporary)
        try:
            connection.store(temporary, _blocks(file, content, offset), offset or None)
        except ftplib.error_perm:  # the folder may be missing
            folders.make_folder(connection, folder)
            content = hashlib.sha256()
            connection.store(temporary, _blocks(file, content, 0))
        mark = names.mark_of(name, content.hexdigest())
        marked = posixpath.join(folder, mark)
        size, before, made, entered = connection.burst(
            *(f"SIZE {temporary}", f"SIZE {remote}", f"MKD {marked}", f"CWD {marked}")  # MKD: it may be there
        )
        if is_known := isinstance(made, ftplib.Error):  # from an earlier time: it is to look new, so that it stays
            *_, entered = connection.burst(f"RMD {marked}", f"MKD {marked}", f"CWD {marked}")
        for reply in (size, entered):
            if isinstance(reply, ftplib.Error):
                raise reply
        if (stored := size.split()[-1]) != str(file.tell()):
            raise ArtifactError(
                f"The artifact {name!r} was not stored whole.",
                found=f"{stored} bytes",
                expected=f"{file.tell()} bytes",
                next_step="store it again, and look for a full disk on the server",
            )
        for reply in connection.burst(f"RNFR {temporary}", f"RNTO {remote}"):
            if isinstance(reply, ftplib.Error):
                raise reply
        return None if is_known or isinstance(before, ftplib.Error) else mark

    # -- fetching --------------------------------------------------------------------------------------------
    def _fetch(self, connection: Connection, path: str, file: BinaryIO) -> None:
        """Receive a file, after what ``file`` already has of it, and compare it with its mark."""
        remote = self._locate(path)
        content, received = hashlib.sha256(), file.seek(0)
        while block := file.read(BLOCK_BYTES):
            content.update(block)
            received += len(block)
        size = folders.find_size(connection, remote)
        if size is None:
            raise ArtifactMissing(f"There is no artifact {path!r} in {self.artifact_uri}.")

        def take(block: bytes) -> None:
            file.write(block)
            content.update(block)

        if received <= size:  # else it was replaced, and what there is belongs to another
            connection.receive(f"RETR {remote}", take, received or None)
        if file.tell() == size and _is_marked(connection, remote, content.hexdigest()):
            return
        found = f"{file.tell()} bytes of {size}, sha256 {content.hexdigest()[:16]}..."
        file.truncate(file.seek(0))
        raise ArtifactDamaged(
            f"The artifact {path!r} is not what was stored.",
            found=found,
            expected="what was stored under this name",
            next_step="fetch it again; if that does not help, the server's disk has changed it: make it anew",
        )

    # -- in general ------------------------------------------------------------------------------------------
    def _again(self, work: Callable, *errors: type[Exception]):
        """Do ``work`` with a connection; again, after pauses, when it failed in a way that may pass.

        A server that was silent until the time was over is not asked again: the user has waited long enough.
        """
        for pause in (*PAUSES_SECONDS, None):
            try:
                with lend(self.address) as connection:
                    return work(connection)
            except (StoreUnavailable, *errors) as error:
                if pause is None or getattr(error, "silent", False):
                    raise
            time.sleep(pause)
        return None

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
            found=ascii(path),
            expected="a relative path in UTF-8, without '..', line breaks and the store's own temporary names",
        )
    return "" if normal == "." else normal


def _raise(error: OSError) -> None:
    raise error


def _blocks(file: BinaryIO, content, offset: int) -> Iterator[bytes]:
    """Yield what is left to send of a file; all of it goes into ``content``, a hash."""
    file.seek(0)
    while block := file.read(min(BLOCK_BYTES, offset - file.tell()) if file.tell() < offset else BLOCK_BYTES):
        content.update(block)
        if file.tell() > offset:
            yield block


def _arrived(connection: Connection, file: BinaryIO, temporary: str) -> int:
    """Return how much of a large file an earlier attempt has brought, in bytes."""
    size = os.fstat(file.fileno()).st_size
    if size < RESUMED_BYTES or not file.tell():
        return 0
    arrived = folders.find_size(connection, temporary) or 0
    return arrived if arrived <= size else 0


def _is_marked(connection: Connection, remote: str, sha256: str) -> bool:
    """Tell whether an artifact may have a content; one that never had a mark may have any."""
    folder, name = posixpath.split(remote)
    if folders.is_folder(connection, posixpath.join(folder, names.mark_of(name, sha256))):
        return True
    prefix = names.mark_prefix(name)
    if any(entry.name.startswith(prefix) for entry in folders.list_folder(connection, folder)):
        return False
    _logger.warning("The artifact %s was stored by another program, without a checksum.", name)
    return True
