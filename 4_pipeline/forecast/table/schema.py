"""The processed table's columns, units and ranges, and the validation of a table."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
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
STAMP = "%Y-%m-%dT%H:%M:%SZ"  # format of times
UNITS = {"utc_timestamp": "UTC"} | {name: quantity.unit for name, quantity in QUANTITIES.items()}
RANGES = {name: quantity.possible for name, quantity in QUANTITIES.items()}
USUAL_MEANS = {name: quantity.usual_mean for name, quantity in QUANTITIES.items() if quantity.usual_mean}
# Optional columns: the installed capacity, in the unit and range of the target.
CAPACITIES = {each.name: f"{each.key}_capacity_{each.unit}" for each in problem.TARGETS if each.plants}
A_DAY = timedelta(days=1)  # tolerance for future times, in case this machine's clock is slow
MAX_SHOWN = 5  # maximum number of failures listed in an error

MAKE_AGAIN = "create the file again (python -m forecast csv FILE)"


def check(frame: DataFrame, name: str = "frame", next_step: str = MAKE_AGAIN) -> DataFrame:
    """Check that ``frame`` is a processed table (`COLUMNS`, `UNITS`, `RANGES`; more columns are allowed) and return it.

    `utc_timestamp` is in UTC, unique, increasing and not in the future; the other columns are float64 within range,
    without missing cells; there is at least one row. Raises DataError with the number of failures, and the row, time,
    column, value and violated rule of the first five.
    """
    from pandera.pandas import Check

    require_columns(frame.columns, COLUMNS, name)
    stamps = frame["utc_timestamp"]
    if not len(frame):
        raise DataError(f"{name} has no rows.", next_step=next_step)
    if not isinstance(stamps.dtype, pd.DatetimeTZDtype) or str(stamps.dt.tz) != "UTC":
        raise DataError(
            f"{name}, column utc_timestamp: the times are not in UTC.",
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
    source_names: Mapping[str, str] | None = None,
    nullable: bool = False,
) -> None:
    """Raise DataError for numbers outside `RANGES` and, unless ``nullable``, for empty cells.

    ``times`` are pandera checks of `utc_timestamp`; ``source_names`` maps columns to their names in the file. Errors
    identify a row by the name and the label of its index, such as `line 12`; the default name is `row`.
    """
    from pandera.errors import SchemaErrors
    from pandera.pandas import Column, DataFrameSchema

    columns = {"utc_timestamp": Column(checks=times)} if times else {}
    described = {name: name for name in RANGES} | {column: target for target, column in CAPACITIES.items()}
    for column in frame.columns.intersection(list(described)):
        columns[column] = _rule(column, described[column], nullable)
    try:
        DataFrameSchema(columns).validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases.sort_values(["index", "column"], kind="stable", na_position="first")
    else:
        return
    count, faults = _faults(cases, frame, source_names)
    raise DataError(
        f"{name} violates the schema: {count} failure{'' if count == 1 else 's'}.",
        value="\n".join(faults),
        expected=f"each {steps.NAME} once, no missing cells, values within their ranges",
        next_step=f"{next_step}; if a whole column is out of range, check its unit",
    )


@cache
def _rule(column: str, quantity: str, nullable: bool) -> Any:
    """Return a column's schema; cached, because pandera tries to import geopandas whenever it creates one."""
    from pandera.pandas import Check, Column

    low, high = RANGES[quantity]
    rule = Check.in_range(low, high, error=f"between {low} and {high} {UNITS[quantity]}")
    return Column("float64", rule, name=column, nullable=nullable)


def _faults(cases: DataFrame, frame: DataFrame, source_names: Mapping[str, str] | None) -> tuple[int, list[str]]:
    """Return the number of failures that pandera found, and a line of text for each of the first `MAX_SHOWN`."""
    # Drop pandera's redundant reports that the range of a text column cannot be checked.
    cases = cases[~cases["failure_case"].astype(str).str.startswith("TypeError(")].astype(object)
    cases = cases.where(cases.notna(), None)
    faults = []
    for case in cases.head(MAX_SHOWN).itertuples(index=False):
        where = "all rows"
        if case.index is not None:
            stamp = frame["utc_timestamp"][case.index]
            where = f"{frame.index.name or 'row'} {case.index}" + (f" ({stamp:{STAMP}})" if stamp == stamp else "")
        column = f"column {source_names[case.column]}: {case.column}" if source_names else case.column
        broken = "no missing cells" if case.check == "not_nullable" else case.check
        faults.append(
            f"{where}, {column} = {'missing' if case.failure_case is None else case.failure_case}, rule: {broken}"
        )
    if len(cases) > MAX_SHOWN:
        faults.append(f"... and {len(cases) - MAX_SHOWN} more")
    return len(cases), faults


def convert(values: Series, column: str, unit: str, hours: Series | float = steps.HOURS) -> Series:
    """Convert ``values`` from ``unit`` to the unit of ``column``; ``hours`` is the length of each step in hours.

    Raises ParameterError for a unit of another dimension (`Quantity.conversion`).
    """
    factor, offset, exponent = QUANTITIES[column].conversion(unit, of_days=steps.IS_DAY)
    converted = values * factor.numerator / factor.denominator + float(offset)
    return converted * hours**exponent if exponent else converted


def amounts(values: Series, target: Target, stamps: Series) -> Series:
    """Return the contribution of each step to a target's sum over time, in its `sum_unit`, such as GWh for GW."""
    factor, _, exponent = target.conversion(target.sum_unit, of_days=steps.IS_DAY)
    return values * factor.denominator / factor.numerator * (steps.hours(stamps) ** -exponent if exponent else 1)
