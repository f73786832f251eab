"""Turn raw files into the processed table; count the hours that are left out, and invent nothing."""

from __future__ import annotations

import io
import logging
import re
import tempfile
from collections.abc import Mapping
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pandas as pd
from pandas import DataFrame, DatetimeIndex, Series

from workshop import problem
from workshop.data import raw, schema, sources
from workshop.data.features import mark_capacity
from workshop.data.schema import RANGES, STAMP
from workshop.errors import DataError, ParameterError
from workshop.files import write_atomically
from workshop.parameters import OwnFile, TimeColumn

logger = logging.getLogger(__name__)
HOUR = pd.Timedelta(hours=1)
# The columns of each quantity in the files of Open Power System Data, and of the sample.
LAYOUT = {
    sources.POWER_FILE: {target.opsd: target.name for target in problem.TARGETS},
    sources.WEATHER_FILE: {given.opsd: given.name for given in problem.INPUTS},
}
_CORRECT = "correct the file, or how it is read: fetch.csv in params.yaml"


class Table(NamedTuple):
    """Rows of a raw file in our units; the index is the line in the file; ``names`` are the file's column names."""

    path: Path
    frame: DataFrame
    names: dict[str, str]


def prepare(raw_folder: Path, first_year: int = 2013, last_year: int = 2016) -> tuple[DataFrame, dict]:
    """Return the processed table of the raw files in ``raw_folder``, and what was found while preparing it.

    The rule, for each hour (UTC) from 1 January of ``first_year`` to the end of ``last_year``:

    1. an hour that a file holds more than once: its first row is kept, the others are left out;
    2. an hour that is absent from a file is left out;
    3. an hour in which a needed cell is empty is left out;
    4. nothing is filled, interpolated or otherwise invented. Units are converted, no other value changes.

    The table has the columns `schema.COLUMNS`, sorted by time, satisfies `schema.check`, and carries its origin
    (`sources.origin_of`).

    The findings can be written as JSON: the hours expected, kept and left out; by file (`power` and `weather`, or
    `own`) its rows, those outside the years, those that follow a later hour, those doubled, and the hours absent; the
    empty cells by column; the same `by_year`, with its gaps; for an own file what `read_own` left out.

    Raises DataError naming file, line, column and value (no file, no such column, text in a number, a line cut short,
    a time without a zone or off the hour, no hour in the years, values out of range), and ParameterError when
    ``last_year`` is before ``first_year``.
    """
    if last_year < first_year:
        raise ParameterError(
            "The last year is before the first.",
            value=f"first_year {first_year}, last_year {last_year}",
            expected="first_year <= last_year",
            next_step="exchange them (in chapter 4: params.yaml)",
        )
    origin = sources.origin_in(raw_folder)
    if origin.csv is None:
        tables, clock_changes = read_opsd(Path(raw_folder)), None
    else:
        table, clock_changes = read_own(Path(raw_folder) / sources.OWN_FILE, origin.csv)
        tables = {"own": table}
    hours = _hours(first_year, last_year)
    parts = {name: _take_hours(table, hours) for name, table in tables.items()}
    frame = _join({name: part.frame for name, part in parts.items()}, hours)
    schema.check(frame, f"The frame prepared from {raw_folder}")
    by_year = _count_by_year(parts, frame, hours)
    findings = {
        "source": origin.source,
        "first_year": first_year,
        "last_year": last_year,
        "hours_expected": len(hours),
        "hours_kept": len(frame),
        "hours_left_out": len(hours) - len(frame),
        "rows": {name: part.rows for name, part in parts.items()},
        "outside_years": {name: part.outside for name, part in parts.items()},
        "unordered": {name: part.unordered for name, part in parts.items()},
        **{reason: _sums(by_year, reason) for reason in ("doubled", "absent", "incomplete")},
        "by_year": by_year,
        "first_hour": f"{frame['utc_timestamp'].iloc[0]:{STAMP}}",
        "last_hour": f"{frame['utc_timestamp'].iloc[-1]:{STAMP}}",
    }
    if clock_changes is not None:
        findings["clock_changes"] = clock_changes
    logger.info("%s: %s", origin.source, in_words(findings))
    return origin.mark(frame), findings


