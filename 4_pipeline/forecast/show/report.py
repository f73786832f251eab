"""The report on a week: what was generated, how well it was predicted, and possible reasons for the worst hours."""

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
from forecast.terms.errors import DataError
from forecast.terms.origin import Origin, origin_of
from forecast.terms.quantities import Target

if TYPE_CHECKING:
    from IPython.display import Image

# Of the worst steps of a target: how many, how far apart, and the smallest miss that counts, by the week's highest.
MAX_MISSES, APART, MIN_MISS = 3, pd.Timedelta(hours=6), 0.002
# What is unusual: more than 95 of 100, or outside the range of eight in ten similar ones.
UNUSUAL, OUTER, FEWEST_ALIKE = 0.95, 0.1, 20
NEAR, SAME_SEASON_DAYS, SAME_SPELL_DAYS = max(round(3 / steps.HOURS), 1), 20, 3  # steps, and days
ABOUT_TIMES = (
    f"Days are those of {steps.ZONE}." if steps.IS_DAY else f"All times are UTC, {steps.ONE} is named by its start."
)
NAMED = "%a %-d %b", ", %H:%M"  # how a step is written
THIS_WEEK, EIGHT_WEEKS = "This week", "The last eight weeks"
WEATHER = problem.INPUTS[:2]  # of which the table of days shows the means

logger = logging.getLogger(__name__)


# -- what a report rests on --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ReportData:
    """The whole processed frame, the predictions of the model in production for each hour, and the model's record.

    ``predicted`` and both ends of ``band`` hold the targets of the rows of ``frame``; None without a model
    or a band. ``trained_until`` is the start of the last hour that the model learned from; None when that is not known.
    ``unable`` says why the model in production cannot predict these hours, when it cannot.
    """

    frame: DataFrame
    predicted: DataFrame | None = None
    band: tuple[DataFrame, DataFrame] | None = None
    coverage: float | None = None
    production: Production | None = None
    trained_until: Timestamp | None = None
    lineage: tuple[Link, ...] = ()
    unable: str = ""

    @property
    def origin(self) -> Origin:
        """Where the data come from."""
        return origin_of(self.frame)

    def of_week(self, week: str) -> Week:
        """Return the part on one week, by its ISO name or `latest`; errors as `split.select_week`."""
        name, chosen = split.select_week(self.frame, week)
        rows = self.frame["utc_timestamp"].isin(chosen["utc_timestamp"]).to_numpy()
        predicted = None if self.predicted is None else self.predicted[rows].reset_index(drop=True)
        band = None if self.band is None else tuple(end[rows].reset_index(drop=True) for end in self.band)
        return Week(name, chosen, predicted, band)


@dataclass(frozen=True)
class Week:
    """One week of `ReportData`: its name, its rows of the frame, and the predictions for them."""

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
        """The starts of all its steps, whether the frame has them or not."""
        last = (self.monday + pd.DateOffset(weeks=1)).tz_convert("UTC") - pd.Timedelta(microseconds=1)
        return steps.grid(self.monday.tz_convert("UTC"), last)

    def amounts(self, values: Series, target: Target) -> Series:
        """Return what each step adds to the target's sum over time, or its value where a sum means nothing."""
        return schema.amounts(values, target, self.hours["utc_timestamp"]) if target.sum_unit else values


@dataclass(frozen=True)
class WorstHour:
    """An hour of a target that was predicted badly; values in its unit, ``band`` None without one."""

    number: int
    at: Timestamp
    target: str
    measured: float
    predicted: float
    band: tuple[float, float] | None = None
    reason: str = ""

    @property
    def error(self) -> float:
        """Predicted less measured."""
        return self.predicted - self.measured

    @property
    def quantity(self) -> Target:
        """The target of the problem."""
        return next(target for target in problem.TARGETS if target.name == self.target)

    @property
    def beyond(self) -> float | None:
        """By how much the measured value lies outside the band: 0 within; None without a band."""
        return None if self.band is None else max(self.band[0] - self.measured, self.measured - self.band[1], 0.0)


