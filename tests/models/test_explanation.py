"""What a model goes by."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from workshop.data.features import features, targets
from workshop.data.schema import FEATURES, TARGETS
from workshop.models.explanation import coverage, importance, responses
from workshop.models.loading import LoadedModel


@pytest.fixture(scope="module")
def hours():
    """Hours whose wind power is twice the wind speed, and whose solar power is a tenth of the direct radiation."""
    random, count = np.random.default_rng(0), 3000
    stamps = pd.date_range("2014-06-01", periods=count, freq="h", tz="UTC")
    rows = pd.DataFrame(random.uniform(0, 10, (count, len(FEATURES))), columns=FEATURES)
    return rows.assign(utc_timestamp=stamps, solar_GW=rows["rad_horizontal"] / 10, wind_GW=2 * rows["windspeed"])


@pytest.fixture(scope="module")
def model(hours):
    """A line through them."""
    return LoadedModel.of(LinearRegression().fit(features(hours), targets(hours)))


def test_importance_is_that_of_the_input_that_matters(hours, model):
    """Shuffling an input without a part in a target costs nothing; that of the one it follows costs all, twice."""
    table = importance(model, hours)
    assert list(table.index) == FEATURES
    followed = {"solar_GW": "rad_horizontal", "wind_GW": "windspeed"}
    for target in TARGETS:
        # Against an independent copy of itself, the squared error is twice the variance: R2 falls from 1 to -1.
        assert table.loc[followed[target], target] == pytest.approx(2, abs=0.15)
        assert table.drop(index=followed[target])[target].abs().max() < 1e-9
    assert importance(model, hours).equals(table)


def test_responses_of_a_line_are_lines(hours, model):
    """The mean prediction rises by the line's slope, and stays level along inputs without a part."""
    table = responses(model, hours).set_index("feature")
    wind = table.loc["windspeed"]
    assert np.allclose(np.diff(wind["wind_GW"]) / np.diff(wind["value"]), 2)
    assert np.allclose(table.loc["temperature", "wind_GW"], table.loc["temperature", "wind_GW"].iloc[0])
    assert wind["value"].between(hours["windspeed"].min(), hours["windspeed"].max()).all()


def test_coverage_counts_daylight_for_solar_power(hours):
    """Half of the hours lie within for wind; for solar power the nights do not count."""
    low, high = (pd.DataFrame(value, hours.index, TARGETS) for value in (0.0, 10.0))
    night = hours.assign(solar_GW=np.where(hours["utc_timestamp"].dt.hour.between(8, 15), 99.0, 0.0))
    held = coverage(night, low, high)
    assert held["coverage_wind"] == pytest.approx((hours["wind_GW"] <= 10).mean())
    # In June the sun is up for some sixteen hours, of which eight do not lie within.
    assert 0.4 < held["coverage_solar"] < 0.6
