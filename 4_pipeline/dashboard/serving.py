"""What the dashboard serves: the data, the model in production and its predictions, followed in the background."""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import record
from cachetools import LRUCache, cached
from record import Record
from turns import BatchPredictor

from workshop.data import schema
from workshop.errors import WorkshopError
from workshop.models import registry, storage
from workshop.models.registry import Move, Production
from workshop.models.storage import LoadedModel

LOOK_SECONDS = 1.0
RETRY_SECONDS = 15.0  # before a version that did not load is tried again
RECORD_SECONDS = 30.0  # before the record is read again: a run may be added to after its promotion
MOST_CACHED = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trouble:
    """A fault that keeps the page from being up to date: since when (UTC), and why."""

    since: datetime
    why: str


def new_cache() -> Callable[[Hashable, Callable[[], Any]], Any]:
    """Return a function of a key and of what makes its answer: made once, however many threads ask at once."""

    @cached(LRUCache(MOST_CACHED), key=lambda key, _make: key, condition=threading.Condition())
    def answer(_key: Hashable, make: Callable[[], Any]) -> Any:
        return make()

    return answer


@dataclass(frozen=True)
class Snapshot:
    """All that a page shows, at one moment; replaced as a whole, never changed, so that no page mixes two versions.

    ``predicted`` holds the model's predictions for every row of ``frame``, and ``band`` both ends of its error band if
    the model has one. ``troubles`` are named by their subject: `registry`, `model` or `data`. ``looked`` is False until
    the first look at data and registry has ended, the first model loaded. ``cached`` keeps answers that follow from
    what is served and from their key alone, as in ``served.cached(("figure", start, end), make)``; nobody may change
    them.
    """

    looked: bool = False
    production: Production | None = None
    model: LoadedModel | None = None
    frame: pd.DataFrame | None = None
    predicted: pd.DataFrame | None = None
    band: tuple[pd.DataFrame, pd.DataFrame] | None = None
    data_stamp: tuple[int, int] | None = None
    record: Record = field(default_factory=Record)
    troubles: dict[str, Trouble] = field(default_factory=dict)
    cached: Callable[[Hashable, Callable[[], Any]], Any] = field(default_factory=new_cache, compare=False)
    turns: BatchPredictor = field(default_factory=BatchPredictor, compare=False)

    @functools.cached_property
    def revision(self) -> str:
        """A name that changes exactly when there is something new to show."""
        state = (self.looked, self.production, self.data_stamp, self.record, sorted(self.troubles.items()))
        return hashlib.sha256(repr(state).encode()).hexdigest()[:16]

    @property
    def move(self) -> Move | None:
        """The record of how the version in production came there, once it has been read."""
        moves = [move for move in self.record.history if self.production and move.version == self.production.version]
        return moves[-1] if moves else None

    def predict_with_band(self, weather: pd.DataFrame) -> tuple[pd.DataFrame, tuple[pd.DataFrame, pd.DataFrame] | None]:
        """Return `solar_GW` and `wind_GW` for rows of hours and weather, and both ends of the error band if any."""
        return self.turns.predict_with_band(self.model, weather)


