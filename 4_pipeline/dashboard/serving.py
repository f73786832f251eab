"""What the dashboard serves: the data, the production model and its predictions, followed in the background."""

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
from batching import Answer, Batches, one_thread
from memo import Memo
from record import Reader, Record

from workshop.data import schema
from workshop.errors import ServiceError, WorkshopError
from workshop.models.loading import LoadedModel
from workshop.models.registry import Production

EVERY_SECONDS = 1.0
RETRY_SECONDS = 15.0  # before a version that did not load is tried again
ARTIFACTS_SECONDS = 5.0  # between two questions whether the artifact store answers
RECORD_SECONDS = 30.0  # before the record is read again: a run may be added to after its promotion

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trouble:
    """Something that keeps the page from being up to date: since when (UTC), and why."""

    since: datetime
    why: str


@dataclass(frozen=True)
class Served:
    """All that a page shows, at one moment; replaced as a whole, never changed, so that no page mixes two versions.

    ``predicted`` holds the model's predictions for every row of ``frame``, and ``band`` both ends of its error band if
    it has one: what is the same for all readers is computed once. ``troubles`` are named by what they concern:
    `registry`, `artifacts`, `model` or `data`. ``looked`` is False until it is known what there is, so also while the
    first model is being loaded.
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
    batches: Batches = field(default_factory=Batches, compare=False)
    memo: Memo = field(default_factory=Memo, compare=False)

    @functools.cached_property
    def revision(self) -> str:
        """A name that changes exactly when there is something new to show."""
        troubles = sorted(self.troubles.items(), key=lambda item: item[0])
        shown = (self.looked, self.production, self.data_stamp, self.record, troubles)
        return hashlib.sha256(repr(shown).encode()).hexdigest()[:16]

    def cached(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what ``make`` returned for ``key`` the first time; forgotten as soon as something else is served.

        For answers that follow from what is served and from ``key`` alone, such as the figure of a period:
        ``served.cached(("outlook", start, end), lambda: figure(served, start, end))``. Nobody may change them.
        """
        return self.memo.get(key, make)

    def predict(self, weather: pd.DataFrame) -> pd.DataFrame:
        """Return `solar_GW` and `wind_GW` for rows of hours and weather; the model must be there."""
        return self.predict_with_band(weather)[0]

    def predict_band(self, weather: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame] | None:
        """Return both ends of the error band for the same rows; None when the model has none."""
        return self.predict_with_band(weather)[1]

    def predict_with_band(self, weather: pd.DataFrame) -> Answer:
        """Return what `predict` and `predict_band` return, computed once."""
        return self.batches.predict(self.model, weather)


