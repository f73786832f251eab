"""Serve whatever is in production: the next version is loaded beside the one in use, tried, and swapped in."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from mlflow_gate.alias import Production
from mlflow_gate.registry import Registry

RETRY_SECONDS = 15.0  # before a version that failed is tried again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serving:
    """What is served: a version and its model; ``trouble`` says why these are not up to date, or is None.

    ``newest`` is the version at the alias, which with trouble is another one; ``error`` is what was raised.
    """

    production: Production | None = None
    model: Any = None
    trouble: str | None = None
    error: Exception | None = None
    newest: Production | None = None


class Follower:
    """Follow the alias of a registry; ``now`` is always there, and keeps the last model that works.

    Every ``interval`` seconds one request asks where the alias points. A new version is loaded by ``load(production)``
    (by default `Registry.load`) and given to ``check(model)``, which raises for one that cannot predict. Then the model
    in use is replaced as a whole; when loading or check fails, it stays, and ``now.trouble`` says so.

    >>> with Follower(Registry("doctest")) as follower:
    ...     follower.now.trouble
    'Nothing is in production.'
    """

    def __init__(
        self,
        registry: Registry,
        *,
        load: Callable[[Production], Any] | None = None,
        check: Callable[[Any], object] | None = None,
        interval: float = 2.0,
    ) -> None:
        self.registry, self.interval = registry, interval
        self.now = Serving()
        self._load = load or (lambda production: registry.load(production.model_uri))
        self._check = check
        self._failed: tuple[Any, float, Exception | None] = (None, 0.0, None)  # a version, when to try it again, why
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        """Poll once, then follow in a thread until the block ends."""
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop following."""
        self.stop()

    def start(self) -> None:
        """Poll once, then follow in a thread until `stop` or the end of the process."""
        self.poll()
        threading.Thread(target=self._follow, name="mlflow-gate follower", daemon=True).start()

    def stop(self) -> None:
        """Stop following; the last model stays in use."""
        self._stopped.set()

    def poll(self) -> Serving:
        """Look once where the alias points, and change the model if that is new; return what is served."""
        current = self.now.production
        try:
            newest = self.registry.production(current)
        except Exception as caught:  # noqa: BLE001 - whatever the registry says, the model in use stays
            error = self._clearer(caught)
            return self._keep(f"The registry cannot be read: {error!s:.500}", error)
        if newest is None:
            return self._keep("Nothing is in production.")
        identity = (newest.version, newest.run_id)  # with the run's id, since a wiped registry counts from 1 again
        if current is not None and identity == (current.version, current.run_id):
            self.now = Serving(newest, self.now.model, newest=newest)
            return self.now
        failed, retry_at, why = self._failed
        if failed != identity or time.monotonic() >= retry_at:
            try:
                model = self._load(newest)
                if self._check:
                    self._check(model)
            except Exception as error:  # noqa: BLE001 - a version that fails must not take down the one that works
                self._failed, why = (identity, time.monotonic() + RETRY_SECONDS, error), error
            else:
                self.now = Serving(newest, model, newest=newest)
                log.info("%s is in use", newest)
                return self.now
        return self._keep(f"Version {newest.version} is in production but cannot be used: {why!s:.500}", why, newest)

    def _clearer(self, error: Exception) -> Exception:
        """Return what says that the server is gone, if it is; else the error."""
        try:
            self.registry.connect()
        except Exception as clearer:  # noqa: BLE001 - each kind of registry has its own
            return clearer
        return error

    def _keep(self, trouble: str, error: Exception | None = None, newest: Production | None = None) -> Serving:
        if trouble != self.now.trouble:
            log.warning("%s", trouble)
        self.now = Serving(self.now.production, self.now.model, trouble, error, newest)
        return self.now

    def _follow(self) -> None:
        while not self._stopped.wait(self.interval):
            self.poll()
