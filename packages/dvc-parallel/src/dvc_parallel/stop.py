"""Stopping a run: the signals by which a user asks for it, and the error that ends the run."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

KILL_SECONDS = 5.0


class Stopped(Exception):
    """The user has stopped the run."""


class StopRequest:
    """Whether the user wants to stop: SIGINT and SIGTERM are counted, and do not interrupt the work of DVC."""

    number = 0
    _count, _since = 0, 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Count signals while the block runs, if it runs in the main thread; Python allows no other to handle them."""
        with contextlib.ExitStack() as handlers:
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGINT, signal.SIGTERM):
                    handlers.callback(signal.signal, number, signal.signal(number, self._receive))
            yield

    def _receive(self, number: int, _frame: object) -> None:
        if not self._count:
            self.number, self._since = number, time.monotonic()
        self._count += 1

    def __bool__(self) -> bool:
        return self._count > 0

    @property
    def urgent(self) -> bool:
        """Whether the user asked twice."""
        return self._count > 1

    @property
    def signal(self) -> int:
        """The signal for commands that still run: the first one they may handle."""
        return signal.SIGKILL if self.urgent or time.monotonic() - self._since > KILL_SECONDS else signal.SIGINT