def gather(frame: DataFrame, production: Production | None) -> ReportData:
    """Return the evidence for a processed frame; raise ModelError when the model cannot be loaded or used."""
    if production is None:
        return ReportData(frame)
    model = load(production.model_uri)
    judged = load(production.refit_of.model_uri) if production.refit_of else None
    try:
        predictions = predict_unseen(model, judged, gate.trained_until(production), frame)
    except DataError as error:  # a model of other years, which the gate has kept
        unable = f"Version {production.version} is in production and cannot predict these hours: {error.what}"
        return ReportData(frame, unable=unable)
    try:
        links = tuple(gate.Registry().lineage(production.version))
    except Exception as error:  # noqa: BLE001 - a report without the model's lineage is still a report
        logger.warning("The lineage of version %s cannot be read: %r", production.version, error)
        links = ()
    until = pd.Timestamp(last) if (last := gate.trained_until(production.evaluated)) else None
    return ReportData(frame, *predictions, model.coverage, production, until, links)


# -- the worst hours ---------------------------------------------------------------------------------------------------
def worst(evidence: ReportData, week: Week) -> list[WorstHour]:
    """Return the worst misses of a week, the worst first: at most three of each target, some hours apart."""
    if week.predicted is None:
        return []
    misses = sorted(
        (miss for target in TARGETS for miss in _largest(week, week.predicted, target)),
        key=lambda miss: -abs(miss.error),
    )
    surroundings = _surroundings(evidence)
    recent = {each.target.name: each for each in qualities(evidence, week)[EIGHT_WEEKS]}
    return [
        replace(miss, number=number, reason=next(_reasons(surroundings, miss, recent[miss.target])))
        for number, miss in enumerate(misses, start=1)
    ]


def _largest(week: Week, predicted: DataFrame, target: str) -> list[WorstHour]:
    errors = (predicted[target] - week.hours[target]).abs()
    stamps, rows, least = week.hours["utc_timestamp"], list[int](), MIN_MISS * week.hours[target].abs().max()
    for row in errors.sort_values(ascending=False, kind="stable").index:
        if len(rows) == MAX_MISSES or errors[row] <= least:
            break
        if all(abs(stamps[row] - stamps[other]) > APART for other in rows):
            rows.append(row)
    bands: list[Any] = [week.band and tuple(float(end[target][row]) for end in week.band) for row in rows]
    return [
        WorstHour(0, stamps[row], target, float(week.hours[target][row]), float(predicted[target][row]), band)
        for row, band in zip(rows, bands, strict=True)
    ]


def _surroundings(evidence: ReportData) -> DataFrame:
    """Return all steps, absent ones as NaN: inputs, `TARGETS` by capacity, and `<target>_capacity`.

    Where the installed capacity is not known for all of them, it is 1 throughout.
    """
    frame = evidence.frame
    try:
        capacity = features.installed(frame)
    except DataError as error:
        logger.info("Years are compared as they are: %s", error.what)
        capacity = pd.DataFrame(1.0, frame.index, TARGETS)
    hours = (frame[TARGETS] / capacity).join(frame[FEATURES]).join(capacity.add_suffix("_capacity"))
    hours.index = pd.DatetimeIndex(frame["utc_timestamp"])
    return hours.reindex(steps.grid(*hours.index[[0, -1]]))


