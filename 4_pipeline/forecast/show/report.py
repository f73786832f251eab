"""The weekly report: measured and predicted values, and possible causes of the worst errors."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow_gate import Link, Production
from pandas import DataFrame, Series, Timestamp

from forecast import problem
from forecast.govern import gate
from forecast.learn.storage import load, predict_unseen
from forecast.show import monitoring
from forecast.show.figures import INK, MEASURED
from forecast.show.monitoring import Quality
from forecast.table import features, schema, split
from forecast.table.schema import FEATURES, TARGETS
from forecast.terms import steps
from forecast.terms.errors import DataError, ParameterError
from forecast.terms.origin import Origin, origin_of
from forecast.terms.quantities import Target

if TYPE_CHECKING:
    from IPython.display import Image

# A target's worst errors: maximum number, minimum distance, and minimum size as a share of the week's peak.
MAX_ERRORS, MIN_DISTANCE, MIN_ERROR = 3, pd.Timedelta(hours=6), 0.002
# Unusual: a change above this quantile; a value in the lowest or highest TAIL of at least MIN_SIMILAR similar rows.
UNUSUAL_QUANTILE, TAIL, MIN_SIMILAR = 0.95, 0.1, 20
NEAR, SAME_SEASON_DAYS, SAME_SPELL_DAYS = max(round(3 / steps.HOURS), 1), 20, 3  # NEAR: three hours, in steps
ABOUT_TIMES = (
    f"Days are calendar days in {steps.ZONE}."
    if steps.IS_DAY
    else f"All times are UTC; a time is the start of its {steps.NAME}."
)
FORMAT = "%a %-d %b", ", %H:%M"  # date and time of a step
THIS_WEEK, EIGHT_WEEKS = "This week", "The last eight weeks"
WEATHER = problem.INPUTS[:2]  # inputs shown in the daily table

logger = logging.getLogger(__name__)


# -- data --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ReportData:
    """The processed frame, the predictions of the model in production, and the model's record.

    ``predicted`` and each end of ``band`` (lower, upper) hold the targets for some rows of ``frame``; ``predicted`` is
    None without predictions, ``band`` also for a model without a band. ``training_end`` is the evaluated model's last
    training timestamp, None if unknown. ``prediction_error`` says why the model cannot predict these rows, if so.
    """

    frame: DataFrame
    predicted: DataFrame | None = None
    band: tuple[DataFrame, DataFrame] | None = None
    coverage: float | None = None
    production: Production | None = None
    training_end: Timestamp | None = None
    lineage: tuple[Link, ...] = ()
    prediction_error: str = ""

    @property
    def origin(self) -> Origin:
        """The origin of the data."""
        return origin_of(self.frame)

    def of_week(self, week: str) -> Week:
        """Return one week, by its ISO name or `latest`; raise ParameterError for a week without rows or predictions."""
        name, frame = split.select_week(self.frame, week)
        needed = _up_to_end_of(split.monday(name), self.frame["utc_timestamp"], monitoring.WINDOW_DAYS)
        if self.predicted is not None and not needed[needed].index.isin(self.predicted.index).all():
            what = "The eight weeks up to the end of this week were not predicted."
            raise ParameterError(what, value=name, next_step="pass this week to report.collect, too")
        rows = self.frame.index[self.frame["utc_timestamp"].isin(frame["utc_timestamp"])]
        predicted = None if self.predicted is None else self.predicted.loc[rows].reset_index(drop=True)
        band = None if self.band is None else tuple(end.loc[rows].reset_index(drop=True) for end in self.band)
        return Week(name, frame, predicted, band)


@dataclass(frozen=True)
class Week:
    """One week of `ReportData`: its ISO name, its rows and their predictions."""

    name: str
    hours: DataFrame
    predicted: DataFrame | None = None
    band: tuple[DataFrame, DataFrame] | None = None

    @cached_property
    def monday(self) -> Timestamp:
        """The start of the week."""
        return pd.Timestamp(split.monday(self.name))

    @cached_property
    def grid(self) -> pd.DatetimeIndex:
        """The start of each step of the week, including missing steps."""
        last = (self.monday + pd.DateOffset(weeks=1)).tz_convert("UTC") - pd.Timedelta(microseconds=1)
        return steps.grid(self.monday.tz_convert("UTC"), last)

    def amounts(self, values: Series, target: Target) -> Series:
        """Return each step's contribution to the target's sum (such as GWh), or ``values`` if the target has no sum."""
        return schema.amounts(values, target, self.hours["utc_timestamp"]) if target.sum_unit else values


@dataclass(frozen=True)
class WorstHour:
    """A step with a large error in one target; values are in its unit, ``band`` is None if the model has no band."""

    number: int
    at: Timestamp
    target: str
    measured: float
    predicted: float
    band: tuple[float, float] | None = None
    reason: str = ""

    @property
    def error(self) -> float:
        """Predicted minus measured."""
        return self.predicted - self.measured

    @property
    def quantity(self) -> Target:
        """The `Target` that is named ``target``."""
        return next(target for target in problem.TARGETS if target.name == self.target)

    @property
    def outside_band(self) -> float | None:
        """How far the measured value is outside the band: 0 if it is inside, None if there is no band."""
        return None if self.band is None else max(self.band[0] - self.measured, self.measured - self.band[1], 0.0)


def collect(frame: DataFrame, production: Production | None, week: str) -> ReportData:
    """Return the data of the report, with predictions for the eight weeks up to the end of ``week``.

    Raises the errors of `split.select_week`, and ModelError if the model cannot be loaded or used.
    """
    if production is None:
        return ReportData(frame)
    model = load(production.model_uri)
    evaluated = load(production.refit_of.model_uri) if production.refit_of else None
    monday, stamps = split.monday(split.select_week(frame, week)[0]), frame["utc_timestamp"]
    try:
        rows = frame[_up_to_end_of(monday, stamps, monitoring.WINDOW_DAYS)]
        predictions = predict_unseen(model, evaluated, gate.training_end(production), rows)
    except DataError as error:  # for example, a champion trained on other years lacks the capacity of these
        prediction_error = f"Version {production.version} is in production but cannot predict these data: {error.what}"
        return ReportData(frame, prediction_error=prediction_error)
    try:
        links = tuple(gate.Registry().lineage(production.version))
    except Exception as error:  # noqa: BLE001 - the report does not need the lineage
        logger.warning("The lineage of version %s cannot be read: %r", production.version, error)
        links = ()
    until = pd.Timestamp(last) if (last := gate.training_end(production.evaluated)) else None
    return ReportData(frame, *predictions, model.coverage, production, until, links)


# -- worst errors ------------------------------------------------------------------------------------------------------
def worst_hours(data: ReportData, week: Week) -> list[WorstHour]:
    """Return the largest errors of a week, largest first: at most three per target, more than six hours apart."""
    if week.predicted is None:
        return []
    misses = sorted(
        (miss for target in TARGETS for miss in _largest(week, week.predicted, target)),
        key=lambda miss: -abs(miss.error),
    )
    similar_rows = _rows_by_capacity(data)
    recent = {each.target.name: each for each in qualities(data, week)[EIGHT_WEEKS]}
    return [
        replace(miss, number=number, reason=next(_reasons(similar_rows, miss, recent[miss.target])))
        for number, miss in enumerate(misses, start=1)
    ]


def _largest(week: Week, predicted: DataFrame, target: str) -> list[WorstHour]:
    errors = (predicted[target] - week.hours[target]).abs()
    stamps, rows, least = week.hours["utc_timestamp"], list[int](), MIN_ERROR * week.hours[target].abs().max()
    for row in errors.sort_values(ascending=False, kind="stable").index:
        if len(rows) == MAX_ERRORS or errors[row] <= least:
            break
        if all(abs(stamps[row] - stamps[other]) > MIN_DISTANCE for other in rows):
            rows.append(row)
    bands: list[Any] = [week.band and tuple(float(end[target][row]) for end in week.band) for row in rows]
    return [
        WorstHour(0, stamps[row], target, float(week.hours[target][row]), float(predicted[target][row]), band)
        for row, band in zip(rows, bands, strict=True)
    ]


def _rows_by_capacity(data: ReportData) -> DataFrame:
    """Return a row per step (NaN if missing): inputs, `TARGETS` divided by capacity, and `<target>_capacity`.

    If the capacity of any row is unknown, it is set to 1 in all rows.
    """
    frame = data.frame
    try:
        capacity = features.installed(frame)
    except DataError as error:
        logger.info("Years are compared without normalizing by capacity: %s", error.what)
        capacity = pd.DataFrame(1.0, frame.index, TARGETS)
    hours = (frame[TARGETS] / capacity).join(frame[FEATURES]).join(capacity.add_suffix("_capacity"))
    hours.index = pd.DatetimeIndex(frame["utc_timestamp"])
    return hours.reindex(steps.grid(*hours.index[[0, -1]]))


def _reasons(hours: DataFrame, miss: WorstHour, recent: Quality) -> Iterator[str]:
    """Yield one or more sentences, each with a possible cause of an error, the most likely first.

    ``recent`` is the quality of the target's predictions in the eight weeks up to the end of the week.
    """
    target = miss.quantity
    driver, near, at = target.driver, NEAR * steps.LENGTH, miss.at
    values = hours[list(driver.inputs)].sum(axis="columns", skipna=False)
    is_similar = (values - values[at]).abs() <= max(driver.alike[0], driver.alike[1] * abs(values[at]))
    what = f"at about this {driver.title}"
    if values[at - near : at + near].isna().any():
        yield f"Neighbouring {steps.NAMES} are missing from the data, so this {steps.NAME} may be incomplete."
    if target.by_day:
        season = abs((hours.index.day_of_year - at.day_of_year + 182) % 365 - 182)
        same_time = (hours.index.hour == at.hour) & (hours.index.minute == at.minute) & (season <= SAME_SEASON_DAYS)
        is_similar, what = is_similar & same_time, f"{what} and this time of day and year"
        changes = values.diff()
        median = changes[same_time].median()
        if abs(changes[at] - median) > (changes[same_time] - median).abs().quantile(UNUSUAL_QUANTILE):
            yield (
                f"The {driver.title} changed by {signed(changes[at])} {driver.unit} from the {steps.NAME} before; at"
                f" this time of day and year it usually changes by about {signed(median)} {driver.unit}."
            )
    else:
        spans = values.rolling(2 * NEAR + 1, center=True)
        swings = spans.max() - spans.min()
        if swings[at] > (usual := swings.quantile(UNUSUAL_QUANTILE)):
            yield (
                f"The {driver.title} changed by {swings[at]:.1f} {driver.unit} within {2 * near / steps.HOUR:g} hours;"
                f" in 95 of 100 {steps.NAMES} it changes by less than {usual:.1f} {driver.unit}."
            )
    is_biased = abs(recent.bias_percent) > recent.max_bias_percent and recent.bias * miss.error > 0
    if is_biased and abs(recent.bias_percent) / 100 * miss.measured > abs(miss.error) / 2:  # most of the error is bias
        direction = "low" if recent.bias < 0 else "high"
        yield (
            f"Predictions of {target.words} were {abs(recent.bias_percent):.0f} % too {direction} on average over"
            " eight weeks: the output per installed GW may have drifted."
        )
    yield from _compare(hours, miss, is_similar, what)
    yield "No cause found" + (", but the error is within the error band." if miss.outside_band == 0 else ".")


def _compare(hours: DataFrame, miss: WorstHour, is_similar: Series, what: str) -> Iterator[str]:
    """Yield a sentence that compares the target with its values in similar weather, scaled to this step's capacity."""
    is_other_spell = abs(hours.index - miss.at).days >= SAME_SPELL_DAYS
    similar = hours[miss.target][is_similar & is_other_spell].dropna() * hours[f"{miss.target}_capacity"][miss.at]
    if len(similar) < MIN_SIMILAR:
        yield f"Only {len(similar)} other {steps.NAMES} in the data are {what}, so there is little training data."
        return
    low, high = similar.quantile(TAIL), similar.quantile(1 - TAIL)
    usual = f"{low:.1f} to {high:.1f} {miss.quantity.unit} in 80 % of {steps.NAMES}"
    words = miss.quantity.words
    if not low <= miss.measured <= high:
        yield f"The {words} was unusual {what} (usual: {usual}). No input of the model explains it."
    elif not low <= miss.predicted <= high:
        yield f"The {words} was usual {what}, but the prediction was not (usual: {usual})."
    else:
        yield f"The {words} varies widely {what}: {usual}, which includes both values, measured and predicted."


