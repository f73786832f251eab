"""The built-in sample: its statistics and scores."""

from __future__ import annotations

import pytest
from forecast.table.features import features, targets
from forecast.table.split import split_by_time
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split

# Reference values of the recipe: mean, maximum, yearly means of 2013 to 2016.
MEASURED = {
    "solar_GW": (3.66, 24.4, (3.36, 3.65, 3.54, 4.11)),
    "wind_GW": (7.08, 33.7, (4.99, 5.78, 8.21, 9.34)),
    "windspeed": (4.11, 15.8, (4.11, 4.11, 4.11, 4.11)),
    "temperature": (9.08, 29.7, (9.70, 8.66, 8.34, 9.60)),
    "rad_horizontal": (74.8, 768, (78.2, 75.1, 68.3, 77.5)),
    "rad_diffuse": (65.1, 491, (63.2, 65.9, 63.7, 67.6)),
}


def _score(train, test):
    model = LinearRegression().fit(features(train), targets(train))
    return r2_score(targets(test), model.predict(features(test)), multioutput="raw_values")


@pytest.mark.parametrize("column", MEASURED)
def test_sample_has_the_measured_means_and_maximum(prepared, column):
    """Mean, maximum and yearly means are the reference values (within 1 %; 2 % for the maximum)."""
    series = prepared[0].set_index("utc_timestamp")[column]
    mean, highest, yearly = MEASURED[column]
    assert series.mean() == pytest.approx(mean, rel=0.01)
    assert series.max() == pytest.approx(highest, rel=0.02)
    assert series.groupby(series.index.year).mean().tolist() == pytest.approx(yearly, rel=0.01)


def test_random_split_overestimates_the_score(prepared):
    """The scores of linear regression are the reference values, higher on a random split."""
    by_time = _score(*split_by_time(prepared[0], 0.2))
    at_random = _score(*train_test_split(prepared[0], test_size=0.2, random_state=0))
    assert by_time == pytest.approx((0.939, 0.567), abs=0.01)
    assert at_random == pytest.approx((0.949, 0.699), abs=0.02)
    assert 0.05 < at_random.mean() - by_time.mean() < 0.10
