"""Frames that violate the schema, and their error messages."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from forecast.table import processed, schema
from forecast.table.processed import write
from forecast.terms.errors import DataError


@pytest.fixture
def small(frame):
    """The first 48 hours, with an index that is not the row number."""
    return frame.head(48).set_index(np.arange(48) + 1000)


def test_check_returns_a_good_frame_unchanged(frame):
    """A processed frame passes, also with additional columns, and is not changed."""
    before = frame.copy()
    assert schema.check(frame) is frame
    assert "predicted" in schema.check(frame.assign(predicted=1.0))
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("rad_horizontal", -5.0, "between 0 and 1400 W/m²"),
        ("temperature", 280.0, "between -40 and 50 °C"),
        ("solar_GW", float("inf"), "between 0 and 200 GW"),
        ("wind_GW", 12_000.0, "between 0 and 200 GW"),
        ("wind_GW", float("nan"), "no missing cells"),
    ],
)
def test_check_names_row_column_value_and_rule(small, column, value, rule):
    """A value out of range or missing is named with its row, time, column, value and rule."""
    small.loc[1007, column] = value
    before = small.copy()
    with pytest.raises(DataError) as caught:
        schema.check(small, "germany")
    assert caught.value.what == "germany violates the schema: 1 failure."
    text = "missing" if np.isnan(value) else value
    assert caught.value.value == f"row 7 (2013-01-01T07:00:00Z), {column} = {text}, rule: {rule}"
    pd.testing.assert_frame_equal(small, before)


def test_check_lists_five_failures_and_counts_the_rest(small):
    """Of 20 failures, the first five are listed and 15 are counted."""
    small.loc[1010:1029, "wind_GW"] = -1.0
    with pytest.raises(DataError, match="20 failures") as caught:
        schema.check(small)
    assert caught.value.value.count("rule:") == 5
    assert "row 14 " in caught.value.value
    assert "row 15 " not in caught.value.value
    assert "15 more" in caught.value.value


def test_read_gives_the_same_frame_from_csv_and_parquet(frame, tmp_path):
    """Both files hold exactly the frame that was written."""
    for path in write(frame, tmp_path):
        pd.testing.assert_frame_equal(processed.read(path)[schema.COLUMNS], frame[schema.COLUMNS])


def test_read_names_a_missing_file(tmp_path):
    """A missing file is an error with a next step."""
    for name in ("germany.csv", "germany.parquet"):
        with pytest.raises(DataError, match=f"The file .*{name} does not exist") as caught:
            processed.read(tmp_path / name)
        assert caught.value.next_step
