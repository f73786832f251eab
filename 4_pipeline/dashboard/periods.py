"""Periods of whole days (time zone `steps.CALENDAR`) in the data: from the user, from a URL, or the latest."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pandas as pd
from forecast.terms import steps

from .follower import Comparison, Snapshot

Period = tuple[Any, Any]  # dates of the first and the last day; both None without data
DEFAULT_DAYS = 14
DAY = "%d %b %Y"


def full(snapshot: Snapshot) -> Period:
    """Return the first and the last day of the data."""
    if snapshot.frame is None:
        return None, None
    first, last = steps.local(snapshot.frame["utc_timestamp"].iloc[[0, -1]])
    return first.date(), last.date()


def latest(snapshot: Snapshot, length_days: int = DEFAULT_DAYS) -> Period:
    """Return the period of the last ``length_days`` days of the data."""
    first, last = full(snapshot)
    return (None, None) if last is None else (max(first, last - timedelta(days=length_days - 1)), last)


def adjust(snapshot: Snapshot, start: object, end: object) -> tuple[Period, str]:
    """Return the requested period, ordered and clipped to the data, and a note about any adjustment.

    If either day is missing or invalid, the period is the latest two weeks.
    """
    first, last = full(snapshot)
    days = parse_day(start), parse_day(end)
    if first is None or not (start or end):
        return latest(snapshot), ""
    if days[0] is None or days[1] is None:
        invalid = end if days[0] else start
        what = f"“{str(invalid)[:40]}” is not a date" if invalid else "The first or the last day is missing"
        return latest(snapshot), f"{what}, so the latest two weeks are shown."
    notes = ["The last day was before the first, so the two were swapped."] if days[0] > days[1] else []
    if not all(first <= each <= last for each in days):
        notes.append(f"The data cover {first:{DAY}} to {last:{DAY}}; days outside this period are left out.")
    start, end = sorted(min(max(each, first), last) for each in (days[0], days[1]))
    return (start, end), " ".join(notes)


def parse_day(value: object) -> date | None:
    """Return the ISO date that a string starts with; None if it does not start with one."""
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError:
        return None


def comparison_of(snapshot: Snapshot, period: Period) -> Comparison | None:
    """Return the comparison of predicted and measured values in a period; None without rows or predictions."""
    if snapshot.comparison is None or snapshot.frame is None:
        return None
    ends = [pd.Timestamp(day, tz=steps.CALENDAR) for day in (period[0], period[1] + timedelta(days=1))]
    rows = snapshot.frame.index[slice(*snapshot.frame["utc_timestamp"].searchsorted(ends))]
    return None if rows.empty else snapshot.comparison.at(rows)
