"""Invalid files for each reader."""

from __future__ import annotations

import re
import shutil

import pandas as pd
import pytest
from forecast.raw import sources
from forecast.raw.prepare import prepare
from forecast.table import processed
from forecast.table.processed import write
from forecast.terms.errors import DataError
from forecast.terms.parameters import Fetch, OwnFile

ROWS = 48


class Reader:
    """A reader with a valid file: ``read`` returns a frame, and findings if there are any."""

    def __init__(self, kind, raw, frame, folder):
        self.kind, self.folder = kind, folder
        self.column, self.near = {
            "power": ("DE_wind_generation_actual", "DE_wind_generation_actuall"),
            "weather": ("DE_windspeed_10m", "DE_windspeed_10"),
        }.get(kind, ("wind_GW", "wind_MW"))
        if kind in ("power", "weather"):
            for name in (sources.POWER_FILE, sources.WEATHER_FILE):
                shutil.copy(raw / name, folder / name)
            self.path = folder / (sources.POWER_FILE if kind == "power" else sources.WEATHER_FILE)
            self.lines = self.path.read_text().splitlines()[: ROWS + 1]
        else:
            self.path = write(frame.head(ROWS), folder, "mine")[1]
            self.lines = self.path.read_text().splitlines()
        self.put()

    def put(self, lines=None, encoding="utf-8"):
        """Write the file, by default with the valid lines."""
        self.path.write_text("\n".join(lines or self.lines) + "\n", encoding=encoding)

    def with_cells(self, values, column=None):
        """Return the lines with other cells in a column: ``values`` by line number."""
        place = self.lines[0].split(",").index(column or self.column)
        lines = [line.split(",") for line in self.lines]
        for line, value in values.items():
            lines[line - 1][place] = value
        return [",".join(fields) for fields in lines]

    def read(self):
        """Read the file as a user would; return the frame and the findings, if there are any."""
        if self.kind == "processed":
            return processed.read(self.path), {}
        if self.kind == "own":
            sources.fetch("csv", self.folder / "raw", Fetch(source="csv", csv=OwnFile(file=str(self.path))))
            return prepare(self.folder / "raw", 2013, 2013)
        return prepare(self.folder, 2013, 2013)

    def rejects(self, *words):
        """Read and return the error, which must contain the words, the file name and a next step."""
        with pytest.raises(DataError) as caught:
            self.read()
        for word in (*words, self.path.name):
            assert re.search(word, str(caught.value)), f"{word!r} is not in: {caught.value}"
        assert caught.value.next_step
        return caught.value


@pytest.fixture(params=["power", "weather", "processed", "own"])
def reader(request, raw, frame, tmp_path):
    """Each reader, with a valid file of 48 hours."""
    return Reader(request.param, raw, frame, tmp_path)


def test_file_without_rows(reader):
    """An empty file, no header in the first line, and a header without rows."""
    reader.path.write_bytes(b"")
    assert reader.rejects("is empty").value == "0 bytes"
    reader.put(["", *reader.lines])
    reader.rejects("header on line 1, but found it on line 2", "lines_before_header: 1")
    reader.put(reader.lines[:1])
    reader.rejects("line 1: the header has no rows")


def test_truncated_line(reader):
    """The error for a truncated line has its number, its text, and the actual and expected number of fields."""
    lines = [*reader.lines]
    lines[19] = lines[19][:30]
    reader.put(lines)
    error = reader.rejects("line 20: wrong number of fields")
    assert lines[19] in error.value
    assert "fields" in error.expected


def test_truncated_end(reader):
    """The last number may have lost digits."""
    reader.path.write_text("\n".join(reader.lines)[:-1])
    reader.rejects(f"line {ROWS + 1}: the file ends in the middle of a line", "echo >>")


@pytest.mark.parametrize(("separator", "name"), [(";", "a semicolon"), ("\t", "a tab"), ("|", "a bar")])
def test_wrong_separator(reader, separator, name):
    """The error names the likely separator."""
    reader.put([line.replace(",", separator) for line in reader.lines])
    reader.rejects("line 1: the columns are not separated by a comma", name, "separator")


def test_byte_order_mark(reader):
    """It is ignored in UTF-8."""
    reader.put(encoding="utf-8-sig")
    assert len(reader.read()[0]) == ROWS


def test_other_encoding(reader):
    """UTF-16 and a cell in Latin-1: the error names the line and a command to convert the file."""
    reader.put(encoding="utf-16")
    reader.rejects("line 1: the text is not UTF-8", "iconv -f UTF-16 -t UTF-8")
    reader.put(reader.with_cells({30: "1\u00b5"}), encoding="latin-1")
    reader.rejects("line 30: the text is not UTF-8", "iconv -f CP1252 -t UTF-8")


