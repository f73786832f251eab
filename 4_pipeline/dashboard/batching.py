"""Predictions that are asked for at once are made at once: an hour costs a model as much as a day of them."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from typing import Any

import pandas as pd

from workshop.data.features import INPUTS
from workshop.models.loading import LoadedModel

MOST_AT_ONCE = 64

Answer = tuple[pd.DataFrame, tuple[pd.DataFrame, pd.DataFrame] | None]


class Batches:
    """Asks a model on behalf of many threads: one at a time, which Keras needs, and for all who wait by then.

    The usual dynamic batching of model servers, without a delay: nobody waits for others to come.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Asked] = deque()
        self._predicting = threading.Lock()

    def predict(self, model: LoadedModel, weather: pd.DataFrame) -> Answer:
        """Return what ``model.predict_with_band`` returns for ``weather``; raise what it raises."""
        asked = _Asked(weather)
        self._waiting.append(asked)
        with self._predicting:
            while not asked.done:
                self._answer_those_who_wait(model)
        if asked.error is not None:
            raise asked.error
        return asked.answer

    def _answer_those_who_wait(self, model: LoadedModel) -> None:
        batch = []
        with contextlib.suppress(IndexError):
            while len(batch) < MOST_AT_ONCE:
                batch.append(self._waiting.popleft())
        try:
            answers = _predict(model, [asked.weather for asked in batch])
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            if len(batch) == 1:
                batch[0].end(error=error)
                return
            for asked in batch:  # one of them asked what cannot be answered; the others did not
                try:
                    asked.end(answer=_predict(model, [asked.weather])[0])
                except Exception as its_own:  # noqa: BLE001 - likewise
                    asked.end(error=its_own)
            return
        for asked, answer in zip(batch, answers, strict=True):
            asked.end(answer=answer)


class _Asked:
    """What one thread waits for."""

    def __init__(self, weather: pd.DataFrame) -> None:
        self.weather = weather
        self.answer: Any = None
        self.error: Exception | None = None
        self.done = False

    def end(self, *, answer: Any = None, error: Exception | None = None) -> None:
        self.answer, self.error, self.done = answer, error, True


def _predict(model: LoadedModel, asked: list[pd.DataFrame]) -> list[Answer]:
    with one_thread():
        if len(asked) == 1:
            return [model.predict_with_band(asked[0])]
        together = pd.concat([weather[INPUTS] for weather in asked], ignore_index=True)
        predicted, band = model.predict_with_band(together)
    answers, first = [], 0
    for weather in asked:
        rows, first = slice(first, first + len(weather)), first + len(weather)
        low_high = None if band is None else tuple(_part(end, rows, weather.index) for end in band)
        answers.append((_part(predicted, rows, weather.index), low_high))
    return answers


def _part(frame: pd.DataFrame, rows: slice, index: pd.Index) -> pd.DataFrame:
    return pd.DataFrame(frame.to_numpy()[rows], index, frame.columns)


def one_thread():
    """Return a context in which scikit-learn computes with one thread: more wait for one another, busily, under load.

    On two busy cores a single hour took 400 ms with two threads and 10 ms with one.
    """
    return _threadpools().limit(limits=1, user_api="openmp")


@functools.cache
def _threadpools():
    import sklearn.ensemble  # noqa: F401 - brings the library whose threads are meant
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
