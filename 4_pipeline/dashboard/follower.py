"""What the dashboard shows, as one snapshot, and the follower that replaces it when data or registry change."""

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
from forecast.table import processed, split
from forecast.terms import steps
from forecast.terms.errors import PipelineError
from mlflow_gate import GateError, Move, Production

from . import address, record
from .predictions import Band, Champion, Prediction
from .record import Record

POLL_SECONDS = 1.0
RUN_SECONDS = 900.0  # without a data file are a run of the pipeline: DVC removes a stage's outputs before it starts
RECORD_SECONDS = 30.0  # before the record is read again: a run may be added to after its promotion
READING_SECONDS = 60.0  # after the last request somebody is taken to read; without readers
UNREAD_FACTOR = 10  # times as much passes between two looks, until the next request
MAX_CACHED = 64
LOADING = "One moment …"
ABSENT = {"frame": "There is no data yet.", "champion": "No model is in production yet."}

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


def once(make: Callable[..., Answer]) -> Callable[..., Answer]:
    """Call a function of a snapshot once for its revision, the other arguments and the path prefix of the reader.

    Other threads wait for that call. Do not change the values.
    """

    def key(snapshot: Snapshot, *arguments: object) -> tuple[str, ...]:
        return address.prefix(), snapshot.revision, repr(arguments)

    return cached(LRUCache(MAX_CACHED), key=key, condition=threading.Condition())(make)


@dataclass(frozen=True)
class Fault:
    """A fault that keeps the page from being up to date: since when (UTC), and why."""

    since: datetime
    why: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """Hours of the data beside the predictions for them, and the predictions that need no model.

    ``band`` holds both ends of the error band if the model has one; ``max_bias_percent`` is the limit of a good mean
    error.
    """

    champion: Champion
    frame: pd.DataFrame
    predicted: pd.DataFrame
    band: Band | None
    baselines: dict[str, pd.DataFrame]
    max_bias_percent: float

    def at(self, rows: pd.Index) -> Comparison:
        """Return the comparison of some of the hours."""
        band = (self.band[0].loc[rows], self.band[1].loc[rows]) if self.band else None
        return replace(self, frame=self.frame.loc[rows], predicted=self.predicted.loc[rows], band=band)

    @functools.cached_property
    def qualities(self) -> list[Quality]:
        """How good the predictions are, a target each."""
        coverage, limit = self.champion.model.coverage, self.max_bias_percent
        return monitoring.qualities(self.frame, self.predicted, self.band, coverage, self.baselines, limit)

    @functools.cached_property
    def latest(self) -> list[Quality]:
        """How good the predictions are for the latest hours, a target each."""
        return self.at(monitoring.latest(self.frame).index).qualities

    @property
    def state(self) -> str:
        """The worst of the states of `latest`, one of `monitoring.STATES`."""
        return monitoring.overall(self.latest)

    @functools.cached_property
    def r2_without_model(self) -> dict[str, float]:
        """R2 of `monitoring.BASELINES` on the very hours that the gate judged on; empty where these are not known."""
        judged_on, stamps = self.champion.production.move.held_out, self.frame["utc_timestamp"]
        if not (period := judged_on.get("period")):
            return {}
        held_out = self.frame[stamps.between(*map(pd.Timestamp, period))]
        if judged_on.get("part") == split.TEST_WEEKS:
            held_out = held_out[split.is_test_week(held_out["utc_timestamp"])]
        if len(held_out) != judged_on.get("rows"):  # the data has changed since
            return {}
        return monitoring.baseline_r2(held_out, self.baselines)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All that a page shows at one moment; replaced as a whole, never changed, so that no page mixes two versions.

    ``predictions`` are those of ``champion`` for every row of ``frame``, with its error band. The keys of ``faults``
    are `registry`, `model`, `data` and `parameters`. ``is_ready`` is False until data and registry have been checked
    once and the first model is loaded. ``revision`` names the snapshot: pages that show another one have something new
    to show.
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
        """The last move of the version in production, once the record has been read."""
        version = self.champion and self.champion.production.version
        return next((move for move in reversed(self.record.history) if move.version == version), None)

    def missing(self, *needed: str) -> str:
        """Return a sentence on the first of `frame` and `champion` that is needed and absent; empty if none is."""
        absent = [ABSENT[name] if self.is_ready else LOADING for name in needed if getattr(self, name) is None]
        return absent[0] if absent else ""

    @functools.cached_property
    def comparison(self) -> Comparison | None:
        """The data beside the predictions for it; None without data or without a model."""
        if self.champion is None or self.frame is None or self.predictions is None:
            return None
        baselines = monitoring.baselines(self.frame, self.champion.judged_until)
        return Comparison(self.champion, self.frame, *self.predictions, baselines, self.max_bias_percent)

    @functools.cached_property
    def learned(self) -> pd.DataFrame | None:
        """The hours of the data that the model learned from, all of them where that is not known; None without any."""
        until = self.champion.trained_until if self.champion else None
        if self.frame is None or until is None:
            return self.frame
        learned = self.frame[self.frame["utc_timestamp"] <= pd.Timestamp(until)]
        return None if learned.empty else learned


