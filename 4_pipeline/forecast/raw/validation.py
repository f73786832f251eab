"""Checks of a processed table for unusual values."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from pandas import DataFrame, Series, Timestamp

from forecast import problem
from forecast.raw import prepare
from forecast.table import features
from forecast.table.schema import FEATURES, QUANTITIES, TARGETS, UNITS, USUAL_MEANS, convert
from forecast.terms import steps
from forecast.terms.errors import ParameterError
from forecast.terms.quantities import Target

logger = logging.getLogger(__name__)

# Limits for missing steps per year and for the longest gap. In the real data, no year lacks over 0.4 %.
MAX_MISSING_PERCENT = 1.0
LONGEST_GAP_HOURS = 24
MAX_DUPLICATES = 0  # rows; only the publisher knows which of two rows is correct
# Limits for the change of the mean from year to year, in percent or kelvin; weather and new plants cause less. A
# partial year is compared with the same hours of the year before at a higher limit: sqrt(12) times as high for a month.
MAX_CHANGE = 30.0
MAX_CHANGE_KELVIN = 3.0
WHOLE_YEAR = 0.9 * steps.A_YEAR
# Maximum distance from the median of the step and its two neighbours (Hampel identifier: Davies and Gather, The
# Identification of Multiple Outliers, 1993), as a multiple of the distances' 99th percentile; up to 8 in the sample.
MAX_SPIKE = 10.0
# A value that is constant for this long (a week in daily data) means a frozen sensor or a filled gap.
MAX_CONSTANT_HOURS, MIN_CONSTANT_STEPS = 24, 7
# Rank correlation (Spearman) of a target with its driver by year; for a target that follows the sun, in daytime only.
# In the sample it is above 0.9 (above 0.7 in single months), but 0.2 with another month's wind speeds. A year is also
# compared with the median of the other years, since plants may be far from the weather stations.
MIN_CORRELATION = 0.3
MAX_BELOW_OTHERS = 0.3
# An hour counts as night if it and both neighbours have no radiation (below DARK_W_M2). Power at night above this share
# of the peak means that the clocks of the power and weather data differ.
DARK_W_M2 = 1.0
MAX_NIGHT_PERCENT = 1.0
# Under clouds diffuse radiation exceeds direct radiation: in 62 to 67 % of the sample's daylight hours, but never if
# the direct radiation column holds the sum of both.
MIN_ABOVE_PERCENT = 2.0
# Expected ranges for a target's lag behind the sun and for its capacity factor, and likely causes of values outside
# them. The expected ranges for a driver are in `problem`.
BEHIND_SUN = (-0.6, 0.6)  # hours; 0 in the sample; 9 degrees of longitude are 0.6 h
SUN_CAUSE = (
    "winter time declared as Europe/Berlin, local time declared as UTC, times at the end of hours, or another region?"
)
MEAN_FACTOR = (0.05, 0.7)  # solar 0.09 to 0.10, wind 0.15 to 0.20 in the sample; 0.6 on the open sea
HIGHEST_FACTOR = (0, 1.05)  # 0.73 in the sample; slightly above 1 if capacity is reported late
SUMMER = range(4, 11)  # the months of summer time
MAX_LAG = round(12 / steps.HOURS)  # 0 for daily data, whose lags are not checked

# Units to suggest for a column with unusual values: those that columns often have by mistake.
OTHER_UNITS = (
    "GW", "MW", "kW", "W", "m/s", "kn", "mph", "km/h", "C", "K", "F", "W/m2", "kW/m2", "kJ/m2", "MJ/m2", "J/m2",
)  # fmt: skip
MAX_PLACES = 4  # places that a check's note lists; it only counts the others


@dataclass(frozen=True)
class Check:
    """The result of the check ``name`` of a column or file (``of``): its value, the usual limits, and a note.

    The limits are inclusive; None means no limit.
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
        low, high = self.limits
        is_usual = (low is None or self.value >= low) and (high is None or self.value <= high)
        return "fine" if is_usual else "warning"

    @property
    def measured(self) -> str:
        """The value with its unit."""
        return f"{number(self.value)} {self.unit}".strip()

    @property
    def limit(self) -> str:
        """The limits as text."""
        low, high = (None if limit is None else number(limit) for limit in self.limits)
        if low is None or high is None:
            return f"{'at most' if low is None else 'at least'} {high or low} {self.unit}".strip()
        return f"{low} to {high} {self.unit}".strip()

    def __str__(self) -> str:
        return f"{self.of}, {self.name}: {self.measured}, limit {self.limit}" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Validation:
    """The checks of a processed table, its findings, and `values`: min, mean, max and outliers by column and year."""

    checks: tuple[Check, ...]
    findings: Mapping[str, Any]
    values: DataFrame = field(repr=False)

    @property
    def warnings(self) -> list[Check]:
        """The checks whose value is unusual."""
        return [check for check in self.checks if check.verdict == "warning"]

    def log(self) -> None:
        """Log one line per warning."""
        for check in self.warnings:
            logger.warning("%s", check)

    def as_findings(self) -> dict[str, Any]:
        """Return the findings with all checks, JSON-serializable."""
        names = ("name", "of", "unit", "verdict", "note")
        checks = [
            {name: getattr(check, name) for name in names} | {"value": round(check.value, 4), "limits": [*check.limits]}
            for check in self.checks
        ]
        return {**self.findings, "checks": checks}

    def metrics(self) -> dict[str, float]:
        """Return the metrics of a run: counts of steps, gaps, dropped rows by reason, outliers and warnings."""
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
    """Return a formatted number: integers in full, others with three significant digits."""
    return f"{value:,.0f}" if value % 1 == 0 or abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class Rule:
    """A rule for values by period (a year, a season or a time), with limits for all periods or a pair for each one.

    ``question`` suggests a cause of values beyond the limits; ``readings`` are the column's own values, by time.
    """

    name: str
    of: str
    values: Series
    limits: tuple[Any, Any]
    unit: str = ""
    question: str = ""
    readings: Series | None = None

    def check(self) -> Check:
        """Return the check for the period furthest outside its limits; its note lists all such periods, worst first."""
        values, (low, high) = self.values.dropna(), (np.nan if limit is None else limit for limit in self.limits)
        beyond = DataFrame({"below": low - values, "above": values - high}, values.index).max(axis="columns")
        beyond = beyond.sort_values(ascending=False, kind="stable")
        worst, unusual = beyond.index[0], beyond.index[beyond > 0]
        places = [*map(self._format_place, unusual[:MAX_PLACES])]
        places += [f"{len(unusual) - MAX_PLACES} more"] * (len(unusual) > MAX_PLACES)
        note = "; ".join(filter(None, (", ".join(places), self.question))) if places else _format(worst)
        low, high = (float(limit[worst]) if isinstance(limit, Series) else limit for limit in self.limits)
        return Check(self.name, self.of, float(values[worst]), (low, high), self.unit, note)

    def _format_place(self, place: Any) -> str:
        reading = "" if self.readings is None else f"{number(self.readings[place])} {UNITS[self.of]}, "
        return f"{_format(place)} ({reading}{number(self.values[place])} {self.unit})".replace(" )", ")")


