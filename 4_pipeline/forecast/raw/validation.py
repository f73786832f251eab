"""Check a processed table for unusual values."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from forecast import problem
from forecast.errors import ParameterError
from forecast.quantities import Target
from forecast.raw import prepare
from forecast.table import features, steps
from forecast.table.schema import FEATURES, QUANTITIES, TARGETS, UNITS, USUAL_MEANS, convert

logger = logging.getLogger(__name__)

# Steps of a year that are left out, in percent, and the longest gap. In 2013-2016 the real data lacks four hours in a
# thousand at most.
MAX_MISSING_PERCENT = 1.0
LONGEST_GAP_HOURS = 24
MAX_DOUBLED = 0  # rows: of two rows of one step one is wrong, and only the publisher knows which
# From one year's mean to the next, in percent or kelvin: capacity grows by less, and weather changes by less. Of a part
# of a year, compared with the same hours of the year before, more is usual: of a month sqrt(12) times as much.
MAX_CHANGE = 30.0
MAX_CHANGE_KELVIN = 3.0
WHOLE_YEAR = 0.9 * steps.A_YEAR
# Distance from the median of the step and both its neighbours (a Hampel identifier: Davies and Gather, The
# Identification of Multiple Outliers, 1993), by the distance that 99 % of the steps keep. The sample's highest is 8.
MAX_SPIKE = 10.0
# The same value step after step, for so long and at least a week of days, is a sensor that froze, or a filled gap.
MAX_SAME_HOURS, LEAST_SAME = 24, 7
# Rank correlation (Spearman) of a year's target with its driver, by day only for a target that follows the sun. In the
# sample it is above 0.9, in single months above 0.7, and 0.2 with the wind of another month. A year is compared
# with the median of the others, since plants may be far from where the weather is measured.
MIN_CORRELATION = 0.3
MAX_BELOW_OTHERS = 0.3
# The sun is down when there is no radiation in an hour and its two neighbours. More solar power than this share of the
# highest means that the power's clock is not the weather's.
DARK_W_M2 = 1.0
MAX_NIGHT_PERCENT = 1.0
# Under clouds more light is diffuse than direct: in the sample in 62 to 67 % of the hours of light, and in none of them
# if the direct one is in truth the sum of both.
MIN_ABOVE_PERCENT = 2.0
# How a year's columns fit the sun and installed capacity: usual values, and what may be the cause of others. What is
# usual of a driver stands in `problem`.
BEHIND_SUN = (-0.6, 0.6)  # hours; -0.1 to 0.0 in the sample; 9 degrees of longitude make 0.6
SUN_CAUSE = (
    "winter time declared Europe/Berlin, local time declared UTC, stamps at the end of the hour, or other places?"
)
MEAN_FACTOR = (0.05, 0.7)  # solar 0.09 to 0.10, wind 0.15 to 0.20 in the sample; 0.6 on the open sea
HIGHEST_FACTOR = (0, 1.05)  # 0.73 in the sample; statistics that count late may lead to a little more than 1
SUMMER = range(4, 11)  # the months of summer time
MAX_LAG = round(12 / steps.HOURS)

# In which columns often are by mistake.
OTHER_UNITS = (
    "GW", "MW", "kW", "W", "m/s", "kn", "mph", "km/h", "C", "K", "F", "W/m2", "kW/m2", "kJ/m2", "MJ/m2", "J/m2",
)  # fmt: skip
SHOWN = 4  # places that a check names; the rest are counted


@dataclass(frozen=True)
class Check:
    """A check ``name`` of a column or file ``of``: its value, the limits of usual values, and a note on the place.

    Both limits count as usual; None is no limit.
    """

    name: str
    of: str
    value: float
    limits: tuple[float | None, float | None]
    unit: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """`fine` if the value is within the limits, else `warning`."""
        least, most = self.limits
        within = (least is None or self.value >= least) and (most is None or self.value <= most)
        return "fine" if within else "warning"

    @property
    def measured(self) -> str:
        """The value with its unit."""
        return f"{number(self.value)} {self.unit}".strip()

    @property
    def limit(self) -> str:
        """The limits in words."""
        least, most = (None if limit is None else number(limit) for limit in self.limits)
        if least is None or most is None:
            return f"{'at most' if least is None else 'at least'} {most or least} {self.unit}".strip()
        return f"{least} to {most} {self.unit}".strip()

    def __str__(self) -> str:
        return f"{self.of}, {self.name}: {self.measured}, limit {self.limit}" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Validation:
    """The checks of a processed table, its findings, and least, mean and most by column and year (`values`)."""

    checks: tuple[Check, ...]
    findings: Mapping[str, Any]
    values: DataFrame = field(repr=False)

    @property
    def warnings(self) -> list[Check]:
        """The checks whose value is unusual."""
        return [check for check in self.checks if check.verdict == "warning"]

    def log(self) -> None:
        """Log the warnings, a line each."""
        for check in self.warnings:
            logger.warning("%s", check)

    def as_findings(self) -> dict[str, Any]:
        """Return the findings with all checks, as they are written as JSON."""
        names = ("name", "of", "unit", "verdict", "note")
        checks = [
            {name: getattr(check, name) for name in names} | {"value": round(check.value, 4), "limits": [*check.limits]}
            for check in self.checks
        ]
        return {**self.findings, "checks": checks}

    def metrics(self) -> dict[str, float]:
        """Return the counts as a run's metrics: steps, gaps, what was left out by reason, and the warnings."""
        findings, years = self.findings, self.findings["by_year"].values()
        counts = {name: findings[name] for name in ("steps_expected", "steps_kept", "steps_left_out")}
        for reason in ("absent", "incomplete", "doubled", "outside_years", "unordered", "clock_changes"):
            counts |= {f"{reason}_{of}": count for of, count in findings.get(reason, {}).items()}
        counts["gaps"] = sum(year["gaps"] for year in years)
        counts["longest_gap_steps"] = max(year["longest_gap_steps"] for year in years)
        counts["outliers"] = self.values["outliers"].sum()
        counts["warnings"] = len(self.warnings)
        return {name: float(count) for name, count in counts.items()}


