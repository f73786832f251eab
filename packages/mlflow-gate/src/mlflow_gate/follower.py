"""Serve whatever is in production: the next version is loaded beside the one in use, tried, and swapped in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlflow_gate.record import Production
from mlflow_gate.registry import Registry
from mlflow_gate.trial import within

RETRY_SECONDS = 15.0  # before a version that failed is tried again, or as long as the failure took

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

    `poll` asks in one request where the alias points. A new version is loaded by ``load(production)`` (by default
    `Registry.load`) and given to ``check(model)``, which raises for one that cannot predict; both within the time limit
    of the registry. Then the model in use is replaced as a whole; otherwise it stays, and ``now.trouble`` says why.

    >>> Follower(Registry("doctest")).poll().trouble
    'Nothing is in production.'
    """

    def __init__(
        self, registry: Registry, load: Callable[[Production], Any] | None = None, check: Callable[[Any], Any] = id
    ) -> None:
        self.registry, self.now, self._check = registry, Serving(), check
        self._load = load or (lambda production: registry.load(production.model_uri))
        self._failed: tuple[Any, float, Exception | None] = (None, 0.0, None)  # a version, when to try it again, why

    def poll(self) -> Serving:
        """Look once where the alias points, and change the model if that is new; return what is served."""
        current, began = self.now.production, time.monotonic()
        try:
            newest = self.registry.production(current)
        except Exception as error:  # noqa: BLE001 - whatever the registry says, the model in use stays
            return self._keep(f"The registry cannot be read: {error!s:.500}", error)
        if newest is None:
            return self._keep("Nothing is in production.")
        identity = (newest.version, newest.source)  # a wiped registry counts from 1 again
        if current is not None and identity == (current.version, current.source):
            self.now = Serving(newest, self.now.model, newest=newest)
            return self.now
        failed, retry_at, why = self._failed
        if failed != identity or began >= retry_at:
            try:
                self.now = Serving(newest, within(self.registry.time_limit, self._try, newest), newest=newest)
            except Exception as error:  # noqa: BLE001 - a version that fails must not take down the one that works
                ended = time.monotonic()
                self._failed, why = (identity, ended + max(RETRY_SECONDS, ended - began), error), error
            else:
                log.info("%s is in use", newest)
                return self.now
        return self._keep(f"Version {newest.version} is in production but cannot be used: {why!s:.500}", why, newest)

    def _try(self, production: Production) -> Any:
        model = self._load(production)
        self._check(model)
        return model

    def _keep(self, trouble: str, error: Exception | None = None, newest: Production | None = None) -> Serving:
        if trouble != self.now.trouble:
            log.warning("%s", trouble)
        self.now = Serving(self.now.production, self.now.model, trouble, error, newest)
        return self.now
