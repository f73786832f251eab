"""The processed table's columns, units and ranges, and the check of a table against them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
from pandas import DataFrame, Series

from forecast import problem
from forecast.terms import steps
from forecast.terms.errors import DataError, require_columns
from forecast.terms.quantities import Target

QUANTITIES = {quantity.name: quantity for quantity in (*problem.TARGETS, *problem.INPUTS)}
FEATURES = [quantity.name for quantity in problem.INPUTS]
TARGETS = [quantity.name for quantity in problem.TARGETS]
COLUMNS = ["utc_timestamp", *TARGETS, *FEATURES]
STAMP = "%Y-%m-%dT%H:%M:%SZ"  # how a time is written
UNITS = {"utc_timestamp": "UTC"} | {name: quantity.unit for name, quantity in QUANTITIES.items()}
RANGES = {name: quantity.possible for name, quantity in QUANTITIES.items()}
USUAL_MEANS = {name: quantity.usual for name, quantity in QUANTITIES.items() if quantity.usual}
# Columns that a table may have besides: the capacity installed in its steps, with unit and range of the target.
CAPACITIES = {each.name: f"{each.key}_capacity_{each.unit}" for each in problem.TARGETS if each.plants}
A_DAY = timedelta(days=1)  # by which this machine's clock may be late
SHOWN = 5  # faults that an error names; the rest are counted

MAKE_AGAIN = "make the file again (python -m forecast csv FILE)"


def check(frame: DataFrame, name: str = "frame", next_step: str = MAKE_AGAIN) -> DataFrame:
    """Return ``frame`` if it is a processed table: see `COLUMNS`, `UNITS` and `RANGES`; further columns are allowed.

    `utc_timestamp` is in UTC, each step once and increasing; the other columns are float64 within range; no cell is
    missing; there is at least one row. Raises DataError that counts the failures and names, of the first five, row (or
    line, if the index has that name), time, column, value and rule.
    """
    from pandera.pandas import Check

    require_columns(frame.columns, COLUMNS, name)
    stamps = frame["utc_timestamp"]
    if not len(frame):
        raise DataError(f"{name} has no rows.", next_step=next_step)
    if not isinstance(stamps.dtype, pd.DatetimeTZDtype) or str(stamps.dt.tz) != "UTC":
        raise DataError(
            f"{name}, column utc_timestamp: not a column of UTC times.",
            value=f"{stamps.iloc[0]!r} (dtype {stamps.dtype})",
            expected="a datetime column with the time zone UTC",
            next_step='frame["utc_timestamp"] = pandas.to_datetime(frame["utc_timestamp"], utc=True)',
        )
    rules = [
        Check(lambda stamps: stamps.diff() != timedelta(0), error=f"each {steps.NAME} once"),
        Check(lambda stamps: ~(stamps.diff() < timedelta(0)), error="increasing"),
        Check(lambda stamps: ~(stamps > datetime.now(UTC) + A_DAY), error="not in the future"),
    ]
    numbered = frame[COLUMNS] if frame.index.name == "line" else frame[COLUMNS].reset_index(drop=True)
    check_cells(numbered, name, next_step, times=rules)
    return frame


def check_cells(
    frame: DataFrame,
    name: str,
    next_step: str,
    *,
    times: list[Any] | None = None,
    theirs: Mapping[str, str] | None = None,
    nullable: bool = False,
) -> None:
    """Raise DataError for what pandera reports of a frame: numbers out of `RANGES`, empty cells unless ``nullable``.

    The index is the row, or what its name says. ``times`` are pandera's checks of `utc_timestamp`, ``theirs`` a file's
    own names of our columns.
    """
    from pandera.errors import SchemaErrors
    from pandera.pandas import Check, Column, DataFrameSchema

    columns = {"utc_timestamp": Column(checks=times)} if times else {}
    described = {name: name for name in RANGES} | {column: target for target, column in CAPACITIES.items()}
    for column in frame.columns.intersection(list(described)):
        least, most = RANGES[described[column]]
        rule = Check.in_range(least, most, error=f"between {least} and {most} {UNITS[described[column]]}")
        columns[column] = Column("float64", rule, nullable=nullable)
    try:
        DataFrameSchema(columns).validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases.sort_values(["index", "column"], kind="stable", na_position="first")
    else:
        return
    count, faults = _faults(cases, frame, theirs)
    raise DataError(
        f"{name} breaks the schema: {count} failure{'' if count == 1 else 's'}.",
        value="\n".join(faults),
        expected=f"each {steps.NAME} once, no cell missing, values within their ranges",
        next_step=f"{next_step}; if a whole column is out of range, look at its unit",
    )


def _faults(cases: DataFrame, frame: DataFrame, theirs: Mapping[str, str] | None) -> tuple[int, list[str]]:
    """Return how many failures pandera has found, and a line for each of the first ones."""
    # Of a column of text the dtype is reported cell by cell; that its range cannot be checked says nothing more.
    cases = cases[~cases["failure_case"].astype(str).str.startswith("TypeError(")].astype(object)
    cases = cases.where(cases.notna(), None)
    faults = []
    for case in cases.head(SHOWN).itertuples(index=False):
        where = "all rows"
        if case.index is not None:
            stamp = frame["utc_timestamp"][case.index]
            where = f"{frame.index.name or 'row'} {case.index}" + (f" ({stamp:{STAMP}})" if stamp == stamp else "")
        column = f"column {theirs[case.column]}: {case.column}" if theirs else case.column
        broken = "no cell missing" if case.check == "not_nullable" else case.check
        faults.append(
            f"{where}, {column} = {'nothing' if case.failure_case is None else case.failure_case}, rule: {broken}"
        )
    if len(cases) > SHOWN:
        faults.append(f"... and {len(cases) - SHOWN} more")
    return len(cases), faults


def convert(values: Series, column: str, unit: str, hours: Series | float = steps.HOURS) -> Series:
    """Return ``values`` of ``unit`` in the unit of ``column``; ``hours`` is the length of each step.

    Raises ParameterError for a unit of another dimension (`Quantity.conversion`).
    """
    factor, offset, exponent = QUANTITIES[column].conversion(unit, of_days=steps.IS_DAY)
    converted = values * factor.numerator / factor.denominator + float(offset)
    return converted * hours**exponent if exponent else converted


def amounts(values: Series, target: Target, stamps: Series) -> Series:
    """Return what each step adds to a target's sum over time, in its `sum_unit`: GWh of GW."""
    factor, _, exponent = target.conversion(target.sum_unit, of_days=steps.IS_DAY)
    return values * factor.denominator / factor.numerator * (steps.hours(stamps) ** -exponent if exponent else 1)
