"""Weeks of an hourly frame, by their ISO 8601 names such as 2016-W40."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from workshop.errors import ParameterError

if TYPE_CHECKING:
    from pandas import DataFrame

HOURS = 168
WHOLE_ENOUGH = 0.9  # a week with fewer of its hours is no basis for a report


def select_week(frame: DataFrame, week: str) -> tuple[str, DataFrame]:
    """Return the name and the rows of one week of a processed frame; it begins on Monday, 00:00 UTC.

    ``week`` is an ISO name, or `latest` for the last week that holds at least nine tenths of its hours. Raises
    ParameterError when there is no such week or no hour in it.
    """
    name = _latest(frame) if week == "latest" else week
    start = _start(name)
    stamps = frame["utc_timestamp"]
    rows = frame[(stamps >= start) & (stamps < start + timedelta(weeks=1))].reset_index(drop=True)
    if rows.empty:
        raise ParameterError(
            f"There are no hours in the week {name}.",
            value=f"the data run from {stamps.min():%G-W%V} to {stamps.max():%G-W%V}",
            next_step="name a week within, or `latest` (report.week in params.yaml)",
        )
    return name, rows


def _latest(frame: DataFrame) -> str:
    counts = frame["utc_timestamp"].dt.strftime("%G-W%V").value_counts().sort_index()
    whole = counts[counts >= WHOLE_ENOUGH * HOURS]
    return (whole if len(whole) else counts).index[-1]


def _start(week: str) -> datetime:
    if not re.fullmatch(r"\d{4}-W\d{2}", week):
        raise ParameterError("A week needs a name.", value=repr(week), expected="`latest`, or one like 2016-W40")
    try:
        return datetime.strptime(f"{week}-1", "%G-W%V-%u").replace(tzinfo=UTC)
    except ValueError:
        raise ParameterError(
            "There is no such week.", value=week, expected="a year and a week from W01 to W52 or W53"
        ) from None
