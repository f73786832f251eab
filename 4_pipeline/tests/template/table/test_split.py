"""Splits by time and by alternate weeks; ISO weeks."""

from __future__ import annotations

import pandas as pd
import pytest
from forecast.table.split import by_alternate_weeks, monday, name_of, select_week, split_by_time
from forecast.terms.errors import DataError, ParameterError
from hypothesis import given
from hypothesis import strategies as st


def test_split_by_time_holds_out_the_last_hours(frame):
    """The test rows are the last fifth, every one later than every training row, and no row is lost."""
    before = frame.copy()
    train, test = split_by_time(frame, 0.2)
    assert train["utc_timestamp"].max() < test["utc_timestamp"].min()
    assert len(test) == pytest.approx(0.2 * len(frame), abs=1)
    pd.testing.assert_frame_equal(pd.concat([train, test], ignore_index=True), frame)
    assert test.index[0] == 0
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_rejects_an_invalid_fraction(frame, fraction):
    """A fraction that is not between 0 and 1 is a ParameterError with the value."""
    with pytest.raises(ParameterError) as caught:
        split_by_time(frame, fraction)
    assert str(fraction) in caught.value.value


def test_split_rejects_too_few_rows(frame):
    """One row cannot be split."""
    with pytest.raises(DataError, match="too few rows"):
        split_by_time(frame.head(1), 0.2)


def test_alternate_weeks_keep_their_part(frame):
    """Each row is in one part, weeks alternate, and added hours do not move a week to the other part."""
    earlier, held_out = split_by_time(frame, 0.5)
    validation, test = by_alternate_weeks(held_out)
    both = pd.concat([validation, test]).sort_values("utc_timestamp", ignore_index=True)
    pd.testing.assert_frame_equal(both, held_out)
    weeks = both["utc_timestamp"].dt.strftime("%G-W%V").unique()
    names = [set(part["utc_timestamp"].dt.strftime("%G-W%V")) for part in (validation, test)]
    assert names == [set(weeks[start::2]) for start in ((0, 1) if weeks[0] in names[0] else (1, 0))]
    later, _ = by_alternate_weeks(frame)
    assert set(validation["utc_timestamp"]) <= set(later["utc_timestamp"])
    assert len(earlier)


def test_single_week_cannot_be_divided(hours):
    """Without rows for validation or for the test, it is an error."""
    with pytest.raises(DataError, match="There are too few held-out rows"):
        by_alternate_weeks(hours.head(168))


@pytest.fixture
def hours():
    """Three weeks from Monday, 26 September 2016, the last of them only two days long."""
    stamps = pd.date_range("2016-09-26", periods=2 * 168 + 48, freq="h", tz="UTC")
    return pd.DataFrame({"utc_timestamp": stamps, "solar_GW": 0.0})


def test_week_runs_from_monday_midnight(hours):
    """A week is seven whole days, in UTC."""
    name, rows = select_week(hours, "2016-W40")
    assert (name, len(rows)) == ("2016-W40", 168)
    assert rows.utc_timestamp.iloc[0] == pd.Timestamp("2016-10-03", tz="UTC")


def test_latest_week_is_one_with_most_of_its_hours(hours):
    """A week of two days is skipped; one that lacks a few hours is not."""
    assert select_week(hours, "latest")[0] == "2016-W40"
    gaps = hours.drop(index=range(200, 210))
    name, rows = select_week(gaps, "latest")
    assert (name, len(rows)) == ("2016-W40", 158)


def test_week_outside_the_data_is_an_error(hours):
    """The error names the range of weeks in the data."""
    with pytest.raises(ParameterError, match="2016-W39 to 2016-W41"):
        select_week(hours, "2014-W01")


@given(st.text() | st.from_regex(r"\d{4}-W\d{2}", fullmatch=True))
def test_any_text_is_a_week_or_an_error(text):
    """No text raises another error; digits of other scripts are rejected."""
    try:
        start = monday(text)
    except ParameterError as error:
        is_valid = error.expected
    else:
        is_valid = name_of(start) == text
    assert is_valid
