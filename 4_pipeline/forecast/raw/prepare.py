"""Turn raw files into the processed table; incomplete steps are dropped and counted, no value is filled in."""

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
JOIN = "if date and time are in separate columns, join them"
OR_SUMS = "or sums of amounts such as MWh"
MIN_RUN, MIN_END_RUN = 10, 4  # shortest run of rows that counts as a new frequency, not gaps; MIN_END_RUN: at the ends
# Column names in the files of Open Power System Data (and the sample), by file.
LAYOUT = {
    sources.POWER_FILE: {target.opsd: target.name for target in problem.TARGETS},
    sources.WEATHER_FILE: {each.opsd: each.name for each in problem.INPUTS},
}


def prepare(raw_folder: Path, first_year: int = 2013, last_year: int = 2016) -> tuple[DataFrame, dict]:
    """Return the processed table of the raw files in ``raw_folder``, and the findings.

    The table has the steps (`steps`) of ``first_year`` to ``last_year`` from the first complete step, which every file
    has without an empty cell, to the last:

    1. of several rows for a step, the first is kept;
    2. a step that is missing from a file is dropped;
    3. a step with an empty cell is dropped;
    4. nothing is filled or interpolated; units are converted.

    Its columns are `schema.COLUMNS`, sorted by time, and `schema.CAPACITIES` if the capacity is known; it
    passes `schema.check` and carries its origin (`origin.origin_of`).

    The findings are JSON-serializable: steps expected, kept and left out; by file (`power` and `weather`, or `own`)
    the counts of rows, rows outside the years, rows before the first or after the last complete step, unordered and
    duplicate rows, and missing steps; empty cells by column; the same counts `by_year`, with gaps; for your own CSV
    also the counts of `own_file.read` and the years without a capacity between years that have one.

    Raises DataError with file, line, column and value for invalid files, and for a column of `problem.COMPUTED` that
    depends on other rows; ParameterError if ``last_year`` is before ``first_year``.
    """
    if last_year < first_year:
        raise ParameterError(
            "The last year is before the first.",
            value=f"first_year {first_year}, last_year {last_year}",
            expected="first_year <= last_year",
            next_step="swap the two years (in the pipeline: in params.yaml)",
        )
    origin = origin_in(raw_folder)
    grid = steps.of_days(f"{first_year}-01-01", f"{last_year + 1}-01-01")
    tables = read(Path(raw_folder), origin.csv)
    parts = {name: take_rows(table, grid) for name, table in tables.items()}
    frame = join(parts, grid)
    next_step = "correct the file, or choose other years (prepare.first_year and last_year in params.yaml)"
    schema.check(frame, f"The frame prepared from {origin.csv.file if origin.csv else raw_folder}", next_step)
    check_derived(frame)
    findings = {"source": origin.source, **count(parts, frame)}
    for table in tables.values():
        findings |= table.counts
    if origin.csv and origin.csv.capacity:
        years = sorted(origin.csv.capacity)
        findings["years_without_figure"] = sorted({*range(years[0], years[-1])} - {*years})
    logger.info("%s: %s", origin.source, summarize(findings))
    return origin.mark(add_capacity(frame, origin.csv.year_ends if origin.csv else problem.CAPACITY)), findings


# -- files to tables ---------------------------------------------------------------------------------------------------
def read(folder: Path, own: OwnFile | None) -> dict[str, Table]:
    """Return a folder's raw tables by name (`own`, or `power` and `weather`); raise the errors of `raw.read_text`."""
    if own:
        return {"own": own_file.read(folder / sources.OWN_FILE, own)}
    next_step = f"fetch the raw files: python -m forecast fetch --to {folder}"
    tables = {}
    for name, (file, columns) in zip(("power", "weather"), LAYOUT.items(), strict=True):
        text = raw.read_text(folder / file, ["utc_timestamp", *columns], next_step=next_step)
        frame = raw.convert_text(text, str(folder / file), nullable=True).rename(columns=columns)
        for target in frame.columns.intersection(schema.TARGETS):
            frame[target] = schema.convert(frame[target], target, "MW")
        tables[name] = Table(folder / file, frame, {ours: theirs for theirs, ours in columns.items()}, {})
    return tables


