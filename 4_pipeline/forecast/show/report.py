"""The report on a week: what was generated, how well it was predicted, and possible reasons for the worst hours."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd
from mlflow_gate import Link, Production
from pandas import DataFrame, Series, Timestamp

from forecast import problem
from forecast.errors import DataError
from forecast.learn import gate
from forecast.learn.storage import load, predict_as_new
from forecast.quantities import Target
from forecast.show import monitoring
from forecast.show.figures import COLOURS, GRID, INK, MEASURED
from forecast.show.monitoring import Quality
from forecast.table import features, split
from forecast.table.origin import Origin, origin_of
from forecast.table.schema import FEATURES, QUANTITIES, TARGETS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the worst hours of a target: how many, how far apart, and the smallest miss that counts, by the week's highest.
MAX_HOURS, APART_HOURS, MIN_MISS = 3, 6, 0.002
# What is unusual: more than 95 of 100 hours, or outside the range of eight in ten similar hours.
UNUSUAL, OUTER, FEWEST_ALIKE = 0.95, 0.1, 20
NEAR_HOURS, SAME_SEASON_DAYS, SAME_SPELL_DAYS = 3, 20, 3
THIS_WEEK, EIGHT_WEEKS = "This week", "The last eight weeks"
WEATHER = problem.INPUTS[:2]  # of which the table of days shows the means
AMOUNTS = {target.name: "sum" if target.sum_unit else "mean" for target in problem.TARGETS}  # of the hours of a week

logger = logging.getLogger(__name__)


# -- what a report rests on --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ReportData:
    """The whole processed frame, the predictions of the model in production for each hour, and the model's record.

    ``predicted`` and both ends of ``band`` hold the targets of the rows of ``frame``; None without a model
    or a band. ``learned_until`` is the start of the last hour that the model learned from; None when that is not known.
    ``unable`` says why the model in production cannot predict these hours, when it cannot.
    """

    frame: DataFrame
    predicted: DataFrame | None = None
    band: tuple[DataFrame, DataFrame] | None = None
    coverage: float | None = None
    production: Production | None = None
    learned_until: Timestamp | None = None
    lineage: tuple[Link, ...] = ()
    unable: str = ""

    @property
    def origin(self) -> Origin:
        """Where the data come from."""
        return origin_of(self.frame)

    def of_week(self, week: str) -> Week:
        """Return the part on one week, by its ISO name or `latest`; errors as `split.select_week`."""
        name, hours = split.select_week(self.frame, week)
        rows = self.frame["utc_timestamp"].isin(hours["utc_timestamp"]).to_numpy()
        predicted = None if self.predicted is None else self.predicted[rows].reset_index(drop=True)
        band = None if self.band is None else tuple(end[rows].reset_index(drop=True) for end in self.band)
        return Week(name, hours, predicted, band)


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
        predictions = predict_as_new(model, judged, gate.learned_until(production), frame)
    except DataError as error:  # a model of other years, which the gate has kept
        unable = f"Version {production.version} is in production and cannot predict these hours: {error.what}"
        return ReportData(frame, unable=unable)
    try:
        links = tuple(gate.Registry().lineage(production.version))
    except Exception as error:  # noqa: BLE001 - a report without the model's lineage is still a report
        logger.warning("The lineage of version %s cannot be read: %r", production.version, error)
        links = ()
    until = pd.Timestamp(last) if (last := gate.learned_until(production.evidence)) else None
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
        if len(rows) == MAX_HOURS or errors[row] <= least:
            break
        if all(abs(stamps[row] - stamps[other]).total_seconds() > APART_HOURS * 3600 for other in rows):
            rows.append(row)
    bands: list[Any] = [week.band and tuple(float(end[target][row]) for end in week.band) for row in rows]
    return [
        WorstHour(0, stamps[row], target, float(week.hours[target][row]), float(predicted[target][row]), band)
        for row, band in zip(rows, bands, strict=True)
    ]


def _surroundings(evidence: ReportData) -> DataFrame:
    """Return all hours, absent ones as NaN: weather, `TARGETS` by capacity, and `<target>_capacity`.

    Where the installed capacity is not known for all hours, it is 1 throughout.
    """
    frame = evidence.frame
    try:
        capacity = features.installed(frame)
    except DataError as error:
        logger.info("Years are compared as they are: %s", error.what)
        capacity = pd.DataFrame(1.0, frame.index, TARGETS)
    hours = (frame[TARGETS] / capacity).join(frame[FEATURES]).join(capacity.add_suffix("_capacity"))
    hours.index = pd.DatetimeIndex(frame["utc_timestamp"])
    return hours.asfreq("h")


def _reasons(hours: DataFrame, miss: WorstHour, recent: Quality) -> Iterator[str]:
    """Yield what may explain a miss, in sentences, the most telling first; at least one.

    ``recent`` is the quality of the target's predictions in the eight weeks up to the end of the week.
    """
    target = miss.quantity
    driver, near, at = target.driver, pd.Timedelta(hours=NEAR_HOURS), miss.at
    values = hours[list(driver.inputs)].sum(axis="columns", skipna=False)
    alike = (values - values[at]).abs() <= max(driver.alike[0], driver.alike[1] * abs(values[at]))
    what = f"at about this {driver.title}"
    if values[at - near : at + near].isna().any():
        yield "Hours beside it are missing from the data, so its own values may be incomplete."
    if target.by_day:
        season = abs((hours.index.day_of_year - at.day_of_year + 182) % 365 - 182)
        same_time = (hours.index.hour == at.hour) & (season <= SAME_SEASON_DAYS)
        alike, what = alike & same_time, f"{what} and this time of day and year"
        changes = values.diff()
        middle = changes[same_time].median()
        if abs(changes[at] - middle) > (changes[same_time] - middle).abs().quantile(UNUSUAL):
            yield (
                f"The {driver.title} changed by {signed(changes[at])} {driver.unit} from the hour before; at this time"
                f" of day and year it usually changes by about {signed(middle)} {driver.unit}."
            )
    else:
        spans = values.rolling(2 * NEAR_HOURS + 1, center=True)
        swings = spans.max() - spans.min()
        usual = swings.quantile(UNUSUAL)
        if swings[at] > usual:
            yield (
                f"The {driver.title} changed by {swings[at]:.1f} {driver.unit} within {2 * NEAR_HOURS} hours; in 95 of"
                f" 100 hours it changes by less than {usual:.1f} {driver.unit}."
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
    """Yield how the hour differs from hours of about the same weather, at the capacity of this hour."""
    other = abs(hours.index - miss.at).days >= SAME_SPELL_DAYS
    brought = hours[miss.target][alike & other].dropna() * hours[f"{miss.target}_capacity"][miss.at]
    if len(brought) < FEWEST_ALIKE:
        yield f"Only {len(brought)} other hours in the data are {what}: there was little to learn from."
        return
    low, high = brought.quantile(OUTER), brought.quantile(1 - OUTER)
    usual = f"{low:.1f} to {high:.1f} {miss.quantity.unit} in eight of ten hours"
    words = miss.quantity.words
    if not low <= miss.measured <= high:
        yield f"The {words} was unusual {what}: {usual}. The model sees no weather that explains it."
    elif not low <= miss.predicted <= high:
        yield f"The {words} was usual {what}, the prediction was not: {usual}."
    else:
        yield f"The {words} differs much {what}: {usual}, measured value and prediction among them."


# -- the page ----------------------------------------------------------------------------------------------------------
def render(evidence: ReportData, part: Week, misses: list[WorstHour], figure: str) -> str:
    """Return the page on a week as HTML that needs no other file.

    ``misses`` are those of `worst`, and ``figure`` is that of `draw`.
    """
    known = qualities(evidence, part)
    return _template().render(
        week=part,
        evidence=evidence,
        origin=evidence.origin,
        production=evidence.production,
        title=problem.TITLE,
        region=problem.REGION,
        targets=problem.TARGETS,
        weather=WEATHER,
        amounts=part.hours.agg(AMOUNTS),
        predicted=None if part.predicted is None else part.predicted.agg(AMOUNTS),
        gaps=gaps(part),
        qualities=known.get(THIS_WEEK, []),
        inside=[each for each in known.get(THIS_WEEK, []) if each.inside >= 0],  # NaN without a band, or never by day
        overlap=monitoring.training_overlap(part.hours, evidence.learned_until),
        sentences=[(name, monitoring.sentence(each), monitoring.overall(each)) for name, each in known.items()],
        misses=misses,
        days=by_day(part),
        figure=figure,
        hours_a_week=split.WEEK_HOURS,
    )


def qualities(evidence: ReportData, week: Week) -> dict[str, list[Quality]]:
    """Return the quality of each target's predictions in a week, and in the eight weeks up to its end; {} without."""
    if evidence.predicted is None:
        return {}
    stamps, end = evidence.frame["utc_timestamp"], week.monday + pd.Timedelta(weeks=1)
    days = {THIS_WEEK: 7, EIGHT_WEEKS: monitoring.WINDOW_DAYS}
    rows = {name: (stamps >= end - pd.Timedelta(days=length)) & (stamps < end) for name, length in days.items()}
    until = gate.learned_until(evidence.production.evidence) if evidence.production else None
    others = monitoring.baselines(evidence.frame, until)
    known = evidence.predicted, evidence.band, evidence.coverage, others, monitoring.max_bias_percent()
    return {name: monitoring.qualities(evidence.frame[each], *known) for name, each in rows.items()}


