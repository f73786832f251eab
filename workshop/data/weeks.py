"""Weeks of an hourly frame, by their ISO 8601 names such as 2016-W40; each begins on Monday, 00:00 UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from workshop.errors import ParameterError

if TYPE_CHECKING:
    from pandas import DataFrame, Series

HOURS = 168
WHOLE_ENOUGH = 0.9  # a week with fewer of its hours is no basis for a report
MOST_WEEKS = 2000


def select_week(frame: DataFrame, week: str) -> tuple[str, DataFrame]:
    """Return the name and the rows of one week of a processed frame.

    ``week`` is an ISO name, or `latest` for the last week that holds at least nine tenths of its hours. Raises
    ParameterError when there is no such week or no hour in it.
    """
    name = _latest(frame) if week == "latest" else week
    start = monday(name)
    stamps = frame["utc_timestamp"]
    rows = frame[(stamps >= start) & (stamps < start + timedelta(weeks=1))].reset_index(drop=True)
    if rows.empty:
        raise ParameterError(
            f"There are no hours in the week {name}.",
            value=f"the data run from {name_of(stamps.min())} to {name_of(stamps.max())}",
            next_step="name a week within, or `latest` (report.week in params.yaml)",
        )
    return name, rows


def monday(week: str) -> datetime:
    """Return the moment at which a week begins; raises ParameterError for what is no week's name."""
    if not re.fullmatch(r"[0-9]{4}-W[0-9]{2}", week):
        raise ParameterError("A week needs a name.", value=repr(week), expected="`latest`, or one like 2016-W40")
    try:
        start = datetime.strptime(f"{week}-1", "%G-W%V-%u").replace(tzinfo=UTC)
        start + timedelta(weeks=1)  # the last week of the calendar has no end
    except (ValueError, OverflowError):
        raise ParameterError(
            "There is no such week.", value=week, expected="a year and a week from W01 to W52 or W53"
        ) from None
    return start


def name_of(moment: datetime) -> str:
    """Return the name of the week that a UTC time lies in."""
    year, week, _ = moment.isocalendar()
    return f"{year:04}-W{week:02}"


def mondays(stamps: Series) -> Series:
    """Return, for each of a column of UTC times, the moment at which its week begins."""
    import pandas as pd

    return stamps.dt.normalize() - pd.to_timedelta(stamps.dt.day_of_week, unit="D")


def whole_means(values: Series, stamps: Series) -> Series:
    """Return the means of an hourly column over weeks, by their beginnings; weeks that are not whole enough have none.

    ``stamps`` are the hours of ``values``, in UTC, with the same index.
    """
    by_week = values.groupby(mondays(stamps))
    return by_week.mean()[by_week.size() >= WHOLE_ENOUGH * HOURS]


def names(frame: DataFrame) -> list[str]:
    """Return the names of all weeks that a processed frame has hours of, the first one first."""
    return [name_of(start) for start in mondays(frame["utc_timestamp"]).drop_duplicates()]


def between(weeks: str) -> list[str]:
    """Return the names of the weeks from the first to the last of `FROM..TO`, both included.

    Raises ParameterError: no two names, the wrong way round, more than 2000 weeks.
    """
    first, dots, last = weeks.partition("..")
    if not dots:
        raise ParameterError(
            "Weeks need a first and a last one.", value=repr(weeks), expected="FROM..TO, such as 2016-W38..2016-W41"
        )
    start, end = monday(first), monday(last)
    count = (end - start).days // 7 + 1
    if not 0 < count <= MOST_WEEKS:
        raise ParameterError(
            "These weeks cannot be listed.",
            value=weeks,
            expected=f"the earlier week first, and at most {MOST_WEEKS} weeks",
        )
    return [name_of(start + timedelta(weeks=number)) for number in range(count)]


def _latest(frame: DataFrame) -> str:
    counts = mondays(frame["utc_timestamp"]).value_counts().sort_index()
    whole = counts[counts >= WHOLE_ENOUGH * HOURS]
    return name_of((whole if len(whole) else counts).index[-1])
