"""The artifact store: uploads are atomic, and downloads are verified.

FTP renames one file atomically (RNFR, RNTO), but cannot rename an artifact and its checksum file in one step. So the
checksum is in the *name* of a mark, an empty folder `.~<hash of the name>.<sha256>.sha256`, created before the artifact
is renamed. Marks of earlier contents stay until the artifact is deleted: another client may be storing that content.
"""

from __future__ import annotations

import ftplib
import hashlib
import logging
import os
import posixpath
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from mlflow_ftp import artifact_errors as errors
from mlflow_ftp import folders, names
from mlflow_ftp.artifact_errors import ArtifactDamaged, ArtifactError, ArtifactMissing, StoreRefused
from mlflow_ftp.connections import Connection, acquire, parse

PARALLEL_UPLOADS = 8
T = TypeVar("T")
PAUSES_SECONDS = (0.25, 0.5, 1.0)

_logger = logging.getLogger(__name__)


class FTPArtifactRepository(ArtifactRepository):
    """An artifact repository on an FTP server, at ``ftp://host:port/folder``.

    The user and the password come from the environment. After a temporary error, the operation is retried. Errors of
    the store raise ArtifactError; errors of local files raise OSError.
    """

    def __init__(self, artifact_uri: str, **servers: str | None) -> None:
        self.address, folder = parse(artifact_uri)
        self.root = "/" + _normalize(folder)
        super().__init__(artifact_uri, **servers)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Store one file in the folder ``artifact_path``."""
        self._store(Path(local_file), self._locate(posixpath.join(artifact_path or "", Path(local_file).name)))

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Store a folder's files in ``artifact_path``; if an upload fails, cancel the others and raise its error."""
        with ThreadPoolExecutor(PARALLEL_UPLOADS, "store") as pool:
            futures = []
            for folder, _, file_names in os.walk(local_dir, onerror=folders.raise_refusal):
                path = posixpath.normpath(posixpath.join(artifact_path or "", os.path.relpath(folder, local_dir)))
                for file in (Path(folder, name) for name in sorted(file_names)):
                    if file.is_file():
                        futures.append(pool.submit(self.log_artifact, str(file), None if path == "." else path))
                    else:
                        _logger.warning("%s was not stored, because it is not a regular file.", file)
            try:
                for future in futures:
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """Return the files and folders in a folder, sorted by name; an empty list for a file or a missing folder."""
        entries = self._retry(lambda connection: folders.list_folder(connection, self._locate(path)))
        return [
            FileInfo(posixpath.join(_normalize(path), names.printable(entry.name)), entry.is_folder, entry.size)
            for entry in sorted(entries)
            if not names.is_own(entry.name)
        ]

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete a file, or a folder with its contents; a missing artifact is not an error."""
        remote = self._locate(artifact_path)

        def delete(connection: Connection) -> None:
            remove = folders.remove_folder if folders.is_folder(connection, remote) else folders.remove_file
            remove(connection, remote)
            if posixpath.basename(remote) == "artifacts":
                connection.burst(f"RMD {posixpath.dirname(remote)}")  # deletes the run's folder only if it is empty

        self._retry(delete, StoreRefused)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        """Download a file under a temporary name, verify it, and rename it."""
        target = Path(local_path)
        temporary = target.with_name(names.new_temporary(target.name))
        try:
            with temporary.open("w+b") as file:
                self._retry(lambda connection: self._fetch(connection, remote_file_path, file), ArtifactDamaged)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _store(self, local_file: Path, remote: str) -> None:
        """Upload a file under a temporary name, verify, mark and rename it; readers never see a partial file."""
        folder, name = posixpath.split(remote)
        temporary, old = names.new_temporary(name), posixpath.join(folder, names.new_temporary(name))
        with local_file.open("rb") as file:
            try:
                self._retry(lambda connection: _upload(connection, file, remote, temporary, old), StoreRefused)
            except BaseException as error:
                if not isinstance(error, errors.StoreSilent):
                    with suppress(ArtifactError), acquire(self.address) as connection:
                        parts = [f"DELE {posixpath.join(folder, name)}" for name in (temporary, temporary[1:])]
                        connection.burst(*parts, f"RNFR {old}", f"RNTO {remote}")
                raise

    def _fetch(self, connection: Connection, path: str, file: BinaryIO) -> None:
        """Download a file and compare its sha256 with the artifact's marks."""
        remote, content = self._locate(path), hashlib.sha256()
        file.truncate(file.seek(0))
        try:
            for block in connection.blocks(f"RETR {remote}"):
                file.write(block)
                content.update(block)
        except ftplib.error_perm as error:
            if str(error)[:3] != "550":
                raise
            raise ArtifactMissing(
                f"The artifact {path!r} does not exist in {self.artifact_uri}.", value=error
            ) from None
        if not _is_marked(connection, remote, content.hexdigest()):
            raise ArtifactDamaged(
                f"The artifact {path!r} is damaged: its content differs from what was stored.",
                value=f"{file.tell()} bytes, sha256 {content.hexdigest()[:16]}...",
                expected="the bytes that were stored under this name",
                next_step="download the artifact again; if that fails, the server's disk is faulty: store a new copy",
            )

    def _retry(self, work: Callable[[Connection], T], *temporary: type[Exception]) -> T:
        """Call ``work`` with a connection; after StoreUnavailable or a ``temporary`` error, pause and retry."""
        for pause in PAUSES_SECONDS:
            with suppress(errors.StoreUnavailable, *temporary), acquire(self.address) as connection:
                return work(connection)
            time.sleep(pause)
        with acquire(self.address) as connection:
            return work(connection)

    def _locate(self, path: str | None) -> str:
        """Convert an artifact path, relative to ``root``, to an absolute path on the server."""
        return names.as_stored(posixpath.join(self.root, _normalize(path)).rstrip("/")) or "/"