def _format(place: Any) -> str:
    return steps.written(place) if isinstance(place, Timestamp) else " ".join(map(str, np.atleast_1d(place)))


def validate(frame: DataFrame, findings: Mapping[str, Any]) -> Validation:
    """Check a processed table and its findings (`prepare.prepare`) for unusual values.

    The checks of means, changes, outliers and pairs of columns need 28 days of data. Raises DataError if the installed
    capacity is not known for some steps.
    """
    rows = frame.set_index("utc_timestamp", drop=False)
    table = rows[[*TARGETS, *FEATURES]].reindex(steps.grid(*rows.index[[0, -1]])).rename_axis("utc_timestamp")
    has_means = len(frame) >= steps.A_MONTH
    spikes = DataFrame({name: _spikes(table[name]) * (has_means and name in USUAL_MEANS) for name in table})
    rows = rows[_by_year(rows[TARGETS[0]]).transform("size") >= steps.A_MONTH]
    full_years = [int(year) for year, of in findings["by_year"].items() if of["steps_kept"] >= WHOLE_YEAR]
    rules = [*_rules_of_rows(findings), *_rules_of_capacity(rows, full_years, findings)]
    for name in table:
        rules += _rules_of_runs(table[name])
        if has_means and name in USUAL_MEANS:
            rules += _rules_of_means(table[name], spikes[name], full_years)
    for target in problem.TARGETS:
        rules += [*_rules_of_time(table, target), *_rules_of_driver(rows, target)]
    values = {name: _by_year(table[name]).agg(["min", "mean", "max"]) for name in table}
    for name, by_year in values.items():
        by_year["outliers"] = _by_year(spikes[name] > MAX_SPIKE).sum()
    checks = tuple(rule.check() for rule in rules if rule.values.notna().any())
    return Validation(checks, findings, pd.concat(values, names=["column"]).dropna().reset_index())


def _by_year(values: Series | DataFrame) -> Any:
    """Group values with a time index by calendar year."""
    return values.groupby(values.index.tz_convert(steps.CALENDAR).year.rename("year"))


def _driver(frame: DataFrame, target: Target) -> Series:
    return frame[list(target.driver.inputs)].sum(axis="columns", skipna=False)