def number(value: float) -> str:
    """Return a number for people: whole ones whole, others with three digits."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"


def validate(frame: DataFrame, findings: Mapping[str, Any]) -> Validation:
    """Check a processed table and its findings (`prepare.prepare`) for unusual values.

    Impossible values have raised a DataError before; steps without a figure of installed capacity raise it here. Means,
    changes, outliers and all that compares columns need 28 days.
    """
    table = frame.set_index("utc_timestamp")[[*TARGETS, *FEATURES]]
    table = table.reindex(steps.grid(*table.index[[0, -1]])).rename_axis("utc_timestamp")
    enough = len(frame) >= steps.A_MONTH
    checks, values, year = [*_check_rows(findings)], {}, _years(table.index).rename("year")
    checks += _check_fitting(frame, table, findings)
    for column in table:
        has_means = enough and column in USUAL_MEANS
        spikes = _spikes(table[column]) if has_means else 0 * table[column]
        if has_means:
            checks += _check_means(table[column], findings)
            note = _places_of(table[column], spikes, MAX_SPIKE)
            checks.append(
                Check(
                    f"distance from neighbouring {steps.NAMES}",
                    column,
                    spikes.max(),
                    (None, MAX_SPIKE),
                    "times p99",
                    note,
                )
            )
        checks += _check_same(table[column])
        checks += [
            check for target in problem.TARGETS if target.name == column for check in _check_correlation(table, target)
        ]
        by_year = table[column].groupby(year).agg(least="min", mean="mean", most="max")
        values[column] = by_year.assign(outliers=(spikes > MAX_SPIKE).groupby(year).sum())
    checks += [_check_night(table, target) for target in problem.TARGETS if target.by_day]
    return Validation(tuple(checks), findings, pd.concat(values, names=["column"]).dropna().reset_index())


def _years(stamps: pd.DatetimeIndex) -> pd.Index:
    return stamps.tz_convert(steps.CALENDAR).year


def _check_rows(findings: Mapping[str, Any]) -> Iterator[Check]:
    years = findings["by_year"]
    absent = {year: counts["steps_expected"] - counts["steps_kept"] for year, counts in years.items()}
    percent = {year: 100 * count / max(years[year]["steps_expected"], steps.A_MONTH) for year, count in absent.items()}
    worst = max(percent, key=lambda year: percent[year])
    over = [year for year in years if percent[year] > MAX_MISSING_PERCENT] or [worst]
    note = _listed(f"{year} lacks {absent[year]:,} {steps.NAMES}" for year in over)
    yield Check(
        f"{steps.NAMES} missing from a year", steps.NAMES, percent[worst], (None, MAX_MISSING_PERCENT), "%", note
    )
    longest = max(years.values(), key=lambda counts: counts["longest_gap_steps"])
    start = longest["longest_gap_from"]
    note = f"from {steps.written(pd.Timestamp(start))} on" if start else ""
    hours = longest["longest_gap_steps"] * steps.HOURS
    yield Check("longest gap", steps.NAMES, hours, (None, LONGEST_GAP_HOURS), "h", note)
    for name, count in findings["doubled"].items():
        doubled = {year: counts["doubled"][name] for year, counts in years.items() if counts["doubled"][name]}
        note = _listed(f"{rows:,} in {year}" for year, rows in doubled.items())
        note += f"; the first row of each {steps.NAME} was kept: is it the right one?" if count else ""
        yield Check(f"duplicate {steps.NAMES}", name, count, (None, MAX_DOUBLED), "rows", note)


def _check_means(values: Series, findings: Mapping[str, Any]) -> Iterator[Check]:
    """Check the mean of each nearly whole year (another unit?), and each year's change from the same time before."""
    column, usual = values.name, USUAL_MEANS[values.name]
    means = values.groupby(_years(values.index)).mean().loc[_whole_years(findings)]
    if means.empty:
        means = values.groupby(lambda _: f"all {steps.NAMES}").mean()
        usual = min(usual[0], usual[0] / 10), usual[1]  # a winter has little light
    yield from _check_each("mean of a year", column, means, usual, UNITS[column], _another_unit(means, column, usual))
    before = values.set_axis(values.index + pd.DateOffset(years=1))
    pairs = DataFrame({"before": before[~before.index.duplicated()], "now": values}).dropna()
    by_year = pairs.groupby(_years(pairs.index))
    rows = by_year.size()[lambda sizes: sizes >= steps.A_MONTH]
    if rows.empty:
        return
    before, now = (by_year[name].mean()[rows.index] for name in pairs)
    kelvin = UNITS[column] in ("°C", "K")  # a share of such a value means nothing
    limit, unit = (MAX_CHANGE_KELVIN, "K") if kelvin else (MAX_CHANGE, "%")
    change = now - before if kelvin else 100 * (now - before) / before.clip(lower=1e-9)
    limits = (limit / np.sqrt((rows / WHOLE_YEAR).clip(upper=1))).round(1)
    worst = (change.abs() / limits).idxmax()
    places = {year: f"{year} ({rows[year] * steps.HOURS:,.0f} h of both years)" for year in rows.index}
    note = _listed(f"{change[year]:+.3g} {unit} to {places[year]}" for year in rows.index[change.abs() > limits])
    note = f"{note}; did capacity, or what is counted, change?" if note else f"to {places[worst]}"
    most = float(limits[worst])
    yield Check("change of the mean from year to year", column, float(change[worst]), (-most, most), unit, note)


