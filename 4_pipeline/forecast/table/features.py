"""Inputs and targets of the models, derived features, and installed capacity."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
from pandas import DataFrame, DatetimeIndex, Series

from forecast import problem
from forecast.problem import DERIVED
from forecast.table.schema import CAPACITIES, FEATURES, STAMP, TARGETS
from forecast.terms import steps
from forecast.terms.errors import DataError, require_columns
from forecast.terms.quantities import YearEnds

INPUTS = ["utc_timestamp", *FEATURES]
GIVE_CAPACITY = (
    "make the table with these columns: python -m forecast csv FILE; for your own file, set fetch.csv.capacity in"
    " params.yaml (see own/README.md)"
)
LATER_YEARS = 2  # number of years for which the last known capacity is assumed to hold


def features(frame: DataFrame) -> DataFrame:
    """Return the weather features (units: `schema.UNITS`) as float64; raise DataError if one is missing."""
    return _select(frame, FEATURES)


def targets(frame: DataFrame) -> DataFrame:
    """Return the targets as float64; raise DataError if one is missing."""
    return _select(frame, TARGETS)


def inputs(frame: DataFrame) -> DataFrame:
    """Return the inputs of a model that uses the time: timestamps, weather features and, if present, `CAPACITIES`.

    Timestamps are naive UTC (datetime64[us]): model signatures have no timezone-aware type. Raises DataError for a
    missing column or an invalid time.
    """
    weather = features(frame)
    require_columns(frame.columns, INPUTS, "The frame")
    stamps = to_utc(frame["utc_timestamp"]).tz_localize(None)
    capacities = frame[frame.columns.intersection(list(CAPACITIES.values()))]
    return pd.concat([Series(stamps, frame.index, name="utc_timestamp"), weather, capacities], axis="columns")


def derive(frame: DataFrame) -> DataFrame:
    """Return the derived features (`problem.DERIVED`) of each row.

    The features of a row depend only on that row, so that a model can predict a single row. The sun's position is taken
    at the middle of the step. Raises DataError for a missing column or an invalid time.
    """
    weather = features(frame)
    require_columns(frame.columns, INPUTS, "The frame")
    stamps = to_utc(frame["utc_timestamp"])
    sun = sun_position(stamps)
    rows = weather.assign(utc_timestamp=stamps, **{f"sun_{name}": sun[name].to_numpy() for name in sun})
    return rows.assign(**problem.COMPUTED)[DERIVED]


def check_derived(frame: DataFrame) -> None:
    """Raise DataError if a row's derived features depend on other rows; checks a random sample of up to twenty rows."""
    rows = frame.sample(min(20, len(frame)), random_state=0)
    whole, alone = derive(frame).loc[rows.index], pd.concat([derive(rows.loc[[row]]) for row in rows.index])
    for row, column in np.argwhere(~np.isclose(alone, whole, equal_nan=True)):
        values = f"{whole.iat[row, column]:.10g} in the table, {alone.iat[row, column]:.10g} alone"
        raise DataError(
            f"The column {whole.columns[column]} of COMPUTED in forecast/problem.py depends on other rows.",
            value=f"{rows['utc_timestamp'].iloc[row]:{STAMP}}: {values}",
            expected="the same value, since a model may predict a single row",
            next_step="compute it from the row alone, or add it to your file with a script in own/ (see own/README.md)",
        )


def sun_is_up(derived: DataFrame) -> np.ndarray:
    """Return whether the sun is up in each row returned by `derive`; all False without the feature `sun_elevation`."""
    return derived["sun_elevation"].to_numpy() > 0 if "sun_elevation" in derived else np.zeros(len(derived), bool)


def sun_position(stamps: DatetimeIndex, share: float = 0.5) -> DataFrame:
    """Return the sun's `elevation` and `azimuth` (degrees) at `problem.MIDDLE`; ``share`` 0.5 is the middle of a step.

    `ephemeris` is accurate to 0.01 degrees, and ten times as fast as pvlib's most accurate algorithm.
    """
    from pvlib.solarposition import ephemeris

    return ephemeris(stamps + share * steps.LENGTH, *problem.MIDDLE)[["elevation", "azimuth"]]


def to_utc(stamps: Series) -> DatetimeIndex:
    """Convert times to UTC; naive times are UTC, text is ISO 8601. Raise DataError for other values."""
    is_time = isinstance(stamps.dtype, pd.DatetimeTZDtype) or stamps.dtype.kind == "M"
    try:
        text = stamps if is_time else stamps.astype("str")
        times = DatetimeIndex(pd.to_datetime(text, utc=True, format=None if is_time else "ISO8601"))
        if times.hasnans:
            raise ValueError(f"{times.isna().sum()} of {len(times)} times are missing")
    except ValueError as error:
        raise DataError(
            "The column utc_timestamp has an invalid time.",
            value=str(error).splitlines()[0],
            expected=f"the start of {steps.ONE} in UTC, such as 2016-06-01T12:00:00Z",
        ) from None
    return times


def _select(frame: DataFrame, columns: list[str]) -> DataFrame:
    require_columns(frame.columns, columns, "The frame")
    return frame[columns].astype("float64")


# -- installed capacity ------------------------------------------------------------------------------------------------
def capacity_factors(frame: DataFrame) -> DataFrame:
    """Return the targets divided by the installed capacity; raise the errors of `installed`."""
    return targets(frame) / installed(frame)


