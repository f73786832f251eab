"""Connections to FTP servers: logged in, kept, and shared by all of this process that talk to the same server."""

from __future__ import annotations

import atexit
import ftplib
import netrc
import os
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from urllib.parse import unquote, urlsplit

from workshop.servers.artifacts.errors import NETWORK_ERRORS, ArtifactNameRefused, explain
from workshop.settings import Settings, get_settings

TIMEOUT_SECONDS = 8  # an answer, or a piece of a file, may take so long; who waits is told within ten
END_SECONDS = 2  # for the other side's word that a TLS stream has ended; some never say it
BLOCK_BYTES = 256 * 1024
MOST_IDLE = 16
MOST_IN_A_BURST = 50  # commands; more of them, unanswered, could fill the buffers of both sides
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Address:
    """A server: host, port, and whether to it goes TLS (explicit, RFC 4217)."""

    secure: bool
    host: str
    port: int

    def __str__(self) -> str:
        return f"The FTP server {f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse(uri: str) -> tuple[Address, str]:
    """Return the server and the folder of ``ftp[s]://host:port/folder``.

    Never repeats the address in an error: it may hold a password.
    """
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise ArtifactNameRefused(
            "The artifact address holds a user name or a password.",
            expected=f"{parts.scheme}://host:port/folder",
            next_step="take them out: they come from the settings (see `workshop config`), or from ~/.netrc",
        )
    try:
        host, port = parts.hostname, parts.port or ftplib.FTP_PORT
    except ValueError:
        host = None
    if not host:
        raise ArtifactNameRefused(
            "The artifact address names no host, or a wrong port.", expected=f"{parts.scheme}://host:port/folder"
        )
    return Address(parts.scheme == "ftps", host, port), unquote(parts.path).lstrip("/")


class Connection(ftplib.FTP):
    """ftplib's connection, which can send several commands before it reads the answers: one round trip for all."""

    def burst(self, *commands: str) -> list[str | ftplib.Error]:
        """Send commands, none of which opens a data connection, at once; return reply, or error, of each."""
        replies: list[str | ftplib.Error] = []
        for first in range(0, len(commands), MOST_IN_A_BURST):
            part = commands[first : first + MOST_IN_A_BURST]
            self.sock.sendall("".join(f"{command}\r\n" for command in part).encode(self.encoding))
            replies += [self._reply() for _ in part]
        return replies

    def do(self, *commands: str) -> list[str]:
        """Send commands at once; return all replies, or raise the first that is an error."""
        replies = self.burst(*commands)
        for reply in replies:
            if isinstance(reply, ftplib.Error):
                raise reply
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

    def fetch(self, remote: str, take: Callable[[bytes], object], offset: int | None = None) -> None:
        """Receive a file's bytes, from ``offset`` on."""
        self._receive(f"RETR {remote}", take, offset)

    def lines(self, command: str) -> list[str]:
        """Return the lines that a command answers with on a data connection."""
        received = bytearray()
        self._receive(command, received.extend)
        return received.decode(self.encoding).replace("\r\n", "\n").split("\n")[:-1]

    def _receive(self, command: str, take: Callable[[bytes], object], offset: int | None = None) -> None:
        with self.transfercmd(command, offset) as data:
            while block := data.recv(BLOCK_BYTES):
                take(block)
            _end_tls(data)
        self.voidresp()

    def _reply(self) -> str | ftplib.Error:
        try:
            return self.getresp()
        except (ftplib.error_perm, ftplib.error_temp) as error:
            return error


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


class Pool:
    """The connections to one server."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._idle: deque[Connection] = deque()

    @contextmanager
    def lend(self) -> Iterator[Connection]:
        """Lend a connection that is logged in; keep it afterwards, unless something went wrong on it.

        What goes wrong on the network is raised as a StoreError that names the server.
        """
        connection = self._take_idle() or self._connect()
        try:
            yield connection
        except NETWORK_ERRORS as error:
            connection.close()
            raise explain(error, str(self.address)) from error
        except BaseException:
            connection.close()
            raise
        if len(self._idle) < MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close what is kept."""
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _take_idle(self) -> Connection | None:
        """Return a kept connection that the server has not closed meanwhile."""
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                # A server speaks only when asked: something to read means that it said goodbye.
                if not wait([connection.sock], timeout=0):
                    return connection
                connection.close()
        return None

    def _connect(self) -> Connection:
        user, password = _credentials(self.address)
        connection = SecureConnection(context=_context()) if self.address.secure else Connection()
        try:
            connection.connect(self.address.host, self.address.port, timeout=TIMEOUT_SECONDS)
            connection.login(user, password)
            if isinstance(connection, SecureConnection):
                connection.prot_p()
            connection.voidcmd("TYPE I")  # text has no place here, and a size no meaning in text
        except (*NETWORK_ERRORS, OSError) as error:
            connection.close()
            raise explain(error, str(self.address)) from error
        return connection


_pools: dict[Address, Pool] = {}
_pools_lock = threading.Lock()


def pool_of(address: Address) -> Pool:
    """Return this process's connections to a server."""
    with _pools_lock:
        return _pools.setdefault(address, Pool(address))


def _forget() -> None:
    """Leave the connections to the process that opened them: two that talk on one would get each other's answers."""
    global _pools_lock
    _pools_lock = threading.Lock()
    _close()
    _pools.clear()


def _close() -> None:
    for pool in _pools.values():
        pool.close()


os.register_at_fork(after_in_child=_forget)
atexit.register(_close)


def _credentials(address: Address) -> tuple[str, str]:
    """Return user and password: the settings' for the settings' own server, those of ~/.netrc for any other."""
    settings = get_settings()
    if _is_own(address, settings):
        user, secret = settings.credentials()
        return user, secret.get_secret_value()
    with suppress(FileNotFoundError, netrc.NetrcParseError):
        # With the default file the module itself refuses one that others may read.
        if found := netrc.netrc().hosts.get(address.host):
            return found[0], found[2]
    raise ArtifactNameRefused(
        "The artifact address is not that of the workshop's FTP server, the only one its password is for.",
        value=f"{address.host}:{address.port}",
        expected=f"{settings.host}:{settings.ftp_port}, or a host with an entry in ~/.netrc",
        next_step="correct the address, or WORKSHOP_HOST and WORKSHOP_FTP_PORT",
    )


def _is_own(address: Address, settings: Settings) -> bool:
    same_host = address.host == settings.host or {address.host, settings.host} <= LOOPBACK
    return same_host and address.port == settings.ftp_port


def _context() -> ssl.SSLContext:
    """Return how servers are checked: against the system's authorities, SSL_CERT_FILE, and the workshop's own."""
    context = ssl.create_default_context()
    own = get_settings().certificate_authority
    if own.exists():
        context.load_verify_locations(own)
    return context