def _another_unit(values: Series, column: str, usual: tuple[float, float]) -> str:
    """Return the question whether unusual values are of another unit, with the units in which they would be usual."""
    beyond = values[~values.between(*usual)]
    fitting = []
    for unit in OTHER_UNITS:
        with contextlib.suppress(ParameterError):  # of another dimension
            fitting += [unit] * bool(convert(beyond, column, unit).between(*usual).all())
    return "another unit?" + (f" It would be usual in {' or '.join(fitting)}" if fitting else "")


def _whole_years(findings: Mapping[str, Any]) -> list[int]:
    return [int(year) for year, of in findings["by_year"].items() if of["steps_kept"] >= WHOLE_YEAR]


def _check_each(
    name: str, of: str, values: Series, limits: tuple[float, float], unit: str, cause: str
) -> Iterator[Check]:
    """Check a value of each year, or of each season: that of the worst, and which are beyond the limits."""
    values = values.dropna()
    if values.empty:
        return
    values.index = values.index.to_frame().astype(str).agg(" ".join, axis="columns")
    beyond = values[~values.between(*limits)]
    worst = (beyond if len(beyond) else values).sub(sum(limits) / 2).abs().idxmax()
    places = _listed(f"{place} ({number(value)} {unit})".replace(" )", ")") for place, value in beyond.items())
    yield Check(name, of, float(values[worst]), limits, unit, f"{places}; {cause}" if places else worst)


