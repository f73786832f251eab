"""From the two raw files to the processed frame, by a stated rule that leaves out and never invents."""

from __future__ import annotations

import io
import logging
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame

from workshop.data import coverage, origin, own, raw, schema, sources
from workshop.data.coverage import STAMP
from workshop.data.files import write_whole
from workshop.errors import DataError, ParameterError

logger = logging.getLogger(__name__)


class NothingInCommon(DataError):
    """No hour of the years asked for is complete in all raw files."""


def prepare(raw_folder: Path, first_year: int = 2013, last_year: int = 2016) -> tuple[DataFrame, dict]:
    """Return the processed frame of the raw files in ``raw_folder``, and the findings on the way.

    The rule, for each hour (UTC) from 1 January of ``first_year`` to the end of ``last_year``:

    1. an hour that stands in a file more than once: its first row is kept, the others are left out;
    2. an hour that is absent from a file is left out;
    3. an hour in which a needed cell is empty is left out;
    4. nothing is filled, interpolated or otherwise invented. Units are converted, no other value changes.

    Where power, or weather, is in many files (`raw.files`), they count as one, in the order of their names.

    The frame has the columns `schema.COLUMNS`, sorted by time, satisfies `schema.check`, and carries where it comes
    from (`origin.of_frame`). The findings can be written as JSON: the source; the hours expected, kept and left out; by
    file (`power` and `weather`, or `own`) its rows, those outside the years, those that stood before an earlier one,
    those doubled, and the hours absent; the empty cells by column, among the hours that a file has; for a file of
    one's own what `own.read` left out; the same counts `coverage.by_year`; what is unusual, in words; the first and
    last hour; the means. What was left out, and why, also goes to the log.

    Raises DataError naming file, line, column and value (no file, no such column, text in a number, a line cut
    short, a timestamp without a zone or off the hour, no hour in the years asked for, values out of range) and
    ParameterError when ``last_year`` is before ``first_year``.
    """
    require_years(first_year, last_year)
    told = origin.of_folder(raw_folder)
    tables, left_out = _read(Path(raw_folder), told)
    frame, findings = combine(tables, first_year, last_year, told, f"The frame prepared from {raw_folder}")
    findings |= left_out
    logger.info("%s: %s", told.source, coverage.in_words(findings))
    return frame, findings


def require_years(first_year: int, last_year: int) -> None:
    """Raise ParameterError when ``last_year`` is before ``first_year``."""
    if last_year < first_year:
        raise ParameterError(
            "The last year is before the first.",
            value=f"first_year {first_year}, last_year {last_year}",
            expected="first_year <= last_year",
            next_step="exchange them (in chapter 4: params.yaml)",
        )


def combine(
    tables: dict[str, list[raw.Table]], first_year: int, last_year: int, told: origin.Origin, name: str
) -> tuple[DataFrame, dict]:
    """Return the processed frame of raw tables, by part, and the findings, as `prepare` does; the same errors.

    The tables of a part are read as one, in their order. ``name`` is what an error calls the frame.
    """
    hours = pd.date_range(
        f"{first_year}-01-01", f"{last_year + 1}-01-01", freq="h", tz="UTC", inclusive="left", unit="us"
    )
    parts = {part: _once_an_hour(some, hours) for part, some in tables.items()}
    frame = _join({name: part.frame for name, part in parts.items()}, hours)
    schema.check(frame, name)
    findings = {
        "source": told.source,
        "first_year": first_year,
        "last_year": last_year,
        "hours_expected": len(hours),
        "hours_kept": len(frame),
        "hours_left_out": len(hours) - len(frame),
        "rows": {part: sum(len(table.frame) for table in some) for part, some in tables.items()},
        "outside_years": {name: part.outside for name, part in parts.items()},
        "unordered": {name: part.unordered for name, part in parts.items()},
        "doubled": {name: part.doubled for name, part in parts.items()},
        "absent": {name: len(hours) - len(part.frame) for name, part in parts.items()},
        "incomplete": {
            column: int(count) for part in parts.values() for column, count in part.frame.isna().sum().items()
        },
        "by_year": coverage.by_year(
            {part: pd.concat([table.frame for table in some]) for part, some in tables.items()}, frame, hours
        ),
        "unusual": schema.unusual(frame),
        "first_hour": frame["utc_timestamp"].iloc[0].strftime(STAMP),
        "last_hour": frame["utc_timestamp"].iloc[-1].strftime(STAMP),
        "means": {column: round(float(frame[column].mean()), 4) for column in schema.RANGES},
    }
    return told.mark(frame), findings


