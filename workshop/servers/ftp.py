"""What the FTP server adds to pyftpdlib: who may log in and how often to guess, who may wait, and writes that last."""

from __future__ import annotations

import collections
import errno
import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import shutil
import time
from typing import Any

from pyftpdlib.authorizers import AuthenticationFailed, DummyAuthorizer
from pyftpdlib.filesystems import AbstractedFS
from pyftpdlib.handlers import TLS_DTPHandler, TLS_FTPHandler

ALL_RIGHTS = "elradfmwMT"
LONGEST_DELAY_SECONDS = 30.0
FORGOTTEN_SECONDS = 600.0
SYNC_BYTES = 16 * 1024 * 1024

transfers = logging.getLogger("workshop.servers.ftp.transfers")


class HashedAuthorizer(DummyAuthorizer):
    """One user, whose password is kept only as a salted hash."""

    def __init__(self, user: str, password: str, home: str) -> None:
        super().__init__()
        self.salt = secrets.token_bytes(16)
        self.add_user(user, self.digest(password), home, perm=ALL_RIGHTS)

    def digest(self, password: str) -> str:
        """Return the hash; about 3 ms, because the server answers nobody else meanwhile."""
        return hashlib.scrypt(password.encode(), salt=self.salt, n=2**10, r=8, p=1).hex()

    def validate_authentication(self, username: str, password: str, handler) -> None:  # noqa: ARG002
        """Let the one user in; a wrong name takes as long as a wrong password. (The handler is pyftpdlib's to pass.)"""
        digest = self.digest(password)
        expected = self.user_table[username]["pwd"] if self.has_user(username) else ""
        if not hmac.compare_digest(digest, expected):
            raise AuthenticationFailed("Authentication failed.")


class LoginGuard:
    """Makes guessing slow: the n-th wrong password of an address is answered 2^(n-1) seconds after the one before.

    Until then no other password of that address is tried. Loopback, from where the tracking server logs in, is
    never kept waiting for what others there do: only its wrong passwords are.
    """

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}

    def wait(self, address: str) -> float:
        """Return for how many seconds no password of this address is tried."""
        if ipaddress.ip_address(address).is_loopback:
            return 0.0
        return max(0.0, self._failures.get(address, (0, 0.0))[1] - time.monotonic())

    def failed(self, address: str) -> float:
        """Note a wrong password; return after how many seconds to say so."""
        now = time.monotonic()
        self._failures = {
            other: (count, until) for other, (count, until) in self._failures.items() if now - until < FORGOTTEN_SECONDS
        }
        count, until = self._failures.get(address, (0, now))
        until = max(now, until) + min(2.0**count, LONGEST_DELAY_SECONDS)
        self._failures[address] = count + 1, until
        return until - now

    def succeeded(self, address: str) -> None:
        """Forget what an address had guessed."""
        self._failures.pop(address, None)


class DurableFile:
    """A file whose content is on the disk, not only on its way there, once it is closed; never the disk's last one."""

    def __init__(self, file: Any, least_free: int) -> None:
        self._file, self._least_free = file, least_free
        self._unsynced = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> None:
        """Write; now and then bring to the disk what was written, so that the end does not take long."""
        self._file.write(data)
        self._unsynced += len(data)
        if self._unsynced >= SYNC_BYTES:
            self._sync()
            if shutil.disk_usage(self._file.name).free < self._least_free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close, with all on the disk."""
        if not self._file.closed:
            self._sync()
        self._file.close()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._unsynced = 0


class DurableFiles(AbstractedFS):
    """pyftpdlib's view of a folder, chrooted; what is written is on the disk before its client hears so."""

    def open(self, filename: str, mode: str) -> Any:
        """Open a file; one to write to is durable."""
        file = super().open(filename, mode)
        return file if mode == "rb" else DurableFile(file, self.cmd_channel.least_free)