# -- raw files to rows -------------------------------------------------------------------------------------------------
def read_opsd(folder: Path) -> dict[str, Table]:
    """Return Germany's raw tables, `power` and `weather`; errors as `raw.read_text`."""
    tables, next_step = {}, f"workshop data fetch --to {folder} puts the raw files there"
    for part, (file, columns) in zip(("power", "weather"), LAYOUT.items(), strict=True):
        path, names = folder / file, {ours: theirs for theirs, ours in columns.items()}
        text = raw.read_text(path, ["utc_timestamp", *columns], next_step=next_step)
        frame = raw.convert_text(text, str(path), nullable=True).rename(columns=columns)
        powers = {name: schema.convert(frame[name], name, "MW") for name in names if name in schema.TARGETS}
        tables[part] = Table(path, frame.assign(**powers), names)
    return tables


def read_own(path: Path, mapping: OwnFile) -> tuple[Table, dict[str, int]]:
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


# -- files -------------------------------------------------------------------------------------------------------------
def write(frame: DataFrame, folder: Path, name: str = "germany") -> list[Path]:
    """Write the processed table as ``name``.parquet and ``name``.csv into ``folder`` and return both paths.

    The same table gives the same bytes. Raises DataError (table breaks the schema, disk full, folder not writable).
    """
    parquet = write_parquet(frame, Path(folder) / f"{name}.parquet")
    return [parquet, _write_csv(frame, Path(folder) / f"{name}.csv")]


def write_parquet(frame: DataFrame, path: Path) -> Path:
    """Write a processed table, or a part of one, as Parquet and return its path; bytes and errors as `write`."""
    buffer = io.BytesIO()
    schema.check(frame, Path(path).name).to_parquet(buffer, index=False)
    return write_atomically(path, buffer.getvalue())


def load_or_make(csv: Path) -> DataFrame:
    """Return the processed table of Germany in the file ``csv``; if there is no such file, make it from the sample.

    The table carries Germany's installed capacity. Raises DataError (file damaged, disk full, folder not writable).
    """
    if not Path(csv).exists():
        with tempfile.TemporaryDirectory() as folder:
            sources.fetch("sample", Path(folder))
            _write_csv(prepare(Path(folder))[0], Path(csv))
    return mark_capacity(schema.read(csv))


def _write_csv(frame: DataFrame, path: Path) -> Path:
    return write_atomically(path, frame.to_csv(index=False, date_format=STAMP, lineterminator="\n").encode())


# -- the rule ----------------------------------------------------------------------------------------------------------
class _Part(NamedTuple):
    """The hours of a raw table, each once, time as the index; the times of repeated rows; and counts of rows."""

    frame: DataFrame
    repeated: Series
    rows: int
    outside: int
    unordered: int


def _take_hours(table: Table, hours: DatetimeIndex) -> _Part:
    """Take the ``hours`` out of a raw table, each once; raise DataError for rows off the hour or out of range."""
    path, frame, names = table
    every = frame["utc_timestamp"]
    within = frame[(every >= hours[0]) & (every < hours[-1] + HOUR)]
    stamps = within["utc_timestamp"]
    if not stamps.isin(hours).all():
        line = (~stamps.isin(hours)).idxmax()
        raise DataError(
            f"{path}, line {line}, column utc_timestamp: not a full hour.",
            value=f"{stamps[line]:{STAMP}}",
            expected="hourly data",
            next_step="use the file of hourly values (60min)",
        )
    again = stamps.duplicated()
    schema.check_cells(
        within[~again], str(path), f"correct or leave out these lines of {path.name}", theirs=names, nullable=True
    )
    unordered = int((every < every.cummax()).sum())
    once = within[~again].set_index("utc_timestamp")
    return _Part(once, stamps[again], len(every), len(every) - len(within), unordered)