def _reasons(hours: DataFrame, miss: WorstHour, recent: Quality) -> Iterator[str]:
    """Yield what may explain a miss, in sentences, the most telling first; at least one.

    ``recent`` is the quality of the target's predictions in the eight weeks up to the end of the week.
    """
    target = miss.quantity
    driver, near, at = target.driver, NEAR * steps.LENGTH, miss.at
    values = hours[list(driver.inputs)].sum(axis="columns", skipna=False)
    alike = (values - values[at]).abs() <= max(driver.alike[0], driver.alike[1] * abs(values[at]))
    what = f"at about this {driver.title}"
    if values[at - near : at + near].isna().any():
        yield f"{steps.NAMES.capitalize()} beside it are missing from the data, so its own values may be incomplete."
    if target.by_day:
        season = abs((hours.index.day_of_year - at.day_of_year + 182) % 365 - 182)
        same_time = (hours.index.hour == at.hour) & (hours.index.minute == at.minute) & (season <= SAME_SEASON_DAYS)
        alike, what = alike & same_time, f"{what} and this time of day and year"
        changes = values.diff()
        middle = changes[same_time].median()
        if abs(changes[at] - middle) > (changes[same_time] - middle).abs().quantile(UNUSUAL):
            yield (
                f"The {driver.title} changed by {signed(changes[at])} {driver.unit} from the {steps.NAME} before; at"
                f" this time of day and year it usually changes by about {signed(middle)} {driver.unit}."
            )
    else:
        spans = values.rolling(2 * NEAR + 1, center=True)
        swings = spans.max() - spans.min()
        if swings[at] > (usual := swings.quantile(UNUSUAL)):
            yield (
                f"The {driver.title} changed by {swings[at]:.1f} {driver.unit} within {2 * near / steps.HOUR:g} hours;"
                f" in 95 of 100 {steps.NAMES} it changes by less than {usual:.1f} {driver.unit}."
            )
    is_level = abs(recent.bias_percent) > recent.max_bias_percent and recent.bias * miss.error > 0
    if is_level and abs(recent.bias_percent) / 100 * miss.measured > abs(miss.error) / 2:  # most of the miss
        direction = "low" if recent.bias < 0 else "high"
        yield (
            f"Predictions of {target.words} were {abs(recent.bias_percent):.0f} % too {direction} in the mean of eight"
            " weeks: their level may have changed."
        )
    yield from _compare(hours, miss, alike, what)
    yield "none found" + ("; the miss lies within the band: such misses are expected" if miss.beyond == 0 else "")


def _compare(hours: DataFrame, miss: WorstHour, alike: Series, what: str) -> Iterator[str]:
    """Yield how the step differs from others of about the same weather, at the capacity of this one."""
    other = abs(hours.index - miss.at).days >= SAME_SPELL_DAYS
    brought = hours[miss.target][alike & other].dropna() * hours[f"{miss.target}_capacity"][miss.at]
    if len(brought) < FEWEST_ALIKE:
        yield f"Only {len(brought)} other {steps.NAMES} in the data are {what}: there was little to learn from."
        return
    low, high = brought.quantile(OUTER), brought.quantile(1 - OUTER)
    usual = f"{low:.1f} to {high:.1f} {miss.quantity.unit} in eight of ten {steps.NAMES}"
    words = miss.quantity.words
    if not low <= miss.measured <= high:
        yield f"The {words} was unusual {what}: {usual}. The model sees nothing that explains it."
    elif not low <= miss.predicted <= high:
        yield f"The {words} was usual {what}, the prediction was not: {usual}."
    else:
        yield f"The {words} differs much {what}: {usual}, measured value and prediction among them."


# -- the page ----------------------------------------------------------------------------------------------------------
def summary(evidence: ReportData, week: Week, decision: Mapping[str, Any] | None = None) -> str:
    """Return the head of the page in Markdown: the week, how well it was predicted, and its gaps.

    With the gate's last ``decision`` (results/decision.json) the latest week's also says what to do if the state is
    bad.
    """
    known = qualities(evidence, week)
    lines = [
        f"# {problem.TITLE} in {problem.REGION}, week {week.name}",
        f"{week.monday:%A, %-d %B %Y}, and the six days after it. {ABOUT_TIMES}",
        *(f"**{when}.** {monitoring.sentence(each)}" for when, each in known.items()),
    ]
    if evidence.origin.modelled:
        lines[1] += f" The data are **modelled**: they say nothing about a real {steps.NAME}."
    if known:
        lines[-1] += f" The state over these weeks: **{monitoring.overall(known[EIGHT_WEEKS])}**."
        is_latest = week.name == split.select_week(evidence.frame, "latest")[0]
        if decision and evidence.production and is_latest and monitoring.overall(known[EIGHT_WEEKS]) == "bad":
            advice = monitoring.next_step(known[EIGHT_WEEKS], decision, evidence.production.version)
            lines.append(f"> **What next:** {advice}")
        lines.append(
            monitoring.training_overlap(week.hours, evidence.trained_until, gate.refit_until(evidence.production))
        )
    else:
        reason = escape(evidence.unable) or "No model is in production, so nothing was predicted."
        lines.append(f"{reason} Why is written in `results/decision.json`.")
    grid = week.grid[week.grid <= evidence.frame["utc_timestamp"].iloc[-1]]
    if absent := gaps(week, grid):
        more = f"; and {len(absent) - 4} more gaps" if len(absent) > 4 else ""
        lines.append(
            f"> **{len(grid) - len(week.hours)} of the week's {len(grid)} {steps.NAMES}"
            f"{' so far' if len(grid) < steps.A_WEEK else ''} are missing from the data**"
            f" ({'; '.join(absent[:4])}{more}). Nothing was filled in: sums and means leave them out, and lines"
            " break there."
        )
    return "\n\n".join(lines)


