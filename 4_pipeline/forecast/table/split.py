"""Training, validation and test rows, and weeks by their ISO 8601 names such as 2016-W40."""

from __future__ import annotations

import math
import re
from datetime import datetime
from zoneinfo import ZoneInfo

import pandas as pd
from pandas import DataFrame, Series

from forecast.terms import steps
from forecast.terms.errors import DataError, ParameterError

TEST_WEEKS = "test weeks"  # the name of the test set in the gate's history
EPOCH = pd.Timestamp("1970-01-05", tz="UTC")  # a Monday, from which the alternate weeks are counted
MIN_WEEK_ROWS = 0.9 * steps.A_WEEK  # minimum number of rows for a weekly mean or report


def split_by_time(frame: DataFrame, test_fraction: float) -> tuple[DataFrame, DataFrame]:
    """Return training and held-out rows: the last ``test_fraction`` of the rows, in time order, is held out.

    As in production, a model is evaluated on rows later than its training rows. Both frames are sorted by time, with a
    new index. Raises ParameterError unless 0 < ``test_fraction`` < 1, and DataError if either part would be empty.
    """
    if not 0 < test_fraction < 1:
        raise ParameterError(
            "Invalid test_fraction.",
            value=f"test_fraction {test_fraction}",
            expected="a number between 0 and 1, exclusive",
            next_step="try 0.2 (in the pipeline: `test_fraction` in params.yaml)",
        )
    cut = math.floor(len(frame) * (1 - test_fraction))
    if not 0 < cut < len(frame):
        raise DataError(
            "There are too few rows to split.",
            value=f"{len(frame)} rows, {cut} of them for training",
            expected="at least one row in each part",
            next_step="use more data or another test_fraction",
        )
    ordered = frame.sort_values("utc_timestamp", kind="stable", ignore_index=True)
    return ordered.iloc[:cut].copy(), ordered.iloc[cut:].reset_index(drop=True)


def by_alternate_weeks(held_out: DataFrame) -> tuple[DataFrame, DataFrame]:
    """Return validation rows (to choose a model) and test rows (to evaluate that model), from alternate weeks.

    Whether a week is a test week depends only on its date, so new rows do not change the split. Raises DataError if
    either part would be empty.
    """
    is_test = is_test_week(held_out["utc_timestamp"])
    if is_test.nunique() < 2:
        raise DataError(
            "There are too few held-out rows for validation and test weeks.",
            value=f"{len(held_out)} rows",
            expected="rows in at least one validation week and one test week",
            next_step="use more data or a larger test_fraction",
        )
    return tuple(held_out[rows].reset_index(drop=True) for rows in (~is_test, is_test))


def is_test_week(stamps: Series) -> Series:
    """Return whether each UTC time is in a test week rather than in a validation week."""
    return (
        mondays(stamps) + steps.DAY / 2 - EPOCH
    ).dt.days // 7 % 2 == 1  # counted from noon: local midnight may be on another date in UTC


# -- weeks -------------------------------------------------------------------------------------------------------------
def select_week(frame: DataFrame, week: str) -> tuple[str, DataFrame]:
    """Return the name and the rows of a week, which starts on Monday at 00:00 in `steps.CALENDAR`.

    ``week`` is an ISO name, or `latest` for the last week with at least nine tenths of its rows. Raises ParameterError
    for an invalid week and for a week without rows.
    """
    stamps = frame["utc_timestamp"]
    if week == "latest":
        counts = mondays(stamps).value_counts().sort_index()
        complete = counts[counts >= MIN_WEEK_ROWS]
        week = name_of((complete if len(complete) else counts).index[-1])
    start = monday(week)
    rows = frame[(stamps >= start) & (stamps < start + steps.WEEK)].reset_index(drop=True)
    if rows.empty:
        raise ParameterError(
            f"The data have no {steps.NAMES} in week {week}.",
            value=f"the data are from {name_of(stamps.min())} to {name_of(stamps.max())}",
            next_step="choose a week in this range, or `latest` (report.week in params.yaml)",
        )
    return week, rows


def monday(week: str) -> datetime:
    """Return the start of a week; raise ParameterError for an invalid name."""
    try:
        if not re.fullmatch(r"[0-9]{4}-W[0-9]{2}", week):
            raise ValueError
        start = datetime.strptime(f"{week}-1", "%G-W%V-%u").replace(tzinfo=ZoneInfo(steps.CALENDAR))
        start + steps.WEEK  # raises OverflowError for the last week of year 9999
    except (ValueError, OverflowError):
        raise ParameterError("Invalid week.", value=week, expected="`latest`, or a week like 2016-W40") from None
    return start


def name_of(moment: datetime) -> str:
    """Return the ISO name of the week that contains ``moment``."""
    year, week, _ = moment.astimezone(ZoneInfo(steps.CALENDAR)).isocalendar()
    return f"{year:04}-W{week:02}"


def mondays(stamps: Series) -> Series:
    """Return the start (UTC) of the week that contains each time."""
    days = steps.local(stamps).dt.tz_localize(None).dt.normalize()
    starts = days - pd.to_timedelta(days.dt.day_of_week, unit="D")
    return Series(steps.begin(pd.DatetimeIndex(starts), steps.CALENDAR), stamps.index, name=stamps.name)


def week_means(values: Series, stamps: Series) -> Series:
    """Return the mean of each week with at least nine tenths of its rows, indexed by the start of the week.

    ``stamps`` are the times of ``values`` in UTC, with the same index.
    """
    by_week = values.groupby(mondays(stamps))
    return by_week.mean()[by_week.size() >= MIN_WEEK_ROWS]
