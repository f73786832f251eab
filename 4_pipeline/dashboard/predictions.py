"""Predictions of the version in production, batched across simultaneous requests, and their export as tables."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import pandas as pd
from forecast import problem
from forecast.govern import gate
from forecast.learn import storage
from forecast.learn.storage import LoadedModel
from forecast.table.schema import STAMP, TARGETS
from forecast.terms.quantities import YearEnds
from mlflow_gate import Production

Band = tuple[pd.DataFrame, pd.DataFrame]  # lower and upper bounds
Prediction = tuple[pd.DataFrame, Band | None]
Request = tuple[pd.DataFrame, Future[Prediction]]


@dataclass(frozen=True, eq=False)
class Champion:
    """The version in production and its model; for a refit also the model ``evaluated`` by the gate.

    One thread at a time calls the model, for all queued requests: Keras models are not thread-safe, and predicting 50
    rows takes as long as predicting one.
    """

    production: Production
    model: LoadedModel
    evaluated: LoadedModel | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    queue: deque[Request] = field(default_factory=deque)

    def __str__(self) -> str:
        return f"{self.production.name}/{self.production.version}"

    @property
    def training_end(self) -> str | None:
        """The last timestamp of the training data, in ISO 8601; None if it is not recorded."""
        return gate.training_end(self.production)

    @property
    def evaluated_training_end(self) -> str | None:
        """The last timestamp of the evaluated model's training data, in ISO 8601; None if it is not recorded."""
        return gate.training_end(self.production.evaluated)

    def predict_unseen(self, frame: pd.DataFrame) -> Prediction:
        """Predict measured hours; if the model is a refit, the evaluated model predicts the refit's training hours."""
        return storage.predict_unseen(self.model, self.evaluated, self.training_end, frame)

    @property
    def year_ends(self) -> YearEnds:
        """The installed capacities by year that the model predicts with; empty if it uses none."""
        return self.model.year_ends if self.model.takes_time else {}

    def predict_with_band(self, weather: pd.DataFrame) -> Prediction:
        """Call `LoadedModel.predict_with_band` for these rows, batched with the rows of other threads."""
        request: Request = weather, Future()
        self.queue.append(request)
        with self.lock:
            if not request[1].done():
                self._answer([self.queue.popleft() for _ in range(len(self.queue))])
        return request[1].result()

    def _answer(self, requests: list[Request]) -> None:
        try:
            rows = pd.concat([weather for weather, _ in requests], ignore_index=True)
            predicted, band = self.model.predict_with_band(rows)
        except Exception as error:  # noqa: BLE001 - re-raised by `result()` in the request's thread
            if len(requests) > 1:
                for request in requests:
                    self._answer([request])
            else:
                requests[0][1].set_exception(error)
            return
        start = 0
        for weather, answer in requests:
            rows = slice(start, start := start + len(weather))
            predicted_rows, *ends = [frame[rows].set_axis(weather.index) for frame in (predicted, *(band or ()))]
            answer.set_result((predicted_rows, tuple(ends) or None))


def table(rows: pd.DataFrame, predicted: pd.DataFrame, band: Band | None) -> pd.DataFrame:
    """Return the rows with their predictions and band (`<target>_low`, `<target>_high`); times are strings."""
    parts = zip(("", "_low", "_high"), (predicted, *(band or ())), strict=False)
    columns = {f"{name}{suffix}": part[name] for suffix, part in parts for name in TARGETS}
    return rows.assign(utc_timestamp=rows["utc_timestamp"].dt.strftime(STAMP), **columns)


def to_csv(rows: pd.DataFrame, predicted: pd.DataFrame, band: Band | None, model: object) -> str:
    """Return the table as CSV; predictions are in columns such as `solar_predicted_GW`, the model's name in `model`."""
    names = {target.name: f"{target.key}_predicted_{target.unit}" for target in problem.TARGETS}
    wide = table(rows, predicted, band).rename(columns=names)
    return wide.round(dict.fromkeys(wide.columns[len(rows.columns) :], 4)).assign(model=model).to_csv(index=False)
