"""Weather that is handed in: good weather comes through unchanged, and every fault ends in an error in words."""

from __future__ import annotations

import pandas as pd
import pytest
from dashboard import requests
from forecast.errors import DataError
from forecast.table.features import INPUTS

HEADER = ",".join(INPUTS)
ROW = "2016-06-01T12:00:00Z,5.2,18.5,410,120"
RECORD = dict(zip(INPUTS, ["2016-06-01T12:00:00Z", 5.2, 18.5, 410, 120.0], strict=True))


def _month(**values) -> str:
    hours = pd.date_range("2016-06-01", periods=24 * 30, freq="h", tz="UTC")
    frame = pd.DataFrame({"utc_timestamp": hours, **dict(zip(INPUTS[1:], (5, 18, 200, 120), strict=True)) | values})
    return frame.to_csv(index=False)


def test_csv_and_records_are_the_same_weather():
    """Columns in any order, further ones, a byte order mark, Windows line ends and other zones make no difference."""
    plain = requests.from_csv(f"{HEADER}\n{ROW}\n".encode())
    assert plain.columns.tolist() == INPUTS
    assert str(plain["utc_timestamp"].dtype) == "datetime64[us, UTC]"
    assert plain.iloc[0, 1:].tolist() == [5.2, 18.5, 410.0, 120.0]
    turned = ",".join(reversed(INPUTS)) + ",GW\r\n120,410,18.5,5.2,2016-06-01T14:00+02:00,7\r\n\r\n"
    pd.testing.assert_frame_equal(requests.from_csv(turned.encode("utf-8-sig")), plain)
    pd.testing.assert_frame_equal(requests.from_records([dict(reversed(RECORD.items()))]), plain)
    other = RECORD | {"utc_timestamp": "2016-06-01 14:00+02:00"}  # not plain: it goes another way than RECORD
    pd.testing.assert_frame_equal(requests.from_records([other]), plain)
    assert len(requests.from_csv(_month().encode())) == 720


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty", "0 bytes"]),
        (f"{HEADER}\n{ROW}\n{ROW}", ["2 failures", "line 2 (2016-06-01T12:00:00Z)", "line 3 ", "each hour once"]),
        (f"{HEADER}\n{ROW}".replace("windspeed", "Wind_speed"), ["lacks 1 column: windspeed (nearest: 'Wind_speed')"]),
        (f"{HEADER},solar_capacity_GW\n{ROW},41", ["lacks 1 column: wind_capacity_GW"]),
        (f"{HEADER},solar_capacity_GW,wind_capacity_GW\n{ROW},41,-1", ["wind_capacity_GW = -1", "0 and 200 GW"]),
        (b"PK\x03\x04\x14\x00\x06\x00", ["an Excel file", "CSV UTF-8"]),
        (f"{HEADER}\n{ROW}".replace("12:00", "12:30"), ["line 2 ", "utc_timestamp = ", "the start of an hour"]),
        (f"{HEADER}\n{ROW}".replace("2016", "1016"), ["of the years 1900 to 2100"]),
        (f"{HEADER}\n" + f"{ROW}\n" * 9001, ["too large", "9001 rows"]),
        (b" x" * 1_000_001, ["too large", "2,000,002 bytes"]),
        (_month(windspeed=18.0), ["mean of windspeed", "18", "at most 10 m/s", "km/h"]),
    ],
)
def test_csv_is_refused_with_place_and_what_was_allowed(content, words):
    """What a visitor may send, beyond what every reader of a table refuses: lines, values, what was allowed."""
    with pytest.raises(DataError) as caught:
        requests.from_csv(content if isinstance(content, bytes) else content.encode())
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert len(text) < 1500


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([RECORD, 7], ["Row 2", "7"]),
        ([RECORD, RECORD | {"solar_capacity_GW": 41, "wind_capacity_GW": 50}], ["Row 1 lacks 2 columns"]),
        ([RECORD | {"windspeed": True}], ["row 1, column windspeed", "True"]),
        ([RECORD, RECORD | {"windspeed": 10**400}], ["row 2"]),
        ([RECORD | {"utc_timestamp": "2015-02-29T12:00:00Z"}], ["row 1, column utc_timestamp", "02-29"]),
        ([RECORD] * 9001, ["9001 rows"]),
    ],
)
def test_records_are_refused_with_place_and_what_was_allowed(rows, words):
    """The same rules hold for JSON."""
    with pytest.raises(DataError) as caught:
        requests.from_records(rows)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


# -- whatever comes ----------------------------------------------------------------------------------------------------
