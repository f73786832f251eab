"""Counts the signals by which a user stops a run."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

KILL_SECONDS = 5.0


class StopRequest:
    """Whether the user wants to stop: SIGINT and SIGTERM are counted, and do not interrupt the work of DVC."""

    number = 0
    _count, _since = 0, 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Count signals meanwhile; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

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