def write(frame: DataFrame, folder: Path, name: str = "germany") -> list[Path]:
    """Write the processed frame as ``name``.parquet and ``name``.csv into ``folder`` and return both paths.

    The same frame gives the same bytes. Each file is written whole or not at all. Raises DataError (frame breaks the
    schema, disk full, folder not writable).
    """
    parquet = write_parquet(frame, Path(folder) / f"{name}.parquet")
    return [parquet, _write_csv(frame, Path(folder) / f"{name}.csv")]


def write_parquet(frame: DataFrame, path: Path) -> Path:
    """Write a processed frame, or a part of one, as parquet and return its path; bytes and errors as `write`."""
    schema.check(frame, path.name)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return write_whole(path, buffer.getvalue())


def load_or_make(csv: Path) -> DataFrame:
    """Return the processed frame in the file ``csv``, made from the embedded sample first if there is no such file.

    Raises DataError (file damaged, disk full, folder not writable).
    """
    csv = Path(csv)
    if not csv.exists():
        with tempfile.TemporaryDirectory() as folder:
            sources.fetch("sample", Path(folder))
            frame, _ = prepare(Path(folder))
        _write_csv(frame, csv)
    return schema.read(csv)


def _write_csv(frame: DataFrame, path: Path) -> Path:
    return write_whole(path, frame.to_csv(index=False, date_format=STAMP, lineterminator="\n").encode())


class _Part(NamedTuple):
    """The hours of raw tables, each once, time as the index; and how many rows were otherwise."""

    frame: DataFrame
    outside: int
    unordered: int
    doubled: int


def _read(folder: Path, told: origin.Origin) -> tuple[dict[str, list[raw.Table]], dict[str, dict[str, int]]]:
    """Return the raw tables of a folder, by part, and what was left out on reading, by reason."""
    if told.csv is None:
        return raw.read(folder), {}
    path = folder / sources.OWN_FILE
    frame, left_out = own.read(path, told.csv)
    return {"own": [raw.Table(path, frame, own.names(told.csv))]}, {"clock_changes": left_out}


def _once_an_hour(tables: list[raw.Table], hours: pd.DatetimeIndex) -> _Part:
    """Take the ``hours`` out of raw tables, each once; raise DataError for what is off the hour or out of range."""
    within = [_within(table, hours) for table in tables]
    doubled = pd.concat([frame["utc_timestamp"] for frame in within]).duplicated(keep="first").to_numpy()
    ends = np.cumsum([len(frame) for frame in within])[:-1]
    once = [frame[~mask] for frame, mask in zip(within, np.split(doubled, ends), strict=True)]
    for table, frame in zip(tables, once, strict=True):
        schema.require_ranges(frame, table.path, table.names)
    stamps = pd.concat([table.frame["utc_timestamp"] for table in tables])
    unordered = int((stamps < stamps.cummax()).sum())
    frame = pd.concat(once).set_index("utc_timestamp")
    return _Part(frame, len(stamps) - len(doubled), unordered, int(doubled.sum()))


def _within(table: raw.Table, hours: pd.DatetimeIndex) -> DataFrame:
    """Return the rows of the years that ``hours`` span; raise DataError for the first that is off the hour."""
    path, frame, _ = table
    stamps = frame["utc_timestamp"]
    within = frame[(stamps >= hours[0]) & (stamps < hours[-1] + pd.Timedelta(hours=1))]
    off = ~within["utc_timestamp"].isin(hours)
    if off.any():
        line = off.idxmax()
        raise DataError(
            f"{path}, line {line}, column utc_timestamp: not a full hour.",
            value=within["utc_timestamp"][line].strftime(STAMP),
            expected="hourly data",
            next_step="use the file of hourly values (60min)",
        )
    return within


def _join(frames: dict[str, DataFrame], hours: pd.DatetimeIndex) -> DataFrame:
    """Return the hours that are complete in every frame; raise DataError, saying what lacks, if there is none."""
    joined = pd.concat(frames.values(), axis="columns", join="inner").sort_index()
    complete = joined.dropna().rename_axis("utc_timestamp").reset_index()[schema.COLUMNS]
    if complete.empty:
        empty = [column for frame in frames.values() if len(frame) for column in frame if frame[column].isna().all()]
        found = ", ".join(f"{len(frame)} hours of {name}" for name, frame in frames.items())
        raise NothingInCommon(
            f"The raw files have no complete hour in common from {hours[0].year} to {hours[-1].year}.",
            value=found + (f"; no value at all of {', '.join(empty)}" if empty else ""),
            expected="hours in which nothing is missing",
            next_step="ask for years that the files hold (prepare.first_year and last_year in params.yaml)"
            + ("; look for these columns' values" if empty else ""),
        )
    return complete