# -- tables and text ---------------------------------------------------------------------------------------------------
def summary(data: ReportData, week: Week, decision: Mapping[str, Any] | None = None) -> str:
    """Return the summary of the report in Markdown: the week, the quality of its predictions, and its gaps.

    With ``decision`` (results/decision.json), the latest week's summary says what to do if its predictions are bad.
    """
    known = qualities(data, week)
    lines = [
        f"# {problem.TITLE} in {problem.REGION}, week {week.name}",
        f"{week.monday:%A, %-d %B %Y}, and the following six days. {ABOUT_TIMES}",
        *(f"**{when}.** {monitoring.summarize(each)}" for when, each in known.items()),
    ]
    if data.origin.modelled:
        lines[1] += f" The data are **modelled**: they say nothing about any real {steps.NAME}."
    if known:
        lines[-1] += f" The state over these weeks: **{monitoring.worst_state(known[EIGHT_WEEKS])}**."
        is_latest = week.name == split.select_week(data.frame, "latest")[0]
        if decision and data.production and is_latest and monitoring.worst_state(known[EIGHT_WEEKS]) == "bad":
            advice = monitoring.next_step(known[EIGHT_WEEKS], decision, data.production.version)
            lines.append(f"> **What next:** {advice}")
        lines.append(monitoring.training_overlap(week.hours, data.training_end, gate.refit_until(data.production)))
    else:
        reason = escape(data.prediction_error) or "No model is in production, so there are no predictions."
        lines.append(f"{reason} See `results/decision.json`.")
    grid = week.grid[week.grid <= data.frame["utc_timestamp"].iloc[-1]]
    if missing := gaps(week, grid):
        more = f"; and {len(missing) - 4} more gaps" if len(missing) > 4 else ""
        lines.append(
            f"> **{len(grid) - len(week.hours)} of the week's {len(grid)} {steps.NAMES}"
            f"{' so far' if len(grid) < steps.A_WEEK else ''} are missing from the data**"
            f" ({'; '.join(missing[:4])}{more}). No value was filled in: sums and means exclude these {steps.NAMES},"
            " and the lines in the figure have gaps."
        )
    return "\n\n".join(lines)


