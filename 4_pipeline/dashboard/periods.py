"""Periods of whole days (UTC) within the data: chosen by hand, by an address, or the latest ones."""

from __future__ import annotations

from datetime import date, timedelta

import pandas as pd
from serving import Snapshot

Period = tuple[date, date] | tuple[None, None]  # the first and the last day; None twice as long as there is no data
DEFAULT_DAYS = 14
DAY = "%d %b %Y"


def whole(served: Snapshot) -> Period:
    """Return the first and the last day of the data."""
    if served.frame is None:
        return None, None
    stamps = served.frame["utc_timestamp"]
    return stamps.iloc[0].date(), stamps.iloc[-1].date()


def latest(served: Snapshot, length_days: int = DEFAULT_DAYS) -> Period:
    """Return the latest days of the data."""
    first, last = whole(served)
    return (None, None) if last is None else (max(first, last - timedelta(days=length_days - 1)), last)


def chosen(served: Snapshot, start: object, end: object) -> Period:
    """Return both days in order and within the data; the latest two weeks when one is absent or not a date."""
    first, last = whole(served)
    given = day(start), day(end)
    if first is None or None in given:
        return latest(served)
    start, end = sorted(min(max(one, first), last) for one in given)
    return start, end


def remark(served: Snapshot, start: object, end: object) -> str:
    """Return what of a wish for a period was changed, and why; empty when it was shown as asked for."""
    first, last = whole(served)
    given = day(start), day(end)
    if first is None or not (start or end):
        return ""
    if None in given:
        return f"“{str(end if given[0] else start)[:40]}” is not a date, so the latest days are shown."
    said = ["The last day was before the first; they were swapped."] if given[0] > given[1] else []
    if not all(first <= one <= last for one in given):
        said.append(f"The data go from {first:{DAY}} to {last:{DAY}}; days outside are left out.")
    return " ".join(said)


def moved(served: Snapshot, start: object, end: object, *, later: bool) -> Period:
    """Return the period of the same length that comes after (or before) the chosen one, within the data."""
    start, end = chosen(served, start, end)
    if start is None:
        return None, None
    first, last = whole(served)
    length = end - start
    step = length + timedelta(days=1)
    if later:
        end = min(end + step, last)
        return max(end - length, first), end
    start = max(start - step, first)
    return start, min(start + length, last)


def day(value: object) -> date | None:
    """Return the date that a text begins with; None if there is none."""
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError:
        return None


def rows_within(served: Snapshot, period: Period) -> pd.Index:
    """Return the index of the rows of the data in a period; empty when there is nothing to compare."""
    start, end = period
    if served.frame is None or served.predicted is None or start is None:
        return pd.Index([])
    ends = pd.Timestamp(start, tz="UTC"), pd.Timestamp(end, tz="UTC") + pd.Timedelta(days=1)
    return served.frame.index[slice(*served.frame["utc_timestamp"].searchsorted(ends))]