class Guests:
    """Connections that have not logged in: of each address only the latest few, so that none can keep others out."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[str, collections.deque] = collections.defaultdict(collections.deque)

    def enter(self, guest: Any) -> None:
        """Take note of a new one; the oldest beyond the limit has to go."""
        waiting = self._waiting[guest.remote_ip]
        waiting.append(guest)
        if len(waiting) > self._most:
            oldest = waiting.popleft()
            oldest.respond("421 Too many connections wait for a login.")
            oldest.close()

    def leave(self, guest: Any) -> None:
        """Forget one that has logged in, or has gone."""
        waiting = self._waiting.get(guest.remote_ip, collections.deque())
        if guest in waiting:
            waiting.remove(guest)
        if not waiting:
            self._waiting.pop(guest.remote_ip, None)


class TransferHandler(TLS_DTPHandler):
    """A data connection; one that stands still is closed."""

    timeout = 60  # seconds


class Handler(TLS_FTPHandler):
    """A control connection: passive only, silent about what it is, patient with users and not with strangers."""

    banner = "Ready."
    timeout = 20  # seconds without a command, before the login
    timeout_after_login = 300
    dtp_handler = TransferHandler
    abstracted_fs = DurableFiles
    guard = LoginGuard()
    guests = Guests(64)
    least_free = 0  # bytes of the disk that are not to be used
    # Active mode would let a client point the server at any address; the other two tell about the machine.
    proto_cmds = {  # noqa: RUF012 - as in pyftpdlib
        name: rule for name, rule in TLS_FTPHandler.proto_cmds.items() if name not in {"PORT", "EPRT", "SYST", "STAT"}
    }

    def on_connect(self) -> None:
        """Be one of the guests."""
        self.guests.enter(self)

    def on_disconnect(self) -> None:
        """Be none any more."""
        self.guests.leave(self)

    def on_login(self, username: str) -> None:  # noqa: ARG002 - pyftpdlib passes it
        """Forget the password, which pyftpdlib keeps for servers that impersonate system users; have more time."""
        self.password = ""
        self.guests.leave(self)
        self.guard.succeeded(self.remote_ip)
        self._idler.cancel()
        self._idler = self.ioloop.call_later(self.timeout_after_login, self.handle_timeout, _errback=self.handle_error)

    def ftp_PASS(self, line: str) -> None:
        """Try a password, when it is its address's turn."""
        if not (wait := self.guard.wait(self.remote_ip)):
            super().ftp_PASS(line)
            return
        self.del_channel()
        self.ioloop.call_later(wait, self._try_again, line, _errback=self.handle_error)

    def _try_again(self, line: str) -> None:
        if not self._closed:
            self.add_channel()
            self.ftp_PASS(line)

    def handle_auth_failed(self, msg: str, password: str) -> None:
        """Say that a password is wrong, later and later."""
        self.auth_failed_timeout = self.guard.failed(self.remote_ip)
        super().handle_auth_failed(msg, password)

    def ftp_STOR(self, file: str, mode: str = "w") -> Any:
        """Store a file, unless that would take the disk's last room."""
        if shutil.disk_usage(self.fs.root).free < self.least_free:
            self.respond("552 No space left on the server's disk.")
            return None
        return super().ftp_STOR(file, mode)

    def on_incomplete_file_received(self, file: str) -> None:
        """Keep what arrived of a file, for its client may go on; but not when the disk is full."""
        if shutil.disk_usage(self.fs.root).free < self.least_free + SYNC_BYTES:
            os.unlink(file)  # noqa: PTH108 - pyftpdlib's paths are text

    def log_transfer(self, cmd, filename, receive, completed, elapsed, bytes) -> None:  # noqa: A002, ARG002
        """Write a line of the transfer log."""
        path, how = self.fs.fs2ftp(filename), "whole" if completed else "cut off"
        transfers.info("%s %s %s %d bytes %.3f s %s", self.remote_ip, cmd, path, bytes, elapsed, how)
