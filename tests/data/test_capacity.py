"""Installed capacity: published year-ends, a line between them, and nothing beyond."""

from __future__ import annotations

import pandas as pd
import pytest

from workshop.data.capacity import YEAR_ENDS_GW, installed, last_year, mark, of_frame
from workshop.data.features import inputs
from workshop.data.features import installed as installed_at
from workshop.data.schema import FEATURES, TARGETS
from workshop.errors import DataError
from workshop.parameters import YearEnd

OWN = {2020: YearEnd(solar_GW=2.0, wind_GW=5.0), 2019: YearEnd(solar_GW=1.0, wind_GW=5.0)}


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
    assert "2019 and 2020" in caught.value.next_step
    assert "fetch.csv.capacity" in caught.value.next_step


def test_capacity_of_ones_own_goes_with_the_frame(tmp_path):
    """Marked, written, read and cut, the frame is divided by its own figures, and by no others."""
    stamps = pd.to_datetime(["2020-01-01T00:00Z", "2020-07-01T12:00Z"])
    frame = pd.DataFrame({"utc_timestamp": stamps, **dict.fromkeys([*FEATURES, *TARGETS], 1.0)})
    assert of_frame(frame) == YEAR_ENDS_GW
    mark(frame, OWN).to_parquet(tmp_path / "own.parquet")
    read = pd.read_parquet(tmp_path / "own.parquet")
    assert of_frame(inputs(read.head(1))) == of_frame(read) != YEAR_ENDS_GW
    assert last_year(of_frame(read)) == 2020
    assert installed_at(read).round(2).to_numpy().tolist() == [[1.0, 5.0], [1.5, 5.0]]
    with pytest.raises(DataError, match="no figure"):
        installed_at(frame)
