"""All uses of pyftpdlib's private interfaces, each with its reason; `tests/test_compat.py` checks that these exist."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import wait

from OpenSSL import SSL
from pyftpdlib.handlers import DTPHandler, TLS_DTPHandler
from pyftpdlib.log import logger

from mlflow_ftp.uploads import Incoming, Upload

THREADS = ThreadPoolExecutor(8, "fsync")
WAIT_SECONDS = 0.01
END_SECONDS = 0.05  # time for a killed client's control connection to close, which aborts the upload


class TransferHandler(TLS_DTPHandler):
    """A data connection that keeps only complete files and reports disk errors to the client.

    pyftpdlib's handler keeps a file even if the client was killed, and hides disk errors: it replies `426 None` or,
    with TLS, nothing at all.
    """

    timeout = 60  # seconds without data
    _work: Future[None] | None = None

    def readable(self) -> bool:
        """Ignore leftover events of a closed connection whose file descriptor this connection reuses."""
        return bool((self.receive or self._initialized or wait([self._fileno], 0)) and super().readable())

    def close(self) -> None:
        """Rename a complete upload before replying to the client; do not block other clients meanwhile."""
        is_open = isinstance(self.file_obj, Incoming) and not self.file_obj.closed
        if self._work or not (self.receive and self.transfer_finished and is_open):
            super().close()
        elif isinstance(self.file_obj, Upload):
            self.ioloop.unregister(self._fileno)
            is_cut = not isinstance(sys.exception(), SSL.ZeroReturnError | None)  # no TLS close_notify from the client
            self._work = THREADS.submit(self.file_obj.sync, not is_cut)
            self.ioloop.call_later(END_SECONDS, self._wait)
        else:
            self._end(self.file_obj.flush)

    def _wait(self) -> None:
        """End the transfer once the file is on disk; otherwise check again soon, unless the connection is closed."""
        if self._work and self._work.done() and isinstance(self.file_obj, Upload):
            self._end(self._work.result, self.file_obj.keep)
        elif not self._closed:
            self.ioloop.call_later(WAIT_SECONDS, self._wait)

    def _end(self, *work: Callable[[], None]) -> None:
        """Run ``work``, then close the connection with a reply that reports success or failure."""
        try:
            for each in work:
                each()
        except (OSError, ValueError) as error:  # ValueError if the file is already closed
            self.transfer_finished: bool = False
            self._resp = f"426 {getattr(error, 'strerror', error)}; the file was not stored.", logger.warning
        super().close()

    def handle_error(self) -> None:
        """End a failed transfer with a reply, which states the reason if it is a disk error."""
        error = sys.exception()
        if isinstance(error, OSError) and isinstance(error.__cause__, OSError):
            error.errno = error.__cause__.strerror  # type: ignore[assignment] # pyftpdlib puts errno into the reply
        self._error = True  # send the reply before TLS is closed
        DTPHandler.handle_error(self)
