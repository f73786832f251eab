"""The step between the rows of a processed table (`problem.STEP`): its length, grid, calendar and names.

A row's timestamp is the start of its step, in UTC. Steps shorter than a day divide a UTC day; daily steps are
calendar days in `problem.ZONE`, 23 to 25 hours long.
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
CALENDAR = ZONE if IS_DAY else "UTC"  # the time zone of days, weeks and years


def _length() -> Timedelta:
    length = Timedelta(0)
    with contextlib.suppress(ValueError, TypeError):
        length = DAY if IS_DAY else Timedelta(to_offset(STEP))
    if length <= Timedelta(0) or DAY % length:
        expected = "a divisor of a day, such as 15min, 30min or h; or D for a day"
        raise ParameterError(
            "Invalid step.", value=STEP, expected=expected, next_step="correct STEP in forecast/problem.py"
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
    """Return the timestamps of all steps from ``first`` to ``last``, inclusive, in the time zone of ``first``."""
    if not IS_DAY:
        return pd.date_range(first, last, freq=to_offset(STEP), unit="us")
    dates = (moment.tz_convert(ZONE).tz_localize(None).normalize() for moment in (first, last))
    return begin(pd.date_range(*dates, unit="us")).tz_convert(first.tz)


def of_days(first: object, end: object) -> DatetimeIndex:
    """Return the timestamps (UTC) of all steps from the date ``first`` up to, but not including, the date ``end``."""
    return grid(*(Timestamp(day, tz=CALENDAR).tz_convert("UTC") for day in (first, end)))[:-1]


def begin(dates: DatetimeIndex, zone: str | tzinfo | None = ZONE) -> DatetimeIndex:
    """Return the start of each date, in UTC; if the clock skips or repeats midnight, the first moment of the date."""
    is_first = np.ones(len(dates), bool)
    return dates.tz_localize(zone, ambiguous=is_first, nonexistent="shift_forward").tz_convert("UTC")


def local(stamps: Series) -> Series:
    """Convert a column of UTC times to the calendar's time zone."""
    return stamps.dt.tz_convert(CALENDAR)


def starts(stamps: Series, later: int = 0) -> Series:
    """Return the start of the step that contains each time, or of the ``later``-th step after it."""
    if not IS_DAY:
        return stamps.dt.floor(STEP) + later * LENGTH
    dates = DatetimeIndex(stamps).tz_convert(ZONE).tz_localize(None).normalize() + later * DAY
    return Series(begin(dates), stamps.index)


def hours(stamps: Series) -> Series:
    """Return the length in hours of each step that starts at ``stamps``."""
    return (starts(stamps, later=1) - stamps) / HOUR


def date(stamp: Timestamp | str) -> str:
    """Return the date of a step for display: `31 Dec 2016`."""
    return f"{Timestamp(stamp).tz_convert(CALENDAR):%d %b %Y}"


def written(stamp: Timestamp, date: str = "%Y-%m-%d", time: str = " %H:%M") -> str:
    """Return the start of a step for display, in the calendar's time zone; without a time if the step is a day."""
    return stamp.tz_convert(CALENDAR).strftime(date + time * (not IS_DAY))
