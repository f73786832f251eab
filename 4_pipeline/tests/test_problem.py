"""problem.py has consistent names, units, ranges, sliders and presets; params.yaml has limits for each target."""

from __future__ import annotations

from datetime import date

import pytest
from forecast import problem
from forecast.govern.gate import rules
from forecast.table import schema
from forecast.terms.parameters import FILE, read
from places import PROJECT

INPUTS = {each.name: each for each in problem.INPUTS}
SUN = {"sun_elevation", "sun_azimuth"}


def test_names_are_unique():
    """Column names are unique, and so are the keys of targets."""
    names = [*schema.COLUMNS, *schema.CAPACITIES.values(), *problem.COMPUTED, *SUN]
    for each in (names, [target.key for target in problem.TARGETS]):
        assert len(set(each)) == len(each)


@pytest.mark.parametrize("quantity", schema.QUANTITIES.values(), ids=lambda each: each.name)
def test_ranges_and_units_of_a_quantity_are_consistent(quantity):
    """Usual values and sliders are within the possible range; pint knows the unit."""
    (low, high), (first, last) = quantity.possible, quantity.usual_mean or quantity.possible
    assert low <= first < last <= high
    assert quantity.conversion(quantity.unit, of_days=False) == (1, 0, 0)
    if quantity.name in INPUTS:
        slider = quantity.slider
        assert low <= slider.low <= slider.first <= slider.high <= high
        assert 0 < slider.step <= slider.high - slider.low


def test_models_and_drivers_use_inputs():
    """Features are inputs, computed columns and the position of the sun, which a target `by_day` needs."""
    assert set(problem.DERIVED) <= {*INPUTS, *problem.COMPUTED, *SUN}
    for target in problem.TARGETS:
        assert set(target.driver.inputs) <= set(INPUTS)
        assert "sun_elevation" in problem.DERIVED or not target.by_day


def test_presets_are_within_the_sliders():
    """A preset sets inputs, hour (UTC), and the day of the year or a date, which is not 29 February."""
    limits = {name: (each.slider.low, each.slider.high) for name, each in INPUTS.items()}
    limits |= {"hour": (0, 23), "day": (1, 366), "date": ("1900-01-01", "2100-12-31")}
    for preset in problem.PRESETS.values():
        assert date.fromisoformat(preset.get("date", "2015-01-01")).replace(year=2015)
        for name, value in preset.items():
            assert limits[name][0] <= value <= limits[name][1]


def test_capacities_are_positive():
    """A target with installed capacity has at least two figures, all above zero."""
    assert set(problem.CAPACITY) <= set(schema.CAPACITIES)
    for ends in problem.CAPACITY.values():
        assert len(ends) >= 2
        assert min(ends.values()) > 0


def test_gate_has_rules_for_each_target_and_limit():
    """The gate has a rule for R2, mean error and lowest prediction of each target, and a rule for each limit."""
    policy = read(PROJECT / FILE)["promote"]
    limits = rules(policy)
    for target in problem.TARGETS:
        assert {target.metric(measure) for measure in ("r2", "bias_percent", "lowest")} <= set(limits)
    numbers = {name: value for name, value in policy if name.startswith("max_") and isinstance(value, float)}
    for name in numbers.keys() - {"max_gain"}:
        assert rules(policy.model_copy(update={name: numbers[name] / 2})) != limits, f"{name} changes no rule"
