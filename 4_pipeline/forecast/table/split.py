"""Parts of time: the rows to train on and the rows held out, and weeks by their ISO 8601 names such as 2016-W40."""

from __future__ import annotations

import math
import re
from datetime import datetime
from zoneinfo import ZoneInfo

import pandas as pd
from pandas import DataFrame, Series

from forecast.terms import steps
from forecast.terms.errors import DataError, ParameterError

TEST_WEEKS = "test weeks"  # what the record calls the weeks to judge on
EPOCH = pd.Timestamp("1970-01-05", tz="UTC")  # a Monday
WHOLE = 0.9 * steps.A_WEEK  # rows: a week with fewer is no basis for a report


def split_by_time(frame: DataFrame, test_fraction: float) -> tuple[DataFrame, DataFrame]:
    """Return train and test: the test rows are the last ``test_fraction`` of the rows in order of time.

    Every test row is later than every train row, as in use, where a model meets only what it has not seen. Both
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

    Which one a week belongs to follows from its date, and stays when rows are added. Raises DataError if either would
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
    return (mondays(stamps) + steps.DAY / 2 - EPOCH).dt.days // 7 % 2 == 1  # half a day: midnight is another one in UTC


# -- weeks -------------------------------------------------------------------------------------------------------------
def select_week(frame: DataFrame, week: str) -> tuple[str, DataFrame]:
    """Return the name and the rows of one week of a processed table; it starts on Monday, 00:00 of `steps.CALENDAR`.

    ``week`` is an ISO name, or `latest` for the last week that holds at least nine tenths of its rows. Raises
    ParameterError when there is no such week or no row in it.
    """
    stamps = frame["utc_timestamp"]
    if week == "latest":
        counts = mondays(stamps).value_counts().sort_index()
        whole = counts[counts >= WHOLE]
        week = name_of((whole if len(whole) else counts).index[-1])
    start = monday(week)
    rows = frame[(stamps >= start) & (stamps < start + steps.WEEK)].reset_index(drop=True)
    if rows.empty:
        raise ParameterError(
            f"There are no {steps.NAMES} in the week {week}.",
            value=f"the data run from {name_of(stamps.min())} to {name_of(stamps.max())}",
            next_step="name a week within, or `latest` (report.week in params.yaml)",
        )
    return week, rows


def monday(week: str) -> datetime:
    """Return the time at which a week starts; raise ParameterError for a name that is not a week's."""
    try:
        if not re.fullmatch(r"[0-9]{4}-W[0-9]{2}", week):
            raise ValueError
        start = datetime.strptime(f"{week}-1", "%G-W%V-%u").replace(tzinfo=ZoneInfo(steps.CALENDAR))
        start + steps.WEEK  # the last week of the calendar has no end
    except (ValueError, OverflowError):
        raise ParameterError("There is no such week.", value=week, expected="`latest`, or one like 2016-W40") from None
    return start


def name_of(moment: datetime) -> str:
    """Return the name of the week that a time is in."""
    year, week, _ = moment.astimezone(ZoneInfo(steps.CALENDAR)).isocalendar()
    return f"{year:04}-W{week:02}"


def mondays(stamps: Series) -> Series:
    """Return, for each of a column of UTC times, the time (UTC) at which its week starts."""
    days = steps.local(stamps).dt.tz_localize(None).dt.normalize()
    starts = days - pd.to_timedelta(days.dt.day_of_week, unit="D")
    return Series(steps.begin(pd.DatetimeIndex(starts), steps.CALENDAR), stamps.index, name=stamps.name)


def week_means(values: Series, stamps: Series) -> Series:
    """Return the means of a column over weeks with at least nine tenths of their rows, by the weeks' starts.

    ``stamps`` are the times of ``values``, in UTC, with the same index.
    """
    by_week = values.groupby(mondays(stamps))
    return by_week.mean()[by_week.size() >= WHOLE]
