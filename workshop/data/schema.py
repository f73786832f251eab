"""The processed table: its columns, units and ranges, and the check that a table holds to them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from workshop.data.raw import latest_allowed, read_columns, require_columns
from workshop.errors import DataError

if TYPE_CHECKING:
    from pandas import DataFrame, Series

FEATURES = ["windspeed", "temperature", "rad_horizontal", "rad_diffuse"]
TARGETS = ["solar_GW", "wind_GW"]
COLUMNS = ["utc_timestamp", *TARGETS, *FEATURES]
STAMP = "%Y-%m-%dT%H:%M:%SZ"  # how a time is written
# Times are the start of the hour. Wind speed is at 10 m, temperature at 2 m; radiation is on the horizontal, direct
# (`rad_horizontal`, as the source calls it) and diffuse.
UNITS: dict[str, str] = {
    "utc_timestamp": "UTC",
    "solar_GW": "GW",
    "wind_GW": "GW",
    "windspeed": "m/s",
    "temperature": "°C",
    "rad_horizontal": "W/m²",
    "rad_diffuse": "W/m²",
}
# What is physically possible for a country's mean or sum; the solar constant is 1,361 W/m2. Anything else is an error.
RANGES: dict[str, tuple[float, float]] = {
    "solar_GW": (0, 200),
    "wind_GW": (0, 200),
    "windspeed": (0, 60),
    "temperature": (-40, 50),
    "rad_horizontal": (0, 1400),
    "rad_diffuse": (0, 1400),
}
# A mean beyond these is possible, but often another unit: wind in km/h stays within its range. The limits of power are
# wide, since countries differ: only a factor of 1,000 shows.
USUAL_MEANS: dict[str, tuple[float, float]] = {
    "solar_GW": (0.01, 100),
    "wind_GW": (0.01, 100),
    "windspeed": (1, 10),
    "temperature": (-10, 30),
    "rad_horizontal": (20, 300),
    "rad_diffuse": (20, 150),
}
MONTH_HOURS = 24 * 28  # the mean of fewer hours may be anything

# Other units of a quantity, the nearest first. A value in our unit is value * first / second + third, written so that
# whole numbers stay exact. The energy that falls in an hour is the hour's mean power times 3,600 s.
_POWER = {"GW": (1, 1, 0), "MW": (1, 1000, 0), "kW": (1, 10**6, 0), "W": (1, 10**9, 0)}
_RADIATION = {
    "W/m2": (1, 1, 0), "Wh/m2": (1, 1, 0), "kJ/m2": (1, 3.6, 0), "kW/m2": (1000, 1, 0), "kWh/m2": (1000, 1, 0),
    "MJ/m2": (10**6, 3600, 0), "J/m2": (1, 3600, 0),
}  # fmt: skip
CONVERSIONS: dict[str, dict[str, tuple[float, float, float]]] = {
    "solar_GW": _POWER,
    "wind_GW": _POWER,
    "windspeed": {"m/s": (1, 1, 0), "kn": (1852, 3600, 0), "mph": (0.44704, 1, 0), "km/h": (1, 3.6, 0)},
    "temperature": {"C": (1, 1, 0), "K": (1, 1, -273.15), "F": (5, 9, -160 / 9)},
    "rad_horizontal": _RADIATION,
    "rad_diffuse": _RADIATION,
}
FEW = 0.05  # a share of values out of range that are slips, and not another unit
SHOWN = 5  # faults that an error names; the rest are counted

_MAKE_AGAIN = "make the file again (workshop data, or the notebook make_processed_data)"


def check(frame: DataFrame, name: str = "frame", *, first_line: int | None = None) -> DataFrame:
    """Return ``frame`` if it is a processed table: see `COLUMNS`, `UNITS` and `RANGES`; further columns are allowed.

    `utc_timestamp` is in UTC, each hour once and increasing; the other columns are float64 within range; no cell is
    missing; there is at least one row. Raises DataError that counts the failures and names, of the first five, row (or
    line, if ``first_line`` says which line of a file the first row is), time, column, value and rule.
    """
    import pandas as pd
    import pandera.pandas as pa

    require_columns(frame.columns, COLUMNS, name)
    stamps = frame["utc_timestamp"]
    if not len(frame):
        raise DataError(f"{name} has no rows.", next_step=_MAKE_AGAIN)
    if not isinstance(stamps.dtype, pd.DatetimeTZDtype) or str(stamps.dt.tz) != "UTC":
        raise DataError(
            f"{name}, column utc_timestamp: not a column of UTC times.",
            value=f"{stamps.iloc[0]!r} (dtype {stamps.dtype})",
            expected="a datetime column with the time zone UTC",
            next_step='frame["utc_timestamp"] = pandas.to_datetime(frame["utc_timestamp"], utc=True)',
        )
    rules = [
        pa.Check(lambda stamps: stamps.diff() != timedelta(0), error="each hour once"),
        pa.Check(lambda stamps: ~(stamps.diff() < timedelta(0)), error="increasing"),
        pa.Check(lambda stamps: ~(stamps > latest_allowed()), error="not in the future"),
    ]
    first = first_line or 0
    numbered = frame[COLUMNS].set_axis(range(first, first + len(frame)))
    place = "row" if first_line is None else "line"
    _validate(numbered, {"utc_timestamp": pa.Column(checks=rules)}, name, place, _MAKE_AGAIN)
    return frame


def check_ranges(frame: DataFrame, path: Path, names: Mapping[str, str]) -> None:
    """Raise DataError for values of a raw file that are out of range; empty cells are allowed.

    The index of ``frame`` is the line in the file ``path``; ``names`` are the file's names of our columns.
    """
    next_step = f"correct or leave out these lines of {path.name}"
    _validate(frame, {}, str(path), "line", next_step, names=names, nullable=True)


def _validate(
    frame: DataFrame,
    columns: dict,
    name: str,
    place: str,
    next_step: str,
    *,
    names: Mapping[str, str] | None = None,
    nullable: bool = False,
) -> None:
    """Hold a frame against ``columns`` and `RANGES`; raise DataError on what pandera reports."""
    import pandera.pandas as pa
    from pandera.errors import SchemaErrors

    for column in frame.columns.intersection(list(RANGES)):
        least, most = RANGES[column]
        rule = pa.Check.in_range(least, most, error=f"between {least} and {most} {UNITS[column]}")
        columns[column] = pa.Column("float64", rule, nullable=nullable)
    try:
        pa.DataFrameSchema(columns).validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases.sort_values(["index", "column"], kind="stable", na_position="first")
    else:
        return
    # Of a column of text the dtype is reported cell by cell; that its range cannot be checked says nothing more.
    cases = cases[~cases["failure_case"].astype(str).str.startswith("TypeError(")]
    stamps, faults = frame["utc_timestamp"], []
    for case in cases.head(SHOWN).itertuples(index=False):
        line = int(case.index) if case.index == case.index and case.index is not None else None
        where = "all rows" if line is None else f"{place} {line}"
        where += "" if line is None or stamps[line] != stamps[line] else f" ({stamps[line]:{STAMP}})"
        theirs = f"column {names[case.column]}: " if names else ""
        value = "nothing" if case.failure_case is None or case.failure_case != case.failure_case else case.failure_case
        rule = "no cell missing" if case.check == "not_nullable" else case.check
        faults.append(f"{where}, {theirs}{case.column} = {value}, rule: {rule}")
    if len(cases) > SHOWN:
        faults.append(f"... and {len(cases) - SHOWN} more")
    units = suspected_units(frame)
    raise DataError(
        f"{name} breaks the schema: {len(cases)} failure{'' if len(cases) == 1 else 's'}.",
        value="\n            ".join(faults),
        expected="each hour once and increasing, no cell missing, values within their ranges",
        next_step=f"look at the unit: {units} (for an own file: `unit` in params.yaml)" if units else next_step,
    )


def convert(values: Series, column: str, unit: str) -> Series:
    """Return ``values`` of ``unit`` in the unit of ``column`` (`UNITS`)."""
    factor, divisor, offset = CONVERSIONS[column][unit]
    return values * factor / divisor + offset


def suspected_units(frame: DataFrame) -> str:
    """Say which columns seem to be in another unit, and in which; return no text when none does.

    Another unit is suspected when more than a few values that are not zero are out of range, and nearly all of them
    are within it when they are taken for values of that unit.
    """
    words = []
    for column in frame.columns.intersection(list(RANGES)):
        values = frame[column][frame[column].notna() & (frame[column] != 0)]
        if values.dtype != "float64" or not len(values) or values.between(*RANGES[column]).mean() >= 1 - FEW:
            continue
        for unit, (factor, divisor, offset) in CONVERSIONS[column].items():
            if convert(values, column, unit).between(*RANGES[column]).mean() >= 1 - FEW:
                times = f" times {factor / divisor:g}" if not offset else ""
                hint = " (kW given for MW, or MW for GW?)" if unit == "MW" else f" (in {unit}?)"
                words.append(f"the values of {column} would be in range{times}{hint}")
                break
    return "; ".join(words)


def read(path: Path) -> DataFrame:
    """Read a processed table from ``path``, a .csv or .parquet file, and check it; columns as `COLUMNS`.

    Raises DataError: missing, damaged or other files, and whatever `raw.read_columns` and `check` refuse.
    """
    import pandas as pd
    import pyarrow as pa
    from pyarrow import parquet

    path = Path(path)
    if path.suffix == ".csv":
        frame = read_columns(path, COLUMNS, next_step=_MAKE_AGAIN)
        return check(frame.reset_index(drop=True), str(path), first_line=2)
    if path.suffix != ".parquet":
        raise DataError(
            f"The file {path} is of a kind that is not read.",
            value=path.suffix or "no suffix",
            expected=".csv or .parquet",
            next_step="give germany.csv or germany.parquet",
        )
    try:
        require_columns(parquet.read_schema(path).names, COLUMNS, str(path), _MAKE_AGAIN)
        return check(pd.read_parquet(path, columns=COLUMNS), str(path))
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.", next_step=_MAKE_AGAIN) from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"The file {path} is damaged or not Parquet.", value=str(error).splitlines()[0], next_step=_MAKE_AGAIN
        ) from None
