"""Installed capacity of Germany, for tables that have none: published figures of the ends of five years."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop.errors import DataError

if TYPE_CHECKING:
    from pandas import Series

# GW on 31 December, rounded to 0.1; other statistics differ by up to 1 GW, by what they count and when it was reported.
# wind, on land and at sea: 2012 Deutsche WindGuard, press release of 30 January 2013 ("rund 31,3 GW"); 2013 Fraunhofer
# IWES, Windenergie Report Deutschland 2013 (33,658 + 521 MW); 2014 GWEC, as reported by Renewables Now in July 2015
# (39.17 GW); 2015 and 2016 Deutsche WindGuard, as reported by Strom-Report (44,947 and 50,018 MW).
# solar, subsidised plants: Bundesnetzagentur, as reported by PHOTON: 2014 (38.23 GW), 2015 (39.69 GW), 2016 (41.22 GW);
# 2012 and 2013 computed back from 2014 by what was added (1.89 GW in 2014, 3.3 GW in 2013).
YEAR_ENDS_GW: dict[str, dict[int, float]] = {
    "solar_GW": {2012: 33.0, 2013: 36.3, 2014: 38.2, 2015: 39.7, 2016: 41.2},
    "wind_GW": {2012: 31.3, 2013: 34.2, 2014: 39.2, 2015: 44.9, 2016: 50.0},
}


def installed(stamps: Series, target: str) -> Series:
    """Return the capacity in GW that stood at each of the UTC times ``stamps``, between year-ends along a line.

    ``target`` is `solar_GW` or `wind_GW`. Raises DataError for times outside the years that the table holds.
    """
    import numpy as np
    import pandas as pd

    ends = {pd.Timestamp(year + 1, 1, 1, tz="UTC"): value for year, value in YEAR_ENDS_GW[target].items()}
    first, last = min(ends), max(ends)
    outside = stamps[(stamps < first) | (stamps > last)]
    if len(outside):
        raise DataError(
            f"There is no figure of installed capacity for {len(outside)} of {len(stamps)} hours.",
            value=str(outside.iloc[0]),
            expected=f"{first:%Y-%m-%d} to {last:%Y-%m-%d}",
            next_step="add the year's published figure, with its source, to workshop/data/capacity.py",
        )
    seconds = [(end - first).total_seconds() for end in ends]
    since = (stamps - first).dt.total_seconds()
    return pd.Series(np.interp(since, seconds, list(ends.values())), stamps.index, name=target)
