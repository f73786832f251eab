"""Weeks by their ISO names."""

from __future__ import annotations

import pandas as pd
import pytest

from workshop.data.weeks import select_week
from workshop.errors import ParameterError


@pytest.fixture
def hours():
    """Three weeks from Monday, 26 September 2016, the last of them only two days long."""
    stamps = pd.date_range("2016-09-26", periods=2 * 168 + 48, freq="h", tz="UTC")
    return pd.DataFrame({"utc_timestamp": stamps, "solar_GW": 0.0})


def test_week_runs_from_monday_midnight(hours):
    """Seven whole days, in UTC."""
    name, rows = select_week(hours, "2016-W40")
    assert (name, len(rows)) == ("2016-W40", 168)
    assert rows.utc_timestamp.iloc[0] == pd.Timestamp("2016-10-03", tz="UTC")


def test_latest_week_is_one_with_most_of_its_hours(hours):
    """Two days are no basis for a report: the last whole week is taken, also when it lacks a few hours."""
    assert select_week(hours, "latest")[0] == "2016-W40"
    gaps = hours.drop(index=range(200, 210))
    name, rows = select_week(gaps, "latest")
    assert (name, len(rows)) == ("2016-W40", 158)


@pytest.mark.parametrize("week", ["2016-W60", "2016-40", "last", "2015-W53x"])
def test_week_that_is_none_says_what_a_name_looks_like(hours, week):
    """The error holds the value and what is allowed."""
    with pytest.raises(ParameterError) as caught:
        select_week(hours, week)
    assert week in str(caught.value)
    assert "W" in str(caught.value.expected)


def test_week_without_hours_names_the_weeks_there_are(hours):
    """A week outside the data: the range is said."""
    with pytest.raises(ParameterError, match="2016-W39 to 2016-W41"):
        select_week(hours, "2014-W01")
