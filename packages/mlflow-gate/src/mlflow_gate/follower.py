"""Follow the model in production: load a new version beside the current one, check it, then swap."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlflow_gate.loading import call_within
from mlflow_gate.record import Production
from mlflow_gate.registry import Registry

RETRY_SECONDS = 15.0  # minimum delay before a failed version is tried again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """The version in use and its model; ``problem`` says why they may be out of date, or is None.

    ``newest`` is the version at the alias, if it is known; ``error`` is the exception behind the problem, if any.
    """

    production: Production | None = None
    model: Any = None
    problem: str | None = None
    error: Exception | None = None
    newest: Production | None = None


class Follower:
    """Follow a registry's alias; the attribute ``now`` is the `Snapshot` in use.

    If a model fails to load or fails the check, the previous one stays in use, and ``now.problem`` says why.

    Parameters
    ----------
    registry : Registry
        The registry to follow; its time limit applies to ``load`` and ``check``.
    load : callable, optional
        ``load(production)`` returns the model of a `Production`; by default `Registry.load`.
    check : callable, optional
        ``check(model)`` raises an exception if the model cannot predict.

    >>> Follower(Registry("doctest")).poll().problem
    'Nothing is in production.'
    """

    def __init__(
        self, registry: Registry, load: Callable[[Production], Any] | None = None, check: Callable[[Any], Any] = id
    ) -> None:
        self.registry, self.now, self._check = registry, Snapshot(), check
        self._load = load or (lambda production: registry.load(production.model_uri))
        self._failed: tuple[Any, float, Exception | None] = (
            None,
            0.0,
            None,
        )  # failed version, time of the next attempt, error

    def poll(self) -> Snapshot:
        """Query the version at the alias in one request; if it is new, load its model. Return the snapshot."""
        current, began = self.now.production, time.monotonic()
        try:
            newest = self.registry.production(current)
        except Exception as error:  # noqa: BLE001 - any failure leaves the model in use
            return self._keep(f"The registry cannot be read: {error!s:.500}", error)
        if newest is None:
            return self._keep("Nothing is in production.")
        identity = (newest.version, newest.source)  # version numbers restart if the registered model is recreated
        if current is not None and identity == (current.version, current.source):
            self.now = Snapshot(newest, self.now.model, newest=newest)
            return self.now
        failed, retry_at, why = self._failed
        if failed != identity or began >= retry_at:
            try:
                self.now = Snapshot(newest, call_within(self.registry.time_limit, self._try, newest), newest=newest)
            except Exception as error:  # noqa: BLE001 - keep the working version if the new one is broken
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

    def _keep(self, problem: str, error: Exception | None = None, newest: Production | None = None) -> Snapshot:
        if problem != self.now.problem:
            log.warning("%s", problem)
        self.now = Snapshot(self.now.production, self.now.model, problem, error, newest)
        return self.now
