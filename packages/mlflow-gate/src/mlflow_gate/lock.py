"""A distributed lock for the alias, kept in tags on the tracking server.

MLflow has neither locks nor compare-and-swap, but tags with a single writer each are enough for Lamport's bakery
algorithm (https://doi.org/10.1145/361082.361093): each process draws a ticket number above all others, and the lowest
number holds the lock. Known gap: a process that is suspended for more than `STALE_SECONDS` loses the lock, and can
still move the alias if it was suspended after its last check of the lock.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mlflow_gate.errors import Conflict

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCK_TAG = "mlflow_gate.turn."
WAIT_SECONDS = 120.0
NOTICE_SECONDS = 3.0
STALE_SECONDS = 30.0  # a ticket is removed after this long without a heartbeat

log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(client: MlflowClient, name: str) -> Iterator[Callable[[], None]]:
    """Hold the lock on a registered model's alias; raise Conflict if acquiring it takes too long.

    Yields a function that raises Conflict if the lock has been lost.
    """
    ticket, ended = LOCK_TAG + uuid.uuid4().hex, threading.Event()
    heartbeat = threading.Thread(target=_beat, args=(client, name, ticket, ended), daemon=True)
    client.set_registered_model_tag(name, ticket, "0")  # 0: drawing a number
    try:
        number = 1 + max((drawn for drawn, _, _ in _queue(client, name)), default=0)
        client.set_registered_model_tag(name, ticket, str(number))
        heartbeat.start()
        _wait(client, name, ticket, number)

        def check() -> None:
            if all(each != ticket for _, each, _ in _queue(client, name)):
                value = f"this process was suspended for more than {STALE_SECONDS:g} s"
                raise Conflict("The lock on the alias was lost.", value=value, next_step="retry the operation")

        yield check
    finally:
        ended.set()
        if heartbeat.is_alive():
            heartbeat.join(STALE_SECONDS)  # a late heartbeat would recreate the deleted tag
        with contextlib.suppress(Exception):  # already removed; or the server is down, and the tag will expire
            client.delete_registered_model_tag(name, ticket)


def _beat(client: MlflowClient, name: str, ticket: str, ended: threading.Event) -> None:
    """Update this process's tag at regular intervals, as a heartbeat, while it waits for or holds the lock."""
    for beat in itertools.count():
        if ended.wait(STALE_SECONDS / 4):
            return
        with contextlib.suppress(Exception):  # the next heartbeat may succeed
            for number, each, _ in _queue(client, name):
                if each == ticket:
                    client.set_registered_model_tag(name, ticket, f"{number}.{beat}")


def _wait(client: MlflowClient, name: str, ticket: str, number: int) -> None:
    start, since = time.monotonic(), dict[tuple[str, str], float]()
    notice = start + NOTICE_SECONDS
    while ahead := [each for each in _queue(client, name) if each[:2] < (number, ticket)]:
        now = time.monotonic()
        since = {each[1:]: since.get(each[1:], now) for each in ahead}
        for (other, _), at in since.items():
            if now - at > STALE_SECONDS:  # no heartbeat: the process was killed
                with contextlib.suppress(Exception):  # another process may have removed the tag already
                    client.delete_registered_model_tag(name, other)
        if now - start > WAIT_SECONDS:
            raise Conflict(
                "Another promotion or rollback is in progress.",
                value=f"the lock was not free within {WAIT_SECONDS:g} s",
                next_step="check `mlflow-gate history`, then retry the operation",
            )
        if now > notice:
            notice = start + WAIT_SECONDS
            text = "%s: waiting for another promotion or rollback; a killed process is skipped after %g s"
            log.warning(text, name, STALE_SECONDS)
        time.sleep(random.uniform(0.02, 0.08))  # noqa: S311 - jitter between processes, not cryptography


def _queue(client: MlflowClient, name: str) -> list[tuple[int, str, str]]:
    """Return the number (0 while drawing), ticket and tag text of each process that waits for or holds the lock."""
    tags = client.get_registered_model(name).tags
    tickets = ((tag, text, text.partition(".")[0]) for tag, text in tags.items() if tag.startswith(LOCK_TAG))
    return [(int(drawn) if drawn.isdigit() else 0, tag, text) for tag, text, drawn in tickets]
