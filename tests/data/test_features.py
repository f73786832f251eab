"""Features and targets: columns, order, types."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workshop.data.features import (
    DERIVED,
    DERIVED_UNITS,
    capacity_factors,
    derive,
    features,
    inputs,
    installed,
    targets,
)
from workshop.errors import DataError


def test_features_and_targets_are_float_columns_in_order(frame):
    """Columns come in the fixed order as float64, whatever the frame's order, and the frame is not changed."""
    before = frame.copy()
    mixed = frame[frame.columns[::-1]].astype({"temperature": "float32"})
    assert list(features(mixed).columns) == ["windspeed", "temperature", "rad_horizontal", "rad_diffuse"]
    assert list(targets(mixed).columns) == ["solar_GW", "wind_GW"]
    assert (features(mixed).dtypes == "float64").all()
    pd.testing.assert_frame_equal(frame, before)


def test_features_name_a_missing_column(frame):
    """A missing column is told with the nearest name."""
    with pytest.raises(DataError, match=r"windspeed \(nearest: windspeed_10m\)"):
        features(frame.rename(columns={"windspeed": "windspeed_10m"}))


def test_inputs_are_the_hour_and_the_weather(frame):
    """The hour comes without a zone, as a signature of MLflow's can say it; the frame is not changed."""
    before = frame.copy()
    given = inputs(frame)
    assert list(given.columns) == ["utc_timestamp", "windspeed", "temperature", "rad_horizontal", "rad_diffuse"]
    assert str(given["utc_timestamp"].dtype) == "datetime64[us]"
    assert (given["utc_timestamp"].dt.tz_localize("UTC") == frame["utc_timestamp"]).all()
    assert given.index.equals(frame.index)
    pd.testing.assert_frame_equal(frame, before)


def test_sun_stands_where_it_should():
    """On the longest day at noon it is 62.4 degrees high in the south, and at midnight 15.6 degrees below the north.

    Noon over 10.4 degrees east is at 11:20 UTC: the stamp is half an hour before. 90 - 51 + 23.44; 23.44 - (90 - 51).
    """
    stamps = ["2016-06-20T10:50:00Z", "2016-06-20T22:50:00Z"]
    hours = pd.DataFrame({"utc_timestamp": stamps, **dict.fromkeys(["windspeed", "temperature"], 10.0)})
    derived = derive(hours.assign(rad_horizontal=0.0, rad_diffuse=0.0))
    assert derived["sun_elevation"].to_numpy() == pytest.approx([62.4, -15.6], abs=0.1)
    assert np.abs(np.sin(np.radians(derived["sun_azimuth"]))).max() < 0.02
    # ln(105 / 0.1) / ln(10 / 0.1)
    assert derived["hub_windspeed"].to_numpy() == pytest.approx(15.105, abs=0.001)


def test_derived_features_have_units_and_stand_for_themselves(frame):
    """The columns are those that are named, each has a unit, and a row does not depend on the others."""
    derived = derive(frame)
    assert list(derived.columns) == DERIVED == list(DERIVED_UNITS)
    assert derived.notna().all(axis=None)
    alone = derive(frame.iloc[[1234]])
    pd.testing.assert_frame_equal(alone, derived.iloc[[1234]])


@pytest.mark.parametrize("form", ["text", "no zone", "Berlin", "nanoseconds"])
def test_derived_features_are_the_same_for_each_way_to_write_an_hour(frame, form):
    """Text, times without a zone (which are UTC), of another zone and of another resolution are the same hours."""
    hours = frame.head(48)
    written = {
        "text": hours["utc_timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "no zone": hours["utc_timestamp"].dt.tz_localize(None),
        "Berlin": hours["utc_timestamp"].dt.tz_convert("Europe/Berlin"),
        "nanoseconds": hours["utc_timestamp"].dt.as_unit("ns"),
    }[form]
    pd.testing.assert_frame_equal(derive(hours.assign(utc_timestamp=written)), derive(hours))


def test_capacity_factor_times_capacity_is_generation(frame):
    """The factor lies between nought and one, and what was installed grows."""
    factors, capacity = capacity_factors(frame), installed(frame)
    np.testing.assert_allclose(factors * capacity, targets(frame))
    assert factors.min().min() >= 0
    assert factors.max().max() <= 1
    assert (capacity.diff().dropna() >= 0).all(axis=None)


@pytest.mark.parametrize("wrong", ["noon", None, 7.5])
def test_derive_tells_what_is_no_time(frame, wrong):
    """What is no time is told as such, with a time that would be one."""
    hours = frame.head(3).assign(utc_timestamp=pd.Series([wrong] * 3, dtype="object"))
    with pytest.raises(DataError, match="2016-06-01T12:00:00Z"):
        derive(hours)
