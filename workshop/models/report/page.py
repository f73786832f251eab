"""The page of a week: one file of HTML that needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from workshop.data import weeks
from workshop.data.schema import TARGETS
from workshop.models import explanation
from workshop.models.report import drawings, misses
from workshop.models.report.evidence import Evidence, Week
from workshop.models.report.usual import Shares, usual, weekly

if TYPE_CHECKING:
    import jinja2
    from pandas import DataFrame

WEEKS_BEFORE, WEEKS_AHEAD = 6, 4  # of the outlook
MOVES = 5  # of the alias, the latest ones
DAY = "%a %-d %b"


@dataclass(frozen=True)
class Page:
    """The name of a week, and its page as HTML."""

    week: str
    html: str


def render(evidence: Evidence, week: str, template: str) -> Page:
    """Return the page on a week (an ISO name, or `latest`), of a Jinja template; the same evidence gives the same page.

    Raises ParameterError when there is no such week, or no hour in it.
    """
    told = evidence.of_week(week)
    shares = Shares.of(evidence.frame)
    worst = misses.worst(evidence, told, shares)
    ahead = outlook(evidence, told, shares)
    html = _compiled(template).render(
        week=told,
        evidence=evidence,
        origin=evidence.origin,
        production=evidence.production,
        energy=told.hours[TARGETS].sum(),
        missing=missing(told.hours, told),
        quality=quality(evidence, told),
        misses=worst,
        days=by_day(told),
        now=ahead.set_index("week").loc[told.name],
        ahead=ahead[ahead["monday"] > told.monday].to_dict("records"),
        scaled=shares.scaled,
        week_drawings=_drawn(drawings.week, told, worst, evidence.origin.measured_name),
        outlook_drawings=_drawn(drawings.outlook, ahead) if ahead["wind_GW_most"].notna().any() else {},
        moves=evidence.history[: -MOVES - 1 : -1],
        hours_a_week=weeks.HOURS,
    )
    return Page(told.name, html)


def quality(evidence: Evidence, told: Week) -> dict[str, Any] | None:
    """Return how well a week was predicted; None without a prediction.

    `miss`: the mean absolute miss of an hour in GW, by target; `share`: that by the mean generation; `energy`: what
    was predicted in GWh; `inside`: the share of hours within the band (see `explanation.coverage`), if there is one;
    `learned`: whether the model learned from the week (`all`, `some`, `none`), None when not known; `weeks` like it in
    that, and how many were predicted `better`.
    """
    if told.predicted is None:
        return None
    miss = (told.predicted[TARGETS] - told.hours[TARGETS]).abs().mean()
    others, learned = evidence.misses_by_week().drop(told.monday, errors="ignore"), None
    if (until := evidence.learned_until) is not None:
        known = told.hours["utc_timestamp"] <= until
        learned = "all" if known.all() else "some" if known.any() else "none"
        others = others[others.index > until if learned == "none" else others.index <= until]
    return {
        "miss": miss,
        "share": miss / told.hours[TARGETS].mean(),
        "energy": told.predicted[TARGETS].sum(),
        "inside": explanation.coverage(told.hours, *told.band) if told.band else None,
        "learned": learned,
        "weeks": len(others),
        "better": int((others < miss.mean()).sum()),
    }


def missing(hours: DataFrame, told: Week) -> list[dict[str, Any]]:
    """Return the gaps of a week: `first` and `last` absent hour (their starts), and how many `hours`."""
    import pandas as pd

    grid = pd.date_range(told.monday, periods=weeks.HOURS, freq="h")
    absent = grid[~grid.isin(hours["utc_timestamp"])].to_series()
    gaps = absent.groupby((absent.diff() != pd.Timedelta(hours=1)).cumsum())
    return [{"first": gap.iloc[0], "last": gap.iloc[-1], "hours": len(gap)} for _, gap in gaps]


def by_day(told: Week) -> DataFrame:
    """Return a row for each day of a week: its `hours`, the energy in GWh and its mean weather."""
    hours = told.hours.assign(day=told.hours["utc_timestamp"].dt.normalize())
    added = {target: (target, "sum") for target in TARGETS} | {"hours": ("day", "size")}
    if told.predicted is not None:
        hours = hours.join(told.predicted[TARGETS].add_suffix("_predicted"))
        added |= {f"{target}_predicted": (f"{target}_predicted", "sum") for target in TARGETS}
    means = {name: (name, "mean") for name in ("windspeed", "temperature")}
    return hours.groupby("day", as_index=False).agg(**added, **means)


def outlook(evidence: Evidence, told: Week, shares: Shares) -> DataFrame:
    """Return what is usual of the weeks around one, and what was generated up to it; see `drawings.outlook`.

    `monday` is when a week begins, `weeks` how many tell what is usual, at the capacity of the week itself.
    """
    import numpy as np
    import pandas as pd

    table = weekly(evidence.frame, shares)
    capacity = shares.capacity[evidence.frame["utc_timestamp"].isin(told.hours["utc_timestamp"])].mean().to_dict()
    measured = _whole_weeks(evidence.frame)
    rows = []
    for number in range(-WEEKS_BEFORE, WEEKS_AHEAD + 1):
        monday = told.monday + pd.Timedelta(weeks=number)
        like = usual(table, monday, capacity)
        row: dict[str, Any] = {"week": weeks.name_of(monday), "monday": monday}
        row["weeks"] = 0 if like is None else int(like["weeks"].iloc[0])
        for target in TARGETS:
            for name in ("least", "middle", "most"):
                row[f"{target}_{name}"] = np.nan if like is None else like.loc[target, name]
            known = number <= 0 and monday in measured.index
            row[f"{target}_measured"] = measured.loc[monday, target] if known else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _whole_weeks(frame: DataFrame) -> DataFrame:
    """Return the energy in GWh of the weeks that have most of their hours, as if none were missing."""
    by_week = frame[TARGETS].groupby(weeks.mondays(frame["utc_timestamp"]))
    return by_week.mean()[by_week.size() >= weeks.WHOLE_ENOUGH * weeks.HOURS] * weeks.HOURS


def _drawn(draw, *arguments: Any) -> dict[str, str]:
    """Return a drawing for a wide page and one for a phone, which the page shows in turn."""
    return {"wide": draw(*arguments, **drawings.WIDE), "narrow": draw(*arguments, **drawings.NARROW)}


@lru_cache(maxsize=2)
def _compiled(template: str) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": _number, "day": lambda moment: moment.strftime(DAY), "signed": misses.signed}
    environment.filters["hour"] = lambda moment: moment.strftime(f"{DAY}, %H:%M")
    return environment.from_string(template)


def _number(value: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}"
