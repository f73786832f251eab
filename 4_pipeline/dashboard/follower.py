"""What the dashboard shows, as one snapshot, and the follower that replaces it when data or registry change."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow_gate
import pandas as pd
from cachetools import LRUCache, cached
from forecast.errors import PipelineError
from forecast.learn import registry, storage
from forecast.learn.storage import LoadedModel
from forecast.parameters import FILE, project
from forecast.show import monitoring
from forecast.show.monitoring import Quality
from forecast.table import features, schema
from mlflow_gate import GateError, Move, Production

from . import record
from .predictions import Band, BatchPredictor, Prediction
from .record import Record

POLL_SECONDS = 1.0
RUN_SECONDS = 900.0  # without a data file are a run of the pipeline: DVC removes a stage's outputs before it starts
RECORD_SECONDS = 30.0  # before the record is read again: a run may be added to after its promotion
MAX_CACHED = 64
LOADING = "One moment …"
ABSENT = {"frame": "There is no data yet.", "production": "No model is in production yet."}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """A fault that keeps the page from being up to date: since when (UTC), and why."""

    since: datetime
    why: str


def new_cache() -> Callable[[Hashable, Callable[[], Any]], Any]:
    """Return a function of a key and of a function that makes its value: called once per key, however many threads."""

    @cached(LRUCache(MAX_CACHED), key=lambda key, _make: key, condition=threading.Condition())
    def answer(_key: Hashable, make: Callable[[], Any]) -> Any:
        return make()

    return answer


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All that a page shows at one moment; replaced as a whole, never changed, so that no page mixes two versions.

    ``predicted`` holds the model's predictions for every row of ``frame``, and ``band`` both ends of its error band if
    the model has one; ``max_bias_percent`` is the limit of a good mean error. The keys of ``faults`` are `registry`,
    `model`, `data` and `parameters`. ``is_ready`` is False until data and registry have been checked once and the first
    model is loaded. ``cached`` keeps values that depend on the snapshot and on their key alone, as in
    ``snapshot.cached(("figure", start, end), make)``; do not change these values.
    ``revision`` names the snapshot: pages that show another one have something new to show.
    """

    is_ready: bool = False
    production: Production | None = None
    model: LoadedModel | None = None
    frame: pd.DataFrame | None = None
    predicted: pd.DataFrame | None = None
    band: Band | None = None
    data_stamp: tuple[int, int] | None = None
    max_bias_percent: float = math.nan
    record: Record = field(default_factory=Record)
    faults: dict[str, Fault] = field(default_factory=dict)
    predictor: BatchPredictor = field(default_factory=BatchPredictor)
    cached: Callable[[Hashable, Callable[[], Any]], Any] = field(default_factory=new_cache, init=False)
    revision: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)

    @property
    def move(self) -> Move | None:
        """The last move of the version in production, once the record has been read."""
        moves = [move for move in self.record.history if self.production and move.version == self.production.version]
        return moves[-1] if moves else None

    def missing(self, *needed: str) -> str:
        """Return a sentence on the first of `frame` and `production` that is needed and absent; empty if none is."""
        absent = [ABSENT[name] if self.is_ready else LOADING for name in needed if getattr(self, name) is None]
        return absent[0] if absent else ""

    def with_capacity(self, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
        """Return rows with the capacity to assume in later hours, and its origin: see `features.assume_capacity`."""
        return features.assume_capacity(rows, self.model.year_ends if self.model.knows_time else {})

    def predict_with_band(self, weather: pd.DataFrame) -> Prediction:
        """Return the targets for rows of hours and weather, and both ends of the error band if the model has one."""
        return self.predictor.predict_with_band(self.model, weather)

    def at(self, rows: pd.Index) -> tuple[pd.DataFrame, pd.DataFrame, Band | None]:
        """Return some rows of the data, their predictions and their band."""
        band = self.band and tuple(end.loc[rows] for end in self.band)
        return self.frame.loc[rows], self.predicted.loc[rows], band

    @property
    def learned_until(self) -> str | None:
        """The start of the last hour that the model learned from, in ISO 8601; None where that is not known."""
        return registry.learned_until(self.production) if self.production else None

    @property
    def learned(self) -> pd.DataFrame:
        """The hours of the data that the model learned from; all of them where that is not known."""
        until = self.learned_until
        return self.frame[self.frame["utc_timestamp"] <= pd.Timestamp(until)] if until else self.frame

    def qualities(self, rows: pd.Index) -> list[Quality]:
        """Return how good the predictions are for some rows of the data, a target each."""
        hours = self.frame.loc[rows]
        limit = self.max_bias_percent
        return monitoring.qualities(hours, self.predicted, self.band, self.model.coverage, self._baselines, limit)

    @property
    def latest(self) -> list[Quality]:
        """How good the predictions are for the latest hours, a target each; empty without predictions."""
        if self.predicted is None:
            return []
        return self.cached("latest", lambda: self.qualities(monitoring.latest(self.frame).index))

    @property
    def r2_without_model(self) -> dict[str, float]:
        """R2 of `monitoring.BASELINES` on the hours that the model did not learn; empty where these are not known."""
        held_out = None if self.frame is None else self.frame.drop(self.learned.index)
        if self.predicted is None or held_out.empty:
            return {}
        return self.cached("r2", lambda: monitoring.baseline_r2(held_out, self._baselines))

    @property
    def _baselines(self) -> dict[str, pd.DataFrame]:
        return self.cached("baselines", lambda: monitoring.baselines(self.frame, self.learned_until))

    @property
    def state(self) -> str | None:
        """The worst of the states of `latest`, one of `monitoring.STATES`; None without predictions."""
        return monitoring.overall(self.latest) if self.latest else None


class Follower:
    """Follows the alias `production` and the data file; ``now`` is always available, even if MLflow does not answer."""

    def __init__(self, data_file: Path) -> None:
        self.data_file = data_file
        self.now = Snapshot()
        self._lock = threading.RLock()
        self._data_seen_at = time.monotonic()
        self._parameters_at: int | None = None  # when their file was changed
        self._alias = mlflow_gate.Follower(registry.Registry(), load=self._load)
        self._record_at = 0.0

    def start(self) -> None:
        """Follow until the process ends."""
        for step in (self.poll, self._refresh_record):  # reading a record may take minutes
            threading.Thread(target=_repeat, args=(step,), daemon=True).start()

    def _refresh_record(self) -> None:
        if time.monotonic() >= self._record_at:
            self._record_at = time.monotonic() + RECORD_SECONDS
            self.read_record()

    def poll(self) -> None:
        """Check parameters, data and registry once, and replace the snapshot if one of them is new."""
        for subject in ("parameters", "data", "registry"):
            try:
                getattr(self, f"_check_{subject}")()
            except Exception as error:  # noqa: BLE001 - in any case the pages keep the old snapshot
                self._add_fault(subject, error)
        if not self.now.is_ready:
            self._replace(is_ready=True)

    def read_record(self) -> None:
        """Read the record of the version in production, unless the registry is known to be away."""
        snapshot = self.now
        if snapshot.production is None or "registry" in snapshot.faults:
            return
        new = record.read(snapshot.production, snapshot.record, self.data_file.parents[1] / "results")
        with self._lock:
            if new != self.now.record and self.now.production == snapshot.production:
                self._replace(record=new)

    def _check_parameters(self) -> None:
        file = project() / FILE
        changed_at = file.stat().st_mtime_ns if file.exists() else None
        if changed_at is None or changed_at != self._parameters_at:
            self._replace(max_bias_percent=monitoring.max_bias_percent(), solved="parameters")
            self._parameters_at = changed_at

    def _check_data(self) -> None:
        try:
            status = self.data_file.stat()
        except FileNotFoundError:
            if self.now.frame is not None and time.monotonic() > self._data_seen_at + RUN_SECONDS:
                self._add_fault("data", "The data file is gone; the pages show the data that was read before.")
            return
        self._data_seen_at = time.monotonic()
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp == self.now.data_stamp:
            self._remove_fault("data")  # a file that was gone is back, unchanged
            return
        frame = schema.read(self.data_file)
        self._replace(frame=frame, **_predictions(self.now.model, frame), data_stamp=stamp, solved="data")
        log.info("data: %d hours from %s to %s", len(frame), frame["utc_timestamp"].iloc[0], frame.iloc[-1, 0])

    def _check_registry(self) -> None:
        before, now = self._alias.now, self._alias.poll()
        if now.error is not None and now.newest is None:
            self._add_fault("registry", now.error)
            return
        self._remove_fault("registry")
        if now.error is not None:
            self._add_fault("model", now.error, f"Version {now.newest.version} is in production but cannot be used: ")
        elif now.trouble is not None:
            if now.production is not None:
                self._add_fault("model", "No version carries the alias `production` any more.")
        elif now.model is not before.model:
            model, predictions = now.model
            changes = {"production": now.production, "model": model, **predictions, "record": Record()}
            self._replace(is_ready=True, **changes, solved="model")
            self._record_at = 0.0
        else:
            self._remove_fault("model")
            if now.production != self.now.production:
                self._replace(production=now.production)
                self._record_at = 0.0

    def _load(self, production: Production) -> tuple[LoadedModel, dict[str, Any]]:
        """Return the model of a version and its predictions, while the old one stays in use."""
        if self.now.model is None and "model" not in self.now.faults:  # no page shows another try after a failure
            self._replace(is_ready=False)
        model = storage.load(production.model_uri)
        return model, _predictions(model, self.now.frame)

    def _replace(self, *, solved: str | None = None, **changes: Any) -> None:
        with self._lock:
            faults = {subject: fault for subject, fault in self.now.faults.items() if subject != solved}
            self.now = replace(self.now, **({"faults": faults} | changes))

    def _remove_fault(self, subject: str) -> None:
        if subject in self.now.faults:
            log.info("%s: solved", subject)
            self._replace(solved=subject)

    def _add_fault(self, subject: str, why: str | Exception, prefix: str = "") -> None:
        """Add a fault and log it, both once; a fault that lasts keeps the time when it began."""
        text = prefix + _for_readers(why)
        known = self.now.faults.get(subject)
        if known and known.why == text:
            return
        unforeseen = isinstance(why, Exception) and not isinstance(why, PipelineError | GateError)
        log.warning("%s: %s%s", subject, prefix, why, exc_info=why if unforeseen else None)  # type: ignore[arg-type] # then it is an Exception
        fault = Fault(known.since if known else datetime.now(UTC), text)
        self._replace(faults=self.now.faults | {subject: fault})


def _repeat(step: Callable[[], None]) -> None:
    while True:
        step()
        time.sleep(POLL_SECONDS)


def _predictions(model: LoadedModel | None, frame: pd.DataFrame | None) -> dict[str, Any]:
    predicted, band = (None, None) if model is None or frame is None else model.predict_with_band(frame)
    return {"predicted": predicted, "band": band}


def _for_readers(why: str | Exception) -> str:
    """Return a line for readers; values, addresses and tracebacks are for the log."""
    if isinstance(why, str):
        return why
    if isinstance(why, PipelineError | GateError):
        step = str(why.next_step or "")
        step = f"`{step}`" if step.startswith(("mlflow-gate ", "python ")) else step
        return why.what + (f" Next: {step}." if step else "")
    return f"{type(why).__name__}; the dashboard's log says more."
