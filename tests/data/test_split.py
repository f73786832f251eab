"""Splitting by time and at random."""

from __future__ import annotations

import pandas as pd
import pytest

from workshop.data.split import split_at_random, split_by_time
from workshop.errors import DataError, ParameterError


def test_split_by_time_holds_out_the_last_hours(frame):
    """The test rows are the last fifth, every one later than every training row, and no row is lost."""
    before = frame.copy()
    train, test = split_by_time(frame, 0.2)
    assert train["utc_timestamp"].max() < test["utc_timestamp"].min()
    assert len(test) == pytest.approx(0.2 * len(frame), abs=1)
    pd.testing.assert_frame_equal(pd.concat([train, test], ignore_index=True), frame)
    assert test.index[0] == 0
    pd.testing.assert_frame_equal(frame, before)


def test_split_by_time_orders_rows_first(frame):
    """Rows in any order give the same two parts."""
    one, two = split_by_time(frame, 0.2), split_by_time(frame.sample(frac=1, random_state=0), 0.2)
    for part, other in zip(one, two, strict=True):
        pd.testing.assert_frame_equal(part, other)


def test_split_at_random_draws_the_same_rows_for_the_same_seed(frame):
    """The seed decides; no row is lost or in both parts; both are in order of time."""
    before = frame.copy()
    train, test = split_at_random(frame, 0.2, seed=1)
    pd.testing.assert_frame_equal(test, split_at_random(frame, 0.2, seed=1)[1])
    assert not test.equals(split_at_random(frame, 0.2, seed=2)[1])
    assert len(test) == pytest.approx(0.2 * len(frame), abs=1)
    together = pd.concat([train, test]).sort_values("utc_timestamp", ignore_index=True)
    pd.testing.assert_frame_equal(together, frame)
    assert train["utc_timestamp"].is_monotonic_increasing
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_refuses_a_fraction_that_leaves_nothing(frame, fraction):
    """A share outside 0 to 1 is a ParameterError that shows it."""
    for split in (lambda: split_by_time(frame, fraction), lambda: split_at_random(frame, fraction, seed=0)):
        with pytest.raises(ParameterError) as caught:
            split()
        assert str(fraction) in caught.value.value


def test_split_refuses_too_few_rows(frame):
    """One row cannot be split."""
    for split in (lambda: split_by_time(frame.head(1), 0.2), lambda: split_at_random(frame.head(1), 0.2, seed=0)):
        with pytest.raises(DataError, match="too few rows"):
            split()
