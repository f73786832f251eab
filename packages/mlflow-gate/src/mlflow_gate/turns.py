"""One process at a time moves the alias, on any number of machines: the tracking server itself keeps the queue.

MLflow has no lock and no compare-and-swap, but a tag that only one process writes is enough for Lamport's bakery
(https://doi.org/10.1145/361082.361093): each draws a number above all that it sees, and the smallest goes first. What
MLflow cannot guarantee: a process that was stopped for longer than `STALE_SECONDS` in the middle of a move loses its
turn, and may still move the alias in the moment between its last look at its turn and the move.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mlflow_gate.errors import Conflict

if TYPE_CHECKING:
    from mlflow import MlflowClient

TURN_TAG = "mlflow_gate.turn."
DRAWING = "0"
WAIT_SECONDS = 120.0
STALE_SECONDS = 30.0  # of the first in the queue; a move takes a few requests


@contextlib.contextmanager
def turn(client: MlflowClient, name: str) -> Iterator[Callable[[], None]]:
    """Wait for this process's turn to move an alias of a registered model; raise Conflict when it takes too long.

    The value is a function that raises Conflict when the turn was lost meanwhile.
    """
    ticket = TURN_TAG + uuid.uuid4().hex
    client.set_registered_model_tag(name, ticket, DRAWING)
    try:
        number = 1 + max(_queue(client, name).values(), default=0)
        client.set_registered_model_tag(name, ticket, str(number))
        _wait(client, name, ticket, number)

        def keep() -> None:
            if ticket not in _queue(client, name):
                value = f"this process stood still for more than {STALE_SECONDS:g} s"
                raise Conflict("The turn to move the alias was lost.", value=value, next_step="try again")

        yield keep
    finally:
        with contextlib.suppress(Exception):  # somebody else may have removed it; if the server is gone, it grows stale
            client.delete_registered_model_tag(name, ticket)


def _wait(client: MlflowClient, name: str, ticket: str, number: int) -> None:
    began, first, since = time.monotonic(), "", 0.0
    while True:
        ahead = [(drawn, each) for each, drawn in _queue(client, name).items() if (drawn, each) < (number, ticket)]
        if not ahead:
            return
        # The first one that has a number holds the turn; one that draws for so long was ended.
        if min(ahead)[1] != first:
            first, since = min(ahead)[1], time.monotonic()
        elif time.monotonic() - since > STALE_SECONDS:
            with contextlib.suppress(Exception):  # another one that waits was faster
                client.delete_registered_model_tag(name, first)
        if time.monotonic() - began > WAIT_SECONDS:
            raise Conflict(
                "Another promotion or rollback is under way.",
                value=f"it has taken more than {WAIT_SECONDS:g} s",
                next_step="mlflow-gate history, and try again",
            )
        time.sleep(random.uniform(0.02, 0.08))  # noqa: S311 - so that processes do not ask in step


def _queue(client: MlflowClient, name: str) -> dict[str, int]:
    """Return the numbers drawn, by ticket; 0 for one that draws still."""
    tags = client.get_registered_model(name).tags
    return {tag: int(value) if value.isdigit() else 0 for tag, value in tags.items() if tag.startswith(TURN_TAG)}
