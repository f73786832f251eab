"""What the processed frame must hold: its columns, units and physical ranges, checked with the fault's place named."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from workshop.data import units
from workshop.data.tables import latest_allowed, read_columns, require_columns
from workshop.data.thresholds import MONTH_HOURS, RANGES, USUAL_MEANS
from workshop.errors import DataError

if TYPE_CHECKING:
    import pandera.pandas as pa
    from pandas import DataFrame

FEATURES = ["windspeed", "temperature", "rad_horizontal", "rad_diffuse"]
TARGETS = ["solar_GW", "wind_GW"]
COLUMNS = ["utc_timestamp", *TARGETS, *FEATURES]
# Stamps are the start of the hour; wind speed is at 10 m, temperature at 2 m, radiation on the horizontal, direct (its
# column is named rad_horizontal after the source) and diffuse.
UNITS: dict[str, str] = {
    "utc_timestamp": "UTC",
    "solar_GW": "GW",
    "wind_GW": "GW",
    "windspeed": "m/s",
    "temperature": "°C",
    "rad_horizontal": "W/m²",
    "rad_diffuse": "W/m²",
}
SHOWN = 5  # failures told in an error; the rest are counted

_MAKE_AGAIN = "make the file again (workshop data, or the notebook make_processed_data)"


@cache
def schema() -> pa.DataFrameSchema:
    """Return the pandera schema of the processed frame; further columns are allowed."""
    import pandera.pandas as pa

    columns = {
        "utc_timestamp": pa.Column(
            checks=[
                # fillna: the first row has none before it, and a missing stamp is told by its own rule
                pa.Check(lambda stamps: stamps.diff().dt.total_seconds().fillna(1) != 0, name="each hour once"),
                pa.Check(lambda stamps: stamps.diff().dt.total_seconds().fillna(1) >= 0, name="increasing"),
                pa.Check(lambda stamps: ~(stamps > latest_allowed()), name="not in the future"),
            ]
        )
    }
    for column, (least, most) in RANGES.items():
        rule = pa.Check.in_range(least, most, error=f"between {least} and {most} {UNITS[column]}")
        columns[column] = pa.Column("float64", rule)
    return pa.DataFrameSchema(columns)


def check(frame: DataFrame, name: str = "frame", *, first_line: int | None = None) -> DataFrame:
    """Return ``frame`` if it is a processed frame: see `COLUMNS`, `UNITS` and `RANGES`.

    `utc_timestamp` is a UTC datetime column, each hour once and increasing; the others are float64 within range;
    nothing is missing; there is at least one row. Raises DataError that tells how many failures there are, and of
    the first five the row, column, value and rule. A row is named by its timestamp and its position, or its line in
    a file if ``first_line``, the line of the first row, is given.
    """
    import pandas as pd
    from pandera.errors import SchemaErrors

    require_columns(frame.columns, COLUMNS, name)
    numbered = frame[COLUMNS].reset_index(drop=True)
    stamps = numbered["utc_timestamp"]
    if not len(numbered):
        raise DataError(f"{name} has no rows.", next_step=_MAKE_AGAIN)
    if not isinstance(stamps.dtype, pd.DatetimeTZDtype) or str(stamps.dt.tz) != "UTC":
        raise DataError(
            f"{name}, column utc_timestamp: not a column of UTC times.",
            value=f"{stamps.iloc[0]!r} (dtype {stamps.dtype})",
            expected="a datetime column with the time zone UTC",
            next_step='frame["utc_timestamp"] = pandas.to_datetime(frame["utc_timestamp"], utc=True)',
        )
    _require_numbers(numbered, name, first_line)
    try:
        schema().validate(numbered, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases.sort_values(["index", "column"], kind="stable")
    else:
        return frame
    found = [
        f"{_place(stamps, case.index, first_line)}, {case.column} = {_shown(case.failure_case)}, {_rule(case.check)}"
        for case in cases.head(SHOWN).itertuples(index=False)
    ]
    if len(cases) > SHOWN:
        found.append(f"... and {len(cases) - SHOWN} more")
    raise DataError(
        f"{name} breaks the schema: {len(cases)} failure{'' if len(cases) == 1 else 's'}.",
        value="\n            ".join(found),
        expected="each hour once and increasing, no cell missing, values within their ranges",
        next_step=_other_units(numbered)
        or f"correct or leave out these rows where the data comes from, then {_MAKE_AGAIN}",
    )


def require_ranges(frame: DataFrame, path: Path, names: dict[str, str]) -> None:
    """Raise DataError for the values of raw columns that are out of range, with their lines in the file ``path``.

    ``frame`` has `utc_timestamp` and columns of `RANGES` in our units, the index is the line; ``names`` says what each
    of these columns is called in the file. Empty cells are nobody's fault here.
    """
    faults = []
    for column in names.keys() & RANGES.keys():
        least, most = RANGES[column]
        values = frame[column]
        wrong = values[values.notna() & ~values.between(least, most)]
        faults += [(line, column, value) for line, value in wrong.items()]
    if not faults:
        return
    faults.sort(key=lambda fault: (fault[0], fault[1]))
    found = [
        f"line {line} ({frame['utc_timestamp'][line]:%Y-%m-%dT%H:%M:%SZ}), column {names[column]}:"
        f" {column} = {value:g}, rule: between {RANGES[column][0]} and {RANGES[column][1]} {UNITS[column]}"
        for line, column, value in faults[:SHOWN]
    ]
    if len(faults) > SHOWN:
        found.append(f"... and {len(faults) - SHOWN} more")
    raise DataError(
        f"{path} holds values that cannot be: {len(faults)} cell{'' if len(faults) == 1 else 's'}.",
        value="\n            ".join(found),
        expected="values within their ranges",
        next_step=_other_units(frame) or f"correct or leave out these lines of {path.name}",
    )


def _other_units(frame: DataFrame) -> str | None:
    """Return what to do when a whole column seems to be in another unit."""
    words = suspected_units(frame)
    return f"look at the unit: {words} (for a file of your own: `unit` in params.yaml)" if words else None


def suspected_units(frame: DataFrame) -> str:
    """Return which columns seem to be in another unit, and in which; empty when none does."""
    seem = {
        column: unit
        for column, (least, most) in RANGES.items()
        if column in frame and (unit := units.suspected(frame[column], column, least, most))
    }
    return "; ".join(_wrong_unit(column, unit) for column, unit in seem.items())


def _wrong_unit(column: str, unit: str) -> str:
    factor, divisor, offset = units.OF_COLUMN[column][unit]
    if offset:
        return f"the values of {column} would be in range if they were in {unit}"
    words = f"the values of {column} would be in range times {factor / divisor:g}"
    return words + (" (kW given for MW, or MW for GW?)" if unit == "MW" else f" (in {unit}?)")


def unusual(frame: DataFrame) -> list[str]:
    """Return what is odd, though possible, about a processed frame, in words: means beyond `USUAL_MEANS`."""
    if len(frame) < MONTH_HOURS:
        return []
    means = {column: frame[column].mean() for column in USUAL_MEANS}
    return [
        f"{column}: the mean is {means[column]:.3g} {UNITS[column]}, usual is {least} to {most}; look at its unit"
        for column, (least, most) in USUAL_MEANS.items()
        if not least <= means[column] <= most
    ]


def read(path: Path) -> DataFrame:
    """Read a processed frame from ``path``, a .csv or .parquet file, and check it; columns as `COLUMNS`.

    Raises DataError: missing, truncated or other files, missing columns, text in a number, and whatever `check` finds.
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


def _require_numbers(frame: DataFrame, name: str, first_line: int | None) -> None:
    """Raise DataError for the first cell that is no number: pandera would name the column's type only."""
    import pandas as pd

    for column in RANGES:
        if frame[column].dtype == "float64":
            continue
        wrong = pd.to_numeric(frame[column], errors="coerce").isna() & frame[column].notna()
        row = wrong.idxmax() if wrong.any() else 0
        raise DataError(
            f"{name}, {_place(frame['utc_timestamp'], row, first_line)}, column {column}: not a float64 number.",
            value=f"{frame[column][row]!r} (dtype {frame[column].dtype})",
            expected="float64",
            next_step=f'frame["{column}"] = frame["{column}"].astype("float64"), once every cell is a number',
        )


def _place(stamps, row: float, first_line: int | None) -> str:
    row = int(row)
    stamp = stamps[row]
    where = f"row {row}" if first_line is None else f"line {row + first_line}"
    return f"{where} ({stamp:%Y-%m-%dT%H:%M:%SZ})" if stamp == stamp else where


def _shown(value: object) -> str:
    return "nothing" if value is None or value != value else str(value)


def _rule(check: str) -> str:
    return f"rule: {'no cell missing' if check == 'not_nullable' else check}"
