"""What the FTP server adds to pyftpdlib: who may log in and how often to guess, who may wait, and files that are whole.

The only module that uses pyftpdlib's private names; `tests/test_server.py` names those that an upgrade took away.
"""

from __future__ import annotations

import errno
import hmac
import ipaddress
import logging
import os
import shutil
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from pyftpdlib.authorizers import AuthenticationFailed, DummyAuthorizer
from pyftpdlib.filesystems import AbstractedFS
from pyftpdlib.handlers import DTPHandler, TLS_DTPHandler, TLS_FTPHandler
from pyftpdlib.log import logger

from mlflow_ftp import names

LONGEST_DELAY_SECONDS = 30.0
FORGOTTEN_SECONDS = 600.0
LOGIN_SECONDS = 20
MOST_GUESTS = 64
STILL_SECONDS = 1  # a part of an upload that has not grown for so long may go with its folder
SYNC_BYTES = 16 * 1024 * 1024

transfers = logging.getLogger("mlflow_ftp.transfers")


class OneUser(DummyAuthorizer):
    """The one user; guessing is slow: the n-th wrong password of an address is answered 2^(n-1) seconds after the last.

    Until then no other password of that address is taken. Loopback, from where a tracking server logs in, is never
    kept waiting for what others there do: only its wrong passwords are.
    """

    def __init__(self, user: str, password: str, home: str) -> None:
        super().__init__()
        self.add_user(user, "", home, perm="elradfmwMT")
        self._expected = f"{user}\0{password}".encode()
        self._failures: dict[str, tuple[int, float]] = {}  # how many, and when the last is answered

    def validate_authentication(self, username: str, password: str, handler: Handler) -> None:
        """Let the one user in; raise AuthenticationFailed, of which the client hears later and later."""
        address, now = handler.remote_ip, time.monotonic()
        count, until = self._failures.get(address, (0, now))
        is_right = hmac.compare_digest(f"{username}\0{password}".encode(), self._expected)
        if is_right and (until <= now or ipaddress.ip_address(address).is_loopback):
            self._failures.pop(address, None)
            return
        if not is_right:
            until = max(now, until) + min(2.0**count, LONGEST_DELAY_SECONDS)
            recent = {key: failure for key, failure in self._failures.items() if now - failure[1] < FORGOTTEN_SECONDS}
            self._failures = recent | {address: (count + 1, until)}
        handler.auth_failed_timeout = until - now
        raise AuthenticationFailed("Authentication failed.")


class Upload:
    """A file that arrives: hidden until it is whole and on the disk, and never the disk's last one."""

    def __init__(self, path: Path, mode: str, least_free: int) -> None:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        self.name = str(path)  # as it is logged
        # A client that hides a file itself gives it its name itself, and may go on where it was cut.
        is_hidden = names.is_temporary(path.name)
        self._path, self._hidden = path, path if is_hidden else path.with_name(names.new_temporary(path.name))
        self._file = self._hidden.open(mode)
        self._least_free, self._unsynced = least_free, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> None:
        """Write; now and then bring to the disk what was written, so that the end does not take long."""
        self._file.write(data)
        self._unsynced += len(data)
        if self._unsynced >= SYNC_BYTES:
            self.sync()
            if self._free() < self._least_free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Bring to the disk what was written."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def keep(self) -> None:
        """Give the file its name."""
        self._hidden.replace(self._path)
        self._file.close()

    def close(self) -> None:
        """Close what is not whole, and remove it, unless its client may go on with it."""
        with suppress(OSError):  # what a full disk did not take is tried again
            self._file.close()
        if self._hidden != self._path or self._free() < self._least_free + SYNC_BYTES:
            self._hidden.unlink(missing_ok=True)

    def _free(self) -> int:
        return shutil.disk_usage(self._path.parent).free


class WholeFiles(AbstractedFS):
    """pyftpdlib's view of a folder, chrooted, in which a file is whole and on the disk, or is not there."""

    def open(self, filename: str, mode: str) -> Any:
        """Open a file."""
        if mode == "rb":
            return super().open(filename, mode)
        return Upload(Path(filename), mode, self.cmd_channel.least_free)

    def listdir(self, path: str) -> list[str]:
        """List a folder without what still arrives."""
        return [name for name in super().listdir(path) if not names.is_temporary(name)]

    def rmdir(self, path: str) -> None:
        """Remove a folder that looks empty, with parts of uploads that stand still."""
        parts = list(Path(path).iterdir())
        still = time.time() - STILL_SECONDS
        if all(names.is_temporary(part.name) and part.stat().st_mtime < still for part in parts):
            for part in parts:
                part.unlink()
        super().rmdir(path)


