"""All of pyftpdlib that is not its public interface, and why it is needed; `tests/test_server.py` watches the names."""

from __future__ import annotations

import sys

from pyftpdlib.handlers import DTPHandler, TLS_DTPHandler


class TransferHandler(TLS_DTPHandler):
    """A data connection whose client hears why the disk refused a file, as "No space left on device".

    pyftpdlib wraps the error of the disk in one that is empty, and answers `426 None`; with TLS it does not answer.
    """

    timeout = 60  # seconds in which nothing moves

    def handle_error(self) -> None:
        """End the transfer with an answer."""
        error = sys.exception()
        if isinstance(error.__cause__, OSError):
            error.errno = error.__cause__.strerror  # which pyftpdlib puts into the answer
        self._error = True  # no farewell of TLS before the answer
        DTPHandler.handle_error(self)