def totals(evidence: ReportData, week: Week) -> DataFrame:
    """Return a row for each target: its sum or mean, what was predicted, how far it was off, the hours in the band."""
    known = qualities(evidence, week).get(THIS_WEEK, [None] * len(TARGETS))
    rows = {}
    for target, quality in zip(problem.TARGETS, known, strict=True):
        unit, how = target.sum_unit or target.unit, "sum" if target.sum_unit else "mean"
        row = {"Actual": f"{week.amounts(week.hours[target.name], target).agg(how):,.0f} {unit}"}
        if week.predicted is not None and quality:
            row["Predicted"] = f"{week.amounts(week.predicted[target.name], target).agg(how):,.0f} {unit}"
            row["Difference"] = f"{signed(quality.bias_percent)} %"
            row[f"Off by, mean of all {steps.NAMES}"] = f"{quality.mae:.2f} {target.unit}"
            if quality.inside >= 0:  # NaN without a band, or never by day
                by_day = " (by day)" if target.by_day else ""
                row[f"In the band, {100 * quality.promised:.0f} % expected"] = f"{100 * quality.inside:.0f} %{by_day}"
        rows[target.words.capitalize() + ("" if target.sum_unit else ", mean")] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis(columns="Week")


def by_day(week: Week) -> DataFrame:
    """Return a row for each day of a week: the targets as sums or means, also as predicted, and the mean weather."""
    day, columns = steps.local(week.hours["utc_timestamp"]).dt.tz_localize(None).dt.normalize(), list[Series]()
    for target in problem.TARGETS:
        values = {f"{target.title}, {target.sum_unit or target.unit}": week.hours[target.name]}
        if week.predicted is not None:
            values["Predicted"] = week.predicted[target.name]
        for title, value in values.items():
            amounts = week.amounts(value, target).groupby(day).agg("sum" if target.sum_unit else "mean")
            columns.append(amounts.map("{:,.1f}".format).rename(title))
    for each in WEATHER:
        form = partial(signed, digits=1) if each.possible[0] < 0 else "{:,.1f}".format
        columns.append(week.hours[each.name].groupby(day).mean().map(form).rename(each.label))
    hours = day.value_counts() * steps.HOURS
    names = [f"{each:%a %-d %b}" + (f" ({hours[each]:g} h)" if hours[each] < 24 else "") for each in columns[0].index]
    return pd.concat(columns, axis="columns", sort=True).set_axis(names).rename_axis(columns="Day")


def worst_table(misses: list[WorstHour]) -> DataFrame | None:
    """Return a row for each of the worst hours, by its number; None without one."""
    rows = {}
    for miss in misses:
        unit = miss.quantity.unit
        rows[miss.number] = {
            steps.NAME.capitalize(): f"{miss.quantity.title}, {steps.written(miss.at, *NAMED)}",
            "Actual": f"{miss.measured:,.1f} {unit}",
            "Predicted": f"{miss.predicted:,.1f} {unit}",
            "Off by": f"{signed(miss.error, 1)} {unit}",
            "Outside the band": f"{miss.beyond:.1f} {unit}" if miss.beyond else "" if miss.band is None else "inside",
            "What may be the reason": miss.reason,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="No.") if rows else None


