"""Derived features, and installed capacity: interpolation between published figures of year-ends."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import yaml
from forecast.problem import CAPACITY
from forecast.table.features import (
    add_capacity,
    derive,
    installed,
    last_year,
    year_ends_of,
)
from forecast.table.processed import write_csv
from forecast.table.schema import FEATURES, TARGETS
from forecast.terms.errors import DataError
from places import PROJECT


def test_position_of_the_sun():
    """On the longest day the sun is 62.4 degrees high in the south at noon, and at midnight 15.6 below the north.

    Noon at 10.4 degrees east is at 11:20 UTC, half an hour after the timestamp. 90 - 51 + 23.44; 23.44 - (90 - 51).
    """
    stamps = ["2016-06-20T10:50:00Z", "2016-06-20T22:50:00Z"]
    hours = pd.DataFrame({"utc_timestamp": stamps, **dict.fromkeys(["windspeed", "temperature"], 10.0)})
    derived = derive(hours.assign(rad_horizontal=0.0, rad_diffuse=0.0))
    assert derived["sun_elevation"].to_numpy() == pytest.approx([62.4, -15.6], abs=0.1)
    assert np.abs(np.sin(np.radians(derived["sun_azimuth"]))).max() < 0.02
    # ln(105 / 0.1) / ln(10 / 0.1)
    assert derived["hub_windspeed"].to_numpy() == pytest.approx(15.105, abs=0.001)


@pytest.mark.parametrize("form", ["text", "no zone", "Berlin", "nanoseconds"])
def test_derived_features_are_the_same_for_each_form_of_a_timestamp(frame, form):
    """Strings, naive times (taken as UTC), other time zones and other resolutions are the same hours."""
    hours = frame.head(48)
    stamps = {
        "text": hours["utc_timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "no zone": hours["utc_timestamp"].dt.tz_localize(None),
        "Berlin": hours["utc_timestamp"].dt.tz_convert("Europe/Berlin"),
        "nanoseconds": hours["utc_timestamp"].dt.as_unit("ns"),
    }[form]
    pd.testing.assert_frame_equal(derive(hours.assign(utc_timestamp=stamps)), derive(hours))


@pytest.mark.parametrize("wrong", ["noon", None, 7.5])
def test_derive_rejects_invalid_times(frame, wrong):
    """A value that is not a time is an error with an example of a time."""
    hours = frame.head(3).assign(utc_timestamp=pd.Series([wrong] * 3, dtype="object"))
    with pytest.raises(DataError, match="2016-06-01T12:00:00Z"):
        derive(hours)


# -- installed capacity ------------------------------------------------------------------------------------------------
def _hours(*stamps: str) -> pd.DataFrame:
    return pd.DataFrame({"utc_timestamp": pd.to_datetime(stamps)})


def test_capacity_is_interpolated_between_year_ends():
    """On 1 January 2014 it is the figure for the end of 2013, and in the middle of the year half-way to the next."""
    capacity = installed(_hours("2014-01-01T00:00Z", "2014-07-02T12:00Z", "2016-12-31T23:00Z"), CAPACITY)
    assert capacity["wind_GW"].round(2).tolist() == [34.2, 36.7, 50.0]


def test_capacity_is_not_extrapolated():
    """Hours outside the figures are an error with the first hour, the range, and where to add figures."""
    with pytest.raises(DataError, match="1 of 2 hours") as caught:
        installed(_hours("2014-01-01T00:00Z", "2020-01-01T00:00Z"), CAPACITY)
    assert "2020-01-01" in caught.value.value
    assert caught.value.expected == "2013-01-01 to 2017-01-01"
    assert "2019 and 2020 in fetch.csv.capacity" in caught.value.next_step


def test_own_capacity_is_a_column_of_the_table(tmp_path):
    """The table keeps its figures when it is written, read, merged and concatenated; without them it is an error."""
    frame = _hours("2020-01-01T00:00Z", "2020-07-01T12:00Z").assign(**dict.fromkeys([*FEATURES, *TARGETS], 1.0))
    figures = {"solar_GW": {"2019": 1.0, "2020": 2.0}, "wind_GW": {"2019": 5.0, "2020": 5.0}}
    write_csv(add_capacity(frame, figures), tmp_path / "own.csv")
    read = pd.read_csv(tmp_path / "own.csv", parse_dates=["utc_timestamp"])
    assert installed(pd.concat([read.merge(frame[["utc_timestamp"]]), read])).iloc[-1].round(2).tolist() == [1.5, 5.0]
    assert installed(read, CAPACITY).round(2).to_numpy().tolist() == [[1.0, 5.0], [1.5, 5.0]]
    with pytest.raises(DataError, match="lacks 2 columns: solar_capacity_GW") as caught:
        installed(frame)
    assert "fetch.csv.capacity" in caught.value.next_step


@pytest.mark.parametrize("rows", [slice(None), slice(5000, 5002), slice(8000, 12000)])
def test_year_ends_are_recovered_from_the_columns(frame, rows):
    """From whole years, from two hours, and across the turn of a year."""
    part = add_capacity(frame[rows], CAPACITY)
    year_ends = year_ends_of(part)
    for target, ends in year_ends.items():
        assert ends == pytest.approx({year: CAPACITY[target][year] for year in ends}, abs=1e-3)
    assert last_year(year_ends) == part["utc_timestamp"].iloc[-1].year


def test_capacities_in_the_page_on_own_files_are_the_published_ones():
    """The page's first example has the same capacities as the sample."""
    page = (PROJECT / "own" / "README.md").read_text()
    example = yaml.safe_load(page.split("```yaml")[1].split("```")[0])["fetch"]["csv"]["capacity"]
    documented = {target: {str(year): ends[target] for year, ends in example.items()} for target in TARGETS}
    assert documented == CAPACITY
