"""What is used of Dask and papermill that is not public, each with the reason; `test_compat.py` notices a change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from distributed import Semaphore


def ask_scheduler(client, function: Callable[..., Coroutine], seconds: float) -> Any:
    """Return what a coroutine function gives on the scheduler; raise OSError when no answer comes in time.

    `Client.run_on_scheduler` waits for ever when the network is cut. A function that is made where it is called travels
    by value, so the scheduler need not have this package.
    """
    return client.sync(client._run_on_scheduler, function, callback_timeout=seconds)


async def ask_worker(client, worker: str, function: Callable, *arguments: Any) -> Any:
    """Return what a function gives on a worker, or the error that it raised; OSError when the worker is unknown.

    `Client.run` asks all workers at once, and one that hangs would keep the answers of the others.
    """
    return (await client._run(function, *arguments, workers=[worker], on_error="return"))[worker]


def forget(client, topic: str) -> None:
    """Have the scheduler forget the events of a topic, of which Dask keeps the last thousand, of any size, for ever.

    The subscription goes with it; `Client.unsubscribe_topic` would keep the handler, and with it the notebook.
    """

    async def forget(dask_scheduler) -> None:
        dask_scheduler._broker._topics.pop(topic, None)

    async def ask() -> None:
        with contextlib.suppress(Exception):  # a scheduler that is gone, or of another version, keeps what it keeps
            await client._run_on_scheduler(forget)

    client._event_handlers.pop(topic, None)
    if client.status == "running":
        client.loop.add_callback(ask)  # not waited for: this may be the client's own event loop


class Leases(Semaphore):
    """A semaphore for a while: its leases are refreshed until `stop_refreshing`, and not as long as the client lives.

    That a scheduler is gone is told in words elsewhere, and not as an error in refreshing.
    """

    async def _refresh_leases(self) -> None:
        with contextlib.suppress(Exception):
            await super()._refresh_leases()

    def stop_refreshing(self) -> None:
        """Let the leases end that are not given back."""
        self.refresh_callback.stop()


def folder_of_papermills_files() -> str | None:
    """Return the folder in which papermill writes files with a relative path, when it was given one (`--cwd`)."""
    from papermill.iorw import papermill_io

    return papermill_io.get_handler("a file")._cwd


def read_parameter(text: str) -> bool | int | float | str | None:
    """Return the value that papermill's option ``-p`` reads from a text."""
    from papermill.cli import _resolve_type

    return _resolve_type(text)
