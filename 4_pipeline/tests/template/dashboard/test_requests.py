"""Weather that is handed in: good weather comes through unchanged, and every fault ends in an error in words."""

from __future__ import annotations

import gzip

import pandas as pd
import pytest
from dashboard import requests
from forecast.errors import DataError
from forecast.table.features import INPUTS

HEADER = ",".join(INPUTS)
NUMBERS = "next:     correct the file, and upload it again; write numbers as 1234.5"
ROW = "2016-06-01T12:00:00Z,5.2,18.5,410,120"
RECORD = dict(zip(INPUTS, ["2016-06-01T12:00:00Z", 5.2, 18.5, 410, 120.0], strict=True))


def _month(**values) -> str:
    hours = pd.date_range("2016-06-01", periods=24 * 30, freq="h", tz="UTC")
    frame = pd.DataFrame({"utc_timestamp": hours, **dict(zip(INPUTS[1:], (5, 18, 200, 120), strict=True)) | values})
    return frame.to_csv(index=False)


def test_csv_and_records_are_the_same_weather():
    """Columns in any order, further ones, a byte order mark, other line ends and zones make no difference."""
    plain = requests.from_csv(f"{HEADER}\n{ROW}\n".encode())
    assert plain.columns.tolist() == INPUTS
    assert str(plain["utc_timestamp"].dtype) == "datetime64[us, UTC]"
    assert plain.iloc[0, 1:].tolist() == [5.2, 18.5, 410.0, 120.0]
    turned = ",".join(reversed(INPUTS)) + ",GW\r\n120,410,18.5,5.2,2016-06-01T14:00+02:00,7\r\n\r\n"
    pd.testing.assert_frame_equal(requests.from_csv(turned.encode("utf-8-sig")), plain)
    pd.testing.assert_frame_equal(requests.from_csv(f"{HEADER}\r{ROW}\r".encode()), plain)
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
        (gzip.compress(HEADER.encode(), mtime=0), ["weather.csv is not text in UTF-8, but packed", "x1f", "unpack it"]),
        (f"{HEADER}\n{ROW}".encode("utf-16"), ["or in UTF-16", "save it as CSV UTF-8"]),
        (f"{HEADER},\xd6\n".encode("latin-1"), ["line 1: not UTF-8", "next:     export the file again as CSV UTF-8"]),
        (f"{HEADER}\n{ROW}".replace("410", '"1,012.5"'), ["line 2, column rad_horizontal", NUMBERS]),
        (f"{HEADER}\n{ROW}".replace("410", "1,012.5"), ["line 2: the line is cut short or too long", NUMBERS]),
        (f"{HEADER}\n{ROW}".replace("18.5", "-; -"), ["column temperature", "'-; -'", NUMBERS]),
        (f"{HEADER}\n{ROW}".replace(",", ";"), ["separated by a semicolon", "next:     save the file with commas"]),
        (f"sep=,\n{HEADER}\n{ROW}", ["the header, which is line 2", "next:     remove the lines before the header"]),
        (f"{HEADER}\n{ROW}".replace("Z,", ","), ["with its zone", "next:     write the times with Z or an offset"]),
        (HEADER, ["there is a header, and no row after it", "upload it again"]),
        ("x" * 200_000, ["The file weather.csv cannot be read as CSV."]),
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
    assert not any(word in text for word in ("params.yaml", "own file", "iconv", ".md", "the file the file")), text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([RECORD, 7], ["Row 2", "7"]),
        ([RECORD, RECORD | {"solar_capacity_GW": 41, "wind_capacity_GW": 50}], ["Row 1 lacks 2 columns"]),
        ([RECORD | {"windspeed": True}], ["row 1, column windspeed", "True", "next:     correct these places"]),
        ([RECORD, RECORD | {"windspeed": 10**400}], ["row 2"]),
        ([RECORD | {"utc_timestamp": "2015-02-29T12:00:00Z"}], ["row 1, column utc_timestamp", "02-29"]),
    ],
)
def test_records_are_refused_with_place_and_what_was_allowed(rows, words):
    """The same rules hold for JSON."""
    with pytest.raises(DataError) as caught:
        requests.from_records(rows)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
