"""What was computed once is not computed again: a bounded store of finished answers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

MOST_KEPT = 128


class Memo:
    """Answers by key, the one unasked for longest dropped first; however many ask for one at once, it is made once.

    Keys must name all that the answer depends on, and nobody may change an answer: many readers are given the same.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._making = threading.RLock()  # whoever makes an answer may ask for others

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the answer of ``key``; ``make`` it when there is none yet. What ``make`` raises is not kept."""
        found = self.find(key)
        if found is not None:  # without the lock: what is there need not wait for what is being made
            return found
        with self._making:
            if (found := self.find(key)) is None:
                self.keep(key, found := make())
            return found

    def find(self, key: Hashable) -> Any:
        """Return the answer of ``key``, or None when there is none."""
        try:
            self._kept.move_to_end(key)
            return self._kept[key]
        except KeyError:  # also when another thread has dropped it meanwhile
            return None

    def keep(self, key: Hashable, answer: Any) -> None:
        """Keep an answer that is finished; None is no answer."""
        with self._making:
            self._kept[key] = answer
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