class Serving:
    """Follows the alias `production` and the data file; ``now`` is always there at once, whatever MLflow does.

    One thread follows, another one reads the record of what it found. ``answered`` is when, by `time.monotonic`, the
    registry last answered.
    """

    def __init__(self, data_file: Path) -> None:
        self.data_file = data_file
        self.now = Served()
        self.answered: float | None = None
        self._failed: tuple[str, str] | None = None
        self._retry_at = 0.0
        self._taking = threading.Lock()
        self._moved = threading.Event()

    def start(self) -> None:
        """Follow until the process ends."""
        threading.Thread(target=self._follow, name="follower", daemon=True).start()
        threading.Thread(target=self._keep_record, name="recorder", daemon=True).start()

    def _follow(self) -> None:
        while True:
            self.look()
            time.sleep(EVERY_SECONDS)

    def look(self) -> None:
        """Look once at the data and at the registry, and take over what is new."""
        for look, subject in ((self._look_at_data, "data"), (self._look_at_registry, "registry")):
            try:
                look()
            except Exception as error:  # noqa: BLE001 - whatever happens, what is there goes on being served
                self._note(subject, error)
        if not self.now.looked:
            self._take(looked=True)

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
        try:
            frame = schema.read(self.data_file)
            with one_thread():
                predicted, band = self.now.model.predict_with_band(frame) if self.now.model else (None, None)
        except Exception as error:  # noqa: BLE001 - the old data stay until the file is mended
            self._note("data", error)
            return
        self._take(frame=frame, predicted=predicted, band=band, data_stamp=stamp, settled="data")
        log.info("data: %d hours from %s to %s", len(frame), frame["utc_timestamp"].iloc[0], frame.iloc[-1, 0])

    def _look_at_registry(self) -> None:
        found = _production(self.now.production)
        self.answered = time.monotonic()
        self._settle("registry")
        if found is None:
            if self.now.model is not None:
                self._note("model", "No version carries the alias `production` any more.")
            return
        served = self.now.production
        if served is not None and _identity(found) == _identity(served):
            self._settle("model")
            if found != served:
                self._take(production=found)
                self._moved.set()
            return
        if _identity(found) != self._failed or time.monotonic() >= self._retry_at:
            self._change_model(found)

    def _change_model(self, found: Production) -> None:
        """Load a version and predict with it while the old one goes on answering; then let it speak."""
        from workshop.models.loading import load

        frame = self.now.frame
        if self.now.model is None and "model" not in self.now.troubles:  # one that failed is tried again unseen
            self._take(looked=False)
        try:
            with one_thread():
                model = load(found.model_uri)
                predicted, band = model.predict_with_band(frame) if frame is not None else (None, None)
        except Exception as error:  # noqa: BLE001 - a version that fails must not take down the one that works
            self._failed, self._retry_at = _identity(found), time.monotonic() + RETRY_SECONDS
            self._note("model", error, f"Version {found.version} is in production but cannot be used: ")
            return
        self._failed = None
        answers = {"predicted": predicted, "band": band, "batches": Batches(), "record": Record(), "looked": True}
        self._take(production=found, model=model, **answers, settled="model")
        self._moved.set()
        log.info("%s version %s speaks", found.name, found.version)

    def _keep_record(self) -> None:
        reader, read_at = Reader(), time.monotonic()
        while True:
            moved = self._moved.wait(ARTIFACTS_SECONDS)
            self._moved.clear()
            if moved or time.monotonic() - read_at > RECORD_SECONDS:
                self._read_record(reader)
                read_at = time.monotonic()
            self._look_at_artifacts()

    def _look_at_artifacts(self) -> None:
        """Ask whether the artifact store answers; the model that is loaded needs it no more, but the next one will."""
        import mlflow

        served = self.now
        if served.production is None or "registry" in served.troubles:
            return
        try:
            mlflow.artifacts.list_artifacts(artifact_uri=served.production.model_uri)
        except Exception as error:  # noqa: BLE001 - MLflow's, its client's and the network's have no base of their own
            log.debug("the artifact store: %r", error)
            self._note("artifacts", "The artifact store does not answer; a new version could not be loaded.")
        else:
            self._settle("artifacts")

    def _read_record(self, reader: Reader) -> None:
        served = self.now
        if served.production is None:
            return
        record = reader.read(served.production, served.record)
        with self._taking:
            same = self.now.production is not None and _identity(self.now.production) == _identity(served.production)
            if same and record != self.now.record:
                self.now = replace(self.now, record=record, memo=Memo())

    def _take(self, *, settled: str | None = None, **changes) -> None:
        with self._taking:
            troubles = {name: trouble for name, trouble in self.now.troubles.items() if name != settled}
            self.now = replace(self.now, troubles=troubles, memo=Memo(), **changes)

    def _settle(self, subject: str) -> None:
        if subject in self.now.troubles:
            log.info("%s: settled", subject)
            self._take(settled=subject)

    def _note(self, subject: str, why: str | Exception, before: str = "") -> None:
        """Add a trouble; one that goes on keeps the time when it began. Each is logged once."""
        text = before + _words(why)
        known = self.now.troubles.get(subject)
        if known and known.why == text:
            return
        log.warning(
            "%s: %s", subject, f"{before}{why}" if isinstance(why, WorkshopError) else why, exc_info=_cause(why)
        )
        since = known.since if known else datetime.now(UTC)
        with self._taking:
            self.now = replace(self.now, troubles=self.now.troubles | {subject: Trouble(since, text)}, memo=Memo())


def _production(known: Production | None) -> Production | None:
    """Return what is in production, see `registry.production`.

    ServiceError when the registry does not answer in time, or in no way that MLflow's client understands.
    """
    from workshop.models.registry import production

    try:
        return production(known)
    except WorkshopError:
        raise
    except Exception as error:  # noqa: BLE001 - MLflow's, its client's and the network's have no base of their own
        raise ServiceError(
            "The model registry cannot be asked: the tracking server or its database does not answer as it should.",
            value=repr(error)[:300],
            next_step="workshop status",
        ) from None


def _identity(production: Production) -> tuple[str, str]:
    """Name a version; with the run's id, since a wiped registry counts from 1 again."""
    return production.version, production.run_id


def _words(why: str | Exception) -> str:
    """Say in a line what readers may know; values, addresses and tracebacks are for the log."""
    if isinstance(why, str):
        return why
    if isinstance(why, WorkshopError):
        step = why.next_step or ""
        step = f"`{step}`" if step.startswith("workshop ") else step
        return why.what + (f" Next: {step}." if step else "")
    return f"{type(why).__name__}; the dashboard's log says more."


def _cause(why: str | Exception) -> Exception | None:
    return why if isinstance(why, Exception) and not isinstance(why, WorkshopError) else None
