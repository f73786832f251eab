"""Turn raw files into the processed table; count the hours that are left out, and invent no value."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pandas import DataFrame, DatetimeIndex, Series

from forecast import problem
from forecast.errors import DataError, ParameterError
from forecast.raw import own_file, sources
from forecast.table import reading as raw
from forecast.table import schema
from forecast.table.features import mark_capacity
from forecast.table.reading import Table
from forecast.table.schema import STAMP

logger = logging.getLogger(__name__)
HOUR = pd.Timedelta(hours=1)
# The columns of each quantity in the files of Open Power System Data, and of the sample.
LAYOUT = {
    sources.POWER_FILE: {target.opsd: target.name for target in problem.TARGETS},
    sources.WEATHER_FILE: {each.opsd: each.name for each in problem.INPUTS},
}


def prepare(raw_folder: Path, first_year: int = 2013, last_year: int = 2016) -> tuple[DataFrame, dict]:
    """Return the processed table of the raw files in ``raw_folder``, and the findings.

    The rule, for each hour (UTC) from 1 January of ``first_year`` to the end of ``last_year``:

    1. an hour that a file holds more than once: its first row is kept, the others are left out;
    2. an hour that is absent from a file is left out;
    3. an hour in which a needed cell is empty is left out;
    4. nothing is filled, interpolated or otherwise invented. Units are converted, no other value changes.

    The table has the columns `schema.COLUMNS`, sorted by time, satisfies `schema.check`, and carries its origin
    (`sources.origin_of`).

    The findings can be written as JSON: the hours expected, kept and left out; by file (`power` and `weather`, or
    `own`) its rows, those outside the years, those that follow a later hour, those doubled, and the hours absent; the
    empty cells by column; the same `by_year`, with its gaps; for an own file what `own_file.read` left out.

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
    counts: dict[str, dict[str, int]] = {}
    if origin.csv is None:
        tables = read_opsd(Path(raw_folder))
    else:
        table, counts = own_file.read(Path(raw_folder) / sources.OWN_FILE, origin.csv)
        tables = {"own": table}
    hours = _hours(first_year, last_year)
    parts = {name: _take_hours(table, hours) for name, table in tables.items()}
    frame = _join({name: part.frame for name, part in parts.items()}, hours)
    next_step = "correct the file, or ask for other years (prepare.first_year and last_year in params.yaml)"
    schema.check(frame, f"The frame prepared from {origin.csv.file if origin.csv else raw_folder}", next_step)
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
        **counts,
    }
    logger.info("%s: %s", origin.source, in_words(findings))
    return origin.mark(frame), findings


# -- raw files to rows -------------------------------------------------------------------------------------------------
def read_opsd(folder: Path) -> dict[str, Table]:
    """Return Germany's raw tables, `power` and `weather`; errors as `raw.read_text`."""
    tables, next_step = {}, f"python -m forecast fetch --to {folder} puts the raw files there"
    for part, (file, columns) in zip(("power", "weather"), LAYOUT.items(), strict=True):
        path, names = folder / file, {ours: theirs for theirs, ours in columns.items()}
        text = raw.read_text(path, ["utc_timestamp", *columns], next_step=next_step)
        frame = raw.convert_text(text, str(path), nullable=True).rename(columns=columns)
        powers = {name: schema.convert(frame[name], name, "MW") for name in names if name in schema.TARGETS}
        tables[part] = Table(path, frame.assign(**powers), names)
    return tables


def load_or_make(csv: Path) -> DataFrame:
    """Return the processed table of Germany in the file ``csv``; if there is no such file, make it from the sample.

    The table carries Germany's installed capacity. Raises DataError (file damaged, disk full, folder not writable).
    """
    if not Path(csv).exists():
        with tempfile.TemporaryDirectory() as folder:
            sources.fetch("sample", Path(folder))
            schema.write_csv(prepare(Path(folder))[0], Path(csv))
    return mark_capacity(schema.read(csv))


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
    steps = stamps.drop_duplicates().sort_values().diff().dropna()
    if len(steps) > 1 and (step := steps.mode()[0]) != HOUR:
        raise DataError(
            f"{path}: the rows are {step / HOUR:.3g} hours apart.",
            value=", ".join(f"{stamp:{STAMP}}" for stamp in stamps[:3]),
            expected="a row an hour",
            next_step="use the file of hourly values (60min); for an own file, make hourly means first, by a script in"
            " own/ (see 4_pipeline/own/README.md)",
        )
    if not stamps.isin(hours).all():
        line = (~stamps.isin(hours)).idxmax()
        raise DataError(
            f"{path}, line {line}, column {names.get('utc_timestamp', 'utc_timestamp')}: not a full hour.",
            value=f"{stamps[line]:{STAMP}}",
            expected="hourly data",
            next_step="use the file of hourly values (60min)",
        )
    again = stamps.duplicated()
    next_step = f"correct or leave out these lines of {path.name}; if a number such as -999 stands for no value in an"
    next_step += " own file, set no_value in params.yaml (fetch.csv)"
    schema.check_cells(within[~again], str(path), next_step, theirs=names, nullable=True)
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
    text = f"{kept}; left out: {', '.join(reasons)}" if reasons else f"{kept}; nothing left out"
    small = [f"{column} {count:,}" for column, count in findings.get("negative_as_zero", {}).items() if count]
    return f"{text}; small negative values set to 0: {', '.join(small)}" if small else text


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
