"""The processed frame in two: rows to train on and rows held out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from workshop.errors import DataError, ParameterError

if TYPE_CHECKING:
    from pandas import DataFrame


def split_by_time(frame: DataFrame, test_fraction: float) -> tuple[DataFrame, DataFrame]:
    """Return train and test: the test rows are the last ``test_fraction`` of the rows in order of time.

    Every test hour is later than every train hour, as in use, where a model meets only hours that it has not seen. Both
    keep all columns, sorted by time, with a fresh index. Raises ParameterError unless 0 < ``test_fraction`` < 1, and
    DataError if either would be empty.
    """
    _require_fraction(test_fraction)
    ordered = frame.sort_values("utc_timestamp", kind="stable", ignore_index=True)
    cut = _require_both(math.floor(len(ordered) * (1 - test_fraction)), len(ordered))
    return ordered.iloc[:cut].copy(), ordered.iloc[cut:].reset_index(drop=True)


def split_at_random(frame: DataFrame, test_fraction: float, seed: int) -> tuple[DataFrame, DataFrame]:
    """Return train and test: the test rows are drawn at random, the same ones for the same ``seed``.

    It flatters a model, which learns from the same years as it is tested on, with the same power plants; in use, plants
    have been added since.
    Shape, order and errors as `split_by_time`.
    """
    from sklearn.model_selection import train_test_split

    _require_fraction(test_fraction)
    ordered = frame.sort_values("utc_timestamp", kind="stable", ignore_index=True)
    _require_both(math.floor(len(ordered) * (1 - test_fraction)), len(ordered))
    train, test = train_test_split(ordered, test_size=test_fraction, random_state=seed)
    return train.sort_index().reset_index(drop=True), test.sort_index().reset_index(drop=True)


def _require_fraction(test_fraction: float) -> None:
    if not 0 < test_fraction < 1:
        raise ParameterError(
            "The share of rows to hold out cannot be used.",
            value=f"test_fraction {test_fraction}",
            expected="a number between 0 and 1, neither included",
            next_step="0.2 is a good start (in chapter 4: `test_fraction` in params.yaml)",
        )


def _require_both(cut: int, rows: int) -> int:
    if not 0 < cut < rows:
        raise DataError(
            "There are too few rows to split.",
            value=f"{rows} rows, {cut} to train on",
            expected="at least one row on either side",
            next_step="take more data or another test_fraction",
        )
    return cut