class Follower:
    """Follows the alias `production` and the data file; ``now`` is always available, even if MLflow does not answer."""

    def __init__(self, data_file: Path) -> None:
        self.data_file = data_file
        self.now = Snapshot()
        self._lock = threading.RLock()
        self._data_seen_at = time.monotonic()
        self._alias = mlflow_gate.Follower(gate.Registry(), load=self._load)
        # What ends the waits: a reader; and for the record also a move of the alias.
        self._due, self._record_due = threading.Event(), threading.Event()
        self._read_until = -math.inf

    def start(self) -> None:
        """Follow until the process ends; the record has a thread of its own, since reading it may take minutes."""
        steps = (self.poll, self._due, POLL_SECONDS), (self.read_record, self._record_due, RECORD_SECONDS)
        for step in steps:
            threading.Thread(target=self._repeat, args=step, daemon=True).start()

    def attend(self) -> None:
        """Note that somebody reads: look at once if nobody did, and often from now on."""
        if time.monotonic() > self._read_until:
            self._due.set()
            self._record_due.set()
        self._read_until = time.monotonic() + READING_SECONDS

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
        if snapshot.champion is None or "registry" in snapshot.faults:
            return
        new = record.read(snapshot.champion.production, snapshot.record, self.data_file.parents[1] / "results")
        with self._lock:
            if new != self.now.record and self.now.champion is snapshot.champion:
                self._replace(record=new)

    def _repeat(self, step: Callable[[], None], due: threading.Event, seconds: float) -> None:
        while True:
            step()
            due.wait(seconds if time.monotonic() < self._read_until else seconds * UNREAD_FACTOR)
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
            if self.now.frame is not None and time.monotonic() > self._data_seen_at + RUN_SECONDS:
                self._add_fault("data", "The data file is gone; the pages show the data that was read before.")
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
                self._add_fault("model", "No version carries the alias `production` any more.")
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
        """Return the model of a version and its predictions, while the old one stays in use."""
        if self.now.champion is None and "model" not in self.now.faults:  # no page shows another try after a failure
            self._replace(is_ready=False)
        judged = storage.load(production.refit_of.model_uri) if production.refit_of else None
        champion = Champion(production, storage.load(production.model_uri), judged)
        return champion, _predict(champion, self.now.frame)

    def _replace(self, **changes: Any) -> None:
        with self._lock:
            self.now = replace(self.now, **changes)

    def _remove_fault(self, subject: str) -> None:
        if subject in self.now.faults:
            log.info("%s: solved", subject)
            self._replace(faults={name: fault for name, fault in self.now.faults.items() if name != subject})

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


def _predict(champion: Champion | None, frame: pd.DataFrame | None) -> Prediction | None:
    return None if champion is None or frame is None else champion.predict_unseen(frame)


def _for_readers(why: str | Exception) -> str:
    """Return a line for readers; values, addresses and tracebacks are for the log."""
    if isinstance(why, str):
        return why
    if isinstance(why, PipelineError | GateError):
        step = str(why.next_step or "")
        step = f"`{step}`" if step.startswith(("mlflow-gate ", "python ")) else step
        return why.what + (f" Next: {step}." if step else "")
    return f"{type(why).__name__}; the dashboard's log says more."