def load_or_make(csv: Path) -> DataFrame:
    """Return the processed table in the file ``csv``; create a missing file from the sample.

    The table has Germany's installed capacity. Raises DataError (damaged file, full disk, folder not writable).
    """
    if not Path(csv).exists():
        with tempfile.TemporaryDirectory() as folder:
            sources.fetch("sample", Path(folder))
            processed.write_csv(prepare(Path(folder))[0], Path(csv))
    return add_capacity(processed.read(csv), problem.CAPACITY)


# -- tables to steps ---------------------------------------------------------------------------------------------------
class Part(NamedTuple):
    """The unique steps of a raw table indexed by time, the times of its duplicate rows, and the counts of rows."""

    frame: DataFrame
    duplicates: Series
    counts: dict[str, int]


def _suggest_fix(step: pd.Timedelta) -> str:
    """Return the fix to suggest when rows are ``step`` apart instead of `problem.STEP`."""
    if abs(step - steps.LENGTH) < steps.LENGTH / 10:
        return MOVE
    name = {steps.DAY: "D", steps.HOUR: "h"}.get(step, f"{step / pd.Timedelta(minutes=1):g}min")
    fixes = {
        f'set STEP = "{name}" in forecast/problem.py': not steps.DAY % step,
        f'take means, such as table.resample("{steps.STEP}").mean(), {OR_SUMS}, {SCRIPT}': step < steps.LENGTH,
        f"{JOIN}, {SCRIPT}": step == steps.DAY,
        f"use a file of {steps.OFTEN} values: these rows cannot be resampled": step > steps.LENGTH and steps.DAY % step,
    }
    return "; or ".join(fix for fix, applies in fixes.items() if applies)


def take_rows(table: Table, grid: DatetimeIndex) -> Part:
    """Return the unique steps of a raw table on ``grid``; raise DataError for times off the grid or invalid values."""
    path, frame, names, _ = table
    all_stamps = frame["utc_timestamp"]
    within = frame[(all_stamps >= grid[0]) & (all_stamps < steps.starts(Series(grid[-1:]), later=1)[0])]
    stamps = within["utc_timestamp"]
    _require_one_row(within, path)
    distances = steps.local(stamps).dt.tz_localize(None).drop_duplicates().sort_values().diff().dropna()
    run = distances.ne(distances.shift()).cumsum()
    lengths, is_end = run.map(run.value_counts()), run.isin(run.iloc[[0, -1]] if len(run) else [])
    frequencies = distances[lengths >= np.where(is_end, MIN_END_RUN, MIN_RUN)].drop_duplicates()
    if len(frequencies) > 1:
        first, later = (f"{distance / steps.HOUR:.7g} h" for distance in frequencies.iloc[:2])
        raise DataError(
            f"{path}, line {frequencies.index[1]}: from this line on, the rows are {later} apart; before it, {first}.",
            value=f"{stamps[frequencies.index[1]]:{STAMP}}",
            expected=f"one row per {steps.NAME}",
            next_step=f"split the file in two, use one part; or take means over the longer step, {OR_SUMS}, {SCRIPT}",
        )
    if len(distances) > 1 and (step := distances.mode()[0]) != steps.LENGTH:
        raise DataError(
            f"{path}: the rows are {step / steps.HOUR:.7g} hours apart.",
            value=", ".join(f"{stamp:{STAMP}}" for stamp in stamps[:3]),
            expected=f"one row per {steps.NAME}",
            next_step=_suggest_fix(step),
        )
    off_grid = stamps[~stamps.isin(grid)]
    if len(off_grid):
        column = names.get("utc_timestamp", "utc_timestamp")
        raise DataError(
            f"{path}, line {off_grid.index[0]}, column {column}: not the start of {steps.ONE}.",
            value=f"{off_grid.iloc[0]:{STAMP}}",
            next_step=f"correct or remove these lines; or {MOVE}",
        )
    is_duplicate = stamps.duplicated()
    next_step = f"correct or remove these lines of {path.name}; if a number such as -999 means a missing value in your"
    next_step += " own file, set no_value in params.yaml (fetch.csv)"
    schema.check_cells(within[~is_duplicate], str(path), next_step, source_names=names, nullable=True)
    unordered = int((all_stamps < all_stamps.cummax()).sum())
    counts = {"rows": len(all_stamps), "outside_years": len(all_stamps) - len(within), "unordered": unordered}
    return Part(within[~is_duplicate].set_index("utc_timestamp"), stamps[is_duplicate], counts)