def _check_fitting(frame: DataFrame, table: DataFrame, findings: Mapping[str, Any]) -> Iterator[Check]:
    """Check clocks, units and installed capacity by rules that hold in any weather."""
    years = steps.local(frame["utc_timestamp"]).dt.year
    frame = frame[years.groupby(years).transform("size") >= steps.A_MONTH]
    for each in problem.TARGETS:
        if MAX_LAG:  # not of days
            yield from _check_clock(table, each)
        yield from _check_driver(frame, each, years)
    if problem.CAPACITY:
        gaps = findings.get("years_without_figure", [])
        note = f"{_listed(map(str, gaps))}; the capacity is a line between its neighbours" if gaps else ""
        yield Check("years without a figure", "capacity", len(gaps), (None, 0), "", note)
        factors = features.capacity_factors(frame)
    for target in problem.CAPACITY:
        by_year = factors[target].groupby(years)
        means, cause = by_year.mean().reindex(_whole_years(findings)), "is the capacity of another country, or in MW?"
        yield from _check_each("mean capacity factor", target, means, MEAN_FACTOR, "", cause)
        cause = "is the capacity too small, or in another unit?"
        yield from _check_each("highest capacity factor", target, by_year.max(), HIGHEST_FACTOR, "", cause)


def _driver(frame: DataFrame, target: Target) -> Series:
    return frame[list(target.driver.inputs)].sum(axis="columns", skipna=False)


def _check_clock(table: DataFrame, target: Target) -> Iterator[Check]:
    """Compare the clock of each target with that of its driver, and by day with the sun."""
    values = table[target.name]
    if target.by_day:
        elevation = features.sun_position(table.index)["elevation"].clip(lower=0)
        late = _lags(values, elevation.set_axis(table.index)).stack()
        yield from _check_each("hours behind the sun", target.name, late, BEHIND_SUN, "h", SUN_CAUSE)
    if limits := target.driver.lag_hours:
        name, late = f"hours behind the {target.driver.title}", _lags(values, _driver(table, target)).stack()
        cause = "is one file in local time, or its summer an hour late?"
        yield from _check_each(name, target.name, late, limits, "h", cause)


def _check_driver(frame: DataFrame, target: Target, years: Series) -> Iterator[Check]:
    """Check the units of a target's driver, that its two inputs are not exchanged, and that they are parts of a sum."""
    driver, values = target.driver, _driver(frame, target)
    first, *others = driver.inputs
    if driver.top_share:
        [second] = others
        brightest = values >= values.groupby(years).transform("quantile", 0.99).clip(lower=DARK_W_M2)
        shares = (frame[second] / values).where(brightest).groupby(years).mean()
        cause = f"are {' and '.join(QUANTITIES[name].title.lower() for name in driver.inputs)} exchanged?"
        yield from _check_each(f"share of the brightest {steps.NAMES}", second, shares, driver.top_share, "", cause)
        above = 100 * (frame[second] > frame[first])[values > DARK_W_M2].groupby(years).mean()
        cause = f"is {first} the sum of both, as global radiation is?"
        yield from _check_each(f"{steps.NAMES} above {first}", second, above, (MIN_ABOVE_PERCENT, 100), "%", cause)
    if usual := driver.at_half:
        powers = frame[target.name].groupby(years)
        half = powers.apply(lambda of: values[of.index].quantile((of <= of.quantile(0.99) / 2).mean()))
        name, cause = f"{driver.title} of half the highest power", _another_unit(half, first, usual)
        yield from _check_each(name, first, half, usual, driver.unit, cause)


