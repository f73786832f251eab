"""The state of the dashboard as one snapshot, and the follower that replaces it when data or registry changes."""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import mlflow_gate
import pandas as pd
from cachetools import LRUCache, cached
from forecast.govern import gate
from forecast.learn import storage
from forecast.show import monitoring
from forecast.show.monitoring import Quality
from forecast.table import features, processed, split
from forecast.terms import steps
from forecast.terms.errors import PipelineError
from mlflow_gate import GateError, Move, Production

from . import address, record
from .predictions import Band, Champion, Prediction
from .record import Record

POLL_SECONDS = 1.0
MAX_RUN_SECONDS = 900.0  # how long the data file may be missing: DVC removes a stage's outputs before running it
RECORD_SECONDS = 30.0  # interval between reads of the record: runs may change after their promotion
ACTIVE_SECONDS = 60.0  # time without a request after which the dashboard is idle
IDLE_FACTOR = 10  # multiplies the polling interval while idle
MAX_CACHED = 64
LOADING = "Loading …"
MISSING = {"frame": "There is no data yet.", "champion": "No model is in production yet."}

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


def cache_per_revision(make: Callable[..., Answer]) -> Callable[..., Answer]:
    """Cache a function of a snapshot; the key is the revision, the other arguments and the request's path prefix.

    Simultaneous calls with the same key are computed once. Do not modify the cached values.
    """

    def key(snapshot: Snapshot, *arguments: object) -> tuple[str, ...]:
        return address.prefix(), snapshot.revision, repr(arguments)

    return cached(LRUCache(MAX_CACHED), key=key, condition=threading.Condition())(make)


@dataclass(frozen=True)
class Fault:
    """A reason why the pages are out of date, and the time (UTC) when it first applied."""

    since: datetime
    why: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """Measured rows with the predictions of the model and of the baselines.

    ``band`` is the error band (lower and upper bound), None if the model has none. ``max_bias_percent`` is the largest
    bias that counts as good.
    """

    champion: Champion
    frame: pd.DataFrame
    predicted: pd.DataFrame
    band: Band | None
    baselines: dict[str, pd.DataFrame]
    max_bias_percent: float

    def at(self, rows: pd.Index) -> Comparison:
        """Return the comparison restricted to ``rows``."""
        band = (self.band[0].loc[rows], self.band[1].loc[rows]) if self.band else None
        return replace(self, frame=self.frame.loc[rows], predicted=self.predicted.loc[rows], band=band)

    @functools.cached_property
    def qualities(self) -> list[Quality]:
        """The quality of each target's predictions over all rows."""
        coverage, limit = self.champion.model.coverage, self.max_bias_percent
        return monitoring.qualities(self.frame, self.predicted, self.band, coverage, self.baselines, limit)

    @functools.cached_property
    def latest(self) -> list[Quality]:
        """The quality of each target's predictions over the latest rows (`monitoring.latest`)."""
        return self.at(monitoring.latest(self.frame).index).qualities

    @property
    def state(self) -> str:
        """The worst state of any target in `latest`, one of `monitoring.STATES`."""
        return monitoring.worst_state(self.latest)

    @functools.cached_property
    def baseline_r2(self) -> dict[str, float]:
        """R2 of `monitoring.BASELINES` on the gate's held-out rows; empty if they are unknown or have changed."""
        evaluated_on, stamps = self.champion.production.move.held_out, self.frame["utc_timestamp"]
        if not (period := evaluated_on.get("period")):
            return {}
        held_out = self.frame[stamps.between(*map(pd.Timestamp, period))]
        if evaluated_on.get("part") == split.TEST_WEEKS:
            held_out = held_out[split.is_test_week(held_out["utc_timestamp"])]
        if len(held_out) != evaluated_on.get("rows"):  # the data have changed since the evaluation
            return {}
        return monitoring.baseline_r2(held_out, self.baselines)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The immutable state of the dashboard, replaced as a whole, so that no page mixes two versions.

    ``predictions`` are the champion's, with error bands, for each row of ``frame``. The keys of ``faults`` are
    `registry`, `model`, `data` and `parameters`. ``is_ready`` is False until data and registry have been polled once
    and the first model is loaded. A page with a ``revision`` other than the snapshot's is out of date.
    """

    is_ready: bool = False
    champion: Champion | None = None
    frame: pd.DataFrame | None = None
    predictions: Prediction | None = None
    data_stamp: tuple[int, int] | None = None
    max_bias_percent: float = math.nan
    record: Record = field(default_factory=Record)
    faults: dict[str, Fault] = field(default_factory=dict)
    revision: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)

    @property
    def move(self) -> Move | None:
        """The latest move of the alias to the version in production; None until the record has been read."""
        version = self.champion and self.champion.production.version
        return next((move for move in reversed(self.record.history) if move.version == version), None)

    def missing(self, *required: str) -> str:
        """Return a message if a ``required`` field (`frame`, `champion`) is None, else an empty string."""
        messages = [MISSING[name] if self.is_ready else LOADING for name in required if getattr(self, name) is None]
        return messages[0] if messages else ""

    @functools.cached_property
    def comparison(self) -> Comparison | None:
        """The comparison of all measured rows with their predictions; None without data or model."""
        if self.champion is None or self.frame is None or self.predictions is None:
            return None
        baselines = monitoring.baselines(self.frame, self.champion.evaluated_training_end)
        sun = features.sun_position(features.to_utc(self.frame["utc_timestamp"]))["elevation"].to_numpy()
        frame = self.frame.assign(sun_elevation=sun)  # computed once, not for each period
        return Comparison(self.champion, frame, *self.predictions, baselines, self.max_bias_percent)

    @functools.cached_property
    def training_rows(self) -> pd.DataFrame | None:
        """The model's training rows; all rows if its training period is unknown, None if none are in the data."""
        until = self.champion.training_end if self.champion else None
        if self.frame is None or until is None:
            return self.frame
        rows = self.frame[self.frame["utc_timestamp"] <= pd.Timestamp(until)]
        return None if rows.empty else rows