def gaps(week: Week) -> list[dict[str, Any]]:
    """Return the gaps of a week: the `first` and the `last` absent hour, and how many `hours`."""
    grid = pd.date_range(week.monday, periods=split.WEEK_HOURS, freq="h")
    absent = grid[~grid.isin(week.hours["utc_timestamp"])].to_series()
    parts = absent.groupby((absent.diff() != pd.Timedelta(hours=1)).cumsum())
    return [{"first": part.iloc[0], "last": part.iloc[-1], "hours": len(part)} for _, part in parts]


def by_day(week: Week) -> DataFrame:
    """Return a row for each day of a week: `_day`, its `_hours`, the targets by `AMOUNTS` and its mean weather."""
    hours, day = week.hours, week.hours["utc_timestamp"].dt.normalize().rename(None)
    added: dict[str, Any] = {"_hours": (TARGETS[0], "size")} | {name: (name, AMOUNTS[name]) for name in TARGETS}
    if week.predicted is not None:
        hours = hours.join(week.predicted[TARGETS].add_suffix("_predicted"))
        added |= {f"{name}_predicted": (f"{name}_predicted", AMOUNTS[name]) for name in TARGETS}
    means = {each.name: (each.name, "mean") for each in WEATHER}
    return hours.groupby(day).agg(**added, **means).reset_index(names="_day")


