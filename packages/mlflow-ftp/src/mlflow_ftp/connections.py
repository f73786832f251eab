"""A connection pool for FTP servers, shared by the threads of this process."""

from __future__ import annotations

import atexit
import ftplib
import hashlib
import math
import os
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from mlflow_ftp.artifact_errors import NETWORK_ERRORS, ArtifactError, ArtifactNameRefused, StoreFull, explain

TIMEOUT_SECONDS = 8  # to wait for a reply, or for a block of a file
IDLE_SECONDS = 1  # a connection idle for longer is checked before use
KEEP_SECONDS = 4  # a connection idle for longer is closed
FULL_SECONDS = 60  # to wait for a server at its client limit
ALIVE_SECONDS = 1  # to wait for the reply to NOOP
END_SECONDS = 2  # to wait for the server's TLS close_notify, which some servers never send
BURST_SECONDS = 2  # to wait for each reply to the first two pipelined commands
BLOCK_BYTES = 256 * 1024
MAX_BURST = 50  # commands per batch; more could fill the buffers of both sides and block both


class Address(NamedTuple):
    """A server's address: host, port, and whether to use TLS (explicit, RFC 4217)."""

    is_secure: bool
    host: str
    port: int

    def __str__(self) -> str:
        return f"The FTP server {f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse(uri: str) -> tuple[Address, str]:
    """Return the server and folder of ``ftp[s]://host:port/folder``; errors omit the URI, which may contain a password.

    >>> parse("ftps://files:2121/a%20b/1")
    (Address(is_secure=True, host='files', port=2121), 'a b/1')
    """
    parts = urlsplit(uri)
    with suppress(ValueError):
        if parts.hostname and "@" not in parts.netloc:
            address = Address(parts.scheme == "ftps", parts.hostname, parts.port or ftplib.FTP_PORT)
            return address, unquote(parts.path).lstrip("/")
    raise ArtifactNameRefused(
        "The artifact URI contains a user name or a password, lacks a host, or has an invalid port.",
        expected=f"{parts.scheme}://host:port/folder",
        next_step="set the user name in MLFLOW_FTP_USERNAME, and the password in MLFLOW_FTP_PASSWORD",
    )


class Connection(ftplib.FTP):
    """An ftplib connection that can pipeline commands: several commands share one round trip.

    Its encoding is Latin-1, which preserves all bytes. In names, bytes that are not UTF-8 become surrogates
    (PEP 383), so that the server gets the same bytes back; in replies, they become escapes such as `\\xfc`.
    """

    sock: socket.socket  # while connected
    last_use, max_burst = 0.0, MAX_BURST

    def putline(self, line: str) -> None:
        """Send a line as UTF-8; each surrogate is sent as the byte that it stands for."""
        super().putline(line.encode(errors="surrogateescape").decode("latin-1"))

    def getline(self) -> str:
        """Read a line; escape the bytes that are not UTF-8."""
        return super().getline().encode("latin-1").decode(errors="backslashreplace")

    def burst(self, *commands: str) -> list[str | ftplib.Error]:
        """Pipeline commands that need no data connection; return a reply or an error for each."""
        replies: list[str | ftplib.Error] = []
        for first in range(0, len(commands), self.max_burst):
            part = commands[first : first + self.max_burst]
            self.sock.sendall("".join(f"{command}\r\n" for command in part).encode(errors="surrogateescape"))
            for _ in part:
                try:
                    replies.append(self.getresp())
                except (ftplib.error_perm, ftplib.error_temp) as error:
                    if str(error)[:3] in ("421", "530"):  # the server has closed the session
                        raise
                    replies.append(error)
        return replies

    def executes(self, *commands: str, seconds: float) -> bool:
        """Pipeline commands; return whether all succeed, with each reply within ``seconds``."""
        self.sock.settimeout(seconds)
        with suppress(*NETWORK_ERRORS, OSError):
            replies = self.burst(*commands)
            self.sock.settimeout(TIMEOUT_SECONDS)
            return all(isinstance(reply, str) for reply in replies)
        return False

    def makepasv(self) -> tuple[str, int]:
        """Return the host and port for a data connection; if PASV fails, try EPSV, which ftplib uses only with IPv6."""
        with suppress(ftplib.error_perm):
            return super().makepasv()
        self.af = socket.AF_INET6
        return super().makepasv()

    def store(self, remote: str, file: BinaryIO) -> str:
        """Send a file; return its sha256."""
        content = hashlib.sha256()
        file.seek(0)
        with self._transfer(f"STOR {remote}") as data:
            try:
                while block := file.read(BLOCK_BYTES):
                    content.update(block)
                    data.sendall(block)
            except (ConnectionError, ssl.SSLError):
                self.voidresp()  # raises the server's error
                raise
        return content.hexdigest()

    def blocks(self, command: str) -> Iterator[bytes]:
        """Execute a command and yield its data in blocks."""
        with self._transfer(command) as data:
            while block := data.recv(BLOCK_BYTES):
                yield block

    @contextmanager
    def _transfer(self, command: str) -> Iterator[socket.socket]:
        """Open a data connection; after the block, close it and read the reply."""
        with self.transfercmd(command) as data:
            yield data
            if isinstance(data, ssl.SSLSocket):
                data.settimeout(END_SECONDS)
                with suppress(OSError):  # not an error: the server's reply confirms that all data arrived
                    data.unwrap()
        self.voidresp()

    def lines(self, command: str) -> list[str]:
        """Return the lines of a command's data."""
        text = b"".join(self.blocks(command)).decode(errors="surrogateescape")
        return text.replace("\r\n", "\n").split("\n")[:-1]


