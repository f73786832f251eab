"""Read a user's CSV file as described in params.yaml: columns, units, and times in any zone."""

from __future__ import annotations

import re
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from forecast.table import reading as raw
from forecast.table import schema
from forecast.table.reading import Table
from forecast.table.schema import RANGES
from forecast.terms import steps
from forecast.terms.errors import ParameterError
from forecast.terms.parameters import OwnFile, TimeColumn

SCRIPT = "with a script in own/ (see own/README.md)"
MOVE = f"move each time to the start of its {steps.NAME}, {SCRIPT}"
_CORRECT = "correct the file, or its description in params.yaml (fetch.csv)"
_MIDNIGHT = r"(?<![\d:])24(?=:00(?::00)?(?![\d:]))"
_OFFSET = r"\s?(?:Z|UTC|[+-]\d{2}(?::?\d{2})?)$"
_STEP = pd.DateOffset(days=1) if steps.IS_DAY else steps.LENGTH
_MAX_NEGATIVE = 0.01  # share of the column's maximum; allows for plants' own consumption at night, and sensor offsets


def read(path: Path, mapping: OwnFile) -> Table:
    """Read the file ``path``, a copy of ``mapping.file``, as described by ``mapping``.

    The frame has `schema.COLUMNS` in the units of `problem` and in UTC, in file order, indexed by line number; empty
    cells are NaN. Naive times are in ``mapping.time.zone``; see `_localize` for the hour repeated in autumn. Counts:

    - `clock_changes`: dropped rows, either `ambiguous` (in the repeated hour) or `skipped` (empty rows in the hour
      skipped in spring);
    - `negative_as_zero`: small negative values set to 0, by column.

    Raises DataError with line, column and value if a skipped hour has values (wrong zone), if only some times have an
    offset, or if a time is not the start of a step; the errors of `raw.read_text` and `raw.numbers`; and ParameterError
    for an unknown zone or a unit of the wrong dimension. Errors show ``mapping.file``, not the copy.
    """
    file, columns = mapping.file, dict(mapping.columns)
    names = {"utc_timestamp": mapping.time.column} | {name: column.column for name, column in columns.items()}
    layout: dict[str, Any] = {"separator": mapping.separator, "lines_before": mapping.lines_before_header}
    text = raw.read_text(path, list(dict.fromkeys(names.values())), next_step=_CORRECT, name=file, **layout)
    values, negative = pd.DataFrame(index=text.index), {}
    for name, column in columns.items():
        cells = text[column.column] = text[column.column].mask(text[column.column].str.strip().isin(mapping.no_value))
        values[name] = raw.numbers(cells, file, mapping.decimal, thousands=mapping.thousands, nullable=True)
    stamps, skipped = _to_utc(text[mapping.time.column], values, file, mapping.time)
    hours = steps.hours(stamps) if steps.IS_DAY else steps.HOURS  # days have 23 to 25
    for name, column in columns.items():
        values[name] = schema.convert(values[name], name, column.unit, hours)
        is_small = (values[name] < 0) & (values[name] >= -_MAX_NEGATIVE * values[name].max()) & (RANGES[name][0] == 0)
        negative[name] = int(is_small.sum())
        if mapping.negative_as_zero:
            values[name] = values[name].mask(is_small, 0.0)
        elif negative[name] == (values[name] < 0).sum():
            next_step = "if meters record such values at night, set negative_as_zero: true in params.yaml (fetch.csv)"
            raw.require(~is_small, text[column.column], file, "0 or more", next_step)
    dropped = {"ambiguous": int((stamps.isna() & ~skipped).sum()), "skipped": int(skipped.sum())}
    values.insert(0, "utc_timestamp", stamps)
    counts = {"clock_changes": dropped} | ({"negative_as_zero": negative} if mapping.negative_as_zero else {})
    return Table(Path(file), values[stamps.notna()], names, counts)


