"""Installed capacity at the ends of years: what comes with the data, or else the published figures of Germany."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop.errors import DataError

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    from workshop.parameters import YearEnd

YearEnds = dict[str, dict[str, float]]  # GW by target, and by year: as text, which JSON and models keep as it is
_KEY = "capacity"

# GW on 31 December, rounded to 0.1; other statistics differ by up to 1 GW, by what they count and when it was reported.
# wind, on land and at sea: 2012 Deutsche WindGuard, press release of 30 January 2013 ("rund 31,3 GW"); 2013 Fraunhofer
# IWES, Windenergie Report Deutschland 2013 (33,658 + 521 MW); 2014 GWEC, as reported by Renewables Now in July 2015
# (39.17 GW); 2015 and 2016 Deutsche WindGuard, as reported by Strom-Report (44,947 and 50,018 MW).
# solar, subsidised plants: Bundesnetzagentur, as reported by PHOTON: 2014 (38.23 GW), 2015 (39.69 GW), 2016 (41.22 GW);
# 2012 and 2013 computed back from 2014 by what was added (1.89 GW in 2014, 3.3 GW in 2013).
YEAR_ENDS_GW: YearEnds = {
    "solar_GW": {"2012": 33.0, "2013": 36.3, "2014": 38.2, "2015": 39.7, "2016": 41.2},
    "wind_GW": {"2012": 31.3, "2013": 34.2, "2014": 39.2, "2015": 44.9, "2016": 50.0},
}


def mark(frame: DataFrame, year_ends: dict[int, YearEnd]) -> DataFrame:
    """Return ``frame`` with figures of its own (`fetch.csv.capacity`) in its attributes, which Parquet files keep."""
    marked = frame.copy(deep=False)
    own = {
        target: {str(year): getattr(year_ends[year], target) for year in sorted(year_ends)} for target in YEAR_ENDS_GW
    }
    marked.attrs = {**frame.attrs, _KEY: own}
    return marked


def of_frame(frame: DataFrame) -> YearEnds:
    """Return the figures that a frame carries; those of Germany if it carries none."""
    return frame.attrs.get(_KEY, YEAR_ENDS_GW)


def last_year(year_ends: YearEnds) -> int:
    """Return the last year whose end is known."""
    return min(max(map(int, ends)) for ends in year_ends.values())


def installed(stamps: Series, target: str, year_ends: YearEnds = YEAR_ENDS_GW) -> Series:
    """Return the capacity in GW that stood at each of the UTC times ``stamps``, between year-ends along a line.

    ``target`` is `solar_GW` or `wind_GW`. Raises DataError for times outside the years that ``year_ends`` holds.
    """
    import numpy as np
    import pandas as pd

    ends = {pd.Timestamp(int(year) + 1, 1, 1, tz="UTC"): value for year, value in year_ends[target].items()}
    first, last = min(ends), max(ends)
    outside = stamps[(stamps < first) | (stamps > last)]
    if len(outside):
        year = outside.iloc[0].year
        raise DataError(
            f"There is no figure of installed capacity for {len(outside)} of {len(stamps)} hours.",
            value=str(outside.iloc[0]),
            expected=f"{first:%Y-%m-%d} to {last:%Y-%m-%d}",
            next_step=f"give the figures at the ends of {year - 1} and {year}: fetch.csv.capacity in params.yaml,"
            " see 4_pipeline/own/README.md",
        )
    seconds = [(end - first).total_seconds() for end in ends]
    since = (stamps - first).dt.total_seconds()
    return pd.Series(np.interp(since, seconds, list(ends.values())), stamps.index, name=target)
