"""From raw files to the processed table: rules, counts and errors."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest
from forecast import problem
from forecast.raw.prepare import LAYOUT, load_or_make, prepare
from forecast.table import schema
from forecast.table.processed import write
from forecast.terms.errors import DataError, ParameterError

POWER, WEATHER = "time_series_60min_singleindex.csv", "weather_data.csv"


def test_prepare_counts_the_faults_of_the_sample(prepared):
    """The findings count hours expected, kept, doubled, absent and incomplete, and are JSON-serializable."""
    frame, findings = prepared
    assert schema.check(frame) is frame
    assert len(frame) == 35_016
    assert json.loads(json.dumps(findings)) == findings
    assert [findings[f"steps_{name}"] for name in ("expected", "kept", "left_out")] == [35_064, 35_016, 48]
    assert findings["rows"] == {"power": 35_040, "weather": 35_056}
    assert findings["doubled"] == {"power": 4, "weather": 0}
    assert findings["absent"] == {"power": 28, "weather": 8}
    assert [*findings["incomplete"].values()] == [4, 5, 2, 0, 1, 0]
    assert [counts["steps_kept"] for counts in findings["by_year"].values()] == [8755, 8745, 8759, 8757]


def test_prepare_fills_in_nothing(raw, prepared):
    """The processed rows are exactly the first complete rows of both raw files, with power divided by 1000."""
    power = pd.read_csv(raw / POWER).drop_duplicates("utc_timestamp", keep="first")
    both = power.merge(pd.read_csv(raw / WEATHER), on="utc_timestamp")
    ours = {theirs: name for columns in LAYOUT.values() for theirs, name in columns.items()}
    expected = both[["utc_timestamp", *ours]].dropna().rename(columns=ours)
    expected[schema.TARGETS] = expected[schema.TARGETS] / 1000
    table = prepared[0].copy()
    table["utc_timestamp"] = table["utc_timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert table[schema.COLUMNS].set_index("utc_timestamp").equals(expected.set_index("utc_timestamp"))


def test_prepare_rejects_years_without_data(raw):
    """Years without data give a DataError, years in the wrong order a ParameterError."""
    with pytest.raises(DataError, match="no complete hour in common from 1999 to 2000"):
        prepare(raw, 1999, 2000)
    with pytest.raises(ParameterError, match="last year is before the first"):
        prepare(raw, 2016, 2013)


def test_write_gives_the_same_bytes_twice(frame, tmp_path):
    """Both files are deterministic and have the requested name; the frame is not changed."""
    before = frame.copy()
    one, two = write(frame, tmp_path / "one"), write(frame, tmp_path / "two", name="europe")
    assert [path.name for path in one + two] == ["germany.parquet", "germany.csv", "europe.parquet", "europe.csv"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    pd.testing.assert_frame_equal(frame, before)


def test_load_or_make_creates_the_file_once(prepared, tmp_path):
    """Without a file it is created from the sample; an existing file is read."""
    csv = tmp_path / "germany.csv"
    pd.testing.assert_frame_equal(load_or_make(csv), prepared[0])
    assert list(tmp_path.iterdir()) == [csv]
    csv.write_text("".join(csv.read_text().splitlines(keepends=True)[:11]))
    assert len(load_or_make(csv)) == 10


OTHER_ROWS = {
    "rolling": lambda rows: rows["windspeed"].rolling(3, min_periods=1).mean(),
    "shift": lambda rows: rows["windspeed"].shift(fill_value=0.0),
    "mean": lambda rows: rows["windspeed"] - rows["windspeed"].mean(),
}


@pytest.mark.parametrize("name", OTHER_ROWS)
def test_prepare_rejects_a_computed_column_that_depends_on_other_rows(raw, monkeypatch, name):
    """Models predict single rows: the error names column, row, both values and two fixes."""
    monkeypatch.setitem(problem.COMPUTED, "hub_windspeed", OTHER_ROWS[name])
    with pytest.raises(DataError, match=r"hub_windspeed of COMPUTED .* depends on other rows") as error:
        prepare(raw, 2016, 2016)
    assert re.fullmatch(r"2016-\d\d-\d\dT\d\d:00:00Z: \S+ in the table, \S+ alone", error.value.value)
    assert "from the row alone, or add it to your file with a script in own/" in error.value.next_step
