"""What a processed frame and its findings are like: each check with its value, its limits and its verdict."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from workshop.data import coverage, thresholds, units
from workshop.data.checks import WARNING, Check, number
from workshop.data.schema import FEATURES, TARGETS, UNITS
from workshop.data.thresholds import RANGES, USUAL_MEANS

if TYPE_CHECKING:
    from pandas import DataFrame, Series

logger = logging.getLogger(__name__)

MAD_TO_DEVIATION = 1.4826
HOUR = "%Y-%m-%d %H:%M"  # UTC, as everything
SHOWN = 4  # places told of one check; the rest are counted


@dataclass(frozen=True)
class Validation:
    """The checks of a processed frame, the findings they rest on, and a row of `values` for each column and year.

    `values` has the columns `column`, `year`, `least`, `mean`, `most` (in the column's unit) and `outliers` (hours).
    """

    checks: tuple[Check, ...]
    findings: Mapping[str, Any]
    values: DataFrame = field(repr=False)

    @property
    def warnings(self) -> list[Check]:
        """The checks whose value is unusual."""
        return [check for check in self.checks if check.verdict == WARNING]

    def log(self) -> None:
        """Tell the warnings to the log, a line each."""
        for check in self.warnings:
            logger.warning("%s", check)

    def as_findings(self) -> dict[str, Any]:
        """Return the findings with all checks, as they are written as JSON."""
        return {**self.findings, "checks": [check.as_dict() for check in self.checks]}

    def metrics(self) -> dict[str, float]:
        """Return the counts as a run's metrics: hours, gaps, what was left out by reason, and the warnings."""
        findings, years = self.findings, self.findings["by_year"].values()
        plain = {name: findings[name] for name in ("hours_expected", "hours_kept", "hours_left_out")}
        by_reason = {
            f"{reason}_{of}": count
            for reason in ("absent", "incomplete", "doubled", "outside_years", "unordered", "clock_changes")
            for of, count in findings.get(reason, {}).items()
        }
        gaps = {
            "gaps": sum(year["gaps"] for year in years),
            "longest_gap_hours": max(year["longest_gap_hours"] for year in years),
        }
        counts = plain | gaps | by_reason | {"outliers": int(self.values["outliers"].sum())}
        return {name: float(count) for name, count in (counts | {"warnings": len(self.warnings)}).items()}


def validate(frame: DataFrame, findings: Mapping[str, Any]) -> Validation:
    """Hold a processed frame and its findings (`prepare.prepare`) against all that is usual (`thresholds`).

    What cannot be has raised a DataError before; here everything is possible, and at worst a warning. Of fewer than
    28 days means, outliers and changes say nothing, and there are no checks of them.
    """
    hourly = frame.set_index("utc_timestamp")[[*TARGETS, *FEATURES]].asfreq("h")
    enough = len(frame) >= thresholds.MONTH_HOURS
    checks, outliers = [*_check_hours(findings)], {}
    for column, values in hourly.items():
        checks += [*_check_range(values), *_check_same(values)]
        outliers[column] = values > np.inf
        if enough:
            checks += _check_means(_yearly_means(values, findings), column)
            found, outliers[column] = _outliers(values)
            checks += found
        if column in TARGETS:
            checks += _check_fit(hourly, column)
        if column == "solar_GW":
            checks.append(_check_night(hourly))
    return Validation(tuple(checks), findings, _values(hourly, outliers))


# -- hours ---------------------------------------------------------------------------------------------------------
def _check_hours(findings: Mapping[str, Any]) -> Iterator[Check]:
    if (changed := findings.get("changed")) is not None:
        yield Check("not what SHA256SUMS says", "files", len(changed), (None, 0), note=_listed(changed))
    years = findings["by_year"]
    missing = {year: 100 * (1 - counts["hours_kept"] / counts["hours_expected"]) for year, counts in years.items()}
    worst = max(missing, key=missing.get)
    over = [year for year, percent in missing.items() if percent > thresholds.MOST_MISSING_PERCENT]
    note = _listed(
        f"{year} lacks {years[year]['hours_expected'] - years[year]['hours_kept']:,} hours" for year in over or [worst]
    )
    yield Check(
        "hours missing from a year", "hours", missing[worst], (None, thresholds.MOST_MISSING_PERCENT), "%", note
    )
    worst = max(years, key=lambda year: years[year]["longest_gap_hours"])
    began = years[worst]["longest_gap_from"]
    note = f"from {datetime.fromisoformat(began):{HOUR}} on" if began else ""
    yield Check(
        "longest gap", "hours", years[worst]["longest_gap_hours"], (None, thresholds.LONGEST_GAP_HOURS), "h", note
    )
    for name, count in findings["doubled"].items():
        of = _listed(
            f"{counts['doubled'][name]:,} in {year}" for year, counts in years.items() if counts["doubled"][name]
        )
        note = f"{of}; the first row of each hour was kept: is that the right one?" if count else ""
        yield Check("hours that stand twice", name, count, (None, thresholds.MOST_DOUBLED), "rows", note)


# -- values --------------------------------------------------------------------------------------------------------
def _check_range(values: Series) -> Iterator[Check]:
    column = values.name
    least, most = RANGES[column]
    for name, value, place in (("lowest", values.min(), values.idxmin()), ("highest", values.max(), values.idxmax())):
        yield Check(name, column, float(value), (least, most), UNITS[column], f"{place:{HOUR}}")


def _yearly_means(values: Series, findings: Mapping[str, Any]) -> Series:
    """Return the means of the years that have nearly all their hours, or else the mean of all there is, as year ''."""
    counts = {int(year): year_counts for year, year_counts in findings["by_year"].items()}
    whole = [
        year
        for year, count in counts.items()
        if 100 * count["hours_kept"] >= thresholds.WHOLE_YEAR_PERCENT * count["hours_expected"]
    ]
    means = values.groupby(values.index.year).mean().loc[whole]
    return means if len(means) else values.groupby(lambda _: "").mean()


def _check_means(means: Series, column: str) -> Iterator[Check]:
    """Look at each year's mean by itself (another unit?), and at its change from the year before."""
    least, most = USUAL_MEANS[column]
    # On a logarithmic scale, or factors of 1,000 below would be nearer than those of 2 above; degrees have no factors.
    scaled, middle = (
        (means, (least + most) / 2) if least < 0 else (np.log(means.clip(lower=1e-9)), np.log(least * most) / 2)
    )
    worst = (scaled - middle).abs().idxmax()
    wrong = means[~means.between(least, most)]
    fitting = _fitting_units(wrong, column)
    note = _listed(str(year) for year in (wrong.index if len(wrong) else [worst]))
    if len(wrong):
        note += "; another unit? it would be usual in " + " or ".join(fitting) if fitting else "; another unit?"
    yield Check("mean of a year", column, float(means[worst]), (least, most), UNITS[column], note)
    if len(means) < 2:
        return
    kelvin = column == "temperature"
    limit, unit = (thresholds.MOST_CHANGE_KELVIN, "K") if kelvin else (thresholds.MOST_CHANGE_PERCENT, "%")
    change = (means.diff() if kelvin else 100 * means.diff() / means.shift().clip(lower=1e-9)).dropna()
    worst = change.abs().idxmax()
    note = _listed(f"{change[year]:+.3g} {unit} to {year}" for year in change.index[change.abs() > limit])
    note = f"{note}; did capacity, or what is counted, change?" if note else f"to {worst}"
    yield Check("change of the mean from year to year", column, float(change[worst]), (-limit, limit), unit, note)


def _fitting_units(means: Series, column: str) -> list[str]:
    """Return the units in which all of ``means`` would be usual; none of no means."""
    as_unit = {unit: units.convert(means, column, unit) for unit in units.OF_COLUMN[column]}
    return [unit for unit, converted in as_unit.items() if len(means) and converted.between(*USUAL_MEANS[column]).all()]


def _outliers(values: Series) -> tuple[list[Check], Series]:
    """Return two checks of single hours (sources: `thresholds`), and which hours are far from what is usual."""
    away, spikes = _deviations(values), _spikes(values)
    most_away, most_spike = thresholds.MOST_DEVIATIONS, thresholds.MOST_SPIKE
    checks = [
        Check(name, values.name, float(found.max()), (None, most), unit, _hours_of(values, found, most))
        for name, found, most, unit in (
            ("distance from the same month and hour", away, most_away, "deviations"),
            ("distance from both hours beside", spikes, most_spike, "times p99"),
        )
    ]
    return checks, (away > most_away) | (spikes > most_spike)


def _deviations(values: Series) -> Series:
    """Return how far each value is from the median of its month and hour of the day, in robust deviations."""
    season = [values.index.month, values.index.hour]
    away = (values - values.groupby(season).transform("median")).abs()
    spread = MAD_TO_DEVIATION * away.groupby(season).transform("median")
    floor = thresholds.LEAST_DEVIATION * (values.quantile(0.99) - values.quantile(0.01))
    return _by(away, np.maximum(spread, floor))


def _spikes(values: Series) -> Series:
    """Return how far each value is from the median of itself and both neighbours, by what 99 % of the hours keep."""
    apart = (values - values.rolling(3, center=True).median()).abs()
    return _by(apart, apart.quantile(0.99))


def _by(away: Series, scale: Series | float) -> Series:
    """Divide; where there is no scale, as in a column of one value, nothing is far away."""
    return (away / np.where(scale > 0, scale, np.inf)).fillna(0)


def _hours_of(values: Series, found: Series, most: float) -> str:
    """Name the worst hours beyond the limit, with their values; none when there are none."""
    far = found[found > most].sort_values(ascending=False)
    unit = UNITS[values.name]
    return _listed(f"{hour:{HOUR}} ({number(values[hour])} {unit})" for hour in far.index)


def _check_same(values: Series) -> Iterator[Check]:
    """Look for a value that stays, hour after hour: zero by itself, since it may stay for longer."""
    column, runs = values.name, coverage.runs(values)
    for name, of_kind, most in (
        ("the same value", runs[runs["value"] != 0], thresholds.MOST_SAME_HOURS),
        ("zero", runs[runs["value"] == 0], thresholds.MOST_ZERO_HOURS.get(column, thresholds.MOST_SAME_HOURS)),
    ):
        long = of_kind[of_kind["hours"] > most].sort_values("hours", ascending=False)
        places = _listed(
            f"{number(run.value)} {UNITS[column]} for {run.hours} h from {run.first:{HOUR}} on"
            for run in long.itertuples()
        )
        note = f"{places}; frozen, or filled in?" if places else ""
        yield Check(
            f"{name} hour after hour",
            column,
            int(of_kind["hours"].max() or 0) if len(of_kind) else 0,
            (None, most),
            "h",
            note,
        )


def _check_fit(hourly: DataFrame, target: str) -> Iterator[Check]:
    """Compare each year's rank correlation of generation and the weather that drives it with that of other years."""
    radiation = hourly["rad_horizontal"] + hourly["rad_diffuse"]
    weather = hourly["windspeed"] if target == "wind_GW" else radiation.where(radiation > thresholds.DARK_W_M2)
    pairs = hourly[[target]].assign(weather=weather).dropna()
    fits = {
        year: float(pair.rank().corr().iloc[0, 1])
        for year, pair in pairs.groupby(pairs.index.year)
        if len(pair) >= thresholds.MONTH_HOURS and pair.nunique().min() > 1
    }
    for year, fit in fits.items():
        others = np.median([other for key, other in fits.items() if key != year] or [0])
        least = max(thresholds.LEAST_FIT, round(float(others) - thresholds.MOST_LESS_FIT, 2))
        name, note = f"rank correlation with the weather of {year}", "are generation and weather of the same hours?"
        yield Check(name, target, fit, (least, None), "", note)


def _check_night(hourly: DataFrame) -> Check:
    """Look at solar generation while the sun is down here and in the hours beside, by the weather's own radiation."""
    radiation = hourly["rad_horizontal"] + hourly["rad_diffuse"]
    dark = radiation.rolling(3, center=True).max() < thresholds.DARK_W_M2
    night = hourly["solar_GW"].where(dark)
    most = thresholds.MOST_SOLAR_AT_NIGHT_PERCENT
    share = (100 * night / hourly["solar_GW"].max()).fillna(0)
    places = _hours_of(hourly["solar_GW"], share, most)
    return Check(
        "share of the highest while the sun is down", "solar_GW", float(share.max()), (None, most), "%",
        f"{int((share > most).sum()):,} h: {places}; is the time zone of one file another?" if places else "",
    )  # fmt: skip


def _values(hourly: DataFrame, outliers: Mapping[str, Series]) -> DataFrame:
    import pandas as pd

    year = hourly.index.year.rename("year")
    parts = {
        column: hourly[column].groupby(year).agg(least="min", mean="mean", most="max")
        .assign(outliers=outliers[column].groupby(year).sum())
        for column in hourly
    }  # fmt: skip
    return pd.concat(parts, names=["column"]).dropna().reset_index()


def _listed(places) -> str:
    """Join the first places; say how many more there are."""
    places = list(places)
    more = [f"{len(places) - SHOWN} more"] if len(places) > SHOWN else []
    return ", ".join(places[:SHOWN] + more)