def installed(frame: DataFrame, year_ends: YearEnds | None = None) -> DataFrame:
    """Return each row's installed capacity, with columns `TARGETS`; 1 for a target that is not divided by capacity.

    The values come from the columns `CAPACITIES` or, where these are missing, from ``year_ends`` (`add_capacity`).
    Raises DataError if a column or a value is missing.
    """
    if year_ends is None:
        columns = {target: CAPACITIES[target] for target in problem.CAPACITY}
        require_columns(frame.columns, list(columns.values()), "The frame", GIVE_CAPACITY)
        by_target = {target: frame[column].to_numpy() for target, column in columns.items()}
    else:
        by_target = _capacities(frame, year_ends)
    capacities = DataFrame({target: by_target.get(target, 1.0) for target in TARGETS}, frame.index)
    unknown = np.isnan(capacities.to_numpy()).any(axis=1)
    if unknown.any():
        first = frame.loc[unknown, "utc_timestamp"].iloc[0]
        year = to_utc(Series([first]))[0].year
        ends = sorted(int(year) for figures in (year_ends or {}).values() for year in figures)
        years = f"{ends[0] + 1}-01-01 to {ends[-1] + 1}-01-01" if ends else ""
        raise DataError(
            f"The installed capacity of {unknown.sum()} of {len(frame)} {steps.NAMES} is unknown.",
            value=str(first),
            expected=years or ", ".join(CAPACITIES[target] for target in by_target),
            next_step=f"set the capacity at the ends of {year - 1} and {year} in fetch.csv.capacity of params.yaml (the"
            " planned capacity for the current year); see own/README.md",
        )
    return capacities


def add_capacity(frame: DataFrame, year_ends: YearEnds) -> DataFrame:
    """Return ``frame`` with the columns `CAPACITIES`, interpolated between the ends of years.

    Existing values are kept; rows before the first or after the last year end have NaN.
    """
    return frame.assign(**{CAPACITIES[target]: known for target, known in _capacities(frame, year_ends).items()})


def _capacities(frame: DataFrame, year_ends: YearEnds) -> dict[str, np.ndarray]:
    stamps, capacities = to_utc(frame["utc_timestamp"]), {}
    for target, figures in year_ends.items():
        ends = {
            pd.Timestamp(int(year) + 1, 1, 1, tz=steps.CALENDAR): figures[year] for year in sorted(figures, key=int)
        }
        first, column = min(ends), CAPACITIES[target]
        seconds = [(end - first).total_seconds() for end in ends]
        values = np.interp((stamps - first).total_seconds(), seconds, list(ends.values()), left=np.nan, right=np.nan)
        capacities[target] = np.where(frame[column].isna(), values, frame[column]) if column in frame else values
    return capacities


def assume_capacity(rows: DataFrame, year_ends: YearEnds) -> tuple[DataFrame, Series]:
    """Return ``rows``, with the last known capacity filled in for later times, and the origin of each row's capacity.

    The origin is `known`, `given` (the columns `CAPACITIES`), `assumed` (up to `LATER_YEARS` years after the last
    known value), or `not used`. Raises DataError for times whose capacity is unknown.
    """
    stamps, given = rows["utc_timestamp"], rows.columns.intersection(list(CAPACITIES.values()))
    if not year_ends or len(given):
        return rows, Series("given" if year_ends else "not used", rows.index)
    years = [int(year) for ends in year_ends.values() for year in ends]
    first, last = (pd.Timestamp(year + 1, 1, 1, tz=steps.CALENDAR) for year in (min(years), last_year(year_ends)))
    end = last + pd.DateOffset(years=LATER_YEARS)
    outside, later = stamps[(stamps < first) | (stamps >= end)], stamps > last
    if len(outside):
        raise DataError(
            f"The installed capacity of {len(outside)} of {len(stamps)} {steps.NAMES} is unknown.",
            value=f"{outside.iloc[0]:{STAMP}}",
            expected=f"{steps.NAMES} from {first:%Y-%m-%d} to {end:%Y-%m-%d}",
            next_step=f"add the columns {' and '.join(CAPACITIES.values())} with the capacity of these {steps.NAMES}",
        )
    if later.any():
        figures = {CAPACITIES[target]: ends[max(ends, key=int)] for target, ends in year_ends.items()}
        rows = rows.assign(**{name: np.where(later, value, np.nan) for name, value in figures.items()})
    return rows, Series(np.where(later, "assumed", "known"), rows.index)


def year_ends_of(frame: DataFrame) -> YearEnds:
    """Return the capacities at the end of each year, from the columns `CAPACITIES`: the inverse of `add_capacity`.

    Each capacity is extrapolated from the first and the last row of a year. Raises the errors of `installed`.
    """
    capacities, stamps = installed(frame), to_utc(frame["utc_timestamp"])
    year_ends: YearEnds = {target: {} for target in problem.CAPACITY}
    years = stamps.tz_convert(steps.CALENDAR).year
    for year in years.unique():
        first, last = rows = np.flatnonzero(years == year)[[0, -1]]
        seconds = max(1.0, (stamps[last] - stamps[first]).total_seconds())
        for target, figures in year_ends.items():
            before, after = capacities[target].iloc[rows]
            for end in (year, year + 1):
                share = (pd.Timestamp(end, 1, 1, tz=steps.CALENDAR) - stamps[first]).total_seconds() / seconds
                figures[str(end - 1)] = round(float(before + share * (after - before)), 6)
    return year_ends


def last_year(year_ends: YearEnds) -> int:
    """Return the last year whose capacity is known for all targets; the current year if no capacity is known."""
    return min((max(map(int, ends)) for ends in year_ends.values()), default=datetime.now(UTC).year)
