"""Read a CSV file of one's own as its description says: columns, units, and times of any zone."""

from __future__ import annotations

import re
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
from pandas import Series

from workshop.data import raw, schema
from workshop.data.raw import Table
from workshop.data.schema import RANGES
from workshop.errors import ParameterError
from workshop.parameters import OwnFile, TimeColumn

_CORRECT = "correct the file, or how it is read: fetch.csv in params.yaml"


def read(path: Path, mapping: OwnFile) -> tuple[Table, dict[str, int]]:
    """Read the file ``path`` as ``mapping`` says; return its rows, and how many were left out and why.

    The frame has `schema.COLUMNS`, in our units and UTC, in the file's order; its index is the line in the file. An
    empty cell is NaN. Times without an offset are of ``mapping.time.zone``. Where the clock is put back, a time exists
    twice: the row that comes first in time is summer's, the other winter's. Left out and counted are

    - `ambiguous`: rows of that hour in a file that has it once: summer's or winter's cannot be known;
    - `skipped`: rows without any value in the hour that is missing when the clock is put forward.

    Raises DataError with line, column, value and next step: a value in an hour that never was (then the zone is
    wrong), times partly with an offset, and whatever `raw.read_text` and `raw.numbers` refuse; ParameterError: no such
    zone.
    """
    file, columns = str(path), {name: getattr(mapping, name) for name in RANGES}
    wanted = list(dict.fromkeys([mapping.time.column, *(column.column for column in columns.values())]))
    text = raw.read_text(path, wanted, separator=mapping.separator, next_step=_CORRECT)
    values = pd.DataFrame(
        {
            name: schema.convert(
                raw.numbers(text[column.column], file, mapping.decimal, nullable=True), name, column.unit
            )
            for name, column in columns.items()
        }
    )
    times = text[mapping.time.column]
    stamps, skipped = _to_utc(times, file, mapping.time)
    raw.require(
        ~skipped | values.isna().all(axis="columns"),
        times,
        file,
        f"a time that exists: in {mapping.time.zone} the clock is put forward over this one",
        "if the file keeps winter time all year, set fetch.csv.time.zone: '+01:00' in params.yaml",
    )
    left_out = {"ambiguous": int((stamps.isna() & ~skipped).sum()), "skipped": int(skipped.sum())}
    values.insert(0, "utc_timestamp", stamps)
    names = {name: column.column for name, column in columns.items()}
    return Table(path, values[stamps.notna()], names), left_out


def _to_utc(text: Series, file: str, time: TimeColumn) -> tuple[Series, Series]:
    """Return UTC times, NaT where they cannot be known, and which of these are of an hour that never was."""
    aware = raw.has_zone(text) if time.format is None else pd.Series("%z" in time.format, text.index)
    if aware.any():
        raw.require(aware, text, file, "an offset such as Z or +01:00, as in other lines", _CORRECT)
    parsed = pd.to_datetime(text, format=time.format or "ISO8601", errors="coerce", utc=bool(aware.all()))
    # pandas takes "today" and "now" for times
    good = parsed.notna() & text.str.contains(r"\d", na=False)
    like = f"a time like {time.format}" if time.format else "a time in ISO 8601, or `format` in params.yaml"
    raw.require(good, text, file, like, "correct that line, or fetch.csv.time.format in params.yaml")
    parsed = parsed.dt.as_unit("us")
    if aware.all():
        return parsed, pd.Series(False, text.index)
    if time.zone is None:
        example = f"`time: {{column: {time.column}, zone: UTC}}`"
        next_step = f"set in params.yaml, under fetch.csv: {example}, or Europe/Berlin, or +01:00"
        raw.require(
            aware, text, file, "an offset such as +01:00, or a zone for the file (fetch.csv.time.zone)", next_step
        )
    zone = _zone(time.zone or "UTC")
    summer, known = _is_summer(parsed, zone)
    local = parsed.dt.tz_localize(zone, ambiguous=summer, nonexistent="NaT")
    return local.where(known).dt.tz_convert("UTC"), local.isna()


def _is_summer(parsed: Series, zone: tzinfo | None) -> tuple[Any, Series]:
    """Return for each local time whether it is summer's, and whether that is known."""
    twice = parsed.dt.tz_localize(zone, ambiguous="NaT", nonexistent="shift_forward").isna()
    # Many portals write the newest row first; then winter's row comes first.
    backwards = len(parsed) > 1 and parsed.iloc[0] > parsed.iloc[-1]
    ordered = parsed.iloc[::-1] if backwards else parsed
    place = ordered.groupby(ordered).cumcount().reindex(parsed.index)
    often = parsed.groupby(parsed).transform("size")
    return (place == 0).to_numpy(), ~twice | (often > 1)


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