def _to_utc(text: Series, values: DataFrame, file: str, time: TimeColumn) -> tuple[Series, Series]:
    """Return the starts of the steps in UTC (NaT if ambiguous), and which rows are in an hour skipped in spring."""
    original, midnight = text, text.str.contains(_MIDNIGHT, na=False)
    text = text.str.replace(_MIDNIGHT, "00", regex=True)
    is_aware = raw.has_zone(text) if time.format is None else pd.Series("%z" in time.format, text.index)
    if is_aware.any():
        raw.require(is_aware, original, file, "an offset such as Z or +01:00, as on the other lines", _CORRECT)
    parsed = pd.to_datetime(text, format=time.format or "ISO8601", errors="coerce", utc=bool(is_aware.all()))
    # Require a digit, because pandas also parses "today" and "now".
    is_valid = parsed.notna() & text.str.contains(r"\d", na=False)
    expected = f"a time like {time.format}" if time.format else "a time in ISO 8601, or a `format` in params.yaml"
    english = ", with English names of months and weekdays" * bool(re.search("%[aAbB]", time.format or ""))
    raw.require(
        is_valid, original, file, expected + english, "correct the line, or set fetch.csv.time.format in params.yaml"
    )
    # If most rows at 00:00 are next to 23:00 of the same date, 00:00 means the end of that day, like 24:00.
    rows = parsed[parsed != parsed.shift()]
    neighbours = sum(rows.shift(n) - rows == steps.DAY - steps.LENGTH for n in (1, -1))
    is_day_end = neighbours[rows == rows.dt.normalize()] > 0
    midnight |= (parsed == parsed.dt.normalize()) & (is_day_end.mean() > 0.5 and not steps.IS_DAY)
    parsed = parsed.dt.as_unit("us").mask(midnight, parsed + steps.DAY)
    by_end, last = time.stamp == "end", pd.Timestamp(0) + steps.DAY - steps.LENGTH
    next_step = f"if the times are the ends of the {steps.NAMES}, set fetch.csv.time.stamp: end in params.yaml"
    raw.require(~midnight | by_end, original, file, f"the start of {steps.ONE}, 00:00 to {last:%H:%M}", next_step)
    stamps, skipped = parsed, pd.Series(False, text.index)
    if is_aware.all():
        if by_end and steps.IS_DAY:  # do not subtract 24 h: at a clock change, a day has 23 or 25 h
            stamps = steps.starts(parsed, later=-1).where(parsed == steps.starts(parsed), parsed)
        elif by_end:
            stamps = parsed - _STEP
    elif time.zone is None and not steps.IS_DAY:
        example = f"`time: {{column: {time.column}, zone: UTC}}`"
        next_step = f"set {example} in params.yaml (fetch.csv), or another zone, such as Europe/Berlin or +01:00"
        raw.require(is_aware, original, file, "an offset, or a zone for all lines (fetch.csv.time.zone)", next_step)
    elif steps.IS_DAY:
        days = pd.DatetimeIndex(parsed - _STEP if by_end else parsed)
        stamps = pd.Series(steps.begin(days, _zone(time.zone or steps.ZONE)), text.index)
    else:
        # At a clock change, some files stamp an hour with its end in local time, others with its local start plus 1 h.
        zone = _zone(time.zone or steps.ZONE)
        stamps, skipped = _localize(parsed, zone, values)
        if by_end:
            readings = [_localize(parsed - _STEP, zone, values), (stamps - _STEP, skipped)]
            errors = [known.isna().sum() + known.duplicated().sum() for known, _ in readings]
            stamps, skipped = readings[int(errors[1] < errors[0])]
            if errors[0] == errors[1]:  # both fit equally well: keep only the times on which they agree
                stamps = stamps.where(stamps == readings[1][0])
        _require_existing(parsed, skipped, values, original, file, zone)
    _require_starts(parsed, stamps, original, file, time)
    return stamps, skipped


def _localize(parsed: Series, zone: tzinfo | None, values: DataFrame) -> tuple[Series, Series]:
    """Convert local times to UTC (NaT if ambiguous); also return which rows are in the hour skipped in spring.

    In autumn the local times of one hour occur twice, in summer and in winter time. Duplicate rows (same time, same
    values) count as one row, or as two if they occur twice as often as the rows before and after. Each time must then
    occur exactly twice: first every time of one pass through the hour, then every time of the other. The first pass is
    summer time, or winter time if the newest row comes first. Rows that do not fit this pattern are ambiguous.
    """
    summer, winter = (
        parsed.dt.tz_localize(zone, ambiguous=np.full(len(parsed), is_summer), nonexistent="NaT").dt.tz_convert("UTC")
        for is_summer in (True, False)
    )
    is_repeated = summer.notna() & (summer != winter)
    stamps = summer.mask(is_repeated)
    near = parsed[parsed.dt.normalize().isin(parsed[is_repeated].dt.normalize().unique())]
    copies = values.loc[near.index].assign(time=near).groupby(["time", *values], dropna=False)
    counts = copies["time"].transform("size")
    usual = counts.mask(is_repeated[near.index])
    is_pair = (counts == 2 * usual.ffill().bfill()) & (counts == 2 * usual.bfill().ffill())
    rows = near[copies.cumcount() <= is_pair]
    nights = rows[is_repeated[rows.index]]
    for _, night in nights.groupby((nights + steps.DAY / 2).dt.normalize()):
        first, last = rows.index.get_indexer(night.index[[0, -1]])
        pairs = night[night.groupby(night).transform("size") == 2]
        one, other = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
        moves = one.diff().iloc[1:] if len(one) > 1 else rows.iloc[max(first - 1, 0) : last + 2].diff().iloc[1:]
        is_forwards = (moves[(moves != pd.Timedelta(0)) & (moves.abs() < steps.DAY)] > pd.Timedelta(0)).unique()
        if last - first + 1 == len(night) and one.tolist() == other.tolist() and len(is_forwards) < 2:
            earlier, later = (one, other) if all(is_forwards) else (other, one)
            stamps.update(pd.concat([summer[earlier.index], winter[later.index]]))
    return stamps.fillna(stamps[near.index].groupby(copies.ngroup()).transform("first")), summer.isna()


