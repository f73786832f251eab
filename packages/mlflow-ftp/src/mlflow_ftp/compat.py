"""Private interfaces of pyftpdlib, and why each is needed; `tests/test_compat.py` watches the names."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys

from OpenSSL import SSL
from pyftpdlib.handlers import DTPHandler, TLS_DTPHandler
from pyftpdlib.log import logger

from mlflow_ftp.uploads import Incoming, Upload

END_SECONDS = 0.05  # the two connections of a killed client end one after the other; the server waits meanwhile


class TransferHandler(TLS_DTPHandler):
    """A data connection that keeps whole files only, and whose client hears why the disk refused one.

    pyftpdlib takes the end of the data for the end of the file, also when the client was killed. It wraps the error of
    the disk in one that is empty, and answers `426 None`; with TLS it does not answer.
    """

    timeout = 60  # seconds in which nothing moves

    def close(self) -> None:
        """Give a whole upload its name before the client hears of its end."""
        is_open = isinstance(self.file_obj, Incoming) and not self.file_obj.closed
        if self.receive and self.transfer_finished and is_open:
            try:
                self.file_obj.flush()
                if isinstance(self.file_obj, Upload):
                    os.fsync(self.file_obj.fileno())
                    if self._is_cut():
                        raise ConnectionAbortedError(errno.ECONNABORTED, "Connection lost")
                    self.file_obj.keep()
            except OSError as error:
                self.transfer_finished: bool = False
                self._resp = f"426 {error.strerror}; the file was not stored.", logger.warning
        super().close()

    def _is_cut(self) -> bool:
        """Return whether the client is gone: TLS has no farewell, or the control connection ends as well."""
        if not isinstance(sys.exception(), SSL.ZeroReturnError | None):
            return True
        with socket.socket(fileno=os.dup(self.cmd_channel.socket.fileno())) as control:
            if not select.select([control], [], [], END_SECONDS)[0]:
                return False
            try:
                waiting = control.recv(100, socket.MSG_PEEK)
            except OSError:
                return True
        return not waiting or b"ABOR" in waiting

    def handle_error(self) -> None:
        """End the transfer with an answer."""
        error = sys.exception()
        if isinstance(error, OSError) and isinstance(error.__cause__, OSError):
            error.errno = error.__cause__.strerror  # type: ignore[assignment] # pyftpdlib puts it into the answer
        self._error = True  # no farewell of TLS before the answer
        DTPHandler.handle_error(self)
