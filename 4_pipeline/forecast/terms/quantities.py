"""The terms of a `problem`: targets, inputs, the weather that drives the targets, and units.

Values are means, or counts, of the step (`problem.STEP`) that begins at the time stamp.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

from forecast.terms.errors import ParameterError

SPELLINGS = {"C": "degC", "F": "degF", "number": ""}  # to pint C and F are coulomb and farad

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
    a flag, such as the day of the week, has None for both. pint reads ``unit``; ``new_unit`` is a part that it does not
    know, such as a count or a currency. ``opsd`` is its column in the files of Open Power System Data.
    """

    name: str
    title: str
    unit: str
    possible: tuple[float, float]
    usual: tuple[float, float] | None
    opsd: str = ""
    zero_hours: int | None = 24
    new_unit: str = ""

    def conversion(self, unit: str, *, of_days: bool) -> tuple[Fraction, Fraction, int]:
        """Return the factor, the offset and the exponent of (value * factor + offset) * hours**exponent.

        That is a value of ``unit`` in its unit; the hours are the length of the step. The exponent is 0 for a unit of
        the same dimension, and -1 for the amount of a step, such as kWh for GW. If the steps are days, a unit per day
        is the amount of that day, whatever its length: then the exponent of a rate is 1. Raises ParameterError for any
        other dimension.
        """
        registry, parsed = _registry(self.new_unit), [_parse(each, self.new_unit) for each in (unit, self.unit)]
        is_daily = [of_days and ("day", -1) in registry.Quantity(1, each).unit_items() for each in parsed]
        theirs, ours = (each * registry.day if daily else each for each, daily in zip(parsed, is_daily, strict=True))
        for exponent in (0, -1, 1)[: 2 + is_daily[1]]:
            amount = theirs * registry.hour**exponent
            if amount.dimensionality == ours.dimensionality:
                with contextlib.suppress(TypeError):
                    zero, one = (registry.Quantity(Fraction(value), amount).to(ours).magnitude for value in (0, 1))
                    if not (exponent and zero):
                        return one - zero, zero, exponent
        raise ParameterError(
            f"The unit {unit!r} cannot be converted to that of {self.name}.",
            value=f"{unit}: {_dimension(parsed[0])}",
            expected=f"{self.unit}: {_dimension(parsed[1])}; or its amount in a step",
            next_step="correct the unit of that column: fetch.csv.columns in params.yaml",
        )

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

    ``key`` stands for it in the names of scores and limits, by default its name. No prediction is below what is
    possible. ``plants`` is what its installed capacity counts, if it is divided by that. With ``by_day`` it is zero
    while the sun is down: the gate has a rule for that, and the band counts the hours of daylight alone.
    """

    words: str = field(kw_only=True)
    colour: str = field(kw_only=True)
    driver: Driver = field(kw_only=True)
    key: str = field(default="", kw_only=True)
    plants: str = ""
    by_day: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.name)

    @property
    def sum_unit(self) -> str:
        """The unit of its sum over time: GWh of GW, bikes of bikes/h; empty if that means nothing."""
        unit, second, watt = (_parse(each, self.new_unit) for each in (self.unit, "s", "W"))
        is_power = unit.dimensionality == watt.dimensionality
        for text in (f"{self.unit}h" * is_power, self.unit.rpartition("/")[0]):
            with contextlib.suppress(ParameterError):
                amount = _parse(text, self.new_unit)
                if amount.dimensionality == (unit * second).dimensionality and amount != unit * second:
                    return text
        return ""

    def metric(self, measure: str) -> str:
        """Return the name of one of its scores: `bias_solar_percent` of `bias_percent`."""
        first, *rest = measure.split("_")
        return "_".join([first, self.key, *rest])


@dataclass(frozen=True)
class Input(Quantity):
    """A quantity to predict from: its meaning in words, and its slider."""

    meaning: str = field(kw_only=True)
    slider: Slider = field(kw_only=True)


# -- units -------------------------------------------------------------------------------------------------------------
@cache
def _registry(new_unit: str) -> Any:
    import pint  # takes half a second

    # Fractions keep whole numbers exact; pint takes m2 only as m**2.
    powers = [lambda text: re.sub(r"(?<=[A-Za-z])(?=\d)", "**", text)]
    registry: Any = pint.UnitRegistry(non_int_type=Fraction, preprocessors=powers)
    if new_unit and not new_unit.replace("_", "").isalpha():
        next_step = "set new_unit in forecast/problem.py to letters alone, such as EUR, pax or tCO"
        raise ParameterError("This new_unit is no name.", value=repr(new_unit), expected="letters", next_step=next_step)
    if new_unit:
        registry.define(f"{new_unit} = [{new_unit}]")
    return registry


@cache
def _parse(text: str, new_unit: str) -> Any:
    """Return a unit as pint's; raise ParameterError for one that it does not know."""
    registry = _registry(new_unit)
    try:
        return registry.parse_units(SPELLINGS.get(text, text))
    except Exception:  # noqa: BLE001 - pint's, and those of Python's tokenizer
        raise ParameterError(
            "This unit is not known.",
            value=repr(text),
            expected="a unit of pint, such as MW, kWh (also of a step), km/h, J/cm2 or m3/h, in its letters",
            next_step="correct it; for a count or a currency set new_unit of that quantity in forecast/problem.py",
        ) from None


def _dimension(unit: Any) -> str:
    """Return a dimension for people: `[length]**2 [mass] [time]**-3`."""
    factors = (name + f"**{power}" * (power != 1) for name, power in unit.dimensionality.items())
    return " ".join(factors) or "a number"