def _require_existing(
    parsed: Series, skipped: Series, values: DataFrame, times: Series, file: str, zone: tzinfo | None
) -> None:
    """Raise DataError for the first row with a value in an hour that the clock change skips."""
    if not skipped.any():
        return
    winter = parsed[skipped].iloc[0].to_pydatetime().replace(tzinfo=zone).isoformat()[-6:]
    next_step = f"if the file is in winter time all year, set fetch.csv.time.zone: '{winter}' in params.yaml"
    if (values[skipped].fillna(0) == 0).all(axis=None):
        next_step = (
            "the program that wrote the file filled that hour with 0: delete these lines, or leave the cells empty"
        )
    expected = f"an existing time: in {zone} the clock change in spring skips this one"
    raw.require(~skipped | values.isna().all(axis="columns"), times, file, expected, next_step)


def _require_starts(parsed: Series, stamps: Series, times: Series, file: str, time: TimeColumn) -> None:
    """Raise DataError if a time is not the start of a step; if all are off by the same amount, suggest a fix."""
    is_start = stamps.isna() | (stamps == steps.starts(stamps.dropna()).reindex(stamps.index))
    if is_start.all():
        return
    is_iso_offset = parsed.dt.tz is not None and time.format is None
    bare = times.str.replace(_OFFSET, "", regex=True) if is_iso_offset else times
    tails = times.str.extract(f"({_OFFSET})")[0].unique() if is_iso_offset else [""]
    written = pd.to_datetime(bare, format="ISO8601") if is_iso_offset else parsed.dt.tz_localize(None)
    offsets = (written - written.dt.floor(steps.STEP)).unique()
    if len(offsets) > 1:
        return
    form, clock = time.format, bare.iloc[0][10:]
    if form is None:
        form = "%Y-%m-%d" + clock[:1] + "%H:%M:%S"[: max(len(clock) - 1, 0)] + clock[9:]
        form += "%z" if len(tails) > 1 or (is_iso_offset and offsets[0] and not steps.IS_DAY) else tails[0]
    for directive in ("%S", "%M", "%H", "%I", "%p")[: 5 if steps.IS_DAY else 2 if steps.LENGTH >= steps.HOUR else 1]:
        form = form.replace(directive, f"{written.iloc[0]:{directive}}")
    expected = f"{steps.NAMES} that start at 00:00 in {steps.ZONE}"
    fix = f'if each time means the {steps.NAME} that contains it, set time.format: "{form}" in params.yaml (fetch.csv)'
    fix += " and time.stamp: start" * (time.stamp == "end")
    if steps.IS_DAY and len(tails) > 1:
        fix = MOVE
    elif steps.IS_DAY and not offsets[0]:
        fix = f"{fix}; or " * (form != "%Y-%m-%d") + "remove time.zone, or set ZONE in forecast/problem.py"
    elif not steps.IS_DAY:
        expected = f"{steps.NAMES} that start at 00:00, {pd.Timestamp(0) + steps.LENGTH:%H:%M}, ... UTC"
        if not offsets[0]:
            ahead = (written - stamps.dt.tz_localize(None)).dropna().unique()
            sign, zone = "-+"[int(ahead[0] >= pd.Timedelta(0))], pd.Timestamp(0) + abs(ahead[0].floor(steps.STEP))
            fix = f"set time.zone: '{sign}{zone:%H:%M}' in params.yaml (fetch.csv)"
            fix += f', and time.format: "{form}"' * is_iso_offset + "; see own/README.md"
            fix = fix if len(ahead) == 1 else MOVE  # a fixed offset cannot express summer time
        elif steps.LENGTH < steps.HOUR and offsets[0] >= pd.Timedelta(minutes=1):
            fix = MOVE
    raw.require(is_start, times, file, expected, fix)


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
            next_step="choose a time zone; if Python knows no zone at all, install tzdata",
        ) from None