def test_quotes_and_commas_that_are_not_separators(reader):
    """A stray quote and a decimal comma: the error names that line."""
    line = reader.lines[9]
    for invalid in (line.replace(",", '"', 1), line.replace(",", ',"', 1)):
        reader.put([*reader.lines[:9], invalid, *reader.lines[10:]])
        reader.rejects("line 10: a quote is not closed", "quotes")
    reader.put(reader.with_cells(dict.fromkeys(range(2, ROWS + 2), '"1,5"')))
    reader.rejects(rf"line 2, column {reader.column}", r"'1,5'", "decimal: ','", f"{ROWS} such cells")
    reader.put(reader.with_cells(dict.fromkeys(range(2, ROWS + 2), "1,5")))
    reader.rejects("line 2: wrong number of fields", "numbers with a decimal point")


def test_cells_in_quotes(reader):
    """A cell or a column name may be quoted and then contain commas."""
    expected = reader.read()[0]
    reader.put([",".join(f'"{cell}"' for cell in [*line.split(","), "a, b"]) for line in reader.lines])
    pd.testing.assert_frame_equal(reader.read()[0], expected, check_exact=True)


def test_missing_and_duplicate_columns(reader):
    """The error suggests the nearest column of the file; two columns of one name are an error."""
    reader.put([reader.lines[0].replace(reader.column, reader.near), *reader.lines[1:]])
    reader.rejects(rf"lacks 1 column: {reader.column} \(nearest: '{reader.near}'\)")
    reader.put([f"{line},{reader.column if number == 0 else 1.0}" for number, line in enumerate(reader.lines)])
    reader.rejects("line 1", f"duplicate columns: {reader.column}")


@pytest.mark.parametrize("text", ["n.a.", "1.000.0", "0x1f"])
def test_text_in_numbers(reader, text):
    """The error has file, line, column and text, and whether the cell may be empty."""
    reader.put(reader.with_cells({25: text}))
    error = reader.rejects(f"line 25, column {reader.column}", re.escape(repr(text)))
    nullable = ", or an empty cell" if reader.kind != "processed" else ""
    assert error.expected == f"a number{nullable}"


def test_naive_timestamps(reader):
    """The time zone of naive times is not guessed; for a user's file the mapping can set it."""
    stamps = {line: reader.lines[line - 1].split(",")[0].removesuffix("Z") for line in range(2, ROWS + 2)}
    reader.put(reader.with_cells(stamps, "utc_timestamp"))
    reader.rejects("line 2, column utc_timestamp", r"fetch\.csv\.time\.zone", f"{ROWS} such cells")


def test_impossible_cells(reader):
    """A time off the hour in raw files, and negative power: the error has line and rule."""
    if reader.kind != "processed":
        reader.put(reader.with_cells({40: "2013-01-02T14:15:00Z"}, "utc_timestamp"))
        reader.rejects("line 40, column utc_timestamp: not the start of an hour", "2013-01-02T14:15:00Z")
    reader.put(reader.with_cells({40: "-4"}))
    reader.rejects(r"line 40 \(2013-01-02T14:00:00Z\)", reader.column, "rule: between 0 and")


def test_duplicate_hour(reader):
    """Of duplicate hours in raw files the first row is kept and the second counted; in a processed table an error."""
    reader.put([*reader.lines[:10], reader.lines[9], *reader.lines[10:]])
    if reader.kind == "processed":
        reader.rejects("line 11", "rule: each hour once")
    else:
        frame, findings = reader.read()
        assert len(frame) == ROWS
        assert findings["doubled"][reader.kind] == 1
        assert findings["rows"][reader.kind] > ROWS


def test_unsorted_rows(reader):
    """Raw files are sorted and the rows counted; in a processed table the error has the line."""
    lines = [*reader.lines]
    lines[5], lines[20] = lines[20], lines[5]
    reader.put(lines)
    if reader.kind == "processed":
        reader.rejects("line 7", "rule: increasing")
    else:
        frame, findings = reader.read()
        assert frame["utc_timestamp"].is_monotonic_increasing
        assert findings["unordered"][reader.kind] == 15


def test_rows_of_other_years(reader):
    """Rows outside the requested years are counted."""
    if reader.kind == "processed":
        pytest.skip("has no parameters for years")
    reader.put(reader.with_cells({2: "2012-12-31T23:00:00Z"}, "utc_timestamp"))
    _, findings = reader.read()
    assert findings["outside_years"][reader.kind] == 1
    assert findings["rows"][reader.kind] == ROWS
    assert findings["steps_kept"] == ROWS - 1


def test_future_dates(reader):
    """In a processed table an error with its line; in raw files counted as a row of other years."""
    reader.put(reader.with_cells({40: "2999-01-01T00:00:00Z"}, "utc_timestamp"))
    if reader.kind == "processed":
        reader.rejects("line 40 ", "2999-01-01T00:00:00Z", "rule: not in the future")
    else:
        assert reader.read()[1]["outside_years"][reader.kind] == 1
