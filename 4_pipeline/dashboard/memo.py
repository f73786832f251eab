"""What was computed once is not computed again: a bounded store of finished answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

MOST_KEPT = 64


class Memo:
    """Answers by key, the oldest dropped first; however many ask for one at once, it is made once.

    Keys must name all that the answer depends on, and nobody may change an answer: many readers are given the same.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}
        self._making = threading.RLock()  # whoever makes an answer may ask for others

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the answer of ``key``; ``make`` it when there is none yet. What ``make`` raises is not kept."""
        try:
            return self._kept[key]  # without the lock: what is there need not wait for what is being made
        except KeyError:
            pass
        with self._making:
            if key not in self._kept:
                answer = make()
                while len(self._kept) >= MOST_KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[key] = answer
            return self._kept[key]
