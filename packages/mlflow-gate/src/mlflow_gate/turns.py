"""One process at a time moves the alias, on any number of machines: the tracking server itself keeps the queue.

MLflow has no lock and no compare-and-swap, but a tag that only one process writes is enough for Lamport's bakery
(https://doi.org/10.1145/361082.361093): each draws a number above all that it sees, and the smallest goes first. What
MLflow cannot guarantee: a process that was stopped for longer than `STALE_SECONDS` in the middle of a move loses its
turn, and may still move the alias in the moment between its last look at its turn and the move.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mlflow_gate.errors import Conflict

if TYPE_CHECKING:
    from mlflow import MlflowClient

TURN_TAG = "mlflow_gate.turn."
WAIT_SECONDS = 120.0
NOTICE_SECONDS = 3.0
STALE_SECONDS = 30.0  # a turn is a few requests

log = logging.getLogger(__name__)


@contextlib.contextmanager
def turn(client: MlflowClient, name: str) -> Iterator[Callable[[], None]]:
    """Wait for this process's turn to move an alias of a registered model; raise Conflict when it takes too long.

    The value is a function that raises Conflict when the turn was lost meanwhile.
    """
    ticket = TURN_TAG + uuid.uuid4().hex
    client.set_registered_model_tag(name, ticket, "0")  # it draws
    try:
        number = 1 + max((drawn for drawn, _ in _queue(client, name)), default=0)
        client.set_registered_model_tag(name, ticket, str(number))
        _wait(client, name, (number, ticket))

        def keep() -> None:
            if (number, ticket) not in _queue(client, name):
                value = f"this process stood still for more than {STALE_SECONDS:g} s"
                raise Conflict("The turn to move the alias was lost.", value=value, next_step="try again")

        yield keep
    finally:
        with contextlib.suppress(Exception):  # somebody else may have removed it; if the server is gone, it grows stale
            client.delete_registered_model_tag(name, ticket)


def _wait(client: MlflowClient, name: str, own: tuple[int, str]) -> None:
    began = since = time.monotonic()
    first, notice = own, began + NOTICE_SECONDS
    while (head := min([*_queue(client, name), own])) != own:
        now = time.monotonic()
        first, since = (first, since) if head == first else (head, now)
        if now - since > STALE_SECONDS:  # its process was ended
            with contextlib.suppress(Exception):  # another one that waits was faster
                client.delete_registered_model_tag(name, head[1])
        if now - began > WAIT_SECONDS:
            value = f"it has taken more than {WAIT_SECONDS:g} s"
            step = "mlflow-gate history, and try again"
            raise Conflict("Another promotion or rollback is under way.", value=value, next_step=step)
        if now > notice:
            notice = began + WAIT_SECONDS
            text = "%s: waiting for another promotion or rollback; one that was killed is passed over after %g s"
            log.warning(text, name, STALE_SECONDS)
        time.sleep(random.uniform(0.02, 0.08))  # noqa: S311 - so that processes do not ask in step


def _queue(client: MlflowClient, name: str) -> list[tuple[int, str]]:
    """Return number and ticket of each that draws (its number is 0), waits or has its turn."""
    tags = client.get_registered_model(name).tags
    return [(int(text) if text.isdecimal() else 0, tag) for tag, text in tags.items() if tag.startswith(TURN_TAG)]
