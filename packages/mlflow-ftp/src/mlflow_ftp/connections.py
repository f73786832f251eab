"""A pool of connections to FTP servers, logged in, for all threads of this process."""

from __future__ import annotations

import atexit
import ftplib
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from mlflow_ftp.artifact_errors import NETWORK_ERRORS, ArtifactError, ArtifactNameRefused, explain

TIMEOUT_SECONDS = 8  # for an answer, or a piece of a file
IDLE_SECONDS = 1  # after which a kept connection is asked whether it is alive
ALIVE_SECONDS = 1  # for the answer
END_SECONDS = 2  # for the server's end of a TLS stream, which some servers never send
BLOCK_BYTES = 256 * 1024
MAX_BURST = 50  # commands; more commands without a reply could fill the buffers of both sides


class Address(NamedTuple):
    """A server: host, port, and whether to use TLS (explicit, RFC 4217)."""

    is_secure: bool
    host: str
    port: int

    def __str__(self) -> str:
        return f"The FTP server {f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse(uri: str) -> tuple[Address, str]:
    """Return server and folder of ``ftp[s]://host:port/folder``; no error repeats the address, with its password."""
    parts = urlsplit(uri)
    with suppress(ValueError):
        if parts.hostname and "@" not in parts.netloc:
            address = Address(parts.scheme == "ftps", parts.hostname, parts.port or ftplib.FTP_PORT)
            return address, unquote(parts.path).lstrip("/")
    raise ArtifactNameRefused(
        "The artifact address holds a user or a password, or no host, or a wrong port.",
        expected=f"{parts.scheme}://host:port/folder",
        next_step="set MLFLOW_FTP_USERNAME and MLFLOW_FTP_PASSWORD for user and password",
    )


class Connection(ftplib.FTP):
    """ftplib's connection, which can send several commands before it reads the answers: one round trip for all."""

    sock: socket.socket  # as long as it is connected
    last_use = 0.0

    def burst(self, *commands: str) -> list[str | ftplib.Error]:
        """Send commands without data connections, then read the replies; return a reply or an error for each."""
        replies: list[str | ftplib.Error] = []
        for first in range(0, len(commands), MAX_BURST):
            part = commands[first : first + MAX_BURST]
            self.sock.sendall("".join(f"{command}\r\n" for command in part).encode(self.encoding))
            for _ in part:
                try:
                    replies.append(self.getresp())
                except (ftplib.error_perm, ftplib.error_temp) as error:
                    replies.append(error)
        return replies

    def is_alive(self) -> bool:
        """Return whether the server answers: a firewall may have dropped a connection that was idle."""
        self.sock.settimeout(ALIVE_SECONDS)
        with suppress(*NETWORK_ERRORS, OSError):
            self.voidcmd("NOOP")
            self.sock.settimeout(TIMEOUT_SECONDS)
            return True
        return False

    def store(self, remote: str, blocks: Iterable[bytes]) -> None:
        """Send the bytes of a file."""
        with self._transfer(f"STOR {remote}") as data:
            try:
                for block in blocks:
                    data.sendall(block)
            except (ConnectionError, ssl.SSLError):
                self.voidresp()  # raises the reason that the server gives
                raise

    def blocks(self, command: str) -> Iterator[bytes]:
        """Yield the data that a command sends on a data connection."""
        with self._transfer(command) as data:
            while block := data.recv(BLOCK_BYTES):
                yield block

    @contextmanager
    def _transfer(self, command: str) -> Iterator[socket.socket]:
        """Open a data connection; close it at the end and read the server's reply."""
        with self.transfercmd(command) as data:
            yield data
            if isinstance(data, ssl.SSLSocket):
                data.settimeout(END_SECONDS)
                with suppress(OSError):  # the reply says whether all data has arrived
                    data.unwrap()
        self.voidresp()

    def lines(self, command: str) -> list[str]:
        """Return the lines that a command sends on a data connection."""
        return b"".join(self.blocks(command)).decode(self.encoding).replace("\r\n", "\n").split("\n")[:-1]


class SecureConnection(Connection, ftplib.FTP_TLS):
    """The same with TLS on both channels; data connections resume the session of the control connection."""

    sock: ssl.SSLSocket

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[ssl.SSLSocket, int | None]:
        """Open the data connection."""
        data, size = ftplib.FTP.ntransfercmd(self, cmd, rest)  # noqa: S321 - FTP is what this is for
        return self.context.wrap_socket(data, server_hostname=self.host, session=self.sock.session), size


_idle: dict[Address, deque[Connection]] = {}


def close_idle() -> None:
    """Close the kept connections."""
    for connections in _idle.values():
        for connection in connections:
            connection.close()
    _idle.clear()


atexit.register(close_idle)
os.register_at_fork(after_in_child=close_idle)  # two processes that use one would get each other's answers


@contextmanager
def acquire(address: Address) -> Iterator[Connection]:
    """Yield a connection that is logged in; keep it if nothing is raised. A network error becomes an ArtifactError."""
    idle = _idle.setdefault(address, deque())
    connection = _take(idle) or _connect(address)
    try:
        yield connection
    except BaseException as error:
        connection.close()
        if isinstance(error, NETWORK_ERRORS):
            raise explain(error, str(address)) from error
        raise
    connection.last_use = time.monotonic()
    idle.append(connection)


def _take(idle: deque[Connection]) -> Connection | None:
    """Return the kept connection that was used last, if it is alive; else close it and the older ones."""
    with suppress(IndexError):
        connection = idle.pop()
        # A server sends only replies: if there is something to read, it has said goodbye.
        is_fresh = time.monotonic() - connection.last_use < IDLE_SECONDS
        if not wait([connection.sock], timeout=0) and (is_fresh or connection.is_alive()):
            return connection
        while True:
            connection.close()
            connection = idle.pop()
    return None


def _connect(address: Address) -> Connection:
    user, password = os.environ.get("MLFLOW_FTP_USERNAME"), os.environ.get("MLFLOW_FTP_PASSWORD")
    if not (user and password):
        raise ArtifactError(
            f"There is no user and password for {address}.",
            next_step="set the variables MLFLOW_FTP_USERNAME and MLFLOW_FTP_PASSWORD",
        )
    connection = Connection()
    if address.is_secure:
        context = ssl.create_default_context()
        if file := os.environ.get("MLFLOW_FTP_SERVER_CERT_PATH"):
            context.load_verify_locations(file)
        connection = SecureConnection(context=context)
    try:
        connection.connect(address.host, address.port, timeout=TIMEOUT_SECONDS)
        connection.login(user, password)
        if isinstance(connection, SecureConnection):
            connection.prot_p()
        connection.voidcmd("TYPE I")  # artifacts are bytes, and SIZE has no meaning for text
    except (*NETWORK_ERRORS, OSError) as error:
        connection.close()
        raise explain(error, str(address)) from error
    return connection