def _normalize(path: str | None) -> str:
    """Normalize a relative path ("" for the root); raise ArtifactNameRefused if it is invalid."""
    normal = posixpath.normpath(path or ".")
    parts = normal.split("/")
    if (
        parts[0] in {"", ".."}
        or re.search("[\0\r\n\ud800-\udfff]", normal)  # characters that end an FTP command, or are not UTF-8
        or any(names.is_own(part) for part in parts)
        or re.search(rb"[^/]{256}|(/[^/]+){100}|.{1500}", normal.encode())  # servers check every folder of a path
    ):
        raise errors.ArtifactNameRefused(
            "Invalid artifact name.",
            value=ascii(path),
            expected="a relative path in UTF-8, without '..', line breaks or reserved names, "
            "shorter than 1500 bytes, each name shorter than 256 bytes, and at most 100 folders deep",
        )
    return "" if normal == "." else normal


def _upload(connection: Connection, file: BinaryIO, remote: str, part: str, old: str) -> None:
    """Upload a file under the temporary name ``part``, create the mark of its sha256, and rename it to ``remote``.

    If the server cannot rename over an existing file, that file is kept as ``old`` until the new one is in place.
    """
    folder, name = posixpath.split(remote)
    temporary = posixpath.join(folder, part)
    try:
        sha256 = connection.store(temporary, file)
    except ftplib.error_perm:  # the folder may be missing
        folders.make_folder(connection, folder)
        sha256 = connection.store(temporary, file)
    mark = posixpath.join(folder, names.mark_of(name, sha256))
    size, *marked = connection.burst(f"SIZE {temporary}", f"MKD {mark}", f"CWD {mark}")  # MKD fails if the mark exists
    folders.raise_refusal(*marked)
    if isinstance(size, ftplib.Error):  # the server does not support SIZE: read the file back
        size = str(sum(map(len, connection.blocks(f"RETR {temporary}"))))
    if size.split()[-1] != str(file.tell()):
        raise StoreRefused(
            f"The artifact {name!r} was not stored completely.", value=size, expected=f"{file.tell()} bytes"
        )
    renaming = f"RNFR {temporary}", f"RNTO {remote}"
    replies = connection.burst(*renaming)
    if isinstance(replies[0], ftplib.Error) and part[0] == ".":  # the server cannot rename hidden files
        connection.burst(f"DELE {temporary}")
        _upload(connection, file, remote, part[1:], old)
        return
    if isinstance(replies[1], ftplib.Error) and not folders.is_folder(connection, remote):
        *_, reply = replies = connection.burst(f"RNFR {remote}", f"RNTO {old}", *renaming)
        connection.burst(*([f"DELE {old}"] if isinstance(reply, str) else [f"RNFR {old}", f"RNTO {remote}"]))
    folders.raise_refusal(*replies)


def _is_marked(connection: Connection, remote: str, sha256: str) -> bool:
    """Return whether the content matches a mark of the artifact, or the artifact has no marks at all."""
    folder, name = posixpath.split(remote)
    if folders.is_folder(connection, posixpath.join(folder, names.mark_of(name, sha256))):
        return True
    prefix = names.mark_prefix(name)
    if any(entry.name.startswith(prefix) for entry in folders.list_folder(connection, folder)):
        return False
    if not folders.lists_hidden_names(connection, folder):
        what = f"The artifact {name!r} cannot be verified: the server does not list hidden names."
        next_step = "configure the server to list names that start with a dot, or store the artifact again"
        raise ArtifactError(what, next_step=next_step)
    _logger.warning("The artifact %s was not verified: another program stored it.", names.printable(name))
    return True
