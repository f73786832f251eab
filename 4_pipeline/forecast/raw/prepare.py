"""Turn raw files into the processed table; count the steps that are left out, and invent no value."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame, DatetimeIndex, Series

from forecast import problem
from forecast.raw import own_file, sources
from forecast.raw.own_file import MOVE, SCRIPT
from forecast.table import processed, schema
from forecast.table import reading as raw
from forecast.table.features import add_capacity, check_derived
from forecast.table.reading import Table
from forecast.table.schema import STAMP
from forecast.terms import steps
from forecast.terms.errors import DataError, ParameterError
from forecast.terms.origin import origin_in
from forecast.terms.parameters import OwnFile

logger = logging.getLogger(__name__)
JOIN = "if the hour or the quarter is in another column than the date, join both"
OR_SUMS = "or sums of amounts such as MWh"
LASTING, LASTING_END = 10, 4  # so many rows that are as far apart are a step of their own, and no gaps
# The columns of each quantity in the files of Open Power System Data, and of the sample.
LAYOUT = {
    sources.POWER_FILE: {target.opsd: target.name for target in problem.TARGETS},
    sources.WEATHER_FILE: {each.opsd: each.name for each in problem.INPUTS},
}


def prepare(raw_folder: Path, first_year: int = 2013, last_year: int = 2016) -> tuple[DataFrame, dict]:
    """Return the processed table of the raw files in ``raw_folder``, and the findings.

    The rule, for each step (`steps`) of ``first_year`` to ``last_year``, from the first complete one to the last:

    1. a step that a file holds more than once: its first row is kept, the others are left out;
    2. a step that is absent from a file is left out;
    3. a step in which a needed cell is empty is left out;
    4. nothing is filled, interpolated or otherwise invented. Units are converted, no other value changes.

    The table has the columns `schema.COLUMNS`, sorted by time, and `schema.CAPACITIES` if the capacity is known; it
    satisfies `schema.check`, and carries its origin (`origin.origin_of`).

    The findings can be written as JSON: the steps expected, kept and left out; by file (`power` and `weather`, or
    `own`) its rows, those outside the years or before the first or after the last complete step, those that follow a
    later one, those doubled, and the steps absent; the empty cells by column; the same `by_year`, with its gaps; for
    an own file what `own_file.read` left out, and years for which a figure of capacity lacks between two that have one.

    Raises DataError naming file, line, column and value (no file, no such column, text in a number, a line cut short,
    a time without a zone or off the step, no step in the years, values out of range), for a column of
    `problem.COMPUTED` that depends on other rows, and ParameterError when ``last_year`` is before ``first_year``.
    """
    if last_year < first_year:
        raise ParameterError(
            "The last year is before the first.",
            value=f"first_year {first_year}, last_year {last_year}",
            expected="first_year <= last_year",
            next_step="exchange them (in the pipeline: params.yaml)",
        )
    origin = origin_in(raw_folder)
    grid = steps.of_days(f"{first_year}-01-01", f"{last_year + 1}-01-01")
    tables = read(Path(raw_folder), origin.csv)
    parts = {name: take_rows(table, grid) for name, table in tables.items()}
    frame = join(parts, grid)
    next_step = "correct the file, or ask for other years (prepare.first_year and last_year in params.yaml)"
    schema.check(frame, f"The frame prepared from {origin.csv.file if origin.csv else raw_folder}", next_step)
    check_derived(frame)
    findings = {"source": origin.source, **count(parts, frame)}
    for table in tables.values():
        findings |= table.counts
    if origin.csv and origin.csv.capacity:
        years = sorted(origin.csv.capacity)
        findings["years_without_figure"] = sorted({*range(years[0], years[-1])} - {*years})
    logger.info("%s: %s", origin.source, in_words(findings))
    return origin.mark(add_capacity(frame, origin.csv.year_ends if origin.csv else problem.CAPACITY)), findings


# -- files to tables ---------------------------------------------------------------------------------------------------
def read(folder: Path, own: OwnFile | None) -> dict[str, Table]:
    """Return the raw tables of a folder, `own` or `power` and `weather`; errors as `raw.read_text`."""
    if own:
        return {"own": own_file.read(folder / sources.OWN_FILE, own)}
    next_step = f"python -m forecast fetch --to {folder} puts the raw files there"
    tables = {}
    for name, (file, columns) in zip(("power", "weather"), LAYOUT.items(), strict=True):
        text = raw.read_text(folder / file, ["utc_timestamp", *columns], next_step=next_step)
        frame = raw.convert_text(text, str(folder / file), nullable=True).rename(columns=columns)
        for target in frame.columns.intersection(schema.TARGETS):
            frame[target] = schema.convert(frame[target], target, "MW")
        tables[name] = Table(folder / file, frame, {ours: theirs for theirs, ours in columns.items()}, {})
    return tables


def load_or_make(csv: Path) -> DataFrame:
    """Return the processed table of Germany in the file ``csv``; if there is no such file, make it from the sample.

    The table has Germany's installed capacity. Raises DataError (file damaged, disk full, folder not writable).
    """
    if not Path(csv).exists():
        with tempfile.TemporaryDirectory() as folder:
            sources.fetch("sample", Path(folder))
            processed.write_csv(prepare(Path(folder))[0], Path(csv))
    return add_capacity(processed.read(csv), problem.CAPACITY)


# -- tables to steps ---------------------------------------------------------------------------------------------------
class Part(NamedTuple):
    """The steps of a raw table, each once, time as the index; the times of repeated rows; and counts of all rows."""

    frame: DataFrame
    repeated: Series
    counts: dict[str, int]


def _cure(step: pd.Timedelta) -> str:
    """Return what to do about rows that are ``step`` apart."""
    if abs(step - steps.LENGTH) < steps.LENGTH / 10:
        return MOVE
    name = {steps.DAY: "D", steps.HOUR: "h"}.get(step, f"{step / pd.Timedelta(minutes=1):g}min")
    cures = {
        f'set STEP = "{name}" in forecast/problem.py': not steps.DAY % step,
        f'make means, such as table.resample("{steps.STEP}").mean(), {OR_SUMS}, {SCRIPT}': step < steps.LENGTH,
        f"{JOIN}, {SCRIPT}": step == steps.DAY,
        f"use a file of {steps.OFTEN} values: none can be made of these": step > steps.LENGTH and steps.DAY % step,
    }
    return "; or ".join(cure for cure, helps in cures.items() if helps)


def take_rows(table: Table, grid: DatetimeIndex) -> Part:
    """Take the steps of a ``grid`` out of a raw table, each once; raise DataError for rows off it or out of range."""
    path, frame, names, _ = table
    every = frame["utc_timestamp"]
    within = frame[(every >= grid[0]) & (every < steps.starts(Series(grid[-1:]), later=1)[0])]
    stamps = within["utc_timestamp"]
    _require_one_row(within, path)
    apart = steps.local(stamps).dt.tz_localize(None).drop_duplicates().sort_values().diff().dropna()
    runs_of = apart.ne(apart.shift()).cumsum()
    lengths, is_end = runs_of.map(runs_of.value_counts()), runs_of.isin(runs_of.iloc[[0, -1]] if len(runs_of) else [])
    lasting = apart[lengths >= np.where(is_end, LASTING_END, LASTING)].drop_duplicates()
    if len(lasting) > 1:
        first, later = (f"{distance / steps.HOUR:.7g} h" for distance in lasting.iloc[:2])
        raise DataError(
            f"{path}, line {lasting.index[1]}: the rows were {first} apart, and are {later} apart from here on.",
            value=f"{stamps[lasting.index[1]]:{STAMP}}",
            expected=f"a row {steps.ONE}",
            next_step=f"make two files of it, and use one; or make means over the longer step, {OR_SUMS}, {SCRIPT}",
        )
    if len(apart) > 1 and (step := apart.mode()[0]) != steps.LENGTH:
        raise DataError(
            f"{path}: the rows are {step / steps.HOUR:.7g} hours apart.",
            value=", ".join(f"{stamp:{STAMP}}" for stamp in stamps[:3]),
            expected=f"a row {steps.ONE}",
            next_step=_cure(step),
        )
    odd = stamps[~stamps.isin(grid)]
    if len(odd):
        column = names.get("utc_timestamp", "utc_timestamp")
        raise DataError(
            f"{path}, line {odd.index[0]}, column {column}: not a full {steps.NAME}.",
            value=f"{odd.iloc[0]:{STAMP}}",
            next_step=f"correct or leave out such lines; or {MOVE}",
        )
    again = stamps.duplicated()
    next_step = f"correct or leave out these lines of {path.name}; if a number such as -999 stands for no value in an"
    next_step += " own file, set no_value in params.yaml (fetch.csv)"
    schema.check_cells(within[~again], str(path), next_step, source_names=names, nullable=True)
    unordered = int((every < every.cummax()).sum())
    counts = {"rows": len(every), "outside_years": len(every) - len(within), "unordered": unordered}
    return Part(within[~again].set_index("utc_timestamp"), stamps[again], counts)


def _require_one_row(rows: DataFrame, path: Path) -> None:
    """Raise DataError if most times have several rows, which are no copies of one another."""
    times = rows["utc_timestamp"]
    distinct = rows[times.duplicated(keep=False)].drop_duplicates()["utc_timestamp"]
    often = distinct.value_counts()
    if (often > 1).sum() <= times.nunique() / 2:
        return
    has_clock = (often.index.sort_values().diff()[1:] < 23 * steps.HOUR).any()
    cure = f"add them up, or keep one of them, {SCRIPT}"
    raise DataError(
        f"{path}: {often.mode()[0]} rows {steps.ONE}, with other values.",
        value=", ".join(f"line {line}" for line in distinct.index[distinct == often.index[0]][:4]),
        expected=f"a row {steps.ONE}",
        next_step=cure if has_clock else f"{JOIN}, and set STEP in forecast/problem.py; otherwise {cure}",
    )


def join(parts: Mapping[str, Part], grid: DatetimeIndex) -> DataFrame:
    """Return the steps that are complete in every part; raise DataError if there is none."""
    frames = {name: part.frame for name, part in parts.items()}
    joined = pd.concat(frames.values(), axis="columns", join="inner").sort_index()
    complete = joined.dropna().rename_axis("utc_timestamp").reset_index()[schema.COLUMNS]
    if complete.empty:
        empty = [column for frame in frames.values() if len(frame) for column in frame if frame[column].isna().all()]
        years = grid[[0, -1]].tz_convert(steps.CALENDAR).year
        counts = ", ".join(f"{len(frame)} {steps.NAMES} of {name}" for name, frame in frames.items())
        raise DataError(
            f"The raw files have no complete {steps.NAME} in common from {' to '.join(map(str, years))}.",
            value=counts + (f"; no value at all of {', '.join(empty)}" if empty else ""),
            expected=f"{steps.NAMES} in which nothing is missing",
            next_step="ask for years that the files hold (prepare.first_year and last_year in params.yaml)"
            + ("; check the values of these columns" if empty else ""),
        )
    return complete


# -- counts ------------------------------------------------------------------------------------------------------------
def count(parts: Mapping[str, Part], frame: DataFrame) -> dict[str, Any]:
    """Return the steps expected, kept and left out by reason, the same by year with its gaps, and the rows by part."""
    grid = steps.grid(*frame["utc_timestamp"].iloc[[0, -1]])
    missing, years = Series(~grid.isin(frame["utc_timestamp"]), grid), grid.tz_convert(steps.CALENDAR).year
    by_year = {}
    for year, expected in grid.groupby(years).items():
        gaps = runs(missing[missing].reindex(expected))
        longest = gaps.loc[gaps["steps"].idxmax()] if len(gaps) else None
        by_year[str(year)] = {
            "steps_expected": len(expected),
            "steps_kept": int((~missing[expected]).sum()),
            "gaps": len(gaps),
            "longest_gap_steps": 0 if longest is None else int(longest["steps"]),
            "longest_gap_from": None if longest is None else f"{longest['first']:{STAMP}}",
            **_count_reasons(parts, expected),
        }
    return {
        "first_year": int(years[0]),
        "last_year": int(years[-1]),
        "steps_expected": len(grid),
        "steps_kept": len(frame),
        "steps_left_out": len(grid) - len(frame),
        **DataFrame.from_dict({name: part.counts for name, part in parts.items()}, orient="index").to_dict(),
        "incomplete_ends": {
            name: int((~part.frame.dropna(how="all").index.isin(grid)).sum()) for name, part in parts.items()
        },
        **_count_reasons(parts, grid),
        "by_year": by_year,
        "first_step": f"{frame['utc_timestamp'].iloc[0]:{STAMP}}",
        "last_step": f"{frame['utc_timestamp'].iloc[-1]:{STAMP}}",
    }


def _count_reasons(parts: Mapping[str, Part], grid: DatetimeIndex) -> dict[str, dict[str, int]]:
    """Return, by part, rows `doubled` and steps `absent`; by column, steps `incomplete`, of those that the part has."""
    return {
        "doubled": {name: int(part.repeated.isin(grid).sum()) for name, part in parts.items()},
        "absent": {name: int((~grid.isin(part.frame.index)).sum()) for name, part in parts.items()},
        "incomplete": {
            column: int(values.reindex(grid.intersection(values.index)).isna().sum())
            for part in parts.values()
            for column, values in part.frame.items()
        },
    }


def left_out(findings: Mapping[str, Any]) -> dict[str, int]:
    """Return how many rows or steps were left out, by reason in words; a step can have more than one reason."""
    reasons = {
        **{f"absent from {name}": count for name, count in findings["absent"].items()},
        **{f"without {column}": count for column, count in findings["incomplete"].items()},
        **{f"doubled in {name}": count for name, count in findings["doubled"].items()},
        **{
            f"before or after all complete {steps.NAMES} in {name}": n
            for name, n in findings["incomplete_ends"].items()
        },
        **{f"of other years in {name}": count for name, count in findings["outside_years"].items()},
        **{f"{kind} at a clock change": count for kind, count in findings.get("clock_changes", {}).items()},
    }
    return {reason: count for reason, count in reasons.items() if count}


def in_words(findings: Mapping[str, Any]) -> str:
    """Return a line that says how many steps were kept, and what was left out and why."""
    kept = f"{findings['steps_kept']:,} of {findings['steps_expected']:,} {steps.NAMES} kept"
    ends = (
        f"{pd.Timestamp(findings[name]).tz_convert(steps.CALENDAR):%Y-%m-%d}" for name in ("first_step", "last_step")
    )
    kept += f", {' to '.join(ends)}"
    reasons = [f"{reason} {count:,}" for reason, count in left_out(findings).items()]
    text = f"{kept}; left out: {', '.join(reasons)}" if reasons else f"{kept}; nothing left out"
    small = [f"{column} {count:,}" for column, count in findings.get("negative_as_zero", {}).items() if count]
    return f"{text}; small negative values set to 0: {', '.join(small)}" if small else text


def missing_by_month(frame: DataFrame) -> DataFrame:
    """Return how many steps of each month are missing: a row a year, columns 1 to 12; NaN before and after all."""
    grid = steps.grid(*frame["utc_timestamp"].iloc[[0, -1]])
    missing, local = ~grid.isin(frame["utc_timestamp"]), grid.tz_convert(steps.CALENDAR)
    missing = Series(missing, grid).groupby([local.year, local.month]).sum().unstack()
    return missing.reindex(columns=range(1, 13))


def runs(values: Series) -> DataFrame:
    """Return the runs of equal values: `value`, `first` (its index) and `steps`; missing values belong to no run."""
    starts = values.ne(values.shift()) & values.notna()
    sizes = starts.cumsum().where(values.notna()).value_counts(sort=False).sort_index()
    return DataFrame({"value": values[starts].to_numpy(), "first": values.index[starts], "steps": sizes.to_numpy()})
