"""Uploaded inputs: valid ones are returned unchanged, and each fault is an error with its place."""

from __future__ import annotations

import gzip

import pandas as pd
import pytest
from dashboard import requests
from forecast.table.features import INPUTS
from forecast.terms.errors import DataError

HEADER = ",".join(INPUTS)
NUMBERS = "correct the file and upload it again; write numbers as 1234.5"
ROW = "2016-06-01T12:00:00Z,5.2,18.5,410,120"
RECORD = dict(zip(INPUTS, ["2016-06-01T12:00:00Z", 5.2, 18.5, 410, 120.0], strict=True))


def _month(**values) -> str:
    hours = pd.date_range("2016-06-01", periods=24 * 30, freq="h", tz="UTC")
    frame = pd.DataFrame({"utc_timestamp": hours, **dict(zip(INPUTS[1:], (5, 18, 200, 120), strict=True)) | values})
    return frame.to_csv(index=False)


def test_csv_and_records_give_the_same_inputs():
    """Column order, extra columns, byte order marks, line ends and time zones make no difference."""
    plain = requests.from_csv(f"{HEADER}\n{ROW}\n".encode())
    assert plain.columns.tolist() == INPUTS
    assert str(plain["utc_timestamp"].dtype) == "datetime64[us, UTC]"
    assert plain.iloc[0, 1:].tolist() == [5.2, 18.5, 410.0, 120.0]
    turned = ",".join(reversed(INPUTS)) + ",GW\r\n120,410,18.5,5.2,2016-06-01T14:00+02:00,7\r\n\r\n"
    pd.testing.assert_frame_equal(requests.from_csv(turned.encode("utf-8-sig")), plain)
    pd.testing.assert_frame_equal(requests.from_csv(f"{HEADER}\r{ROW}\r".encode()), plain)
    pd.testing.assert_frame_equal(requests.from_records([dict(reversed(RECORD.items()))]), plain)
    assert len(requests.from_csv(_month().encode())) == 720


@pytest.mark.parametrize(
    ("content", "where", "advice"),
    [
        (b"", "empty", ""),
        (f"{HEADER}\n{ROW}\n{ROW}", r"2 failures(?s:.)*line 2 (?s:.)*line 3 ", ""),
        (f"{HEADER},solar_capacity_GW\n{ROW},41", "lacks 1 column: wind_capacity_GW", ""),
        (f"{HEADER},solar_capacity_GW,wind_capacity_GW\n{ROW},41,-1", "wind_capacity_GW = -1", ""),
        (gzip.compress(HEADER.encode(), mtime=0), r"weather\.csv is not UTF-8 text", "decompress it"),
        (f"{HEADER}\n{ROW}".encode("utf-16"), "or UTF-16", "save it as CSV UTF-8"),
        (f"{HEADER},\xd6\n".encode("latin-1"), "line 1: .*not UTF-8", "export the file again as uncompressed CSV"),
        (f"{HEADER}\n{ROW}".replace("410", '"1,012.5"'), "line 2, column rad_horizontal", NUMBERS),
        (f"{HEADER}\n{ROW}".replace("410", "1,012.5"), "line 2: wrong number of fields", NUMBERS),
        (f"{HEADER}\n{ROW}".replace("18.5", "-; -"), "line 2, column temperature", NUMBERS),
        (f"{HEADER}\n{ROW}".replace(",", ";"), "separated by a semicolon", "save the file with commas"),
        (f"sep=,\n{HEADER}\n{ROW}", "but found it on line 2", "remove the lines before the header"),
        (f"{HEADER}\n{ROW}".replace("Z,", ","), "line 2, column utc_timestamp", "write the times with Z or an offset"),
        (b"PK\x03\x04\x14\x00\x06\x00", "an Excel or compressed file", ""),
        (f"{HEADER}\n{ROW}".replace("12:00", "12:30"), "line 2 (?s:.)*the start of an hour", ""),
        (f"{HEADER}\n{ROW}".replace("2016", "1016"), "line 2 (?s:.)*a year from 1900 to 2100", ""),
        (f"{HEADER}\n" + f"{ROW}\n" * 9001, "too large(?s:.)*9001 rows", ""),
        (b" x" * 1_000_001, "too large(?s:.)*2,000,002 bytes", ""),
        (_month(windspeed=18.0), r"mean of windspeed", "km/h"),
    ],
)
def test_invalid_csv_is_rejected_with_its_place(content, where, advice):
    """The next step needs neither a shell nor the pipeline's folder."""
    with pytest.raises(DataError, match=where) as caught:
        requests.from_csv(content if isinstance(content, bytes) else content.encode())
    assert advice in caught.value.next_step
    assert not any(word in str(caught.value) for word in ("params.yaml", "own file", "iconv", ".md"))


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ([RECORD, 7], "Row 2"),
        ([RECORD, RECORD | {"solar_capacity_GW": 41, "wind_capacity_GW": 50}], "Row 1 lacks 2 columns"),
        ([RECORD | {"windspeed": True}], "row 1, column windspeed"),
        ([RECORD, RECORD | {"windspeed": 10**400}], "row 2"),
        ([RECORD | {"utc_timestamp": "2015-02-29T12:00:00Z"}], "row 1, column utc_timestamp"),
    ],
)
def test_invalid_records_are_rejected_with_their_place(rows, where):
    """The same rules apply to JSON."""
    with pytest.raises(DataError, match=where):
        requests.from_records(rows)