def totals(data: ReportData, week: Week) -> DataFrame:
    """Return one row per target: measured and predicted sum or mean, bias, mean absolute error and coverage."""
    known = qualities(data, week).get(THIS_WEEK, [None] * len(TARGETS))
    rows = {}
    for target, quality in zip(problem.TARGETS, known, strict=True):
        unit, how = target.sum_unit or target.unit, "sum" if target.sum_unit else "mean"
        row = {"Measured": f"{week.amounts(week.hours[target.name], target).agg(how):,.0f} {unit}"}
        if week.predicted is not None and quality:
            row["Predicted"] = f"{week.amounts(week.predicted[target.name], target).agg(how):,.0f} {unit}"
            row["Bias"] = f"{signed(quality.bias_percent)} %"
            row["Mean absolute error"] = f"{quality.mae:.2f} {target.unit}"
            if quality.coverage >= 0:  # False for NaN: no band, or no daylight
                by_day = " (by day)" if target.by_day else ""
                name = f"Within the {100 * quality.nominal_coverage:.0f} % band"
                row[name] = f"{100 * quality.coverage:.0f} %{by_day}"
        rows[target.words.capitalize() + ("" if target.sum_unit else ", mean")] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis(columns="Week")


def daily_table(week: Week) -> DataFrame:
    """Return one row per day of a week: measured and predicted targets (sums or means), and mean weather."""
    day, columns = steps.local(week.hours["utc_timestamp"]).dt.tz_localize(None).dt.normalize(), list[Series]()
    for target in problem.TARGETS:
        values = {f"{target.title}, {target.sum_unit or target.unit}": week.hours[target.name]}
        if week.predicted is not None:
            values["Predicted"] = week.predicted[target.name]
        for title, value in values.items():
            amounts = week.amounts(value, target).groupby(day).agg("sum" if target.sum_unit else "mean")
            columns.append(amounts.map("{:,.1f}".format).rename(title))
    for each in WEATHER:
        template = partial(signed, digits=1) if each.possible[0] < 0 else "{:,.1f}".format
        columns.append(week.hours[each.name].groupby(day).mean().map(template).rename(each.label))
    hours = day.value_counts() * steps.HOURS
    names = [f"{each:%a %-d %b}" + (f" ({hours[each]:g} h)" if hours[each] < 24 else "") for each in columns[0].index]
    return pd.concat(columns, axis="columns", sort=True).set_axis(names).rename_axis(columns="Day")


