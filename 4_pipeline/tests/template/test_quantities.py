"""Units of quantities: rates, amounts per step and sums over time, by pint's dimensions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from forecast.problem import TARGETS
from forecast.terms.errors import ParameterError


def quantity(unit: str, new_unit: str = ""):
    """Return a target with this unit, which may contain a unit that pint does not know."""
    return replace(TARGETS[0], name="amount", key="", unit=unit, new_unit=new_unit)


def test_key_of_a_target_is_its_name_by_default():
    """The key is part of the names of scores and limits."""
    assert [target.key for target in (TARGETS[0], quantity("MWh/d"))] == ["solar", "amount"]
    assert quantity("MWh/d").metric("bias_percent") == "bias_amount_percent"


@pytest.mark.parametrize(
    ("unit", "sum_unit"),
    [("GW", "GWh"), ("kW", "kWh"), ("bikes/h", "bikes"), ("MWh/d", "MWh"), ("m3/h", "m3"), ("mm/d", "mm"), ("°C", ""),
     ("m/s", ""), ("W/m²", ""), ("EUR/MWh", ""), ("%", ""), ("", "")],
)  # fmt: skip
def test_unit_of_a_sum_over_time(unit, sum_unit):
    """Power sums to energy and a rate to a count; temperatures, speeds and prices have no sum."""
    new_unit = next((name for name in ("bikes", "EUR") if name in unit), "")
    assert quantity(unit, new_unit).sum_unit == sum_unit


@pytest.mark.parametrize(
    ("unit", "target_unit", "value", "expected", "exponent", "of_day"),
    [
        ("kW", "GW", 1e6, 1, 0, 0), ("MVA", "GW", 1000, 1, 0, 0), ("kWh", "GW", 1e6, 1, -1, -1),
        ("kWh/d", "GW", 24e6, 1, 0, None), ("kWh/d", "GW", 1e6, 1, None, -1),
        ("MWh/d", "MWh/d", 12.6, 12.6, 0, 0), ("GWh/d", "MWh/d", 1, 1000, 0, 0),
        ("MWh", "MWh/d", 1, 24, -1, None), ("MWh", "MWh/d", 1, 1, None, 0), ("MW", "MWh/d", 1, 24, 0, None),
        ("MW", "MWh/d", 1, 1, None, 1), ("bikes/h", "bikes/d", 1, 24, 0, None), ("bikes/h", "bikes/d", 1, 1, None, 1),
        ("bikes", "bikes/h", 7, 7, -1, -1), ("km/h", "m/s", 36, 10, 0, 0), ("kn", "m/s", 9, 4.63, 0, 0),
        ("mph", "m/s", 10, 4.4704, 0, 0), ("C", "°C", 7, 7, 0, 0), ("K", "°C", 273.15, 0, 0, 0),
        ("F", "°C", 212, 100, 0, 0),
        ("degF", "K", 32, 273.15, 0, 0), ("J/m2", "W/m²", 3.6e6, 1000, -1, -1), ("J/cm**2", "W/m²", 360, 1000, -1, -1),
        ("kWh/m2", "W/m2", 1, 1000, -1, -1), ("EUR/kWh", "EUR/MWh", 1, 1000, 0, 0), ("%", "", 7, 0.07, 0, 0),
        ("number", "", 7, 7, 0, 0), ("m3/h", "m3/d", 1, 24, 0, None),
    ],
)  # fmt: skip
def test_units_are_converted_by_their_dimensions(unit, target_unit, value, expected, exponent, of_day):
    """Only an amount per step becomes a rate; with daily rows a rate per day is the amount of that day."""
    target = quantity(target_unit, next((name for name in ("bikes", "EUR") if name in target_unit), ""))
    for power, of_days in ((exponent, False), (of_day, True)):
        if power is not None:
            factor, offset, actual = target.conversion(unit, of_days=of_days)
            assert (float(value * factor + offset), actual) == (pytest.approx(expected, abs=1e-9), power)


@pytest.mark.parametrize(
    ("unit", "target_unit", "words"),
    [
        ("MJ", "°C", "[temperature]"), ("delta_degC", "°C", "cannot"), ("K*h", "°C", "cannot"), ("h", "GW", "cannot"),
        ("EUR", "EUR/MWh", "[EUR]"), ("GW", "GWh", "cannot"), ("Mw", "GW", "Unknown unit"),
        ("MWh/15min", "GW", "Unknown unit"),
        ("visitors", "GW", "Unknown unit"), ("W/(m", "GW", "Unknown unit"), ("MW", "bikes/h", "Unknown unit"),
    ],
)  # fmt: skip
def test_other_dimensions_and_unknown_units_are_errors(unit, target_unit, words):
    """The error names the unit that cannot be converted."""
    with pytest.raises(ParameterError) as caught:
        quantity(target_unit, "EUR" * ("EUR" in target_unit)).conversion(unit, of_days=False)
    assert words in str(caught.value)
    with pytest.raises(ParameterError, match="Invalid new_unit"):
        quantity("€/MWh", "€").conversion("EUR/MWh", of_days=False)
    assert repr(unit if "bikes" not in target_unit else target_unit) in str(caught.value)
