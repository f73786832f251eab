"""Scores of predictions, importance of and responses to a model's inputs, and the coverage of its band."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from forecast.learn.evaluation import coverage, importance, in_percent, is_night, responses, score
from forecast.learn.storage import LoadedModel
from forecast.table.features import features, targets
from forecast.table.schema import FEATURES, TARGETS
from sklearn.linear_model import LinearRegression


# -- scores ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def two_days():
    """48 hours of midsummer measurements."""
    stamps = pd.date_range("2016-06-20", periods=48, freq="h", tz="UTC")
    return pd.DataFrame(
        {
            "utc_timestamp": stamps,
            "solar_GW": [float(h % 24) for h in range(48)],
            "wind_GW": [5.0 + h for h in range(48)],
        }
    )


def test_each_target_has_its_own_scores():
    """With solar power wrong only at night, by 2 GW, and wind power predicted as its mean, the scores do not mix."""
    stamps = pd.date_range("2015-12-20", periods=48, freq="h", tz="UTC")
    frame = pd.DataFrame(
        {"utc_timestamp": stamps, "solar_GW": [float(h % 24) for h in range(48)], "wind_GW": range(48)}
    )
    predicted = frame[["solar_GW", "wind_GW"]].astype(float)
    predicted["wind_GW"] = predicted["wind_GW"].mean()
    night = is_night(frame["utc_timestamp"])
    predicted.loc[night, "solar_GW"] = 2.0
    scores = score(frame, predicted)
    solar, wind = (scores.targets[key] for key in ("solar", "wind"))
    assert solar.night == pytest.approx(2.0)
    assert wind.night is None
    assert wind.r2 == pytest.approx(0.0)
    assert solar.r2 != pytest.approx(0.0)
    assert scores.r2 == pytest.approx(solar.r2 / 2)
    measures = {"r2", "mae", "bias", "lowest"}
    names = {f"{measure}_{key}" for measure in measures for key in scores.targets}
    names |= {"r2", "bias_solar_percent", "bias_wind_percent", "night_solar"}
    assert scores.metrics().keys() == names
    assert scores.metrics()["r2_solar"] == solar.r2


def test_bias_is_the_mean_error_with_its_sign(two_days):
    """Wind power predicted 2 GW too low has a bias of -2 GW, also given in percent of the measured mean."""
    predicted = two_days[["solar_GW", "wind_GW"]].copy()
    predicted["wind_GW"] -= 2.0
    scores = score(two_days, predicted)
    assert scores.targets["wind"].bias == pytest.approx(-2.0)
    assert scores.targets["wind"].bias_percent == pytest.approx(-200 / two_days["wind_GW"].mean())
    assert scores.targets["solar"].bias_percent == pytest.approx(0.0)


def test_one_nan_makes_the_scores_nan(two_days):
    """One NaN makes the overall R2 and the scores of its target NaN; the other target keeps its R2."""
    predicted = two_days[["solar_GW", "wind_GW"]].copy()
    predicted.iloc[3, 0] = float("nan")
    scores = score(two_days, predicted)
    assert not scores.finite
    assert np.isnan([scores.r2, scores.targets["solar"].night]).all()
    assert scores.targets["wind"].r2 == 1


def test_night_is_defined_by_sun_elevation():
    """In midwinter midnight is night, but noon and the hour of first light are not; in midsummer there is no night."""
    winter = pd.Series(pd.to_datetime(["2015-12-21 23:00", "2015-12-21 11:00", "2015-12-21 06:00"], utc=True))
    assert list(is_night(winter)) == [True, False, False]
    assert not is_night(pd.Series(pd.to_datetime(["2016-06-21 02:00"], utc=True)))[0]


def test_weekly_errors_are_of_weeks_with_enough_hours():
    """Of three weeks and two days, the week with a gap of a day and the last two days have no weekly error."""
    stamps = pd.date_range("2016-06-20", periods=23 * 24, freq="h", tz="UTC")
    frame = pd.DataFrame({"utc_timestamp": stamps, "solar_GW": range(23 * 24), "wind_GW": np.arange(23 * 24) % 2})
    frame = frame.drop(range(8 * 24, 9 * 24)).reset_index(drop=True)
    predicted = frame[["solar_GW", "wind_GW"]].copy()
    predicted.loc[frame["utc_timestamp"] < "2016-06-27", "wind_GW"] += 4.0
    scores = score(frame, predicted)
    # An error of 4 GW is 8 standard deviations (0.5 GW) of wind power: 4 on average over both targets.
    assert scores.weekly_errors == pytest.approx((4.0, 0.0))
    assert score(frame.assign(wind_GW=1.0), predicted.assign(wind_GW=1.5)).weekly_errors == (0.25, 0.25)
    assert scores.period == ("2016-06-20T00:00:00Z", "2016-07-12T23:00:00Z")


# -- importance, responses and coverage --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def hours():
    """Hours whose wind power is twice the wind speed, and whose solar power is a tenth of the direct radiation."""
    random, count = np.random.default_rng(0), 3000
    stamps = pd.date_range("2014-06-01", periods=count, freq="h", tz="UTC")
    rows = pd.DataFrame(random.uniform(0, 10, (count, len(FEATURES))), columns=FEATURES)
    return rows.assign(utc_timestamp=stamps, solar_GW=rows["rad_horizontal"] / 10, wind_GW=2 * rows["windspeed"])


@pytest.fixture(scope="module")
def model(hours):
    """A linear regression fitted on these hours."""
    return LoadedModel.of(LinearRegression().fit(features(hours), targets(hours)))


def test_importance_is_positive_only_for_the_input_of_a_target(hours, model):
    """Permuting the only input of a target lowers its R2 by 2; permuting any other input changes nothing."""
    table = importance(model, hours)
    assert list(table.index) == FEATURES
    drivers = {"solar_GW": "rad_horizontal", "wind_GW": "windspeed"}
    for target in TARGETS:
        # Against an independent copy of itself, the squared error is twice the variance: R2 falls from 1 to -1.
        assert table.loc[drivers[target], target] == pytest.approx(2, abs=0.15)
        assert table.drop(index=drivers[target])[target].abs().max() < 1e-9
    assert importance(model, hours).equals(table)


def test_responses_of_a_linear_model_are_linear(hours, model):
    """The mean prediction rises by the coefficient of an input, and is constant along inputs without effect."""
    table = responses(model, hours).set_index("feature")
    wind = table.loc["windspeed"]
    assert np.allclose(np.diff(wind["wind_GW"]) / np.diff(wind["value"]), 2)
    assert np.allclose(table.loc["temperature", "wind_GW"], table.loc["temperature", "wind_GW"].iloc[0])
    assert wind["value"].between(hours["windspeed"].min(), hours["windspeed"].max()).all()


def test_coverage_of_solar_power_counts_only_daylight(hours):
    """Wind power is within the band in half of the hours; for solar power the night does not count."""
    low, high = (pd.DataFrame(value, hours.index, TARGETS) for value in (0.0, 10.0))
    frame = hours.assign(solar_GW=np.where(hours["utc_timestamp"].dt.hour.between(8, 15), 99.0, 0.0))
    shares = coverage(frame, low, high)
    assert shares["coverage_wind"] == pytest.approx((hours["wind_GW"] <= 10).mean())
    # In June the sun is up for about sixteen hours, eight of which are outside the band.
    assert 0.4 < shares["coverage_solar"] < 0.6


def test_percentages_of_a_price_keep_size_and_sign():
    """The mean of a price may be near zero or negative: percentages of a mean error do not depend on it."""
    for level in (50.0, 0.8, -1.2):
        price = pd.Series([level + 50, level - 50])
        assert in_percent(-0.25, price) == pytest.approx(-0.5, abs=0.01)
    assert math.isnan(in_percent(1.0, pd.Series([0.0, 0.0])))
