"""The fast reading: it gives what the strict reading gives, or nothing at all."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from workshop.data import scan, tables
from workshop.errors import DataError

COLUMNS = ["utc_timestamp", "wind"]
GOOD = "utc_timestamp,other,wind\n2013-01-01T00:00:00Z,a,1.5\n2013-01-01T01:00:00Z,b,2\n2013-01-01T02:00:00Z,,\n"
NUMBERS = ["1.", ".5", "-.5", "+1", "1e5", "1E-5", "1e999", "1e-999", "-0", "-0.0", "00012", "1e", "0x1f", "1_000",
           "NAN", "nAn", "-nan", "nan", "NULL", "N/A", "n.a.", "inf", "-INF", "Infinity", " 1.5", "1.5 ", "\t1", "1d5",
           "12345678901234567890", "5e-324", "  ", "None", "True", "-", "--1", "1 2", '"1.5"', '"1,5"', '""', '"1',
           "1,5", "\u00a01", "\u0661", "0.1234567890123456789", "17.000000000000000001",
           "179769313486231570000e289"]  # fmt: skip
STAMPS = ["2013-01-01T03:00:00Z", "2013-01-01 03:00:00Z", "2013-01-01T03:00Z", "2013-01-01T03Z", "2013-01-01T03:00:00",
          "2013-01-01T03:00:00+01:00", "2013-01-01T03:00:00.5Z", "2013-01-01", "today", "now", "", "nan",
          "2013-1-1T3:0:0Z",
          "2013-02-30T00:00:00Z", "2016-02-29T00:00:00Z", "2013-01-01T24:00:00Z", "2013-01-01T23:59:60Z",
          "0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "1677-01-01T00:00:00Z", "2262-05-01T00:00:00Z",
          "2999-01-01T00:00:00Z", "9999-12-31T23:00:00Z", "20130101T030000.000Z", "2013-W01-1T03:00:00Z",
          "2013-01-01T03:00:00z", " 2013-01-01T03:00:00Z", "2013-01-01T03:00+01", "+2013-01-01T03:00:0Z",
          "2013-01-01T03:00-00", "1356998400", '"2013-01-01T03:00:00Z"']  # fmt: skip
LINES = ["2013-01-01T03:00:00Z,c", "2013-01-01T03:00:00Z,c,1,2", "", ",,", " ", "2013-01-01T03:00:00Z,c,1\r",
         '2013-01-01T03:00:00Z,"c\nd",1', '2013-01-01T03:00:00Z,"c,d",1', '2013-01-01T03:00:00Z,"c,1',
         "2013-01-01T03:00:00Z,\u00e4,1"]  # fmt: skip
TAILS = ["2013-01-01T03:00:00Z,c,1", "\r\n", "\n", "2013-01-01T03:00:00Z,c,1\r"]
CASES = (
    [f"2013-01-01T03:00:00Z,c,{number}\n" for number in NUMBERS]
    + [f"{stamp},c,1\n" for stamp in STAMPS]
    + [f"{line}\n" for line in LINES]
    + TAILS
)


def both(path, columns):
    """What each reading gives of a file: a frame, None from the fast one, the words of an error from the strict one."""
    try:
        strict = tables._read_strictly(path, columns, "")
    except DataError as error:
        strict = str(error)
    with pa.OSFile(str(path)) as file:
        table = scan.scan(file, columns, tables.latest_allowed())
    return None if table is None else scan.to_frame(table), strict


@pytest.mark.parametrize("more", CASES)
@pytest.mark.parametrize("threads", [True, False])
def test_scan_gives_what_strict_reading_gives_or_nothing(tmp_path, more, threads):
    """A number, a time or a line of any odd form: never accepted where it is refused, never another bit."""
    path = tmp_path / "odd.csv"
    path.write_bytes((GOOD + more).encode())
    fast, strict = both(path, COLUMNS)
    try:
        whole = tables.read_columns(path, COLUMNS, next_step="")
    except DataError as error:
        whole = str(error)
    if isinstance(strict, str):
        assert whole == strict
        assert fast is None
    else:
        for frame in filter(lambda frame: frame is not None, (fast, whole)):
            pd.testing.assert_frame_equal(frame, strict, check_exact=True, check_index_type=True)
            assert frame.index.equals(strict.index)
            assert frame["wind"].to_numpy().tobytes() == strict["wind"].to_numpy().tobytes()


def test_scan_gives_the_same_bits_for_any_number_of_digits(tmp_path):
    """Numbers of up to 19 digits, plain and with exponents: to the bit what the strict reading makes of them."""
    random = np.random.default_rng(0)
    values = random.uniform(-50, 40_000, 200)
    texts = [format(value, f".{digits}{form}") for value in values for digits in range(20) for form in "fe"]
    path = tmp_path / "numbers.csv"
    path.write_text("utc_timestamp,other,wind\n" + "".join(f"2013-01-01T00:00:00Z,,{text}\n" for text in texts))
    fast, strict = both(path, COLUMNS)
    assert fast["wind"].to_numpy().tobytes() == strict["wind"].to_numpy().tobytes()


def test_scan_reads_the_plain_file(tmp_path):
    """What is plain is read fast: lines as the index, UTC, an empty cell as NaN."""
    path = tmp_path / "plain.csv"
    path.write_text(GOOD)
    fast, strict = both(path, COLUMNS)
    pd.testing.assert_frame_equal(fast, strict, check_exact=True)
    assert list(fast.index) == [2, 3, 4]
    assert str(fast["utc_timestamp"].dtype) == "datetime64[us, UTC]"
