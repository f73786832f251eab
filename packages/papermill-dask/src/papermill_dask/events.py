"""The way of events from a worker to the client: a Dask event topic, in small batches, forgotten when read."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
from typing import Any

from jupyter_client.jsonutil import json_default

BATCH_SECONDS = 0.005
READ_BYTES = 16 * 2**20  # the scheduler keeps what it passed on; after so much it is told to forget


class EventSender:
    """Sends a notebook's events from the worker on which it runs; safe to use from any of its threads."""

    def __init__(self, worker, topic: str) -> None:
        self._worker, self._topic = worker, topic
        self._pending: list[str] = []
        self._lock = threading.Lock()

    def send(self, kind: str, **event: Any) -> None:
        """Send an event of plain data; it goes with those that come within a few milliseconds."""
        text = json.dumps({"kind": kind, **event}, default=json_default)
        with self._lock:
            self._pending.append(text)
            first = len(self._pending) == 1
        if first:
            # A loop that is closed belongs to a worker that is going; nobody listens any more.
            with contextlib.suppress(RuntimeError):
                loop = self._worker.loop.asyncio_loop
                loop.call_soon_threadsafe(loop.call_later, BATCH_SECONDS, self._flush)

    def _flush(self) -> None:
        with self._lock:
            batch, self._pending = self._pending, []
        self._worker.log_event(self._topic, batch)

    def logger(self) -> logging.Logger:
        """Return a logger whose records are events: the client logs them where papermill's own engine would have."""
        logger = logging.Logger(self._topic, logging.INFO)  # noqa: LOG001 - one a notebook, not one for ever
        handler = logging.Handler()
        handler.emit = lambda record: self.send("log", level=record.levelno, text=record.getMessage())
        logger.addHandler(handler)
        return logger


class EventReceiver:
    """Receives a notebook's events on the client, and what the scheduler says of its worker, in order."""

    def __init__(self, client, topic: str) -> None:
        self._client, self._topic = client, topic
        self._topics = [topic]
        self._read = 0
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.heard = time.monotonic()
        client.subscribe_topic(topic, self._receive)

    def watch(self, worker: str) -> None:
        """From now on also receive an event ``lost`` when the scheduler loses this worker."""
        self._topics.append(worker)
        self._client.subscribe_topic(worker, self._receive_of_worker)

    def get(self, timeout: float) -> dict[str, Any] | None:
        """Return the next event; None when none comes within ``timeout`` seconds."""
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Stop receiving, and let the scheduler forget the events."""
        for topic in self._topics:
            self._client.unsubscribe_topic(topic)
        self._forget(for_good=True)

    def _receive(self, event: tuple[float, list[str]]) -> None:
        self.heard = time.monotonic()
        for text in event[1]:
            self._events.put(json.loads(text))
            self._read += len(text)
        if self._read > READ_BYTES:
            self._read = 0
            self._forget()

    def _receive_of_worker(self, event: tuple[float, Any]) -> None:
        if isinstance(event[1], dict) and event[1].get("action") == "remove-worker":
            self._events.put({"kind": "lost"})

    def _forget(self, *, for_good: bool = False) -> None:
        # Dask has no call of its own for it: its topics are cut to 1,000 events of any size, and never removed. A
        # function made here travels by value, so that the scheduler need not have this package.
        topic = self._topic

        async def forget(dask_scheduler) -> None:
            broker = getattr(dask_scheduler, "_broker", None)
            if broker is not None:
                broker.truncate(topic)
                if for_good:
                    broker._topics.pop(topic, None)

        async def ask() -> None:
            with contextlib.suppress(Exception):  # a scheduler that is gone keeps nothing
                await self._client._run_on_scheduler(forget)

        if self._client.status == "running":
            self._client.loop.add_callback(ask)  # not waited for: this may be the client's own event loop
