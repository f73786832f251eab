"""What was computed once is not computed again: a bounded store of finished answers."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable
from typing import Any

MOST_KEPT = 64
_NOTHING = object()


class Memo:
    """Answers by key, the one unasked for longest dropped first; however many ask for one at once, it is made once.

    Keys must name all that the answer depends on, and nobody may change an answer: many readers are given the same.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._changing = threading.Lock()
        self._making: defaultdict[Hashable, threading.RLock] = defaultdict(threading.RLock)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the answer of ``key``; ``make`` it when there is none yet. What ``make`` raises is not kept."""
        with self._changing:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            making = self._making[key]
        with making:
            try:
                if (found := self._kept.get(key, _NOTHING)) is not _NOTHING:  # made while this thread waited
                    return found
                answer = make()
                with self._changing:
                    self._kept[key] = answer
                    while len(self._kept) > MOST_KEPT:
                        self._kept.popitem(last=False)
                return answer
            finally:
                with self._changing:
                    self._making.pop(key, None)
