"""Parts of time: the rows to train on and the rows held out, and weeks by their ISO 8601 names such as 2016-W40."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta

import pandas as pd
from pandas import DataFrame, Series

from forecast.errors import DataError, ParameterError

WEEK_HOURS = 168
TEST_WEEKS = "test weeks"  # what the record calls the weeks to judge on
EPOCH = pd.Timestamp("1970-01-05", tz="UTC")  # a Monday
WHOLE_ENOUGH = 0.9  # a week with fewer of its hours is no basis for a report


def split_by_time(frame: DataFrame, test_fraction: float) -> tuple[DataFrame, DataFrame]:
    """Return train and test: the test rows are the last ``test_fraction`` of the rows in order of time.

    Every test hour is later than every train hour, as in use, where a model meets only hours that it has not seen. Both
    keep all columns, sorted by time, with a fresh index. Raises ParameterError unless 0 < ``test_fraction`` < 1, and
    DataError if either would be empty.
    """
    if not 0 < test_fraction < 1:
        raise ParameterError(
            "The share of rows to hold out cannot be used.",
            value=f"test_fraction {test_fraction}",
            expected="a number between 0 and 1, neither included",
            next_step="0.2 is a good start (in the pipeline: `test_fraction` in params.yaml)",
        )
    cut = math.floor(len(frame) * (1 - test_fraction))
    if not 0 < cut < len(frame):
        raise DataError(
            "There are too few rows to split.",
            value=f"{len(frame)} rows, {cut} to train on",
            expected="at least one row on either side",
            next_step="take more data or another test_fraction",
        )
    ordered = frame.sort_values("utc_timestamp", kind="stable", ignore_index=True)
    return ordered.iloc[:cut].copy(), ordered.iloc[cut:].reset_index(drop=True)


def by_alternate_weeks(held_out: DataFrame) -> tuple[DataFrame, DataFrame]:
    """Return validation and test: the rows of every other week, on which one chooses, and those of the weeks between.

    Which one a week belongs to follows from its date, and stays when hours are added. Raises DataError if either would
    be empty.
    """
    is_test = is_test_week(held_out["utc_timestamp"])
    if is_test.nunique() < 2:
        raise DataError(
            "Too few rows are held out for weeks to choose on and weeks to judge on.",
            value=f"{len(held_out)} rows",
            expected="at least a week each",
            next_step="take more data or another test_fraction",
        )
    return tuple(held_out[rows].reset_index(drop=True) for rows in (~is_test, is_test))


def is_test_week(stamps: Series) -> Series:
    """Return, for each UTC time of a column, whether its week is one to judge on, rather than to choose on."""
    return (mondays(stamps) - EPOCH).dt.days // 7 % 2 == 1


# -- weeks -------------------------------------------------------------------------------------------------------------
def select_week(frame: DataFrame, week: str) -> tuple[str, DataFrame]:
    """Return the name and the rows of one week of a processed table; it starts on Monday, 00:00 UTC.

    ``week`` is an ISO name, or `latest` for the last week that holds at least nine tenths of its hours. Raises
    ParameterError when there is no such week or no hour in it.
    """
    stamps = frame["utc_timestamp"]
    if week == "latest":
        counts = mondays(stamps).value_counts().sort_index()
        whole = counts[counts >= WHOLE_ENOUGH * WEEK_HOURS]
        week = name_of((whole if len(whole) else counts).index[-1])
    start = monday(week)
    rows = frame[(stamps >= start) & (stamps < start + timedelta(weeks=1))].reset_index(drop=True)
    if rows.empty:
        raise ParameterError(
            f"There are no hours in the week {week}.",
            value=f"the data run from {name_of(stamps.min())} to {name_of(stamps.max())}",
            next_step="name a week within, or `latest` (report.week in params.yaml)",
        )
    return week, rows


def monday(week: str) -> datetime:
    """Return the time at which a week starts; raise ParameterError for a name that is not a week's."""
    try:
        if not re.fullmatch(r"[0-9]{4}-W[0-9]{2}", week):
            raise ValueError
        start = datetime.strptime(f"{week}-1", "%G-W%V-%u").replace(tzinfo=UTC)
        start + timedelta(weeks=1)  # the last week of the calendar has no end
    except (ValueError, OverflowError):
        raise ParameterError("There is no such week.", value=week, expected="`latest`, or one like 2016-W40") from None
    return start


def name_of(moment: datetime) -> str:
    """Return the name of the week that a UTC time is in."""
    year, week, _ = moment.isocalendar()
    return f"{year:04}-W{week:02}"


def mondays(stamps: Series) -> Series:
    """Return, for each of a column of UTC times, the time at which its week starts."""
    return stamps.dt.normalize() - pd.to_timedelta(stamps.dt.day_of_week, unit="D")


def week_means(values: Series, stamps: Series) -> Series:
    """Return the means of an hourly column over weeks with at least nine tenths of their hours, by the weeks' starts.

    ``stamps`` are the hours of ``values``, in UTC, with the same index.
    """
    by_week = values.groupby(mondays(stamps))
    return by_week.mean()[by_week.size() >= WHOLE_ENOUGH * WEEK_HOURS]
