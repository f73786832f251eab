"""The hours that were predicted worst, and what was unusual about them: a possible reason, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workshop.data import features
from workshop.data.figures import NAMES
from workshop.data.schema import FEATURES, TARGETS
from workshop.models.report.evidence import Evidence, Week
from workshop.models.report.usual import Shares

if TYPE_CHECKING:
    from pandas import DataFrame, Series, Timedelta, Timestamp

MOST = 3  # of each source
APART_HOURS = 6  # what is nearer to a worse hour is the same event
LEAST_GW = 0.05  # a smaller miss needs no reason
MOST_REASONS = 3
NEAR_HOURS = 3
UNUSUAL = 0.95  # of the hours see less
RARE = 0.02
OUTER = 0.1  # of the hours alike lie below, and as many above, what is called usual
FEWEST_ALIKE = 20
ALIKE_WIND = 0.25  # m/s to either side
ALIKE_LIGHT, ALIKE_LIGHT_SHARE = 20.0, 0.15  # W/m² to either side, or this share of it
LASTING_HOURS = {"solar_GW": 4, "wind_GW": 8}
SEASON_DAYS = 20
LOW_SUN_DEGREES = 10.0
TWILIGHT_DEGREES = -6.0


@dataclass(frozen=True)
class Miss:
    """An hour and a source (``target``) that was predicted badly; all values in GW, ``band`` None without one.

    ``number`` is its place among the worst; ``reasons`` are sentences.
    """

    number: int
    at: Timestamp
    target: str
    measured: float
    predicted: float
    band: tuple[float, float] | None = None
    reasons: list[str] = field(default_factory=list)

    @property
    def error(self) -> float:
        """Predicted less measured, in GW."""
        return self.predicted - self.measured

    @property
    def source(self) -> str:
        """`Solar` or `Wind`."""
        return NAMES[self.target]

    @property
    def beyond(self) -> float | None:
        """By how much the measured value lies outside the band, in GW: 0 within; None without a band."""
        return None if self.band is None else max(self.band[0] - self.measured, self.measured - self.band[1], 0.0)


def worst(evidence: Evidence, week: Week, shares: Shares) -> list[Miss]:
    """Return the worst misses of a week, at most three a source, the worst one first; none without a prediction.

    Hours that stand close to a worse one of the same source are left out. ``shares`` are those of the whole frame.
    """
    if week.predicted is None:
        return []
    found = [(target, row) for target in TARGETS for row in _rows(week, target)]
    found.sort(key=lambda place: -abs(week.predicted[place[0]][place[1]] - week.hours[place[0]][place[1]]))
    surroundings = _Surroundings(evidence, week, shares)
    return [_miss(number, week, surroundings, *place) for number, place in enumerate(found, start=1)]


def _rows(week: Week, target: str) -> list[int]:
    errors = (week.predicted[target] - week.hours[target]).abs()
    stamps, chosen = week.hours["utc_timestamp"], []
    for row in errors.sort_values(ascending=False, kind="stable").index:
        if len(chosen) == MOST or errors[row] < LEAST_GW:
            break
        if all(abs(stamps[row] - stamps[other]).total_seconds() > APART_HOURS * 3600 for other in chosen):
            chosen.append(row)
    return chosen


def _miss(number: int, week: Week, surroundings: _Surroundings, target: str, row: int) -> Miss:
    miss = Miss(
        number,
        week.hours["utc_timestamp"][row],
        target,
        float(week.hours[target][row]),
        float(week.predicted[target][row]),
        None if week.band is None else tuple(float(end[target][row]) for end in week.band),
    )
    miss.reasons.extend(list(surroundings.reasons(miss))[:MOST_REASONS])
    return miss


class _Surroundings:
    """The hours around a miss, and those of the whole data that are like it."""

    def __init__(self, evidence: Evidence, week: Week, shares: Shares) -> None:
        import pandas as pd

        stamps = pd.DatetimeIndex(evidence.frame["utc_timestamp"])
        grid = pd.date_range(stamps[0], stamps[-1], freq="h")
        self.hours = evidence.frame.set_index(stamps)[FEATURES].reindex(grid)  # an absent hour holds no number
        self.hours["light"] = self.hours["rad_horizontal"] + self.hours["rad_diffuse"]
        self.shares = shares.generation.set_index(stamps).reindex(grid)
        self.capacity = shares.capacity.set_index(stamps).reindex(grid)
        self.scaled = shares.scaled
        self.errors = (week.predicted - week.hours[TARGETS]).set_index(pd.DatetimeIndex(week.hours["utc_timestamp"]))
        self.modelled = evidence.origin.modelled

    def reasons(self, miss: Miss) -> Iterator[str]:
        """Yield what was unusual about an hour, in sentences, the most telling first; something always."""
        told = False
        looks = (self._swing, self._rare) if miss.target == "wind_GW" else (self._clouds, self._low_sun)
        for look in (*looks, self._alike, self._lasting, self._gap, self._guess):
            if text := look(miss):
                told = True
                yield text
        if not told and miss.beyond == 0:
            yield "Nothing about its weather was unusual, and the miss lies within the band: such misses are expected."
        elif not told:
            yield "Nothing about its weather was unusual: the reason is not among the four weather values."

    def _near(self, at: Timestamp, hours: int = NEAR_HOURS) -> DataFrame:
        return self.hours.loc[at - _hours(hours) : at + _hours(hours)]

    def _swing(self, miss: Miss) -> str | None:
        speed = self.hours["windspeed"].rolling(2 * NEAR_HOURS + 1, center=True)
        swings = speed.max() - speed.min()
        usual = swings.quantile(UNUSUAL)
        if not swings[miss.at] > usual:
            return None
        near = self._near(miss.at)["windspeed"]
        return (
            f"The wind changed fast, between {near.min():.1f} and {near.max():.1f} m/s within {2 * NEAR_HOURS} hours;"
            f" in {UNUSUAL * 100:.0f} of 100 hours it changes by less than {usual:.1f} m/s."
        )

    def _rare(self, miss: Miss) -> str | None:
        speed = self.hours["windspeed"]
        share = (speed.dropna() >= speed[miss.at]).mean()
        if share >= RARE:
            return None
        return (
            f"So strong a wind ({speed[miss.at]:.1f} m/s) is rare, {share * 100:.1g} of 100 hours have as much: the"
            " model has seen few of them."
        )

    def _clouds(self, miss: Miss) -> str | None:
        changes = self.hours["light"].diff()
        usual = changes[self._same_time(miss.at)].dropna()
        unusual = (usual - usual.median()).abs().quantile(UNUSUAL)
        if not abs(changes[miss.at] - usual.median()) > unusual:
            return None
        low, high = usual.median() - unusual, usual.median() + unusual
        return (
            f"The light changed fast, by {signed(changes[miss.at])} W/m² from the hour before; at this time of day and"
            f" year {UNUSUAL * 100:.0f} of 100 hours change by {signed(low)} to {signed(high)} W/m²."
        )

    def _low_sun(self, miss: Miss) -> str | None:
        import pandas as pd

        elevation = float(features.sun_position(pd.DatetimeIndex([miss.at]), minutes=30)["elevation"].iloc[0])
        if not TWILIGHT_DEGREES < elevation < LOW_SUN_DEGREES:
            return None
        where = f"{elevation:.0f}° above" if elevation >= 0.5 else "at or just below"
        return (
            f"The sun stood {where} the horizon: around sunrise and sunset output changes within the hour, and not"
            " everywhere in the country at once."
        )

    def _alike(self, miss: Miss) -> str | None:
        """Compare with what hours of about the same weather brought, at the capacity of this hour."""
        near = abs(self.hours.index - miss.at) <= _hours(3 * 24)
        brought = (
            self.shares[miss.target][self._same_weather(miss) & ~near].dropna() * self.capacity[miss.target][miss.at]
        )
        what = "so much wind" if miss.target == "wind_GW" else "so much light at this time of day and year"
        if len(brought) < FEWEST_ALIKE:
            return f"Only {len(brought)} other hours in the data had about {what}: there was little to learn from."
        low, high = brought.quantile(OUTER), brought.quantile(1 - OUTER)
        usual = f"{low:.1f} to {high:.1f} GW in eight of ten other hours" + " (at this week's capacity)" * self.scaled
        if not low <= miss.measured <= high:
            return f"{'More' if miss.measured > high else 'Less'} was generated than is usual with {what}: {usual}."
        if not low <= miss.predicted <= high:
            return f"What was generated is usual with {what}, the prediction was not: {usual}."
        return None

    def _same_time(self, at: Timestamp) -> Series:
        from_season = abs((self.hours.index.day_of_year - at.day_of_year + 182) % 365 - 182)
        return (self.hours.index.hour == at.hour) & (from_season <= SEASON_DAYS)

    def _same_weather(self, miss: Miss) -> Series:
        if miss.target == "wind_GW":
            speed = self.hours["windspeed"]
            return ((speed - speed[miss.at]).abs() <= ALIKE_WIND).to_numpy()
        light = self.hours["light"]
        about = max(ALIKE_LIGHT, ALIKE_LIGHT_SHARE * light[miss.at])
        return self._same_time(miss.at) & ((light - light[miss.at]).abs() <= about).to_numpy()

    def _lasting(self, miss: Miss) -> str | None:
        """Count the hours in a row that were missed in the same direction, by at least half as much."""
        alike = self.errors[miss.target] * (1 if miss.error > 0 else -1) >= abs(miss.error) / 2
        first = last = miss.at
        while alike.get(first - _hours(1), False):
            first -= _hours(1)
        while alike.get(last + _hours(1), False):
            last += _hours(1)
        count = int((last - first) / _hours(1)) + 1
        if count < LASTING_HOURS[miss.target]:
            return None
        return f"It is one of {count} hours in a row that were predicted too {_direction(miss)}: the cause lasted."

    def _gap(self, miss: Miss) -> str | None:
        if not self._near(miss.at)["windspeed"].isna().any():
            return None
        return "Hours beside it are missing from the data, so these readings, too, may be incomplete."

    def _guess(self, miss: Miss) -> str | None:
        """Name what the data cannot show, where it may have happened; modelled generation knows nothing of it."""
        if self.modelled or miss.error < 0:
            return None
        if miss.target == "solar_GW" and self.hours["temperature"][miss.at] < 0:
            return "It was below freezing: snow on the panels, or fog, may be the reason. The data do not say."
        if miss.target == "wind_GW" and self.hours["windspeed"][miss.at] > self.hours["windspeed"].quantile(UNUSUAL):
            return "In so strong a wind turbines may have been throttled or switched off. The data do not say."
        return None


def _direction(miss: Miss) -> str:
    return "high" if miss.error > 0 else "low"


def signed(value: float, digits: int = 0) -> str:
    """Return a number with its sign, as print has it."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _hours(count: int) -> Timedelta:
    import pandas as pd

    return pd.Timedelta(hours=count)