# -- rules -------------------------------------------------------------------------------------------------------------
def _rules_of_rows(findings: Mapping[str, Any]) -> Iterator[Rule]:
    """Yield the rules for missing and duplicate rows."""
    years = DataFrame.from_dict(findings["by_year"], orient="index")
    missing = years["steps_expected"] - years["steps_kept"]
    percent = 100 * missing / years["steps_expected"].clip(lower=steps.A_MONTH)
    percent.index = [f"{year} lacks {count:,} {steps.NAMES}" for year, count in missing.items()]
    yield Rule(f"{steps.NAMES} missing from a year", steps.NAMES, percent, (None, MAX_MISSING_PERCENT), "%")
    years = years[years["gaps"] > 0]
    gaps = (years["longest_gap_steps"] * steps.HOURS).set_axis(pd.to_datetime(years["longest_gap_from"]))
    yield Rule("longest gap", steps.NAMES, gaps, (None, LONGEST_GAP_HOURS), "h")
    question = f"the first row of each {steps.NAME} was kept: is it the right one?"
    for name, count in findings["doubled"].items():
        duplicates = {year: of["doubled"][name] for year, of in findings["by_year"].items() if of["doubled"][name]}
        places = ", ".join(f"{rows:,} in {year}" for year, rows in duplicates.items())
        yield Rule(f"duplicate {steps.NAMES}", name, Series({places: count}), (None, MAX_DUPLICATES), "rows", question)


def _rules_of_means(values: Series, spikes: Series, full_years: list[int]) -> Iterator[Rule]:
    """Yield the rules for a column's mean in (nearly) full years, its change from year to year, and its outliers."""
    column, usual, unit = values.name, USUAL_MEANS[values.name], UNITS[values.name]
    means = _by_year(values).mean().loc[full_years]
    if means.empty:
        means = Series({f"all {steps.NAMES}": values.mean()})
        usual = min(usual[0], usual[0] / 10), usual[1]  # the data may cover only winter, with little light
    yield Rule("mean of a year", column, means, usual, unit, _suggest_unit(means, column, usual))
    before = values.set_axis(values.index + pd.DateOffset(years=1))
    pairs = _by_year(DataFrame({"before": before[~before.index.duplicated()], "now": values}).dropna())
    rows = pairs.size()[lambda sizes: sizes >= steps.A_MONTH]
    before, now = (pairs[name].mean()[rows.index] for name in ("before", "now"))
    kelvin = unit in ("°C", "K")  # relative changes of temperatures are meaningless
    limit, unit = (MAX_CHANGE_KELVIN, "K") if kelvin else (MAX_CHANGE, "%")
    change = now - before if kelvin else 100 * (now - before) / before.clip(lower=1e-9)
    change.index = [f"{year} over {count * steps.HOURS:,.0f} h of both years" for year, count in rows.items()]
    limits = (limit / np.sqrt((rows / WHOLE_YEAR).clip(upper=1))).round(1).set_axis(change.index)
    question = "did the capacity or the definition change?"
    yield Rule("change of the mean from year to year", column, change, (-limits, limits), unit, question)
    name = f"distance from neighbouring {steps.NAMES}"
    yield Rule(name, column, spikes, (None, MAX_SPIKE), "times p99", readings=values)


def _rules_of_runs(values: Series) -> Iterator[Rule]:
    """Yield the rules for constant values over several steps; zeros have their own limit."""
    runs, max_zero = prepare.runs(values).set_index("first"), QUANTITIES[values.name].zero_hours
    if max_zero is None:
        return
    zero, hours, question = runs["value"] == 0, runs["steps"] * steps.HOURS, "a frozen sensor, or a filled gap?"
    for kind, is_kind, limit in (("the same value", ~zero, MAX_CONSTANT_HOURS), ("zero", zero, max_zero)):
        name, limits = f"{kind} {steps.NAME} after {steps.NAME}", (None, max(limit, MIN_CONSTANT_STEPS * steps.HOURS))
        yield Rule(name, values.name, hours[is_kind], limits, "h", question, values)


def _rules_of_time(table: DataFrame, target: Target) -> Iterator[Rule]:
    """Yield the rules for a target's timestamps: lag behind driver and sun, power at night, correlation by year."""
    driver, values, weather = target.driver, table[target.name], _driver(table, target)
    if MAX_LAG and driver.lag_hours:
        name, question = f"hours behind the {driver.title}", "is one file in local time, or an hour late in summer?"
        yield Rule(name, target.name, _lags(values, weather), driver.lag_hours, "h", question)
    if MAX_LAG and target.by_day:
        elevation = features.sun_position(table.index)["elevation"].clip(lower=0).set_axis(table.index)
        yield Rule("hours behind the sun", target.name, _lags(values, elevation), BEHIND_SUN, "h", SUN_CAUSE)
    if target.by_day:
        dark = weather.rolling(3, center=True).max() < DARK_W_M2
        name, share = "share of the highest while the sun is down", 100 * values.where(dark) / values.max()
        question = "is one file in another time zone?"
        yield Rule(name, target.name, share, (None, MAX_NIGHT_PERCENT), "%", question, values)
        weather = weather.where(weather > DARK_W_M2)
    pairs = _by_year(DataFrame({"values": values, "weather": weather}).dropna())
    ranked = pairs.apply(lambda pair: abs(pair.rank().corr().iloc[0, 1]))[pairs.size() >= steps.A_MONTH].dropna()
    others = Series({year: ranked.drop(year).median() for year in ranked.index}, dtype=float).fillna(0)
    lower = (others - MAX_BELOW_OTHERS).round(2).clip(lower=MIN_CORRELATION)
    name, question = f"rank correlation with the {driver.title}", "do target and inputs have the same time stamps?"
    yield Rule(name, target.name, ranked, (lower, None), "", question)


