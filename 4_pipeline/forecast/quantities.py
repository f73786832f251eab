"""The terms of a `problem`: targets, inputs, the weather that drives the targets, and units.

Values are means, or counts, of the step (`problem.STEP`) that begins at the time stamp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Units of a quantity, ours first. A value in our unit is value * first / second + third, written so that whole numbers
# stay exact. Energies (Wh, J) are those of an hour: `schema.convert` takes the step's length into account.
Units = dict[str, tuple[float, float, float]]
POWER: Units = {"GW": (1, 1, 0), "MW": (1, 1000, 0), "kW": (1, 10**6, 0), "W": (1, 10**9, 0)}
POWER |= {f"{unit}h": factors for unit, factors in POWER.items()}
SPEED: Units = {"m/s": (1, 1, 0), "kn": (1852, 3600, 0), "mph": (0.44704, 1, 0), "km/h": (1, 3.6, 0)}
TEMPERATURE: Units = {"C": (1, 1, 0), "K": (1, 1, -273.15), "F": (5, 9, -160 / 9)}
RADIATION: Units = {
    "W/m2": (1, 1, 0), "Wh/m2": (1, 1, 0), "kJ/m2": (1, 3.6, 0), "kW/m2": (1000, 1, 0), "kWh/m2": (1000, 1, 0),
    "MJ/m2": (10**6, 3600, 0), "J/m2": (1, 3600, 0),
}  # fmt: skip

NUMBER: Units = {"number": (1, 1, 0)}  # of categories and flags

# By target, in its unit, and by year: as text, which JSON and models keep as it is.
YearEnds = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Slider:
    """A slider of the dashboard, in the range of a country's mean: its ends, its step and its first value."""

    low: float
    high: float
    step: float
    first: float


@dataclass(frozen=True)
class Quantity:
    """A column of the processed table.

    ``possible`` is what a country's mean or sum can be: anything else is an error. A mean beyond ``usual`` is possible,
    but often another unit; zero for more than ``zero_hours`` (and seven steps) in a row is unusual, too. A category or
    a flag, such as the day of the week, has None for both. ``units`` are those that an own file may use, ``unit`` is
    ours as people write it. ``opsd`` is its column in the files of Open Power System Data.
    """

    name: str
    title: str
    unit: str
    units: Units
    possible: tuple[float, float]
    usual: tuple[float, float] | None
    opsd: str = ""
    zero_hours: int | None = 24

    @property
    def label(self) -> str:
        """Its title and its unit, if it has one: `Solar, GW`."""
        return ", ".join(filter(None, (self.title, self.unit)))


@dataclass(frozen=True)
class Driver:
    """The weather that a target follows most: the sum of ``inputs``, in their ``unit``.

    Two of its values are alike within ``alike``, in the unit or as a share of the value. What the checks of the data
    expect of it, None for a check that makes no sense: its value in hours of half the target's highest power
    (``at_half``), its ``lag_hours``, and the share of its second input in the brightest hours (``top_share``), which
    in darker ones is more than half.
    """

    title: str
    inputs: tuple[str, ...]
    unit: str
    alike: tuple[float, float]
    at_half: tuple[float, float] | None = None
    lag_hours: tuple[float, float] | None = None
    top_share: tuple[float, float] | None = None


@dataclass(frozen=True)
class Target(Quantity):
    """A quantity to predict: its name in a sentence (``words``), its colour in figures, and the weather that drives it.

    Its unit is any, and no prediction is below what is possible. ``plants`` is what its installed capacity counts, if
    it is divided by that. With ``by_day`` it is zero while the sun is down: the gate has a rule for that, and
    the band counts the hours of daylight alone.
    """

    words: str = field(kw_only=True)
    colour: str = field(kw_only=True)
    driver: Driver = field(kw_only=True)
    plants: str = ""
    by_day: bool = False

    @property
    def key(self) -> str:
        """Its name without the unit, as in the names of scores and parameters: `solar` of `solar_GW`."""
        return self.name.removesuffix(f"_{self.unit}") or self.name

    @property
    def rate(self) -> str:
        """Of what time it is a rate: `h` for power and bikes/h, `d` for bikes/d, `15min`; empty if of none."""
        return "h" if self.units is POWER else "".join(re.findall(r"/(h|d|\d+min)$", self.unit))

    @property
    def sum_unit(self) -> str:
        """The unit of its sum over time: GWh of GW, bikes of bikes/h; empty if that means nothing."""
        return f"{self.unit}h" if self.units is POWER else self.unit.removesuffix(f"/{self.rate}") if self.rate else ""

    def metric(self, measure: str) -> str:
        """Return the name of one of its scores: `bias_solar_percent` of `bias_percent`."""
        first, *rest = measure.split("_")
        return "_".join([first, self.key, *rest])


@dataclass(frozen=True)
class Input(Quantity):
    """A quantity to predict from: its meaning in words, and its slider."""

    meaning: str = field(kw_only=True)
    slider: Slider = field(kw_only=True)