def signed(value: float, digits: int = 0) -> str:
    """Return a number with its sign, as print has it."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    filters: dict[str, Any] = {
        "number": lambda value, digits=0: f"{value:,.{digits}f}",
        "signed": signed,
        "moment": lambda text: f"{datetime.fromisoformat(text).astimezone(UTC):%-d %B %Y, %H:%M} UTC",
        "day": lambda moment: moment.strftime("%a %-d %b"),
        "hour": lambda moment: moment.strftime("%a %-d %b, %H:%M"),
    }
    environment.filters |= filters
    return environment.from_string(files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8"))


# -- the figure --------------------------------------------------------------------------------------------------------
def draw(week: Week, misses: list[WorstHour], measured_name: str) -> str:
    """Return the hours of a week as the address of an SVG picture: measured, predicted, band, worst misses.

    Each target has a panel; absent hours break the lines.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": week.name, "font.size": 8, "axes.edgecolor": GRID}
    style |= {"axes.grid": True, "grid.color": GRID, "axes.spines.top": False, "axes.spines.right": False}
    style |= dict.fromkeys(("text.color", "xtick.labelcolor", "ytick.labelcolor"), INK)
    style |= dict.fromkeys(("xtick.color", "ytick.color"), GRID) | {"xtick.minor.size": 0}
    measured = _on_grid(week, week.hours)
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.2, 0.3 + 2.0 * len(TARGETS)), layout="constrained")
        panels = figure.subplots(len(TARGETS), 1, sharex=True, squeeze=False)[:, 0]
        for axes, target in zip(panels, TARGETS, strict=True):
            if week.band is not None:
                ends = [_on_grid(week, end)[target] for end in week.band]
                axes.fill_between(measured.index, *ends, color=COLOURS[target], alpha=0.25, linewidth=0, label="band")
            axes.plot(measured[target], ":", color=MEASURED, linewidth=1.6, label=measured_name)
            if week.predicted is not None:
                line = _on_grid(week, week.predicted)[target]
                axes.plot(line, color=COLOURS[target], linewidth=1.6, label="predicted")
            for miss in (miss for miss in misses if miss.target == target):
                _mark(axes, (miss.at - week.monday).total_seconds() / 3600, miss)
            axes.set_title(QUANTITIES[target].label, loc="left", fontweight="bold")
            axes.margins(y=0.2)
            axes.set_ylim(bottom=0 if QUANTITIES[target].possible[0] >= 0 else None)
            axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.01, 0.98), frameon=False, borderaxespad=0.2)
        _name_days(axes, week)
        content = io.BytesIO()
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def _mark(axes: Axes, hour: float, miss: WorstHour) -> None:
    axes.plot([hour, hour], [miss.measured, miss.predicted], color=INK, linewidth=0.9)
    circle = {"boxstyle": "circle,pad=0.22", "edgecolor": INK, "facecolor": "white", "linewidth": 0.9}
    place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center", "bbox": circle}
    axes.annotate(str(miss.number), (hour, max(miss.measured, miss.predicted)), (0, 8), **place)


def _name_days(axes: Axes, week: Week) -> None:
    """Draw a line at each midnight, and the name of the day between two."""
    axes.set_xlim(0, split.WEEK_HOURS)
    axes.set_xticks(range(0, split.WEEK_HOURS + 1, 24), [""] * 8)
    days = pd.date_range(week.monday, periods=7)
    axes.set_xticks(range(12, split.WEEK_HOURS, 24), [day.strftime("%a %-d %b") for day in days], minor=True)


def _on_grid(week: Week, values: DataFrame) -> DataFrame:
    """Return the targets by hours since Monday, absent hours as NaN."""
    since = (week.hours["utc_timestamp"] - week.monday).dt.total_seconds() // 3600
    return values[TARGETS].set_axis(since.astype(int)).reindex(range(split.WEEK_HOURS))