def _rules_of_driver(known: DataFrame, target: Target) -> Iterator[Rule]:
    """Yield the rules that detect a driver in a wrong unit, swapped inputs, and an input that holds the sum of both."""
    driver, values, (first, *others) = target.driver, _driver(known, target), target.driver.inputs
    if driver.top_share:
        [second] = others
        brightest = values >= _by_year(values).transform("quantile", 0.99).clip(lower=DARK_W_M2)
        shares = _by_year((known[second] / values).where(brightest)).mean()
        question = f"are {' and '.join(QUANTITIES[name].title.lower() for name in driver.inputs)} swapped?"
        yield Rule(f"share of the brightest {steps.NAMES}", second, shares, driver.top_share, "", question)
        above = _by_year(100 * (known[second] > known[first])[values > DARK_W_M2]).mean()
        question = f"is {first} the sum of both, as global radiation is?"
        yield Rule(f"{steps.NAMES} above {first}", second, above, (MIN_ABOVE_PERCENT, 100), "%", question)
    if usual := driver.at_half:
        powers = _by_year(known[target.name])
        half = powers.apply(lambda of: values[of.index].quantile((of <= of.quantile(0.99) / 2).mean()))
        name = f"{driver.title} of half the highest power"
        yield Rule(name, first, half, usual, driver.unit, _suggest_unit(half, first, usual))


def _rules_of_capacity(known: DataFrame, full_years: list[int], findings: Mapping[str, Any]) -> Iterator[Rule]:
    """Yield the rules for installed capacity, if any: missing years, and mean and highest capacity factor."""
    if not problem.CAPACITY:
        return
    gaps, question = findings.get("years_without_figure", []), "the capacity is interpolated from other years"
    without = Series({", ".join(map(str, gaps)): len(gaps)})
    yield Rule("years without a figure", "capacity", without, (None, 0), "", question)
    factors = features.capacity_factors(known)
    for target in problem.CAPACITY:
        by_year = _by_year(factors[target])
        means, question = by_year.mean().reindex(full_years), "is the capacity that of another country, or in MW?"
        yield Rule("mean capacity factor", target, means, MEAN_FACTOR, "", question)
        question = "is the capacity too small, or in another unit?"
        yield Rule("highest capacity factor", target, by_year.max(), HIGHEST_FACTOR, "", question)


# -- statistics --------------------------------------------------------------------------------------------------------
def _suggest_unit(values: Series, column: str, usual: tuple[float, float]) -> str:
    """Return a question that suggests units in which the unusual values would be usual."""
    unusual = values[~values.between(*usual)]
    units = []
    for unit in OTHER_UNITS:
        with contextlib.suppress(ParameterError):  # another dimension
            units += [unit] * bool(convert(unusual, column, unit).between(*usual).all())
    return "another unit?" + (f" The values would be usual in {' or '.join(units)}" if units else "")


def _lags(values: Series, reference: Series) -> Series:
    """Return the lag of ``values`` behind ``reference`` in hours, by year and season (summer or winter time).

    The lag is the shift by whole steps that gives the highest correlation.
    """
    shifted = DataFrame({rows * steps.HOURS: reference.shift(rows) for rows in range(-MAX_LAG, MAX_LAG + 1)})
    seasons = np.where(values.index.month.isin(SUMMER), "summer", "winter")
    parts = shifted[values.notna()].groupby([values.index.year[values.notna()], seasons[values.notna()]])
    correlations = parts.apply(lambda part: part.corrwith(values[part.index]))
    return correlations[parts.size() >= steps.A_MONTH].dropna().idxmax(axis="columns")


def _spikes(values: Series) -> Series:
    """Return each value's distance from the median of itself and its neighbours, divided by the distances' p99."""
    distances = (values - values.rolling(3, center=True).median()).abs()
    usual = distances.quantile(0.99)
    return (distances / (usual if usual > 0 else np.inf)).fillna(0)
