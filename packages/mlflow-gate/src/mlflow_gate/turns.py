"""One process at a time moves the alias, on any number of machines: the tracking server itself keeps the queue.

MLflow has no lock and no compare-and-swap, but a tag that only one process writes is enough for Lamport's bakery
(https://doi.org/10.1145/361082.361093): each draws a number above all that it sees, and the smallest goes first. What
MLflow cannot guarantee: a process that was stopped for longer than `STALE_SECONDS` in the middle of a move loses its
turn, and may still move the alias in the moment between its last look at its turn and the move.
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

TURN_TAG = "mlflow_gate.turn."
WAIT_SECONDS = 120.0
NOTICE_SECONDS = 3.0
STALE_SECONDS = 30.0  # without a sign of life

log = logging.getLogger(__name__)


@contextlib.contextmanager
def turn(client: MlflowClient, name: str) -> Iterator[Callable[[], None]]:
    """Wait for this process's turn to move an alias of a registered model; raise Conflict when it takes too long.

    The value is a function that raises Conflict when the turn was lost meanwhile.
    """
    ticket, ended = TURN_TAG + uuid.uuid4().hex, threading.Event()
    life = threading.Thread(target=_beat, args=(client, name, ticket, ended), daemon=True)
    client.set_registered_model_tag(name, ticket, "0")  # it draws
    try:
        number = 1 + max((drawn for drawn, _, _ in _queue(client, name)), default=0)
        client.set_registered_model_tag(name, ticket, str(number))
        life.start()
        _wait(client, name, ticket, number)

        def keep() -> None:
            if all(each != ticket for _, each, _ in _queue(client, name)):
                value = f"this process stood still for more than {STALE_SECONDS:g} s"
                raise Conflict("The turn to move the alias was lost.", value=value, next_step="try again")

        yield keep
    finally:
        ended.set()
        if life.is_alive():
            life.join(STALE_SECONDS)  # or its last sign of life would bring back the tag that is deleted next
        with contextlib.suppress(Exception):  # somebody else may have removed it; if the server is gone, it grows stale
            client.delete_registered_model_tag(name, ticket)


def _beat(client: MlflowClient, name: str, ticket: str, ended: threading.Event) -> None:
    """Show that this process lives, as long as it waits or has its turn: its tag changes."""
    for beat in itertools.count():
        if ended.wait(STALE_SECONDS / 4):
            return
        with contextlib.suppress(Exception):  # the next beat may come through
            for number, each, _ in _queue(client, name):
                if each == ticket:
                    client.set_registered_model_tag(name, ticket, f"{number}.{beat}")


def _wait(client: MlflowClient, name: str, ticket: str, number: int) -> None:
    began, since = time.monotonic(), dict[tuple[str, str], float]()
    notice = began + NOTICE_SECONDS
    while ahead := [each for each in _queue(client, name) if each[:2] < (number, ticket)]:
        now = time.monotonic()
        since = {each[1:]: since.get(each[1:], now) for each in ahead}
        for (other, _), at in since.items():
            if now - at > STALE_SECONDS:  # its tag does not change: its process was ended
                with contextlib.suppress(Exception):  # another one that waits was faster
                    client.delete_registered_model_tag(name, other)
        if now - began > WAIT_SECONDS:
            raise Conflict(
                "Another promotion or rollback is under way.",
                value=f"it has taken more than {WAIT_SECONDS:g} s",
                next_step="mlflow-gate history, and try again",
            )
        if now > notice:
            notice = began + WAIT_SECONDS
            text = "%s: waiting for another promotion or rollback; one that was killed is passed over after %g s"
            log.warning(text, name, STALE_SECONDS)
        time.sleep(random.uniform(0.02, 0.08))  # noqa: S311 - so that processes do not ask in step


def _queue(client: MlflowClient, name: str) -> list[tuple[int, str, str]]:
    """Return the number, the ticket and the tag's text of each that draws (its number is 0), waits or has its turn."""
    tags = client.get_registered_model(name).tags
    tickets = ((tag, text, text.partition(".")[0]) for tag, text in tags.items() if tag.startswith(TURN_TAG))
    return [(int(drawn) if drawn.isdigit() else 0, tag, text) for tag, text, drawn in tickets]