class Follower:
    """Follows the `production` alias and the data file; ``now``, the snapshot, is available even if MLflow is down."""

    def __init__(self, data_file: Path) -> None:
        self.data_file = data_file
        self.now = Snapshot()
        self._lock = threading.RLock()
        self._data_seen_at = time.monotonic()
        self._alias = mlflow_gate.Follower(gate.Registry(), load=self._load)
        # Events that wake the two threads: a request sets both, a change of the alias only `_record_due`.
        self._due, self._record_due = threading.Event(), threading.Event()
        self._active_until = -math.inf

    def start(self) -> None:
        """Start two daemon threads: one polls, the other reads the record, which may take minutes."""
        tasks = (self.poll, self._due, POLL_SECONDS), (self.read_record, self._record_due, RECORD_SECONDS)
        for task in tasks:
            threading.Thread(target=self._repeat, args=task, daemon=True).start()

    def on_request(self) -> None:
        """Note a request: poll at once if the dashboard was idle, and poll often for the next `ACTIVE_SECONDS`."""
        if time.monotonic() > self._active_until:
            self._due.set()
            self._record_due.set()
        self._active_until = time.monotonic() + ACTIVE_SECONDS

    def poll(self) -> None:
        """Check parameters, data and registry once; replace the snapshot if one of them has changed."""
        for subject in ("parameters", "data", "registry"):
            try:
                getattr(self, f"_check_{subject}")()
            except Exception as error:  # noqa: BLE001 - whatever fails, the pages keep the old snapshot
                self._add_fault(subject, error)
        if not self.now.is_ready:
            self._replace(is_ready=True)

    def read_record(self) -> None:
        """Read the record of the version in production, unless the registry is down."""
        snapshot = self.now
        if snapshot.champion is None or "registry" in snapshot.faults:
            return
        new = record.read(snapshot.champion.production, snapshot.record, self.data_file.parents[1] / "results")
        with self._lock:
            if new != self.now.record and self.now.champion is snapshot.champion:
                self._replace(record=new)

    def _repeat(self, task: Callable[[], None], due: threading.Event, seconds: float) -> None:
        while True:
            task()
            due.wait(seconds if time.monotonic() < self._active_until else seconds * IDLE_FACTOR)
            due.clear()

    def _check_parameters(self) -> None:
        limit = monitoring.max_bias_percent()
        if limit != self.now.max_bias_percent:
            self._replace(max_bias_percent=limit)
        self._remove_fault("parameters")

    def _check_data(self) -> None:
        try:
            status = self.data_file.stat()
        except FileNotFoundError:
            if self.now.frame is not None and time.monotonic() > self._data_seen_at + MAX_RUN_SECONDS:
                self._add_fault("data", "The data file was deleted; the pages still show the data read before.")
            return
        self._data_seen_at = time.monotonic()
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp != self.now.data_stamp:
            frame = processed.read(self.data_file)
            self._replace(frame=frame, predictions=_predict(self.now.champion, frame), data_stamp=stamp)
            ends = frame["utc_timestamp"].iloc[[0, -1]]
            log.info("data: %d %s from %s to %s", len(frame), steps.NAMES, *ends)
        self._remove_fault("data")

    def _check_registry(self) -> None:
        before, now = self._alias.now, self._alias.poll()
        if now.error and not now.newest:
            self._add_fault("registry", now.error)
            return
        self._remove_fault("registry")
        if not now.newest:
            if now.production:
                self._add_fault("model", "No version has the alias `production` any more.")
        elif now.error:
            self._add_fault("model", now.error, f"Version {now.newest.version} is in production but cannot be used: ")
        else:
            champion = self.now.champion
            if now.model is not before.model:
                champion, predictions = now.model
                self._replace(is_ready=True, champion=champion, predictions=predictions, record=Record())
                self._record_due.set()
            elif champion and now.newest != champion.production:
                self._replace(champion=replace(champion, production=now.newest))
                self._record_due.set()
            self._remove_fault("model")

    def _load(self, production: Production) -> tuple[Champion, Prediction | None]:
        """Load a version's model and compute its predictions for the data; meanwhile the old model stays in use."""
        if self.now.champion is None and "model" not in self.now.faults:  # during a retry, the pages keep the fault
            self._replace(is_ready=False)
        evaluated = storage.load(production.refit_of.model_uri) if production.refit_of else None
        champion = Champion(production, storage.load(production.model_uri), evaluated)
        return champion, _predict(champion, self.now.frame)

    def _replace(self, **changes: Any) -> None:
        with self._lock:
            self.now = replace(self.now, **changes)

    def _remove_fault(self, subject: str) -> None:
        if subject in self.now.faults:
            log.info("%s: resolved", subject)
            self._replace(faults={name: fault for name, fault in self.now.faults.items() if name != subject})

    def _add_fault(self, subject: str, why: str | Exception, prefix: str = "") -> None:
        """Add a fault and log it once; a persistent fault keeps its start time."""
        text = prefix + _user_message(why)
        known = self.now.faults.get(subject)
        if known and known.why == text:
            return
        is_unexpected = isinstance(why, Exception) and not isinstance(why, PipelineError | GateError)
        log.warning("%s: %s%s", subject, prefix, why, exc_info=why if is_unexpected else None)  # type: ignore[arg-type] # unexpected errors are Exceptions
        fault = Fault(known.since if known else datetime.now(UTC), text)
        self._replace(faults=self.now.faults | {subject: fault})


def _predict(champion: Champion | None, frame: pd.DataFrame | None) -> Prediction | None:
    return None if champion is None or frame is None else champion.predict_unseen(frame)


def _user_message(why: str | Exception) -> str:
    """Return a one-line message for the pages, without values, URLs or tracebacks, which are only logged."""
    if isinstance(why, str):
        return why
    if isinstance(why, PipelineError | GateError):
        step = str(why.next_step or "")
        step = f"`{step}`" if step.startswith(("mlflow-gate ", "python ")) else step
        return why.what + (f" Next: {step}." if step else "")
    return f"Unexpected error ({type(why).__name__}): see the dashboard's log."
