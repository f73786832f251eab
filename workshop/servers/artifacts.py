"""MLflow's artifact store on an FTP server: an artifact appears under its name whole, or not at all.

MLflow opens it, through `workshop.servers.plugin`, for the schemes `ftp` and `ftps` (explicit TLS, RFC 4217). It takes
the place of MLflow's own, which writes straight to the final name and cannot delete.
"""

from __future__ import annotations

import ftplib
import logging
import os
import posixpath
import re
import secrets
import ssl
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from workshop.errors import ArtifactError, WorkshopError
from workshop.settings import Settings, get_settings

TIMEOUT_SECONDS = 10
BLOCK_BYTES = 256 * 1024
IDLE_CONNECTIONS = 8
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
TEMPORARY_NAME = re.compile(r"\.~.*\.[0-9a-f]{16}\.part")
NETWORK_ERRORS = (ftplib.Error, EOFError, ConnectionError, TimeoutError, ssl.SSLError)

_logger = logging.getLogger(__name__)


class StoreError(ArtifactError, MlflowException):
    """An ArtifactError that is MLflow's too: its server then answers with the text and a status, no traceback."""

    code = INTERNAL_ERROR

    def __init__(self, what: str, **details: object) -> None:
        super().__init__(what, **details)
        MlflowException.__init__(self, str(self), error_code=self.code)


class StoreUnavailable(StoreError):
    """The FTP server does not answer, or stopped answering."""

    code = TEMPORARILY_UNAVAILABLE


class ArtifactMissing(StoreError):
    """There is no such artifact."""

    code = RESOURCE_DOES_NOT_EXIST


class ArtifactNameRefused(StoreError):
    """An address or a name that the store cannot use."""

    code = INVALID_PARAMETER_VALUE


