"""Read a CSV file of one's own as its description says: columns, units, and times of any zone."""

from __future__ import annotations

import re
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
from pandas import DataFrame, Series

from forecast.errors import ParameterError
from forecast.parameters import OwnFile, TimeColumn
from forecast.table import reading as raw
from forecast.table import schema, steps
from forecast.table.reading import Table
from forecast.table.schema import RANGES

_CORRECT = "correct the file, or how it is read: fetch.csv in params.yaml"
_FULL_HOURS = (
    "for a zone such as +05:30 set time.zone: '+05:00' in params.yaml (fetch.csv); for times such as 12:30 set"
    ' time.format: "%Y-%m-%dT%H:30"; see own/README.md'
)
_MIDNIGHT = r"(?<![\d:])24(?=:00(?::00)?(?![\d:]))"
_STEP = pd.DateOffset(days=1) if steps.IS_DAY else steps.LENGTH
_MAX_NEGATIVE = 0.01  # of a column's highest value: what plants consume at night, and what sensors are off


def read(path: Path, mapping: OwnFile) -> Table:
    """Read the file ``path``, a copy of ``mapping.file``, as ``mapping`` says.

    The frame has `schema.COLUMNS`, in our units and UTC, in the file's order; its index is the line in the file. An
    empty cell is NaN. Times without an offset are of ``mapping.time.zone``. When the clock is put back, a time exists
    twice: the row that is first in time belongs to summer time, the other to winter time. Its counts are

    - `clock_changes`, rows that are left out: `ambiguous` in that hour, if the file has it once; `skipped` without any
      value in the hour that is missing when the clock is put forward;
    - `negative_as_zero`, by column: the small negative values that became 0.

    Raises DataError with line, column, value and next step: a value in an hour skipped by the clock change (then the
    zone is wrong), times partly with an offset or not at the start of an hour, and whatever `raw.read_text` and
    `raw.numbers` refuse; ParameterError: no such zone. Errors name ``mapping.file``, the file that its owner knows.
    """
    file, columns = mapping.file, dict(mapping.columns)
    names = {"utc_timestamp": mapping.time.column} | {name: column.column for name, column in columns.items()}
    layout: dict[str, Any] = {"separator": mapping.separator, "lines_before": mapping.lines_before_header}
    text = raw.read_text(path, list(dict.fromkeys(names.values())), next_step=_CORRECT, name=file, **layout)
    values, negative = pd.DataFrame(index=text.index), {}
    for name, column in columns.items():
        cells = text[column.column]
        cells = cells.mask(cells.str.strip().isin(mapping.no_value))
        numbers = raw.numbers(cells, file, mapping.decimal, thousands=mapping.thousands, nullable=True)
        values[name] = schema.convert(numbers, name, column.unit)
        is_small = (values[name] < 0) & (values[name] >= -_MAX_NEGATIVE * values[name].max()) & (RANGES[name][0] == 0)
        negative[name] = int(is_small.sum())
        if mapping.negative_as_zero:
            values[name] = values[name].mask(is_small, 0.0)
        elif negative[name] == (values[name] < 0).sum():
            next_step = "if meters write such values at night, set negative_as_zero: true in params.yaml (fetch.csv)"
            raw.require(~is_small, cells, file, "0 or more", next_step)
    times = text[mapping.time.column]
    stamps, skipped = _to_utc(times, file, mapping.time)
    if steps.IS_DAY:  # of 23 hours, too
        energies = [name for name, column in columns.items() if schema.is_energy(column.unit)]
        values[energies] = values[energies].mul(steps.HOURS / steps.hours(stamps), axis="index")
    _require_times(text, stamps, skipped, values, mapping)
    left_out = {"ambiguous": int((stamps.isna() & ~skipped).sum()), "skipped": int(skipped.sum())}
    values.insert(0, "utc_timestamp", stamps)
    counts = {"clock_changes": left_out} | ({"negative_as_zero": negative} if mapping.negative_as_zero else {})
    return Table(Path(file), values[stamps.notna()], names, counts)


def _require_times(text: DataFrame, stamps: Series, skipped: Series, values: DataFrame, mapping: OwnFile) -> None:
    """Raise DataError for the first row with a value in an hour that the clock skips, or if no step begins in time."""
    times, file = text[mapping.time.column], mapping.file
    expected = f"a time that exists: in {mapping.time.zone} the clock skips it in spring"
    next_step = "if the file keeps winter time all year, set fetch.csv.time.zone: '+01:00' in params.yaml"
    filler = text.loc[skipped, [column.column for _, column in mapping.columns]].fillna("")
    if (filler.apply(lambda cells: cells.str.strip(" 0.,")) == "").all(axis=None):
        next_step = (
            "the program that wrote the file has filled that hour with 0: delete these lines, or leave the cells empty"
        )
    raw.require(~skipped | values.isna().all(axis="columns"), times, file, expected, next_step)
    known = stamps.dropna()
    off = (known - steps.starts(known)).unique()
    if len(off) == 1 and off[0]:
        minutes = off[0] // pd.Timedelta(minutes=1)
        begin = f"{steps.NAMES} that begin at :00 UTC, and not at :{minutes:02}"
        if steps.IS_DAY:
            begin = f"days that begin at 00:00 in {steps.ZONE}, and not at {minutes // 60:02}:{minutes % 60:02}"
        next_step = "set ZONE in forecast/problem.py, or time.zone in params.yaml (fetch.csv)"
        raw.require(stamps.isna(), times, file, begin, next_step if steps.IS_DAY else _FULL_HOURS)


