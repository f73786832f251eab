"""Stopping a run: the user's signals, and the exception that ends the run."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

KILL_SECONDS = 5.0


class Stopped(Exception):
    """The user has stopped the run."""


def ignored_signals() -> tuple[int, ...]:
    """Return which of SIGINT and SIGTERM this program ignores."""
    return tuple(each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is signal.SIG_IGN)


class StopRequest:
    """Counts SIGINT and SIGTERM instead of letting them interrupt DVC's work."""

    number = 0
    ignored: tuple[int, ...] = ()  # signals already ignored at the start, as in a script's background job
    _count, _since = 0, 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Count signals while the block runs; do nothing outside the main thread, where Python allows no handlers."""
        self.ignored = ignored_signals()
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
        """Whether the user has sent two signals."""
        return self._count > 1

    @property
    def signal(self) -> int:
        """The signal to send to running commands: SIGINT, or SIGKILL after a second signal or ``KILL_SECONDS``."""
        return signal.SIGKILL if self.urgent or time.monotonic() - self._since > KILL_SECONDS else signal.SIGINT
