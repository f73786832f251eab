"""The classes that define a `problem`: targets, inputs, drivers and units.

Values are means or counts over the step (`problem.STEP`) that starts at the timestamp.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

from forecast.terms.errors import ParameterError

SPELLINGS = {"C": "degC", "F": "degF", "number": ""}  # pint reads C and F as coulomb and farad

# Installed capacity at the end of each year, by target and year; the years are strings, as in JSON.
YearEnds = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Slider:
    """A slider of the dashboard: its range, its step and its initial value."""

    low: float
    high: float
    step: float
    first: float


@dataclass(frozen=True)
class Quantity:
    """A column of the processed table.

    ``possible``: values outside are an error. ``usual_mean``: a mean outside is a warning, often caused by a wrong
    unit. ``zero_hours``: a longer run of zeros is also a warning, if it exceeds seven steps. A category or a flag, such
    as the day of the week, has None for the last two. pint parses ``unit``; ``new_unit`` defines a unit that pint
    lacks, such as a count or a currency. ``opsd`` is the column's name in the files of Open Power System Data.
    """

    name: str
    title: str
    unit: str
    possible: tuple[float, float]
    usual_mean: tuple[float, float] | None
    opsd: str = ""
    zero_hours: int | None = 24
    new_unit: str = ""

    def conversion(self, unit: str, *, of_days: bool) -> tuple[Fraction, Fraction, int]:
        """Return factor, offset and exponent of the conversion: (value * factor + offset) * hours**exponent.

        ``hours`` is the length of the step. The exponent is 0 if both units have the same dimension, and -1 to convert
        an amount per step to a rate, such as kWh to GW. With daily steps (``of_days``), a unit per day means the total
        of a calendar day (23 to 25 hours), so a rate such as MW converts to MWh/d with exponent 1. Raises
        ParameterError if the dimensions do not match.
        """
        registry, parsed = _registry(self.new_unit), [_parse(each, self.new_unit) for each in (unit, self.unit)]
        is_daily = [of_days and ("day", -1) in registry.Quantity(1, each).unit_items() for each in parsed]
        source, target = (each * registry.day if daily else each for each, daily in zip(parsed, is_daily, strict=True))
        for exponent in (0, -1, 1)[: 2 + is_daily[1]]:
            amount = source * registry.hour**exponent
            if amount.dimensionality == target.dimensionality:
                with contextlib.suppress(TypeError):
                    zero, one = (registry.Quantity(Fraction(value), amount).to(target).magnitude for value in (0, 1))
                    if not (exponent and zero):
                        return one - zero, zero, exponent
        raise ParameterError(
            f"The unit {unit!r} cannot be converted to the unit of {self.name}.",
            value=f"{unit}: {_dimension(parsed[0])}",
            expected=f"{self.unit}: {_dimension(parsed[1])}; or an amount per step",
            next_step="correct the unit of that column in params.yaml (fetch.csv.columns)",
        )

    @property
    def label(self) -> str:
        """Title and unit: `Solar, GW`."""
        return ", ".join(filter(None, (self.title, self.unit)))


@dataclass(frozen=True)
class Driver:
    """The weather that determines a target: the sum of ``inputs``, in their ``unit``.

    ``alike``: absolute and relative tolerance for "the same value". The other fields are expected ranges for the checks
    in raw/validation (None skips a check): the driver's value at half the target's maximum (``at_half``), its
    ``lag_hours``, and the share of its second input in the brightest hours (``top_share``).
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
    """A quantity to predict, with its name in sentences (``words``), its colour in figures and its driver.

    ``key`` is its name in metrics and limits, by default ``name``. Predictions are clipped at the lower end of
    ``possible``. ``plants`` names the plants in sentences; only set it if the target is divided by their capacity. A
    daytime target (``by_day``) is zero at night: the gate checks that, and error bands are calibrated on daytime only.
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
        """The unit of the target's sum over time: GWh for GW, bikes for bikes/h; empty if there is none."""
        unit, second, watt = (_parse(each, self.new_unit) for each in (self.unit, "s", "W"))
        is_power = unit.dimensionality == watt.dimensionality
        for text in (f"{self.unit}h" * is_power, self.unit.rpartition("/")[0]):
            with contextlib.suppress(ParameterError):
                amount = _parse(text, self.new_unit)
                if amount.dimensionality == (unit * second).dimensionality and amount != unit * second:
                    return text
        return ""

    def metric(self, measure: str) -> str:
        """Return the name of a metric of this target: `bias_solar_percent` for `bias_percent`."""
        first, *rest = measure.split("_")
        return "_".join([first, self.key, *rest])


@dataclass(frozen=True)
class Input(Quantity):
    """An input of the models, with its name in sentences (``meaning``) and its slider."""

    meaning: str = field(kw_only=True)
    slider: Slider = field(kw_only=True)


# -- units -------------------------------------------------------------------------------------------------------------
@cache
def _registry(new_unit: str) -> Any:
    import pint  # takes half a second

    # Use exact fractions, and rewrite m2, which pint does not know, as m**2.
    powers = [lambda text: re.sub(r"(?<=[A-Za-z])(?=\d)", "**", text)]
    registry: Any = pint.UnitRegistry(non_int_type=Fraction, preprocessors=powers)
    if new_unit and not new_unit.replace("_", "").isalpha():
        next_step = "set new_unit in forecast/problem.py to letters only, such as EUR, pax or tCO"
        raise ParameterError("Invalid new_unit.", value=repr(new_unit), expected="letters", next_step=next_step)
    if new_unit:
        registry.define(f"{new_unit} = [{new_unit}]")
    return registry


@cache
def _parse(text: str, new_unit: str) -> Any:
    """Parse a unit with pint; raise ParameterError if it is unknown."""
    registry = _registry(new_unit)
    try:
        return registry.parse_units(SPELLINGS.get(text, text))
    except Exception:  # noqa: BLE001 - pint and Python's tokenizer raise errors of many types
        raise ParameterError(
            "Unknown unit.",
            value=repr(text),
            expected="a unit that pint knows, such as MW, kWh (per step), km/h, J/cm2 or m3/h; case matters",
            next_step="correct the unit; for a count or a currency, set the quantity's new_unit in forecast/problem.py",
        ) from None


def _dimension(unit: Any) -> str:
    """Return a dimension as text: `[length]**2 [mass] [time]**-3`."""
    factors = (name + f"**{power}" * (power != 1) for name, power in unit.dimensionality.items())
    return " ".join(factors) or "a number"