def worst_table(misses: list[WorstHour]) -> DataFrame | None:
    """Return one row per worst hour, indexed by its number in the figure; None if there are none."""
    rows = {}
    for miss in misses:
        unit = miss.quantity.unit
        rows[miss.number] = {
            steps.NAME.capitalize(): f"{miss.quantity.title}, {steps.written(miss.at, *FORMAT)}",
            "Measured": f"{miss.measured:,.1f} {unit}",
            "Predicted": f"{miss.predicted:,.1f} {unit}",
            "Error": f"{signed(miss.error, 1)} {unit}",
            "Outside the band": f"{miss.outside_band:.1f} {unit}" if miss.outside_band else "no" if miss.band else "",
            "Possible cause": miss.reason,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="No.") if rows else None


def describe_model(data: ReportData) -> str:
    """Return a description of the model in production in Markdown: version, score at the gate, and lineage."""
    if data.production is None:
        return "None." if data.prediction_error else "None: no model is in production."
    name, version, move = data.production.name, data.production.version, data.production.move
    stage = gate.stage_of(data.production) or "registered by hand"
    text = f"The predictions are from **{name} version {version}** ({stage}; `models:/{name}/{version}` in MLflow)"
    if move.when:
        text += f", in production since {datetime.fromisoformat(move.when).astimezone(UTC):%-d %B %Y, %H:%M} UTC"
    text += f". It predicts each {steps.NAME} from the inputs of that {steps.NAME}."
    if move.held_out:
        text += f" The gate evaluated it on {move.held_out['rows']:,} {steps.NAMES}: {move.label} {move.score}."
    rows = {}
    for link in data.lineage:
        facts = "; ".join(f"{name}: {fact}" for name, fact in link.facts.items()) if link.known else "not recorded"
        what = f'<a href="{escape(link.url)}">{escape(link.name)}</a>' if link.url else escape(link.name)
        rows[link.kind] = {"Name": what, "Details": escape(facts)}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="Link").to_html(escape=False)
    return f"{text}\n\n<details><summary>Lineage</summary>\n{table}\n</details>" if rows else text