class SecureConnection(Connection, ftplib.FTP_TLS):
    """A connection with TLS on both channels; data connections resume the TLS session of the control connection."""

    sock: ssl.SSLSocket

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[ssl.SSLSocket, int | None]:
        """Open a data connection that resumes the TLS session."""
        data, size = ftplib.FTP.ntransfercmd(self, cmd, rest)  # noqa: S321 - this package is for FTP
        return self.context.wrap_socket(data, server_hostname=self.host, session=self.sock.session), size


class _Pool:
    """The connections to one server, guarded by the condition ``changed``.

    ``limit`` is the number of connections that the server allows, known after the first refusal.
    """

    def __init__(self) -> None:
        self.idle: deque[Connection] = deque()
        self.open, self.limit, self.has_closer = 0, math.inf, False
        self.changed = threading.Condition()

    def take(self) -> Connection | None:
        """Return the most recently used idle connection; None if the caller may open a new one (already counted)."""
        with self.changed:
            self.changed.wait_for(lambda: self.idle or self.open < self.limit)
            connection = self.idle.pop() if self.idle else None
            self.open += connection is None
        if connection is None:
            return None
        # Unrequested data means that the server closed the connection.
        is_fresh = time.monotonic() - connection.last_use < IDLE_SECONDS
        if not wait([connection.sock], timeout=0) and (is_fresh or connection.executes("NOOP", seconds=ALIVE_SECONDS)):
            return connection
        self.drop(connection)
        self.close_kept()  # assume that the older connections are dead, too
        return self.take()

    def drop(self, connection: Connection | None = None) -> None:
        """Close a connection, if it was opened, and stop counting it."""
        if connection:
            connection.close()
        with self.changed:
            self.open -= 1
            self.changed.notify()

    def keep(self, connection: Connection) -> None:
        """Keep a connection for a few seconds only, because other processes may be waiting for one."""
        connection.last_use = time.monotonic()
        with self.changed:
            self.idle.append(connection)
            self.changed.notify()
            if not self.has_closer:
                self.has_closer = True
                threading.Thread(target=self._close_unused, name="mlflow-ftp idle", daemon=True).start()

    def close_kept(self, unused_since: float = math.inf) -> None:
        """Close the idle connections that were last used before ``unused_since``."""
        with self.changed:
            while self.idle and self.idle[0].last_use < unused_since:
                self.idle.popleft().close()
                self.open -= 1
            self.changed.notify_all()

    def _close_unused(self) -> None:
        while True:
            time.sleep(KEEP_SECONDS / 4)
            self.close_kept(time.monotonic() - KEEP_SECONDS)
            with self.changed:
                if not self.idle:
                    self.has_closer = False
                    return


_pools: dict[Address, _Pool] = {}
_one_by_one: set[Address] = set()  # servers (or firewalls) that do not support pipelining


def close_idle() -> None:
    """Close the idle connections of all pools."""
    for pool in _pools.values():
        pool.close_kept()


def _forget() -> None:
    """In a forked child, close the inherited connections and forget the pools, whose locks may never be released."""
    for connection in [connection for pool in _pools.values() for connection in pool.idle]:
        connection.close()
    _pools.clear()


atexit.register(close_idle)
os.register_at_fork(after_in_child=_forget)  # processes that share a connection would read each other's replies


@contextmanager
def acquire(address: Address) -> Iterator[Connection]:
    """Yield a connection and keep it unless an error is raised; network errors become ArtifactErrors.

    At the server's client limit, wait for one of this process's connections; if it has none, retry for up to a minute.
    """
    pool, start = _pools.setdefault(address, _Pool()), time.monotonic()
    while not (connection := pool.take()):
        try:
            connection = _connect(address)
            break
        except BaseException as error:
            pool.drop()
            if not isinstance(error, StoreFull) or time.monotonic() - start > FULL_SECONDS:
                raise
            pool.limit = max(1, pool.open)
            if not pool.open:  # other processes hold all connections
                time.sleep(random.uniform(0.2, 0.6))  # noqa: S311 - spreads the retries of several processes
    try:
        yield connection
    except BaseException as error:
        pool.drop(connection)
        if isinstance(error, NETWORK_ERRORS):
            raise explain(error, str(address), is_logged_in=True) from error
        raise
    pool.keep(connection)


def _connect(address: Address, *, one_by_one: bool = False) -> Connection:
    user, password = os.environ.get("MLFLOW_FTP_USERNAME"), os.environ.get("MLFLOW_FTP_PASSWORD")
    if not (user and password):
        next_step = "set the variables MLFLOW_FTP_USERNAME and MLFLOW_FTP_PASSWORD"
        raise ArtifactError(f"{address} requires a user name and a password.", next_step=next_step)
    connection = Connection(encoding="latin-1")
    if address.is_secure:
        context = ssl.create_default_context()
        if file := os.environ.get("MLFLOW_FTP_SERVER_CERT_PATH"):
            context.load_verify_locations(file)
        connection = SecureConnection(context=context, encoding="latin-1")
    try:
        connection.connect(address.host, address.port, timeout=TIMEOUT_SECONDS)
        connection.login(user, password)
        if isinstance(connection, SecureConnection):
            connection.prot_p()
        if one_by_one or address in _one_by_one:
            connection.max_burst = 1
            connection.voidcmd("TYPE I")  # binary mode, which SIZE requires
        elif not connection.executes("TYPE I", "NOOP", seconds=BURST_SECONDS):
            connection.close()
            connection = _connect(address, one_by_one=True)
            _one_by_one.add(address)
    except (*NETWORK_ERRORS, OSError) as error:
        connection.close()
        raise explain(error, str(address)) from error
    return connection
