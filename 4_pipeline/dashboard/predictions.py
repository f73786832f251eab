"""Predictions: those of simultaneous requests in one call of the model, and all of them as tables."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import Any

import pandas as pd
from forecast import problem
from forecast.learn.storage import LoadedModel
from forecast.table.schema import STAMP, TARGETS

Band = tuple[pd.DataFrame, pd.DataFrame]  # its lower and its upper end
Prediction = tuple[pd.DataFrame, Band | None]
Request = tuple[pd.DataFrame, Future[Prediction]]


class BatchPredictor:
    """Calls a model from one thread at a time: Keras models are not safe to share, and 50 rows take as long as one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Any, Request]] = deque()

    def predict_with_band(self, model: LoadedModel | None, weather: pd.DataFrame) -> Prediction:
        """Return what `LoadedModel.predict_with_band` returns for these rows; raise what it raises for them."""
        request: Request = weather, Future()
        self._waiting.append((model, request))
        with self._lock:
            if not request[1].done():
                batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
                # two models, while another version comes into production
                for each in {id(model): model for model, _ in batch}.values():
                    _predict(each, [request for model, request in batch if model is each])
        return request[1].result()


def _predict(model: LoadedModel, requests: list[Request]) -> None:
    try:
        predicted, band = model.predict_with_band(pd.concat([weather for weather, _ in requests], ignore_index=True))
    except Exception as error:  # noqa: BLE001 - raised in the thread whose rows they are
        if len(requests) > 1:
            for request in requests:
                _predict(model, [request])
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
    ends = [end[TARGETS].add_suffix(suffix) for suffix, end in zip(("_low", "_high"), band or (), strict=False)]
    times = rows["utc_timestamp"].dt.strftime(STAMP)
    return pd.concat([rows.assign(utc_timestamp=times), predicted[TARGETS], *ends], axis="columns")


def to_csv(rows: pd.DataFrame, predicted: pd.DataFrame, band: Band | None, model: str) -> str:
    """Return the table of predictions as CSV, such as `solar_predicted_GW`, with the name of the model in each row."""
    names = {target.name: f"{target.key}_predicted_{target.unit}" for target in problem.TARGETS}
    wide = table(rows, predicted, band).rename(columns=names)
    return wide.round(dict.fromkeys(wide.columns[len(rows.columns) :], 4)).assign(model=model).to_csv(index=False)