class TransferHandler(TLS_DTPHandler):
    """A data connection; one that stands still is closed, and only a whole file gets its name."""

    timeout = 60  # seconds

    def close(self) -> None:
        """Close; an upload that has come to its end gets its name before its client hears so."""
        if self.receive and self.transfer_finished and not self.file_obj.closed:
            try:
                self.file_obj.sync()
                if self._is_cut():
                    raise ConnectionAbortedError(errno.ECONNABORTED, "Connection lost")
                self.file_obj.keep()
            except OSError as error:
                self._fail(error)
        super().close()

    def handle_error(self) -> None:
        """Say why a transfer ends; pyftpdlib knows the disk's reason, but does not pass it on."""
        self._error = True  # so no TLS farewell
        if isinstance(reason := sys.exception().__cause__, OSError):
            self._fail(reason)
            self.close()
        else:
            DTPHandler.handle_error(self)

    def _fail(self, reason: OSError) -> None:
        self.transfer_finished = False
        self._resp = f"426 {reason.strerror}; the file was not stored.", logger.warning

    def _is_cut(self) -> bool:
        """Tell whether the data ended because the client is gone: pyftpdlib takes any end for the file's."""
        if not isinstance(sys.exception(), SSL.ZeroReturnError | None):
            return True
        with socket.socket(fileno=os.dup(self.cmd_channel.socket.fileno())) as control:
            try:
                waiting = control.recv(100, socket.MSG_PEEK)
            except BlockingIOError:
                return False
            except OSError:
                return True
        return not waiting or b"ABOR" in waiting


class Handler(TLS_FTPHandler):
    """A control connection: passive only, silent about what it is, patient with users and not with strangers."""

    banner = "Ready."
    timeout = 300  # seconds without a command
    dtp_handler = TransferHandler
    abstracted_fs = WholeFiles
    guests: list[Handler] = []  # noqa: RUF012 - connections of all addresses that have not logged in, oldest first
    least_free = 100_000_000  # bytes of the disk that are not to be used
    # Active mode would let a client point the server at any address; SYST and STAT tell about the machine; STOU stores
    # under a name that is seen before the file is whole.
    proto_cmds = {  # noqa: RUF012 - as in pyftpdlib
        name: rule
        for name, rule in TLS_FTPHandler.proto_cmds.items()
        if name not in {"PORT", "EPRT", "SYST", "STAT", "STOU"}
    }

    def add_channel(self, *args: Any, **options: Any) -> None:
        """Listen again, unless closed before a wrong password was answered: pyftpdlib would take another's place."""
        if not self._closed:
            super().add_channel(*args, **options)

    def on_connect(self) -> None:
        """Be one of the guests; of each address only the latest few are kept, so that none can keep others out."""
        self.guests.append(self)
        self.call_later(LOGIN_SECONDS, self._end_guest, "421 Control connection timed out.")
        same = [guest for guest in self.guests if guest.remote_ip == self.remote_ip]
        if len(same) > MOST_GUESTS:
            same[0]._end_guest("421 Too many connections wait for a login.")

    def on_disconnect(self) -> None:
        """Be none any more."""
        if self in self.guests:
            self.guests.remove(self)

    def _end_guest(self, reply: str) -> None:
        if self in self.guests:
            self.guests.remove(self)
            self.respond(reply)
            self.close()

    def on_login(self, username: str) -> None:  # noqa: ARG002 - pyftpdlib passes it
        """Forget the password, which pyftpdlib keeps for servers that impersonate system users."""
        self.password = ""
        self.on_disconnect()

    def ftp_STOR(self, file: str, mode: str = "w") -> Any:
        """Store a file, from its start, unless that would take the disk's last room."""
        if (self._restart_position or mode == "a") and not names.is_temporary(Path(file).name):
            self._restart_position = 0
            self.respond("550 A file is stored whole: send it from its start.")
            return None
        if shutil.disk_usage(self.fs.root).free < self.least_free:
            self.respond("552 No space left on the server's disk.")
            return None
        return super().ftp_STOR(file, mode)

    def log_transfer(self, cmd, filename, receive, completed, elapsed, bytes) -> None:  # noqa: A002, ARG002
        """Write a line of the transfer log."""
        path, how = self.fs.fs2ftp(filename), "whole" if completed else "cut off"
        transfers.info("%s %s %s %d bytes %.3f s %s", self.remote_ip, cmd, path, bytes, elapsed, how)