class Follower:
    """Follows the alias `production` and the data file; ``now`` is there at once, whatever MLflow does.

    One thread follows, and another one reads the record of the version in production.
    """

    def __init__(self, data_file: Path) -> None:
        self.data_file = data_file
        self.now = Snapshot()
        self._failed: tuple[str, str] | None = None
        self._retry_at = 0.0
        self._changing = threading.Lock()
        self._moved = threading.Event()

    def start(self) -> None:
        """Follow until the process ends."""
        threading.Thread(target=self._follow, name="follower", daemon=True).start()
        threading.Thread(target=self._keep_record, name="recorder", daemon=True).start()

    def _follow(self) -> None:
        while True:
            self.look()
            time.sleep(LOOK_SECONDS)

    def _keep_record(self) -> None:
        while True:
            self._moved.wait(RECORD_SECONDS)
            self._moved.clear()
            self.read_record()

    def look(self) -> None:
        """Look once at the data and at the registry, and serve what is new."""
        for look, subject in ((self._look_at_data, "data"), (self._look_at_registry, "registry")):
            try:
                look()
            except Exception as error:  # noqa: BLE001 - whatever happens, the old state stays served
                self._note(subject, error)
        if not self.now.looked:
            self._serve(looked=True)

    def read_record(self) -> None:
        """Read the record of the version in production, unless the registry is known to be away."""
        served = self.now
        if served.production is None or "registry" in served.troubles:
            return
        new = record.read(served.production, served.record)
        with self._changing:
            if new != self.now.record and self.now.production == served.production:
                self.now = replace(self.now, record=new, cached=new_cache())

    def _look_at_data(self) -> None:
        try:
            status = self.data_file.stat()
        except FileNotFoundError:
            if self.now.frame is not None:
                self._note("data", "The data file is gone; what was read before is shown.")
            return
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp == self.now.data_stamp:
            self._settle("data")  # a file that was gone is back as it was
            return
        frame = schema.read(self.data_file)
        self._serve(frame=frame, **_predictions(self.now.model, frame), data_stamp=stamp, settled="data")
        log.info("data: %d hours from %s to %s", len(frame), frame["utc_timestamp"].iloc[0], frame.iloc[-1, 0])

    def _look_at_registry(self) -> None:
        served = self.now.production
        production = registry.production(served)
        self._settle("registry")
        if production is None:
            if served is not None:
                self._note("model", "No version carries the alias `production` any more.")
        elif served is not None and _identity(production) == _identity(served):
            self._settle("model")
            if production != served:
                self._serve(production=production)
                self._moved.set()
        elif _identity(production) != self._failed or time.monotonic() >= self._retry_at:
            self._change_model(production)

    def _change_model(self, production: Production) -> None:
        """Load a version and predict with it while the old one stays served; then serve the new one."""
        frame = self.now.frame
        if self.now.model is None and "model" not in self.now.troubles:  # one that failed is tried again unseen
            self._serve(looked=False)
        try:
            model = storage.load(production.model_uri)
            predictions = _predictions(model, frame)
        except Exception as error:  # noqa: BLE001 - a version that fails must not take down the one that works
            self._failed, self._retry_at = _identity(production), time.monotonic() + RETRY_SECONDS
            self._note("model", error, f"Version {production.version} is in production but cannot be used: ")
            return
        self._failed = None
        self._serve(looked=True, production=production, model=model, **predictions, record=Record(), settled="model")
        self._moved.set()
        log.info("%s version %s is served", production.name, production.version)

    def _serve(self, *, settled: str | None = None, **changes) -> None:
        with self._changing:
            troubles = {name: trouble for name, trouble in self.now.troubles.items() if name != settled}
            self.now = replace(self.now, **({"troubles": troubles} | changes), cached=new_cache())

    def _settle(self, subject: str) -> None:
        if subject in self.now.troubles:
            log.info("%s: settled", subject)
            self._serve(settled=subject)

    def _note(self, subject: str, why: str | Exception, before: str = "") -> None:
        """Add a trouble; one that lasts keeps the time when it began. Each is logged once."""
        text = before + _for_readers(why)
        known = self.now.troubles.get(subject)
        if known and known.why == text:
            return
        unforeseen = isinstance(why, Exception) and not isinstance(why, WorkshopError)
        log.warning("%s: %s%s", subject, before, why, exc_info=why if unforeseen else None)
        trouble = Trouble(known.since if known else datetime.now(UTC), text)
        self._serve(troubles=self.now.troubles | {subject: trouble})


def _predictions(model: LoadedModel | None, frame: pd.DataFrame | None) -> dict[str, Any]:
    if model is None or frame is None:
        return {"predicted": None, "band": None}
    return dict(zip(("predicted", "band"), model.predict_with_band(frame), strict=True))


def _identity(production: Production) -> tuple[str, str]:
    """Name a version; with the run's id, since a wiped registry counts from 1 again."""
    return production.version, production.run_id


def _for_readers(why: str | Exception) -> str:
    """Return a line for readers; values, addresses and tracebacks are for the log."""
    if isinstance(why, str):
        return why
    if isinstance(why, WorkshopError):
        step = why.next_step or ""
        step = f"`{step}`" if step.startswith("workshop ") else step
        return why.what + (f" Next: {step}." if step else "")
    return f"{type(why).__name__}; the dashboard's log says more."
