"""Connections to FTP servers: logged in, kept, and shared by all of this process that use the same server."""

from __future__ import annotations

import atexit
import ftplib
import netrc
import os
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow_ftp.errors import NETWORK_ERRORS, ArtifactError, ArtifactNameRefused, explain

TIMEOUT_SECONDS = 8  # for an answer, or a piece of a file
END_SECONDS = 2  # for the other side's word that a TLS stream has ended; some never say it
BLOCK_BYTES = 256 * 1024
MOST_IDLE = 16
MOST_IN_A_BURST = 50  # commands; more of them, unanswered, could fill the buffers of both sides


@dataclass(frozen=True)
class Address:
    """A server: host, port, and whether to use TLS (explicit, RFC 4217)."""

    is_secure: bool
    host: str
    port: int

    def __str__(self) -> str:
        return f"The FTP server {f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse(uri: str) -> tuple[Address, str]:
    """Return the server and the folder of ``ftp[s]://host:port/folder``.

    Never repeats the address in an error: it may hold a password.
    """
    parts = urlsplit(uri)
    expected = f"{parts.scheme}://host:port/folder"
    if "@" in parts.netloc:
        raise ArtifactNameRefused(
            "The artifact address holds a user name or a password.",
            expected=expected,
            next_step="set MLFLOW_FTP_USERNAME and MLFLOW_FTP_PASSWORD, or MLFLOW_FTP_CREDENTIALS, instead",
        )
    with suppress(ValueError):
        if parts.hostname:
            address = Address(parts.scheme == "ftps", parts.hostname, parts.port or ftplib.FTP_PORT)
            return address, unquote(parts.path).lstrip("/")
    raise ArtifactNameRefused("The artifact address names no host, or a wrong port.", expected=expected)


class Connection(ftplib.FTP):
    """ftplib's connection, which can send several commands before it reads the answers: one round trip for all."""

    def burst(self, *commands: str) -> list[str | ftplib.Error]:
        """Send commands, none of which opens a data connection, at once; return reply, or error, of each."""
        replies: list[str | ftplib.Error] = []
        for first in range(0, len(commands), MOST_IN_A_BURST):
            part = commands[first : first + MOST_IN_A_BURST]
            self.sock.sendall("".join(f"{command}\r\n" for command in part).encode(self.encoding))
            for _ in part:
                try:
                    replies.append(self.getresp())
                except (ftplib.error_perm, ftplib.error_temp) as error:
                    replies.append(error)
        return replies

    def store(self, remote: str, blocks: Iterable[bytes], offset: int | None = None) -> None:
        """Send a file's bytes, from ``offset`` on."""
        with self.transfercmd(f"STOR {remote}", offset) as data:
            try:
                for block in blocks:
                    data.sendall(block)
            except (ConnectionError, ssl.SSLError):
                self.voidresp()  # in which the server says why it has closed it
                raise
            _end_tls(data)
        self.voidresp()

    def receive(self, command: str, take: Callable[[bytes], object], offset: int | None = None) -> None:
        """Receive what a command answers with on a data connection, from ``offset`` on."""
        with self.transfercmd(command, offset) as data:
            while block := data.recv(BLOCK_BYTES):
                take(block)
            _end_tls(data)
        self.voidresp()

    def lines(self, command: str) -> list[str]:
        """Return the lines that a command answers with on a data connection."""
        received = bytearray()
        self.receive(command, received.extend)
        return received.decode(self.encoding).replace("\r\n", "\n").split("\n")[:-1]


class SecureConnection(Connection, ftplib.FTP_TLS):
    """The same with TLS on both channels, the second resuming the first's session, as good servers demand."""

    def ntransfercmd(self, cmd: str, rest: int | str | None = None):
        """Open the data connection."""
        data, size = ftplib.FTP.ntransfercmd(self, cmd, rest)  # noqa: S321 - FTP is what this is for
        return self.context.wrap_socket(data, server_hostname=self.host, session=self.sock.session), size


def _end_tls(data) -> None:
    """Say the end of a TLS stream; that all has arrived is checked in another way."""
    if isinstance(data, ssl.SSLSocket):
        data.settimeout(END_SECONDS)
        with suppress(OSError):
            data.unwrap()


_idle: dict[Address, deque[Connection]] = {}


def _close() -> None:
    for connections in _idle.values():
        for connection in connections:
            connection.close()
    _idle.clear()


atexit.register(_close)
os.register_at_fork(after_in_child=_close)  # two processes that use one would get each other's answers


@contextmanager
def lend(address: Address) -> Iterator[Connection]:
    """Lend a connection that is logged in; keep it afterwards, unless something went wrong on it.

    What goes wrong on the network is raised as an ArtifactError that names the server.
    """
    idle = _idle.setdefault(address, deque())
    connection = _take(idle) or _connect(address)
    try:
        yield connection
    except NETWORK_ERRORS as error:
        connection.close()
        raise explain(error, str(address)) from error
    except BaseException:
        connection.close()
        raise
    if len(idle) < MOST_IDLE:
        idle.append(connection)
    else:
        connection.close()


def _take(idle: deque[Connection]) -> Connection | None:
    """Return a kept connection that the server has not closed meanwhile."""
    with suppress(IndexError):
        while connection := idle.pop():
            # A server speaks only when asked: something to read means that it said goodbye.
            if not wait([connection.sock], timeout=0):
                return connection
            connection.close()
    return None


def _connect(address: Address) -> Connection:
    user, password = _credentials(address.host)
    connection = SecureConnection(context=_context()) if address.is_secure else Connection()
    try:
        connection.connect(address.host, address.port, timeout=TIMEOUT_SECONDS)
        connection.login(user, password)
        if isinstance(connection, SecureConnection):
            connection.prot_p()
        connection.voidcmd("TYPE I")  # text has no place here, and a size no meaning in text
    except (*NETWORK_ERRORS, OSError) as error:
        connection.close()
        raise explain(error, str(address)) from error
    return connection


def _credentials(host: str) -> tuple[str, str]:
    """Return user and password: the environment's, else those for the host in a netrc file."""
    user, password = os.environ.get("MLFLOW_FTP_USERNAME"), os.environ.get("MLFLOW_FTP_PASSWORD")
    if user and password:
        return user, password
    file = Path(os.environ.get("MLFLOW_FTP_CREDENTIALS") or "~/.netrc").expanduser()
    found = "no such file"
    if file.exists():
        if file.stat().st_mode & 0o077:
            raise ArtifactError(f"The file {file} can be read by others.", next_step=f"chmod 600 {file}")
        try:
            if entry := netrc.netrc(file).authenticators(host):
                return entry[0], entry[2]
            found = f"no entry for {host}"
        except netrc.NetrcParseError as error:
            found = str(error)
    raise ArtifactError(
        f"There is no user and password for the FTP server {host}.",
        found=f"{file}: {found}",
        expected=f"MLFLOW_FTP_USERNAME and MLFLOW_FTP_PASSWORD, or a line `machine {host} login USER password PASSWORD`"
        " in the file that MLFLOW_FTP_CREDENTIALS names, or in ~/.netrc",
    )


def _context() -> ssl.SSLContext:
    """Return how servers are checked: against the system's authorities, and what the environment names."""
    context = ssl.create_default_context()
    if file := os.environ.get("MLFLOW_FTP_SERVER_CERT_PATH"):
        context.load_verify_locations(file)
    return context