class FTPArtifactRepository(ArtifactRepository):
    """Artifacts as files on the workshop's FTP server, at ``ftp://host:port/folder``.

    User and password come from the settings, and are sent to the server that the settings name and to no other.
    Connections are kept for the next call. All failures of the store are ArtifactErrors; a local file that cannot
    be read or written is Python's own OSError.
    """

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        self.secure, self.host, self.port, self.root = _parse(artifact_uri)
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._idle: deque[ftplib.FTP] = deque()
        weakref.finalize(self, _close_all, self._idle)

    # -- MLflow's interface ----------------------------------------------------------------------------------
    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Store one file in the folder ``artifact_path``."""
        folder = self._locate(artifact_path)
        remote = self._locate(posixpath.join(artifact_path or "", Path(local_file).name))
        with self._connection() as connection:
            _make_folder(connection, folder, made={"/"})
            self._store(connection, Path(local_file), remote)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Store all files and folders of ``local_dir``, empty ones too, in the folder ``artifact_path``."""
        made = {"/"}
        with self._connection() as connection:
            for folder, _, names in os.walk(local_dir, onerror=_raise):
                path = posixpath.join(artifact_path or "", Path(folder).relative_to(local_dir).as_posix())
                _make_folder(connection, self._locate(path), made)
                for name in sorted(names):
                    file = Path(folder, name)
                    if file.is_file():
                        self._store(connection, file, self._locate(posixpath.join(path, name)))
                    else:
                        _logger.warning("Not stored, because it is no regular file: %s", file)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """Return what lies directly in a folder, by name; nothing for a file or for what is not there."""
        folder = self._locate(path)
        with self._connection() as connection:
            entries = _list_folder(connection, folder)
        return [
            FileInfo(posixpath.join(_normalize(path), name), is_folder, size)
            for name, is_folder, size in sorted(entries)
            if not TEMPORARY_NAME.fullmatch(name)
        ]

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete a file, or a folder with all in it; what is not there counts as deleted."""
        remote = self._locate(artifact_path)
        with self._connection() as connection:
            _remove(connection, remote, is_folder=_is_folder(connection, remote))

    def _is_directory(self, artifact_path: str) -> bool:
        """Tell a folder from a file; MLflow's own way takes an empty folder for a file."""
        remote = self._locate(artifact_path)
        with self._connection() as connection:
            return _is_folder(connection, remote)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        """Fetch a file under a temporary name, check its size, then give it its name."""
        remote = self._locate(remote_file_path)
        target = Path(local_path)
        temporary = target.with_name(_temporary_name(target.name))
        try:
            with self._connection() as connection:
                size = _find_size(connection, remote)
                if size is None:
                    raise ArtifactMissing(f"There is no artifact {remote_file_path!r} in {self.artifact_uri}.")
                with temporary.open("wb") as file:
                    connection.retrbinary(f"RETR {remote}", file.write, BLOCK_BYTES)
                    received = file.tell()
            if received != size:
                raise StoreError(
                    f"The artifact {remote_file_path!r} did not arrive whole.",
                    value=f"{received} bytes",
                    expected=f"{size} bytes",
                    next_step="fetch it again",
                )
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    # -- uploads ---------------------------------------------------------------------------------------------
    def _store(self, connection: ftplib.FTP, local_file: Path, remote: str) -> None:
        """Upload under a temporary name, check the size, and only then rename: readers never see a part."""
        folder, name = posixpath.split(remote)
        temporary = posixpath.join(folder, _temporary_name(name))
        with local_file.open("rb") as file:
            try:
                connection.storbinary(f"STOR {temporary}", file, BLOCK_BYTES)
                sent, stored = file.tell(), connection.size(temporary)
                if stored != sent:
                    raise StoreError(
                        f"The artifact {name!r} was not stored whole.",
                        value=f"{stored} bytes",
                        expected=f"{sent} bytes",
                        next_step="store it again, and look for a full disk on the server",
                    )
                connection.rename(temporary, remote)
            except TimeoutError:
                raise  # to clean up on a server that hangs would only double the wait
            except BaseException:
                connection.close()
                self._discard(temporary)
                raise

    def _discard(self, temporary: str) -> None:
        """Remove what a failed upload left, if it can be; on another connection, as the failed one is out of step."""
        with suppress(WorkshopError), self._connection() as connection:
            connection.delete(temporary)

    # -- connections -----------------------------------------------------------------------------------------
    @contextmanager
    def _connection(self) -> Iterator[ftplib.FTP]:
        """Lend a connection that is logged in; keep it afterwards, unless something went wrong on it."""
        connection = self._take_idle() or self._connect()
        try:
            yield connection
        except NETWORK_ERRORS as error:
            connection.close()
            raise self._explain(error) from error
        except BaseException:
            connection.close()
            raise
        if len(self._idle) < IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.close()

    def _take_idle(self) -> ftplib.FTP | None:
        """Return a kept connection that the server has not closed meanwhile."""
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                # A server speaks only when asked: something to read means that it said goodbye.
                if not wait([connection.sock], timeout=0):
                    return connection
                connection.close()
        return None

    def _connect(self) -> ftplib.FTP:
        """Open a connection and log in; raise StoreUnavailable or StoreError, naming host and port."""
        settings = get_settings()
        self._check_address(settings)
        user, password = settings.credentials()
        connection = ftplib.FTP_TLS(context=ssl.create_default_context()) if self.secure else ftplib.FTP()  # noqa: S321 - see the import
        try:
            connection.connect(self.host, self.port, timeout=TIMEOUT_SECONDS)
            connection.login(user, password.get_secret_value())
            if isinstance(connection, ftplib.FTP_TLS):
                connection.prot_p()
        except (*NETWORK_ERRORS, OSError) as error:
            connection.close()
            raise self._explain(error) from error
        return connection

    def _check_address(self, settings: Settings) -> None:
        """Refuse to send the password to a server that is not the settings' own."""
        same_host = self.host == settings.host or {self.host, settings.host} <= LOOPBACK
        if not same_host or self.port != settings.ftp_port:
            raise ArtifactNameRefused(
                "The artifact address is not that of the workshop's FTP server, the only one its password is for.",
                value=f"{self.host}:{self.port}",
                expected=f"{settings.host}:{settings.ftp_port}",
                next_step="correct the address, or WORKSHOP_HOST and WORKSHOP_FTP_PORT",
            )

    def _explain(self, error: BaseException) -> StoreError:
        """Return the error that tells the user what a network error means."""
        server = f"The FTP server {self.host}:{self.port}"
        value = f"{type(error).__name__}: {error}"
        if isinstance(error, ssl.SSLError):
            return StoreError(
                f"{server} cannot be trusted.",
                value=value,
                next_step="set SSL_CERT_FILE to the file of the authority that signed its certificate",
            )
        if not isinstance(error, ftplib.error_perm):
            return StoreUnavailable(f"{server} does not answer.", value=value, next_step="workshop status")
        if _reply_code(error) == "530":
            return StoreError(
                f"{server} refused the login.",
                value=value,
                expected="the user and password that the server was started with",
                next_step="workshop down, then workshop up: both sides then read the same credentials",
            )
        return StoreError(f"{server} refused a command.", value=value, next_step="look into the server's log")

    # -- names -----------------------------------------------------------------------------------------------
    def _locate(self, path: str | None) -> str:
        """Return the absolute name on the server of a path below the root."""
        return posixpath.join(self.root, _normalize(path)).rstrip("/") or "/"


