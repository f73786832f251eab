"""Watches over a notebook on its worker: ends it when it is no longer wanted or nobody can be told of it."""

from __future__ import annotations

import asyncio
import threading
import time

from papermill_dask.cluster import listens
from papermill_dask.worker import LOST, WorkerLost
from workshop.errors import EngineError

WATCH_SECONDS = 0.2
BEAT_SECONDS = 1.0
ANSWER_SECONDS = 2.0  # for one question to the scheduler
SILENCE_SECONDS = 4.0  # without an answer before the scheduler's address is tried


class Watch:
    """A thread that stops a run when its task is cancelled, its worker closes, or the scheduler is out of reach.

    Dask cannot interrupt a task that runs, and does not tell a task whose client has gone; a worker cut off from the
    network would go on for minutes.
    """

    def __init__(self, worker, run, events) -> None:
        self._worker, self._run, self._events = worker, run, events
        self._over = threading.Event()
        self._answered = self._beat = time.monotonic()
        self._question = None
        self._thread = threading.Thread(target=self._watch, name=f"watch-{run.key}", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            try:
                error = self._run.stopped or self._reason_to_stop()
            except RuntimeError:  # nothing can be asked in an event loop that is closed
                error = self._going()
            if error:
                self._run.stop(error)  # again and again: its kernel may be just about to start
            elif time.monotonic() - self._beat > BEAT_SECONDS:
                self._beat = time.monotonic()
                self._events.send("beat")

    def _reason_to_stop(self) -> EngineError | None:
        if self._worker.status.name not in ("running", "paused"):
            return self._going()
        task = self._worker.state.tasks.get(self._run.key)
        if task is None or task.state in ("cancelled", "released", "forgotten"):
            return _unwanted("the client cancelled it, or went away")
        return self._reason_of_scheduler()

    def _going(self) -> WorkerLost:
        return WorkerLost("The Dask worker that ran the notebook was shut down.", value=self._worker.address, **LOST)

    def _reason_of_scheduler(self) -> EngineError | None:
        """Ask the scheduler, once a second, whether it knows the task; the answer is looked at in a later round."""
        now = time.monotonic()
        if self._question is not None and self._question.done():
            question, self._question = self._question, None
            if not question.cancelled() and question.exception() is None:
                self._answered = now
                if question.result()[self._run.key] is None:
                    return _unwanted("the scheduler no longer knows it")
        elif self._question is None and now - self._answered > BEAT_SECONDS:
            ask = asyncio.wait_for(self._worker.scheduler.get_task_status(keys=[self._run.key]), ANSWER_SECONDS)
            self._question = asyncio.run_coroutine_threadsafe(ask, self._worker.loop.asyncio_loop)
        # No answer alone is no proof: this worker's own event loop may be held up by some other task. Its address is.
        scheduler = self._worker.scheduler.address
        if now - self._answered > SILENCE_SECONDS and not listens(scheduler, ANSWER_SECONDS):
            return _unwanted("the scheduler is out of reach")
        return None


def _unwanted(reason: str) -> EngineError:
    return EngineError("The notebook was stopped on its worker.", value=reason)
