"""An own table: its columns by a mapping, units converted, times brought to UTC."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from workshop.data.raw import has_zone, numbers, read_text, require, require_past
from workshop.data.schema import RANGES, convert
from workshop.errors import ParameterError
from workshop.parameters import OwnFile, TimeColumn

if TYPE_CHECKING:
    from datetime import tzinfo

    import numpy as np
    from pandas import DataFrame, Series

_CORRECT = "correct the file, or how it is read: fetch.csv in params.yaml"


def read(path: Path, mapping: OwnFile) -> tuple[DataFrame, dict[str, int]]:
    """Read the file ``path`` as ``mapping`` says; return its rows, and how many were left out and why.

    The frame has `schema.COLUMNS`, in our units and UTC, in the file's order; its index is the line in the file. An
    empty cell is NaN. Times without an offset are of ``mapping.time.zone``. Where the clock is put back, a time exists
    twice: the row that comes first in time is summer's, the other winter's. Left out and counted are

    - `ambiguous`: rows of that hour in a file that has it once: summer's or winter's cannot be known;
    - `skipped`: rows without any value in the hour that is missing when the clock is put forward.

    Raises DataError with line, column, value and next step: a value in an hour that never was (then the zone is
    wrong), times partly with an offset, and what `read_text` and `numbers` refuse; ParameterError: no such zone.
    """
    import pandas as pd

    columns = {name: getattr(mapping, name) for name in RANGES}
    wanted = list(dict.fromkeys([mapping.time.column, *(column.column for column in columns.values())]))
    text = read_text(path, wanted, separator=mapping.separator, next_step=_CORRECT)
    values = pd.DataFrame(
        {
            name: convert(numbers(text[column.column], path, mapping.decimal), name, column.unit)
            for name, column in columns.items()
        }
    )
    times = text[mapping.time.column]
    stamps, skipped = _to_utc(times, path, mapping.time)
    require(
        ~skipped | values.isna().all(axis="columns"),
        times,
        path,
        f"a time that exists: in {mapping.time.zone} the clock is put forward over this one",
        "if the file keeps winter time all year, set fetch.csv.time.zone: '+01:00' in params.yaml",
    )
    require_past(stamps, times, path)
    left_out = {"ambiguous": int((stamps.isna() & ~skipped).sum()), "skipped": int(skipped.sum())}
    values.insert(0, "utc_timestamp", stamps)
    return values[stamps.notna()], left_out


def names(mapping: OwnFile) -> dict[str, str]:
    """Return the file's name of each column of the processed table."""
    return {name: getattr(mapping, name).column for name in RANGES}


def _to_utc(text: Series, path: Path, time: TimeColumn) -> tuple[Series, Series]:
    """Return UTC times, NaT where they cannot be known, and which of these are of an hour that never was."""
    import pandas as pd

    aware = has_zone(text) if time.format is None else pd.Series("%z" in time.format, text.index)
    if aware.any():
        require(aware, text, path, "an offset such as Z or +01:00, as in other lines", _CORRECT)
    parsed = pd.to_datetime(text, format=time.format or "ISO8601", errors="coerce", utc=bool(aware.all()))
    # pandas takes "today" and "now" for times
    good = parsed.notna() & text.str.contains(r"\d", na=False)
    like = f"a time like {time.format}" if time.format else "a time in ISO 8601, or `format` in params.yaml"
    require(good, text, path, like, "correct that line, or fetch.csv.time.format in params.yaml")
    parsed = parsed.dt.as_unit("us")
    if aware.all():
        return parsed, pd.Series(False, text.index)
    if time.zone is None:
        example = f"`time: {{column: {time.column}, zone: UTC}}`"
        next_step = f"set in params.yaml, under fetch.csv: {example}, or Europe/Berlin, or +01:00"
        require(aware, text, path, "an offset such as +01:00, or a zone for the file (fetch.csv.time.zone)", next_step)
    zone = _zone(time.zone)
    summer, known = _sides(parsed, zone)
    local = parsed.dt.tz_localize(zone, ambiguous=summer, nonexistent="NaT")
    return local.where(known).dt.tz_convert("UTC"), local.isna()


def _sides(parsed: Series, zone: tzinfo) -> tuple[np.ndarray, Series]:
    """Return for each local time whether it is summer's, and whether that is known."""
    twice = parsed.dt.tz_localize(zone, ambiguous="NaT", nonexistent="shift_forward").isna()
    # Many portals write the newest row first; then winter's row comes first.
    backwards = len(parsed) > 1 and parsed.iloc[0] > parsed.iloc[-1]
    ordered = parsed.iloc[::-1] if backwards else parsed
    place = ordered.groupby(ordered).cumcount().reindex(parsed.index)
    often = parsed.groupby(parsed).transform("size")
    return (place == 0).to_numpy(), ~twice | (often > 1)


def _zone(name: str) -> tzinfo:
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
