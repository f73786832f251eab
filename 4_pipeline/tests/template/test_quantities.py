"""The terms of a problem: names that follow from a target's name and unit."""

from __future__ import annotations

import dataclasses

import pytest
from forecast.problem import TARGETS
from forecast.quantities import POWER


@pytest.mark.parametrize(
    ("name", "unit", "key"),
    [
        ("solar_GW", "GW", "solar"), ("bikes", "bikes", "bikes"), ("load", "GW", "load"), ("load_MW", "MW", "load"),
        ("bikes_casual", "bikes", "bikes_casual"), ("bikes_casual_1/h", "1/h", "bikes_casual"), ("_GW", "GW", "_GW"),
    ],
)  # fmt: skip
def test_key_of_a_target_is_its_name_without_the_unit(name, unit, key):
    """Never empty, and different for different targets: it names scores and limits."""
    target = dataclasses.replace(TARGETS[0], name=name, unit=unit)
    assert target.key == key
    assert [target.metric(measure) for measure in ("r2", "bias_percent")] == [f"r2_{key}", f"bias_{key}_percent"]


@pytest.mark.parametrize(
    ("unit", "units", "sum_unit"), [("GW", POWER, "GWh"), ("bikes/h", {"bikes/h": (1, 1, 0)}, "bikes"), ("°C", {}, "")]
)
def test_sum_over_hours_has_a_unit_of_its_own(unit, units, sum_unit):
    """Power adds up to energy and a rate to a count; a sum of temperatures means nothing."""
    assert dataclasses.replace(TARGETS[0], unit=unit, units=units).sum_unit == sum_unit