def describe_origin(origin: Origin) -> str:
    """Return the attribution of the data, and a note on their licence."""
    licence = "Ask the owner of the data before you pass the data on."
    if origin.source in ("sample", "opsd"):
        licence = "The data carry no licence of their own: have this checked before you pass the data on."
    return f"{escape(origin.attribution)}\n\n{licence}"


def qualities(data: ReportData, week: Week) -> dict[str, list[Quality]]:
    """Return the quality of the predictions in a week, and in the eight weeks up to its end; {} without predictions."""
    if data.predicted is None:
        return {}
    stamps, days = data.frame["utc_timestamp"], {THIS_WEEK: 7, EIGHT_WEEKS: monitoring.WINDOW_DAYS}
    rows = {name: _up_to_end_of(week.monday, stamps, length) for name, length in days.items()}
    until = gate.training_end(data.production.evaluated) if data.production else None
    baselines = monitoring.baselines(data.frame, until)
    known = data.predicted, data.band, data.coverage, baselines, monitoring.max_bias_percent()
    return {name: monitoring.qualities(data.frame[each], *known) for name, each in rows.items()}


def _up_to_end_of(monday: datetime, stamps: Series, days: int) -> Series:
    """Return whether each time is in the ``days`` up to the end of the week that starts on ``monday``."""
    return (stamps >= monday - pd.DateOffset(days=days - 7)) & (stamps < monday + pd.DateOffset(weeks=1))