def _join(frames: dict[str, DataFrame], hours: DatetimeIndex) -> DataFrame:
    """Return the hours that are complete in every frame; raise DataError if there is none."""
    joined = pd.concat(frames.values(), axis="columns", join="inner").sort_index()
    complete = joined.dropna().rename_axis("utc_timestamp").reset_index()[schema.COLUMNS]
    if complete.empty:
        empty = [column for frame in frames.values() if len(frame) for column in frame if frame[column].isna().all()]
        counts = ", ".join(f"{len(frame)} hours of {name}" for name, frame in frames.items())
        raise DataError(
            f"The raw files have no complete hour in common from {hours[0].year} to {hours[-1].year}.",
            value=counts + (f"; no value at all of {', '.join(empty)}" if empty else ""),
            expected="hours in which nothing is missing",
            next_step="ask for years that the files hold (prepare.first_year and last_year in params.yaml)"
            + ("; check the values of these columns" if empty else ""),
        )
    return complete


# -- counts ------------------------------------------------------------------------------------------------------------
def left_out(findings: Mapping[str, Any]) -> dict[str, int]:
    """Return how many rows or hours were left out, by reason in words; an hour can have more than one reason."""
    reasons = {
        **{f"absent from {name}": count for name, count in findings["absent"].items()},
        **{f"without {column}": count for column, count in findings["incomplete"].items()},
        **{f"doubled in {name}": count for name, count in findings["doubled"].items()},
        **{f"of other years in {name}": count for name, count in findings["outside_years"].items()},
        **{f"{kind} at a clock change": count for kind, count in findings.get("clock_changes", {}).items()},
    }
    return {reason: count for reason, count in reasons.items() if count}


def in_words(findings: Mapping[str, Any]) -> str:
    """Return a line that says how many hours were kept, and what was left out and why."""
    kept = f"{findings['hours_kept']:,} of {findings['hours_expected']:,} hours kept"
    reasons = [f"{reason} {count:,}" for reason, count in left_out(findings).items()]
    return f"{kept}; left out: {', '.join(reasons)}" if reasons else f"{kept}; nothing left out"


def missing_by_month(frame: DataFrame, first_year: int, last_year: int) -> DataFrame:
    """Return how many hours of each month are missing: a row a year, columns 1 to 12."""
    hours = _hours(first_year, last_year)
    missing = Series(~hours.isin(frame["utc_timestamp"]), hours)
    return missing.groupby([hours.year, hours.month]).sum().unstack()


def runs(values: Series) -> DataFrame:
    """Return the runs of equal values: `value`, `first` (its index) and `hours`; missing values belong to no run."""
    starts = values.ne(values.shift()) & values.notna()
    sizes = starts.cumsum().where(values.notna()).value_counts(sort=False).sort_index()
    return DataFrame({"value": values[starts].to_numpy(), "first": values.index[starts], "hours": sizes.to_numpy()})


def _hours(first_year: int, last_year: int) -> DatetimeIndex:
    ends = f"{first_year}-01-01", f"{last_year + 1}-01-01"
    return pd.date_range(*ends, freq="h", tz="UTC", inclusive="left", unit="us")


def _count_by_year(parts: Mapping[str, _Part], frame: DataFrame, hours: DatetimeIndex) -> dict[str, dict[str, Any]]:
    """Return for each year the hours expected, kept and left out by reason, and the gaps in the kept ones.

    By part: rows `doubled` and hours `absent`; by column: hours `incomplete`, of those that the part has.
    """
    counts = {}
    for year, expected in hours.groupby(hours.year).items():
        missing = Series(~expected.isin(frame["utc_timestamp"]), expected)
        gaps = runs(missing[missing].reindex(expected))
        longest = gaps.loc[gaps["hours"].idxmax()] if len(gaps) else None
        counts[str(year)] = {
            "hours_expected": len(expected),
            "hours_kept": int((~missing).sum()),
            "gaps": len(gaps),
            "longest_gap_hours": 0 if longest is None else int(longest["hours"]),
            "longest_gap_from": None if longest is None else f"{longest['first']:{STAMP}}",
            "doubled": {name: int((part.repeated.dt.year == year).sum()) for name, part in parts.items()},
            "absent": {name: int((~expected.isin(part.frame.index)).sum()) for name, part in parts.items()},
            "incomplete": {
                column: int(values[values.index.year == year].isna().sum())
                for part in parts.values()
                for column, values in part.frame.items()
            },
        }
    return counts


def _sums(by_year: Mapping[str, Mapping[str, Any]], reason: str) -> dict[str, int]:
    years = list(by_year.values())
    return {name: sum(year[reason][name] for year in years) for name in years[0][reason]}