def _lags(values: Series, reference: Series) -> DataFrame:
    """Return by how many hours ``values`` follow ``reference``: a row a year, columns `summer` and `winter`.

    That is where their correlation is best, between whole steps by a parabola.
    """
    shifted = DataFrame({rows: reference.shift(rows) for rows in range(-MAX_LAG, MAX_LAG + 1)})
    lags = DataFrame(columns=["summer", "winter"], dtype=float)
    seasons = np.where(values.index.month.isin(SUMMER), "summer", "winter")
    for place, part in values.groupby([values.index.year, seasons]):
        correlations = shifted.loc[part.index].corrwith(part)
        if part.count() >= steps.A_MONTH and correlations.notna().all():
            best = correlations.idxmax()
            before, top, after = correlations.reindex([best - 1, best, best + 1])
            between = (before - after) / (before - 2 * top + after) / 2
            lags.loc[place] = (best + (0 if np.isnan(between) else between)) * steps.HOURS
    return lags


def _spikes(values: Series) -> Series:
    """Return the distance of each value from the median of itself and both neighbours, as a multiple of p99."""
    apart = (values - values.rolling(3, center=True).median()).abs()
    usual = apart.quantile(0.99)
    return (apart / (usual if usual > 0 else np.inf)).fillna(0)


def _check_same(values: Series) -> Iterator[Check]:
    """Check for how long a value stays the same; zero apart, which some quantities are for longer."""
    column, runs = values.name, prepare.runs(values)
    max_zero = QUANTITIES[column].zero_hours
    if max_zero is None:
        return
    zero = runs["value"] == 0
    for name, of_kind, most in (("the same value", runs[~zero], MAX_SAME_HOURS), ("zero", runs[zero], max_zero)):
        hours = of_kind["steps"] * steps.HOURS
        most = max(most, LEAST_SAME * steps.HOURS)
        long = of_kind.assign(hours=hours)[hours > most].sort_values("hours", ascending=False).itertuples()
        note = _listed(
            f"{number(r.value)} {UNITS[column]} for {r.hours:g} h from {steps.written(r.first)} on" for r in long
        )
        note += "; frozen, or filled in?" if note else ""
        yield Check(f"{name} {steps.NAME} after {steps.NAME}", column, max(hours, default=0), (None, most), "h", note)


def _check_correlation(table: DataFrame, target: Target) -> Iterator[Check]:
    """Compare each year's rank correlation of a target and its driver, of either sign, with that of the other years."""
    weather = _driver(table, target)
    weather = weather.where(weather > DARK_W_M2) if target.by_day else weather
    pairs = table[[target.name]].assign(weather=weather).dropna()
    correlations = {
        year: abs(float(pair.rank().corr().iloc[0, 1]))
        for year, pair in pairs.groupby(_years(pairs.index))
        if len(pair) >= steps.A_MONTH and pair.nunique().min() > 1
    }
    for year, correlation in correlations.items():
        others = np.median([other for key, other in correlations.items() if key != year] or [0])
        least = max(MIN_CORRELATION, round(float(others) - MAX_BELOW_OTHERS, 2))
        name, note = (
            f"rank correlation with the {target.driver.title} of {year}",
            "are target and inputs of the same time?",
        )
        yield Check(name, target.name, correlation, (least, None), "", note)


def _check_night(table: DataFrame, target: Target) -> Check:
    """Check a target while the sun is down, also in the neighbouring hours, by the weather's own radiation."""
    name, values = "share of the highest while the sun is down", table[target.name]
    dark = _driver(table, target).rolling(3, center=True).max() < DARK_W_M2
    share = (100 * values.where(dark) / values.max()).fillna(0)
    places, count = _places_of(values, share, MAX_NIGHT_PERCENT), (share > MAX_NIGHT_PERCENT).sum()
    note = f"{count * steps.HOURS:,.0f} h: {places}; is the time zone of one file another?" if count else ""
    return Check(name, target.name, float(share.max()), (None, MAX_NIGHT_PERCENT), "%", note)


def _places_of(values: Series, distances: Series, most: float) -> str:
    """Return the steps whose distance is above the limit, the farthest first, with their values."""
    far = distances[distances > most].sort_values(ascending=False)
    return _listed(f"{steps.written(at)} ({number(values[at])} {UNITS[values.name]})" for at in far.index)


def _listed(places: Iterable[str]) -> str:
    places = list(places)
    more = [f"{len(places) - SHOWN} more"] if len(places) > SHOWN else []
    return ", ".join(places[:SHOWN] + more)