def gaps(week: Week, grid: pd.DatetimeIndex) -> list[str]:
    """Return a week's gaps in ``grid`` as strings: the first and last step of each gap."""
    missing = grid[~grid.isin(week.hours["utc_timestamp"])].to_series()
    parts = missing.groupby(Series(grid.isin(week.hours["utc_timestamp"]).cumsum(), grid)[missing])
    ends = (dict.fromkeys((part.iloc[0], part.iloc[-1])) for _, part in parts)
    return [" to ".join(steps.written(each, *FORMAT) for each in both) for both in ends]


def signed(value: float, digits: int = 0) -> str:
    """Format a number with its sign, using a typographic minus."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


# -- figure ------------------------------------------------------------------------------------------------------------
def draw(data: ReportData, week: Week, misses: list[WorstHour]) -> Image:
    """Draw a week, one panel per target: measured, predicted, error band, and numbered marks at the worst hours.

    Missing steps are gaps in the lines.
    """
    from IPython.display import Image
    from matplotlib import style
    from matplotlib.dates import DateFormatter, DayLocator, HourLocator
    from matplotlib.figure import Figure

    grid = week.grid.tz_convert(steps.CALENDAR)
    frames = [week.hours, *([] if week.predicted is None else [week.predicted]), *(week.band or ())]
    measured, *others = (frame[TARGETS].set_axis(week.hours["utc_timestamp"]).reindex(grid) for frame in frames)
    ranges, name, content = list[str](), data.origin.measured_name, io.BytesIO()
    with style.context("seaborn-v0_8-whitegrid"):
        figure = Figure(figsize=(8, 2.4 * len(TARGETS)), dpi=180, layout="constrained")
        panels = figure.subplots(len(TARGETS), squeeze=False)[:, 0]
        for axes, target in zip(panels, problem.TARGETS, strict=True):
            axes.plot(measured[target.name], ":", color=MEASURED, label=name)
            if others:
                axes.plot(others[0][target.name], color=target.colour, label="predicted")
            if week.band:
                band = f"{100 * (data.coverage or 0):.0f} % band"
                axes.fill_between(
                    grid, *(end[target.name] for end in others[1:]), color=target.colour, alpha=0.25, label=band
                )
            for miss in (miss for miss in misses if miss.target == target.name):
                axes.vlines(miss.at, *sorted([miss.measured, miss.predicted]), color=INK)
                circle = {"boxstyle": "circle", "facecolor": "white"}
                place = (miss.at, max(miss.measured, miss.predicted))
                axes.annotate(str(miss.number), place, (0, 10), textcoords="offset points", ha="center", bbox=circle)
            axes.set_title(target.label, loc="left", fontweight="bold")
            axes.margins(x=0.05 * steps.IS_DAY, y=0.25)
            axes.set_ylim(bottom=0 if target.possible[0] >= 0 else None)
            axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
            axes.xaxis.set(major_locator=DayLocator(), major_formatter="", minor_locator=HourLocator(12))
            axes.xaxis.set_minor_formatter(DateFormatter("%a %-d %b"))
            low, high = measured[target.name].agg(["min", "max"])
            ranges.append(f"{target.title} from {low:.1f} to {high:.1f} {target.unit}")
        figure.savefig(content)
    alt = f"{name.capitalize()} values, {steps.NAME} by {steps.NAME}: {', '.join(ranges)}."
    return Image(content.getvalue(), alt=alt)