def _to_utc(text: Series, file: str, time: TimeColumn) -> tuple[Series, Series]:
    """Return the UTC times of the steps' starts, NaT if unknown, and which are of an hour skipped by a clock change."""
    original, midnight = text, text.str.contains(_MIDNIGHT, na=False)
    text = text.str.replace(_MIDNIGHT, "00", regex=True)
    aware = raw.has_zone(text) if time.format is None else pd.Series("%z" in time.format, text.index)
    if aware.any():
        raw.require(aware, original, file, "an offset such as Z or +01:00, as in other lines", _CORRECT)
    parsed = pd.to_datetime(text, format=time.format or "ISO8601", errors="coerce", utc=bool(aware.all()))
    # pandas takes "today" and "now" for times
    good = parsed.notna() & text.str.contains(r"\d", na=False)
    like = f"a time like {time.format}" if time.format else "a time in ISO 8601, or `format` in params.yaml"
    raw.require(good, original, file, like, "correct that line, or fetch.csv.time.format in params.yaml")
    # 00:00 between 23:00 of the same day and 01:00 of the next, in either order, is the end of the day, too.
    before, after = (parsed.shift(rows).fillna(parsed + steps.DAY + steps.LENGTH) - parsed for rows in (1, -1))
    is_late = (before + after == 2 * steps.DAY) & ((before - after).abs() == 2 * steps.LENGTH)
    midnight |= is_late & (not steps.IS_DAY)
    parsed = parsed.dt.as_unit("us").mask(midnight, parsed + steps.DAY)
    by_end, last = time.stamp == "end", pd.Timestamp(0) + steps.DAY - steps.LENGTH
    next_step = f"if the times are the ends of the {steps.NAMES}, set fetch.csv.time.stamp: end in params.yaml"
    raw.require(~midnight | by_end, original, file, f"the start of {steps.ONE}, 00:00 to {last:%H:%M}", next_step)
    if aware.all():
        begun = (parsed.dt.tz_convert(steps.CALENDAR) - _STEP).dt.tz_convert("UTC") if by_end else parsed
        return begun, pd.Series(False, text.index)
    if time.zone is None and not steps.IS_DAY:
        example = f"`time: {{column: {time.column}, zone: UTC}}`"
        next_step = f"set in params.yaml, under fetch.csv: {example}, or Europe/Berlin, or +01:00"
        raw.require(aware, original, file, "an offset, or a zone for the file (fetch.csv.time.zone)", next_step)
    zone = _zone(time.zone or steps.ZONE)
    if steps.IS_DAY:
        days = steps.begin(pd.DatetimeIndex(parsed - _STEP if by_end else parsed), zone)
        return pd.Series(days, text.index), pd.Series(False, text.index)
    if not by_end:
        return _localize(parsed, zone)
    # Around a clock change some files write an hour's end by the clock, others as its start and one hour.
    by_clock, skipped = _localize(parsed, zone)
    readings = [_localize(parsed - _STEP, zone), (by_clock - _STEP, skipped)]
    return min(readings, key=lambda reading: reading[0].isna().sum() + reading[0].duplicated().sum())


def _localize(parsed: Series, zone: tzinfo | None) -> tuple[Series, Series]:
    """Return local times in UTC, NaT if unknown, and which are of an hour skipped by the clock change in spring."""
    twice = parsed.dt.tz_localize(zone, ambiguous="NaT", nonexistent="shift_forward").isna()
    # Many portals write the newest row first; then winter's row is the first. Files joined by hand do both: the rows
    # before it say which way time runs: from 02:45 to the other 02:00 it seems to run back.
    apart = parsed.diff()
    known = ~twice & (apart != pd.Timedelta(0)) & (apart.abs() < steps.DAY)
    backwards = apart.where(known).ffill().bfill() < pd.Timedelta(0)
    # A join may have doubled each row: of neighbours with one time the first half is one hour.
    neighbours = (parsed != parsed.shift()).cumsum()
    together = neighbours.groupby(neighbours).transform("size")
    rows = parsed.groupby([parsed, neighbours.where(together > 1, 0)])
    place, often = rows.cumcount(), rows.transform("size")
    summer = (place.where(~backwards, often - 1 - place) < (often + 1) // 2).to_numpy()
    local = parsed.dt.tz_localize(zone, ambiguous=summer, nonexistent="NaT")
    return local.where(~twice | (often > together.mode()[0])).dt.tz_convert("UTC"), local.isna()


def _zone(name: str) -> tzinfo | None:
    try:
        if re.fullmatch(r"[+-]\d{2}:\d{2}", name):
            return datetime.strptime(name, "%z").tzinfo
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ParameterError(
            "params.yaml: fetch.csv.time.zone is not a time zone.",
            value=repr(name),
            expected="a name such as Europe/Berlin or UTC, or an offset such as +01:00",
            next_step="choose one; if `python -m zoneinfo` knows none, install tzdata",
        ) from None