def _require_one_row(rows: DataFrame, path: Path) -> None:
    """Raise DataError if most timestamps have several different rows."""
    times = rows["utc_timestamp"]
    distinct = rows[times.duplicated(keep=False)].drop_duplicates()["utc_timestamp"]
    counts = distinct.value_counts()
    if (counts > 1).sum() <= times.nunique() / 2:
        return
    has_times = (counts.index.sort_values().diff()[1:] < 23 * steps.HOUR).any()
    fix = f"sum these rows, or keep one of them, {SCRIPT}"
    raise DataError(
        f"{path}: {counts.mode()[0]} different rows per {steps.NAME}.",
        value=", ".join(f"line {line}" for line in distinct.index[distinct == counts.index[0]][:4]),
        expected=f"one row per {steps.NAME}",
        next_step=fix if has_times else f"{JOIN}, and set STEP in forecast/problem.py; otherwise {fix}",
    )


def join(parts: Mapping[str, Part], grid: DatetimeIndex) -> DataFrame:
    """Return the steps that are complete in all parts; raise DataError if no step is."""
    frames = {name: part.frame for name, part in parts.items()}
    joined = pd.concat(frames.values(), axis="columns", join="inner").sort_index()
    complete = joined.dropna().rename_axis("utc_timestamp").reset_index()[schema.COLUMNS]
    if complete.empty:
        empty = [column for frame in frames.values() if len(frame) for column in frame if frame[column].isna().all()]
        years = grid[[0, -1]].tz_convert(steps.CALENDAR).year
        counts = ", ".join(f"{len(frame)} {steps.NAMES} of {name}" for name, frame in frames.items())
        raise DataError(
            f"The raw files have no complete {steps.NAME} in common from {' to '.join(map(str, years))}.",
            value=counts + (f"; no values of {', '.join(empty)}" if empty else ""),
            expected=f"{steps.NAMES} without missing values",
            next_step="choose years that the files cover (prepare.first_year and last_year in params.yaml)"
            + ("; check the values of these columns" if empty else ""),
        )
    return complete


# -- counts ------------------------------------------------------------------------------------------------------------
def count(parts: Mapping[str, Part], frame: DataFrame) -> dict[str, Any]:
    """Return the findings: counts of steps and rows, in total, by part and by year."""
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
    """Return the counts of `doubled` rows and `absent` steps by part, and of empty cells (`incomplete`) by column."""
    return {
        "doubled": {name: int(part.duplicates.isin(grid).sum()) for name, part in parts.items()},
        "absent": {name: int((~grid.isin(part.frame.index)).sum()) for name, part in parts.items()},
        "incomplete": {
            column: int(values.reindex(grid.intersection(values.index)).isna().sum())
            for part in parts.values()
            for column, values in part.frame.items()
        },
    }


def left_out(findings: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of dropped rows or steps by reason; a step can count towards several reasons."""
    reasons = {
        **{f"missing from {name}": count for name, count in findings["absent"].items()},
        **{f"without {column}": count for column, count in findings["incomplete"].items()},
        **{f"duplicate in {name}": count for name, count in findings["doubled"].items()},
        **{
            f"before or after all complete {steps.NAMES} in {name}": n
            for name, n in findings["incomplete_ends"].items()
        },
        **{f"of other years in {name}": count for name, count in findings["outside_years"].items()},
        **{f"{kind} at a clock change": count for kind, count in findings.get("clock_changes", {}).items()},
    }
    return {reason: count for reason, count in reasons.items() if count}


def summarize(findings: Mapping[str, Any]) -> str:
    """Summarize in one line how many steps were kept and how many were left out, by reason."""
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
    """Return the number of missing steps by year (rows) and month (columns 1 to 12); NaN outside the data."""
    grid = steps.grid(*frame["utc_timestamp"].iloc[[0, -1]])
    missing, local = ~grid.isin(frame["utc_timestamp"]), grid.tz_convert(steps.CALENDAR)
    missing = Series(missing, grid).groupby([local.year, local.month]).sum().unstack()
    return missing.reindex(columns=range(1, 13))


def runs(values: Series) -> DataFrame:
    """Return runs of equal values: `value`, `first` (index of the first row), `steps`; missing values are in no run."""
    starts = values.ne(values.shift()) & values.notna()
    sizes = starts.cumsum().where(values.notna()).value_counts(sort=False).sort_index()
    return DataFrame({"value": values[starts].to_numpy(), "first": values.index[starts], "steps": sizes.to_numpy()})