# -- what FTP makes us say in several words ------------------------------------------------------------------
def _parse(uri: str) -> tuple[bool, str, int, str]:
    """Return (TLS?, host, port, root folder) of an address; never repeat it in an error: it may hold a password."""
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise ArtifactNameRefused(
            "The artifact address holds a user name or a password.",
            expected=f"{parts.scheme}://host:port/folder",
            next_step="take them out: they come from the settings (see `workshop config`)",
        )
    try:
        host, port = parts.hostname, parts.port or ftplib.FTP_PORT
    except ValueError:
        host = None
    if not host:
        raise ArtifactNameRefused(
            "The artifact address names no host, or a wrong port.", expected=f"{parts.scheme}://host:port/folder"
        )
    return parts.scheme == "ftps", host, port, "/" + _normalize(unquote(parts.path).lstrip("/"))


def _normalize(path: str | None) -> str:
    """Return a relative path without detours, "" for the root; raise ArtifactNameRefused for one that leads out."""
    normal = posixpath.normpath(path or ".")
    parts = normal.split("/")
    if (
        parts[0] in {"", ".."}
        or re.search("[\0\r\n]", normal)  # they would end the FTP command
        or re.search("[\ud800-\udfff]", normal)  # not UTF-8 on the local disk
        or any(TEMPORARY_NAME.fullmatch(part) for part in parts)
    ):
        raise ArtifactNameRefused(
            "The artifact's name cannot be used.",
            value=ascii(path),
            expected="a relative path in UTF-8, without '..', line breaks and the store's own temporary names",
        )
    return "" if normal == "." else normal


def _temporary_name(name: str) -> str:
    # The name is cut because a file name may have 255 bytes, up to 4 a character.
    return f".~{name[:50]}.{secrets.token_hex(8)}.part"


def _reply_code(error: ftplib.Error) -> str:
    return str(error)[:3]


def _is_folder(connection: ftplib.FTP, path: str) -> bool:
    try:
        connection.cwd(path)
    except ftplib.error_perm as error:
        if _reply_code(error) != "550":
            raise
        return False
    return True


def _find_size(connection: ftplib.FTP, path: str) -> int | None:
    """Return a file's size in bytes, or None when there is no such file."""
    connection.voidcmd("TYPE I")  # in text mode a size has no meaning, and servers refuse to tell
    try:
        return connection.size(path)
    except ftplib.error_perm as error:
        if _reply_code(error) != "550":
            raise
        return None


def _list_folder(connection: ftplib.FTP, folder: str) -> list[tuple[str, bool, int | None]]:
    """Return (name, folder?, size in bytes) of each entry, by MLSD (RFC 3659); nothing when it is no folder."""
    try:
        entries = list(connection.mlsd(folder))
    except ftplib.error_perm as error:
        if _reply_code(error) not in {"501", "550"}:
            raise
        return []
    return [
        (name, facts["type"] == "dir", None if facts["type"] == "dir" else int(facts["size"]))
        for name, facts in entries
        if facts["type"] in {"dir", "file"}
    ]


def _make_folder(connection: ftplib.FTP, folder: str, made: set[str]) -> None:
    """Make a folder and those above it, and note them in ``made``; one that another client makes is as good."""
    if folder in made:
        return
    if not _is_folder(connection, folder):
        _make_folder(connection, posixpath.dirname(folder), made)
        try:
            connection.mkd(folder)
        except ftplib.error_perm:
            if not _is_folder(connection, folder):
                raise
    made.add(folder)


def _remove(connection: ftplib.FTP, path: str, *, is_folder: bool) -> None:
    if is_folder:
        for name, is_inner_folder, _ in _list_folder(connection, path):
            _remove(connection, posixpath.join(path, name), is_folder=is_inner_folder)
    if path == "/":
        return
    try:
        (connection.rmd if is_folder else connection.delete)(path)
    except ftplib.error_perm:
        if _is_folder(connection, path) or _find_size(connection, path) is not None:
            raise


def _close_all(connections: deque[ftplib.FTP]) -> None:
    for connection in connections:
        connection.close()


def _raise(error: OSError) -> None:
    raise error
