"""Which hours there are, year by year, and why the others are not: counts of what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame, DatetimeIndex, Series

STAMP = "%Y-%m-%dT%H:%M:%SZ"


def by_year(tables: Mapping[str, DataFrame], kept: DataFrame, hours: DatetimeIndex) -> dict[str, dict[str, Any]]:
    """Return for each year how many hours were expected and kept, and why the others were not; it can be JSON.

    ``tables`` are the raw ones by name, with `utc_timestamp` and columns of numbers, ``kept`` is the processed frame
    made of them, ``hours`` are all that were wanted. By table: rows `doubled` and hours `absent`; by column: hours
    `incomplete`, of those that the table has. An hour may lack for more than one reason. A gap is a run of hours that
    are not in ``kept``; `longest_gap_from` is its first hour, or None.
    """
    import pandas as pd

    years = range(hours[0].year, hours[-1].year + 1)
    present = pd.Series(hours.isin(kept["utc_timestamp"]), hours)
    doubled, absent, incomplete = {}, {}, {}
    for name, table in tables.items():
        within = table[table["utc_timestamp"].isin(hours)]
        twice = within["utc_timestamp"].duplicated()
        once = within[~twice].set_index("utc_timestamp")
        doubled[name] = _count(within["utc_timestamp"][twice].dt.year, years)
        absent[name] = _count(hours[~hours.isin(once.index)].year, years)
        incomplete |= {column: _count(once.index[once[column].isna()].year, years) for column in once}
    return {
        str(year): {
            "hours_expected": len(there),
            "hours_kept": int(there.sum()),
            **_gaps(there),
            "doubled": {name: counts[year] for name, counts in doubled.items()},
            "absent": {name: counts[year] for name, counts in absent.items()},
            "incomplete": {column: counts[year] for column, counts in incomplete.items()},
        }
        for year, there in present.groupby(hours.year)
    }


def left_out(findings: Mapping[str, Any]) -> dict[str, int]:
    """Return how often rows or hours were left out, by reason in words, from the findings of `prepare.prepare`.

    Reasons that never occurred are not named; an hour can have more than one.
    """
    reasons = {
        **{f"absent from {name}": count for name, count in findings["absent"].items()},
        **{f"without {column}": count for column, count in findings["incomplete"].items()},
        **{f"doubled in {name}": count for name, count in findings["doubled"].items()},
        **{f"of other years in {name}": count for name, count in findings["outside_years"].items()},
        **{f"{kind} at a clock change": count for kind, count in findings.get("clock_changes", {}).items()},
    }
    return {reason: count for reason, count in reasons.items() if count}


def in_words(findings: Mapping[str, Any]) -> str:
    """Return in a line how many hours were kept, and what was left out and why."""
    kept = f"{findings['hours_kept']:,} of {findings['hours_expected']:,} hours kept"
    reasons = [f"{reason} {count:,}" for reason, count in left_out(findings).items()]
    return f"{kept}; left out: {', '.join(reasons)}" if reasons else f"{kept}; nothing left out"


def missing_by_month(frame: DataFrame, first_year: int, last_year: int) -> DataFrame:
    """Return how many hours each month lacks: a row a year, columns 1 to 12."""
    import pandas as pd

    hours = pd.date_range(f"{first_year}-01-01", f"{last_year + 1}-01-01", freq="h", tz="UTC", inclusive="left")
    lacks = pd.Series(~hours.isin(frame["utc_timestamp"]), hours)
    return lacks.groupby([hours.year, hours.month]).sum().unstack()


def runs(same: Series) -> DataFrame:
    """Return the runs of equal values in ``same``: `value`, `first` (its index) and `hours`; missing ones are none."""
    import pandas as pd

    begins = same.ne(same.shift()) & same.notna()
    number = begins.cumsum().where(same.notna())
    sizes = number.value_counts(sort=False).sort_index()
    return pd.DataFrame({"value": same[begins].to_numpy(), "first": same.index[begins], "hours": sizes.to_numpy()})


def _gaps(there: Series) -> dict[str, Any]:
    gaps = runs(there)
    gaps = gaps[~gaps["value"].astype(bool)]
    longest = gaps.loc[gaps["hours"].idxmax()] if len(gaps) else None
    return {
        "gaps": len(gaps),
        "longest_gap_hours": 0 if longest is None else int(longest["hours"]),
        "longest_gap_from": None if longest is None else longest["first"].strftime(STAMP),
    }


def _count(years_of_rows, years: range) -> dict[int, int]:
    import pandas as pd

    counts = pd.Series(years_of_rows).value_counts()
    return {year: int(counts.get(year, 0)) for year in years}
