"""Predictions for many threads at once: rows that wait for a turn are predicted with those whose turn it is."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future

import pandas as pd

from workshop.models.storage import LoadedModel

Prediction = tuple[pd.DataFrame, tuple[pd.DataFrame, pd.DataFrame] | None]
Asked = tuple[pd.DataFrame, Future[Prediction]]


class BatchPredictor:
    """Asks a model from one thread at a time: Keras models are not safe to share, and 50 rows take as long as one."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._waiting: deque[tuple[LoadedModel, Asked]] = deque()

    def predict_with_band(self, model: LoadedModel, weather: pd.DataFrame) -> Prediction:
        """Return what `LoadedModel.predict_with_band` returns for these rows; raise what it raises for them."""
        asked = weather, Future()
        self._waiting.append((model, asked))
        with self._turn:
            if not asked[1].done():
                taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
                # two models, while another version comes into production
                for each in {id(one): one for one, _ in taken}.values():
                    _predict(each, [asked for one, asked in taken if one is each])
        return asked[1].result()


def _predict(model: LoadedModel, asked: list[Asked]) -> None:
    try:
        predicted, band = model.predict_with_band(pd.concat([weather for weather, _ in asked], ignore_index=True))
    except Exception as error:  # noqa: BLE001 - raised in the thread whose rows they are
        if len(asked) > 1:
            for one in asked:
                _predict(model, [one])
        else:
            asked[0][1].set_exception(error)
        return
    start = 0
    for weather, answer in asked:
        rows = slice(start, start := start + len(weather))
        own = [frame[rows].set_axis(weather.index) for frame in (predicted, *(band or ()))]
        answer.set_result((own[0], tuple(own[1:]) or None))
