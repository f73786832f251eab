"""The step of time between the rows of a processed table, `problem.STEP`: its length, grid, calendar and words.

A row is named by the start of its step, in UTC. Steps shorter than a day divide a day of UTC; a day is one of
`problem.ZONE`, 23 to 25 hours long.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta, tzinfo

import numpy as np
import pandas as pd
from pandas import DatetimeIndex, Series, Timedelta, Timestamp
from pandas.tseries.frequencies import to_offset

from forecast.problem import STEP, ZONE
from forecast.terms.errors import ParameterError

HOUR, DAY, WEEK = Timedelta(hours=1), Timedelta(days=1), timedelta(weeks=1)
IS_DAY = STEP == "D"
CALENDAR = ZONE if IS_DAY else "UTC"  # of days, weeks and years


def _length() -> Timedelta:
    length = Timedelta(0)
    with contextlib.suppress(ValueError, TypeError):
        length = DAY if IS_DAY else Timedelta(to_offset(STEP))
    if length <= Timedelta(0) or DAY % length:
        expected = "what divides a day, such as 15min, 30min or h, or a day, D"
        raise ParameterError(
            "The step of time cannot be used.", value=STEP, expected=expected, next_step="STEP in problem.py"
        )
    return length


LENGTH = _length()
HOURS = LENGTH / HOUR
A_DAY = round(DAY / LENGTH)
A_WEEK, A_MONTH, A_YEAR = 7 * A_DAY, 28 * A_DAY, 365 * A_DAY
NAME = {"h": "hour", "D": "day", "30min": "half hour", "15min": "quarter hour"}.get(STEP, "step")
NAMES, ONE = f"{NAME}s", f"{'an' if NAME == 'hour' else 'a'} {NAME}"
OFTEN = {"h": "hourly", "D": "daily", "30min": "half-hourly", "15min": "quarter-hourly"}.get(STEP, f"every {STEP}")


def grid(first: Timestamp, last: Timestamp) -> DatetimeIndex:
    """Return the starts of all steps from ``first`` to ``last``, both included, in their zone."""
    if not IS_DAY:
        return pd.date_range(first, last, freq=to_offset(STEP), unit="us")
    dates = (moment.tz_convert(ZONE).tz_localize(None).normalize() for moment in (first, last))
    return begin(pd.date_range(*dates, unit="us")).tz_convert(first.tz)


def of_days(first: object, end: object) -> DatetimeIndex:
    """Return the starts (UTC) of all steps of the calendar's days from ``first`` to before ``end``, both dates."""
    return grid(*(Timestamp(day, tz=CALENDAR).tz_convert("UTC") for day in (first, end)))[:-1]


def begin(dates: DatetimeIndex, zone: str | tzinfo | None = ZONE) -> DatetimeIndex:
    """Return when days begin in UTC: where the clock changes at midnight, at the first moment of that date."""
    is_first = np.ones(len(dates), bool)
    return dates.tz_localize(zone, ambiguous=is_first, nonexistent="shift_forward").tz_convert("UTC")


def local(stamps: Series) -> Series:
    """Return a column of UTC times in the time of the calendar."""
    return stamps.dt.tz_convert(CALENDAR)


def starts(stamps: Series, later: int = 0) -> Series:
    """Return, for each of a column of UTC times, the start of its step, or of one so many steps ``later``."""
    if not IS_DAY:
        return stamps.dt.floor(STEP) + later * LENGTH
    dates = DatetimeIndex(stamps).tz_convert(ZONE).tz_localize(None).normalize() + later * DAY
    return Series(begin(dates), stamps.index)


def hours(stamps: Series) -> Series:
    """Return the length in hours of each of the steps that start at ``stamps``."""
    return (starts(stamps, later=1) - stamps) / HOUR


def date(stamp: Timestamp | str) -> str:
    """Return the day that a step is in, for people: `31 Dec 2016`."""
    return f"{Timestamp(stamp).tz_convert(CALENDAR):%d %b %Y}"


def written(stamp: Timestamp, date: str = "%Y-%m-%d", time: str = " %H:%M") -> str:
    """Return the start of a step for people, in the time of the calendar; of a day without a time."""
    return stamp.tz_convert(CALENDAR).strftime(date + time * (not IS_DAY))
