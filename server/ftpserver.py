"""The artifact server: FTP for one user, chrooted, passive only. Start it by hand with `python server/ftpserver.py`.

It takes no options: host, ports, folder, user and password come from `workshop.settings`, so from `WORKSHOP_*`
variables, `.env`, or what `workshop up` chose. Ctrl-C or SIGTERM ends it.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import logging
import os
import secrets
import signal
import socket
import sys

import psutil
from pyftpdlib.authorizers import AuthenticationFailed, DummyAuthorizer
from pyftpdlib.handlers import DTPHandler, FTPHandler
from pyftpdlib.servers import FTPServer

from workshop.errors import ServiceError, WorkshopError
from workshop.settings import Settings, get_settings

ALL_RIGHTS = "elradfmwMT"


class HashedAuthorizer(DummyAuthorizer):
    """One user, whose password is kept only as a salted hash."""

    def __init__(self, user: str, password: str, home: str) -> None:
        super().__init__()
        self.salt = secrets.token_bytes(16)
        self.add_user(user, self.digest(password), home, perm=ALL_RIGHTS)

    def digest(self, password: str) -> str:
        """Return the hash; about 3 ms, because the server answers nobody else meanwhile."""
        return hashlib.scrypt(password.encode(), salt=self.salt, n=2**10, r=8, p=1).hex()

    def validate_authentication(self, username: str, password: str, handler: FTPHandler) -> None:  # noqa: ARG002
        """Let the one user in; a wrong name takes as long as a wrong password. (The handler is pyftpdlib's to pass.)"""
        digest = self.digest(password)
        expected = self.user_table[username]["pwd"] if self.has_user(username) else ""
        if not hmac.compare_digest(digest, expected):
            raise AuthenticationFailed("Authentication failed.")


class TransferHandler(DTPHandler):
    """A data connection; one that stands still is closed."""

    timeout = 60  # seconds


class Handler(FTPHandler):
    """A control connection."""

    banner = "Ready."
    timeout = 300  # seconds without a command
    dtp_handler = TransferHandler
    # Active mode would let a client point the server at any address.
    proto_cmds = {name: rule for name, rule in FTPHandler.proto_cmds.items() if name not in {"PORT", "EPRT"}}  # noqa: RUF012 - as in pyftpdlib

    def on_login(self, username: str) -> None:  # noqa: ARG002 - pyftpdlib passes it
        """Forget the password, which pyftpdlib keeps for servers that impersonate system users."""
        self.password = ""


class Server(FTPServer):
    """The listening socket; MLflow's proxy, all of it on one address, stays far below these limits."""

    max_cons = 512
    max_cons_per_ip = 256


def make_server(settings: Settings) -> FTPServer:
    """Return the server, listening on its port; raise ServiceError when it cannot have the port."""
    os.umask(0o077)
    settings.artifacts.mkdir(parents=True, exist_ok=True, mode=0o700)
    user, password = settings.credentials(create=True)
    Handler.authorizer = HashedAuthorizer(user, password.get_secret_value(), str(settings.artifacts))
    Handler.passive_ports = settings.ftp_passive_ports
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.create_server((settings.host, settings.ftp_port), family=family)
    except OSError as error:
        address = f"{settings.host}:{settings.ftp_port}"
        what = f"The FTP server cannot listen on {address}: {error.strerror or error}."
        if error.errno == errno.EADDRINUSE:
            holder = find_holder(settings.ftp_port)
            what = f"The FTP port {address} is held by {holder}; end that, or set WORKSHOP_FTP_PORT to a free port."
        raise ServiceError(what) from None
    return Server(listener, Handler)


def find_holder(port: int) -> str:
    """Return the name and number of the process that listens on a port, as far as the system tells."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        pass  # macOS tells this to root only
    return "another process"


def main() -> int:
    """Serve until a signal comes; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings = get_settings()
        server = make_server(settings)
    except WorkshopError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"FTP server ready: ftp://{settings.host}:{settings.ftp_port}, files in {settings.artifacts}\n")
    sys.stdout.flush()
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
