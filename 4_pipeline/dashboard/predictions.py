"""The version in production: its predictions, those of simultaneous requests in one call, and all of them as tables."""

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

Band = tuple[pd.DataFrame, pd.DataFrame]  # its lower and its upper end
Prediction = tuple[pd.DataFrame, Band | None]
Request = tuple[pd.DataFrame, Future[Prediction]]


@dataclass(frozen=True, eq=False)
class Champion:
    """The version in production, its model, and the model that was ``judged`` if the version is a refit of it.

    One thread at a time calls the model, for all that wait: Keras models are not safe to share, and 50 rows take as
    long as one.
    """

    production: Production
    model: LoadedModel
    judged: LoadedModel | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: deque[Request] = field(default_factory=deque)

    def __str__(self) -> str:
        return f"{self.production.name}/{self.production.version}"

    @property
    def trained_until(self) -> str | None:
        """The start of the last hour that the model learned from, in ISO 8601; None where that is not known."""
        return gate.trained_until(self.production)

    @property
    def judged_until(self) -> str | None:
        """The start of the last hour that the model learned from that predicts `predict_unseen`; None if not known."""
        return gate.trained_until(self.production.evaluated)

    def predict_unseen(self, frame: pd.DataFrame) -> Prediction:
        """Predict hours that were measured: those that a refit learned, by the model that was judged in its place."""
        return storage.predict_unseen(self.model, self.judged, self.trained_until, frame)

    @property
    def year_ends(self) -> YearEnds:
        """The figures of installed capacity that predictions depend on; empty if they depend on none."""
        return self.model.year_ends if self.model.takes_time else {}

    def predict_with_band(self, weather: pd.DataFrame) -> Prediction:
        """Return what `LoadedModel.predict_with_band` returns for these rows; raise what it raises for them."""
        request: Request = weather, Future()
        self.waiting.append(request)
        with self.lock:
            if not request[1].done():
                self._answer([self.waiting.popleft() for _ in range(len(self.waiting))])
        return request[1].result()

    def _answer(self, requests: list[Request]) -> None:
        try:
            rows = pd.concat([weather for weather, _ in requests], ignore_index=True)
            predicted, band = self.model.predict_with_band(rows)
        except Exception as error:  # noqa: BLE001 - raised in the thread whose rows they are
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
    """Return rows with their predictions and the ends of the band, such as `<target>_low`; times as text."""
    parts = zip(("", "_low", "_high"), (predicted, *(band or ())), strict=False)
    columns = {f"{name}{suffix}": part[name] for suffix, part in parts for name in TARGETS}
    return rows.assign(utc_timestamp=rows["utc_timestamp"].dt.strftime(STAMP), **columns)


def to_csv(rows: pd.DataFrame, predicted: pd.DataFrame, band: Band | None, model: object) -> str:
    """Return the table of predictions as CSV, such as `solar_predicted_GW`, with the name of the model in each row."""
    names = {target.name: f"{target.key}_predicted_{target.unit}" for target in problem.TARGETS}
    wide = table(rows, predicted, band).rename(columns=names)
    return wide.round(dict.fromkeys(wide.columns[len(rows.columns) :], 4)).assign(model=model).to_csv(index=False)