def model_in_words(evidence: ReportData) -> str:
    """Return the model in production, the gate's score of it, and its lineage, in Markdown."""
    if evidence.production is None:
        return "None." if evidence.unable else "None: no model is in production."
    name, version, move = evidence.production.name, evidence.production.version, evidence.production.move
    stage = gate.stage_of(evidence.production) or "registered by hand"
    text = f"The predictions are those of **{name} version {version}** ({stage}; `models:/{name}/{version}` in MLflow)"
    if move.when:
        text += f", in production since {datetime.fromisoformat(move.when).astimezone(UTC):%-d %B %Y, %H:%M} UTC"
    text += f". It is given the inputs of {steps.ONE}."
    if move.held_out:
        text += f" The gate judged it by {move.held_out['rows']:,} {steps.NAMES}: {move.label} {move.score}."
    rows = {}
    for link in evidence.lineage:
        facts = "; ".join(f"{name}: {fact}" for name, fact in link.facts.items()) if link.known else "not recorded"
        what = f'<a href="{escape(link.url)}">{escape(link.name)}</a>' if link.url else escape(link.name)
        rows[link.kind] = {"What": what, "Known of it": escape(facts)}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="Link").to_html(escape=False)
    return f"{text}\n\n<details><summary>Where it comes from</summary>\n{table}\n</details>" if rows else text


def origin_in_words(origin: Origin) -> str:
    """Return the attribution of the data, and whether they may be passed on."""
    licence = "Whether the data may be passed on is for their owner to say."
    if origin.source in ("sample", "opsd"):
        licence = "The data carry no licence of their own: have it checked before you pass them on."
    return f"{escape(origin.attribution)}\n\n{licence}"


def qualities(evidence: ReportData, week: Week) -> dict[str, list[Quality]]:
    """Return the quality of each target's predictions in a week, and in the eight weeks up to its end; {} without."""
    if evidence.predicted is None:
        return {}
    stamps, end = evidence.frame["utc_timestamp"], week.monday + pd.DateOffset(weeks=1)
    days = {THIS_WEEK: 7, EIGHT_WEEKS: monitoring.WINDOW_DAYS}
    rows = {name: (stamps >= end - pd.Timedelta(days=length)) & (stamps < end) for name, length in days.items()}
    until = gate.trained_until(evidence.production.evaluated) if evidence.production else None
    others = monitoring.baselines(evidence.frame, until)
    known = evidence.predicted, evidence.band, evidence.coverage, others, monitoring.max_bias_percent()
    return {name: monitoring.qualities(evidence.frame[each], *known) for name, each in rows.items()}


def gaps(week: Week, grid: pd.DatetimeIndex) -> list[str]:
    """Return the gaps of a week in the steps of a ``grid`` in words: the first and the last absent one of each."""
    absent = grid[~grid.isin(week.hours["utc_timestamp"])].to_series()
    parts = absent.groupby(Series(grid.isin(week.hours["utc_timestamp"]).cumsum(), grid)[absent])
    ends = (dict.fromkeys((part.iloc[0], part.iloc[-1])) for _, part in parts)
    return [" to ".join(steps.written(each, *NAMED) for each in both) for both in ends]


def signed(value: float, digits: int = 0) -> str:
    """Return a number with its sign, as print has it."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


# -- the figure --------------------------------------------------------------------------------------------------------
def draw(evidence: ReportData, week: Week, misses: list[WorstHour]) -> Image:
    """Draw the steps of a week, a panel for each target: measured, predicted, band, the numbers of the worst ones.

    Absent ones break the lines.
    """
    from IPython.display import Image
    from matplotlib import style
    from matplotlib.dates import DateFormatter, DayLocator, HourLocator
    from matplotlib.figure import Figure

    grid = week.grid.tz_convert(steps.CALENDAR)
    frames = [week.hours, *([] if week.predicted is None else [week.predicted]), *(week.band or ())]
    measured, *others = (frame[TARGETS].set_axis(week.hours["utc_timestamp"]).reindex(grid) for frame in frames)
    ranges, name, content = list[str](), evidence.origin.measured_name, io.BytesIO()
    with style.context("seaborn-v0_8-whitegrid"):
        figure = Figure(figsize=(8, 2.4 * len(TARGETS)), dpi=180, layout="constrained")
        panels = figure.subplots(len(TARGETS), squeeze=False)[:, 0]
        for axes, target in zip(panels, problem.TARGETS, strict=True):
            axes.plot(measured[target.name], ":", color=MEASURED, label=name)
            if others:
                axes.plot(others[0][target.name], color=target.colour, label="predicted")
            if week.band:
                band = f"band for {100 * (evidence.coverage or 0):.0f} of 100 {steps.NAMES}"
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
