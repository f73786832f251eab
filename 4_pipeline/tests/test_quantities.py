"""The terms of a problem: names that follow from a target's name and unit."""

from __future__ import annotations

import dataclasses

import pytest
from forecast.problem import TARGETS


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
    assert (target.key, target.r2) == (key, f"r2_{key}")
