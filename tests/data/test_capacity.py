"""Installed capacity: published year-ends, a line between them, and nothing beyond."""

from __future__ import annotations

import pandas as pd
import pytest

from workshop.data.capacity import YEAR_ENDS_GW, installed
from workshop.errors import DataError


def test_capacity_is_the_published_figure_at_the_turn_of_the_year():
    """1 January 2014 has 2013's year-end; half-way through the year it is half-way to the next."""
    stamps = pd.Series(pd.to_datetime(["2014-01-01T00:00Z", "2014-07-02T12:00Z", "2016-12-31T23:00Z"]))
    assert installed(stamps, "wind_GW").round(2).tolist() == [34.2, 36.7, 50.0]


def test_capacity_is_never_below_generation(prepared):
    """In no hour of the sample is more generated than stands there, and both capacities grow."""
    frame, _ = prepared
    for target, ends in YEAR_ENDS_GW.items():
        assert (frame[target] <= installed(frame["utc_timestamp"], target)).all()
        assert list(ends.values()) == sorted(ends.values())


def test_capacity_is_not_invented_for_other_years():
    """Outside the table there is an error with the first such hour and the range."""
    with pytest.raises(DataError, match="1 of 2 hours") as caught:
        installed(pd.Series(pd.to_datetime(["2014-01-01T00:00Z", "2020-01-01T00:00Z"])), "solar_GW")
    assert "2020-01-01" in caught.value.value
    assert caught.value.expected == "2013-01-01 to 2017-01-01"
