"""Periods of whole days (UTC) within the data: chosen by hand, by an address, or the latest ones."""

from __future__ import annotations

from datetime import date, timedelta

import pandas as pd
from serving import Served

Period = tuple[date, date] | tuple[None, None]  # the first and the last day; None twice as long as there is no data
DEFAULT_DAYS = 14


def days(served: Served) -> Period:
    """Return the first and the last day of the data."""
    if served.frame is None:
        return None, None
    stamps = served.frame["utc_timestamp"]
    return stamps.iloc[0].date(), stamps.iloc[-1].date()


def latest(served: Served, length_days: int = DEFAULT_DAYS) -> Period:
    """Return the latest days of the data."""
    first, last = days(served)
    if last is None:
        return None, None
    return max(first, last - timedelta(days=length_days - 1)), last


def chosen(served: Served, start: object, end: object) -> Period:
    """Return both days in order and within the data; the latest two weeks when one is absent or no date."""
    first, last = days(served)
    given = day(start), day(end)
    if first is None or None in given:
        return latest(served)
    start, end = sorted(min(max(one, first), last) for one in given)
    return start, end


def moved(served: Served, start: object, end: object, *, later: bool) -> Period:
    """Return the period of the same length that comes after (or before) the chosen one, within the data."""
    start, end = chosen(served, start, end)
    if start is None:
        return start, end
    first, last = days(served)
    length = end - start
    if later:
        end = min(end + length + timedelta(days=1), last)
        return max(end - length, first), end
    start = max(start - length - timedelta(days=1), first)
    return start, min(start + length, last)


def day(value: object) -> date | None:
    """Return the date that a text begins with; None if it is none."""
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError:
        return None


def hours(served: Served, period: Period) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Return the rows of the data in a period and the predictions for them; None when there is nothing to compare."""
    start, end = period
    if served.frame is None or served.predicted is None or start is None:
        return None
    ends = pd.Timestamp(start, tz="UTC"), pd.Timestamp(end, tz="UTC") + pd.Timedelta(days=1)
    within = slice(*served.frame["utc_timestamp"].searchsorted(ends))
    rows = served.frame.iloc[within], served.predicted.iloc[within]
    return None if rows[0].empty else rows


def band(served: Served, rows: pd.Index) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Return both ends of the error band in some rows of the data; None when the model has none."""
    return None if served.band is None else tuple(end.loc[rows] for end in served.band)
