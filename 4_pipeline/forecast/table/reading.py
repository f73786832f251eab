"""A strict CSV reader: no guesses, no skipped lines; errors name file, line, column and value."""

from __future__ import annotations

import csv
import io
import itertools
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pandas as pd
import pyarrow as pa
from pandas import DataFrame, Series
from pyarrow import csv as arrow

from forecast.terms import steps
from forecast.terms.errors import DataError, require_columns

WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # magic bytes of Excel files, .xlsx and .xls
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
DECIMALS = {".": "point", ",": "comma"}
MAX_LINES_BEFORE = 100  # lines to search for a header that is not on the expected line
MIN_MARKED = 100  # fewer numbers may all have three decimals by coincidence
_compose = partial(unicodedata.normalize, "NFC")  # `ä` may be one code point or two


class Table(NamedTuple):
    """The rows of a raw file, converted to our units and indexed by line number.

    ``names`` are the file's own column names; ``counts`` is the number of rows dropped or changed, by kind and reason.
    """

    path: Path
    frame: DataFrame
    names: dict[str, str]
    counts: dict[str, dict[str, int]]


# -- from file to text -------------------------------------------------------------------------------------------------
def read_text(
    source: Path | bytes,
    columns: Sequence[str],
    *,
    next_step: str,
    separator: str = ",",
    name: str | None = None,
    lines_before: int = 0,
) -> DataFrame:
    """Read ``columns`` of a CSV file as text, indexed by line number; an empty cell is missing.

    ``source`` is a path, or the content of a file called ``name`` in errors. The file is UTF-8, with or without a byte
    order mark, and has ``lines_before`` lines before its header; trailing empty lines are dropped. Raises DataError
    for a missing or empty file, a header without rows, another encoding or separator, a missing or duplicate column, a
    line of the wrong length, an unclosed quote, and an incomplete last line. ``next_step`` says how to get a new file.
    """
    name, columns = name or str(source), list(columns)
    table = _parse(source, list(map(_compose, columns)), separator, lines_before, name, next_step)
    text = table.to_pandas().set_axis(columns, axis="columns")
    text.index = pd.RangeIndex(lines_before + 2, lines_before + len(text) + 2, name="line")
    non_empty = text.index[text.notna().any(axis="columns")]
    if not len(non_empty):
        what = f"{name}, line {lines_before + 1}: the header has no rows below it."
        raise DataError(what, expected=f"one row for each {steps.NAME}", next_step=next_step)
    return text.loc[: non_empty[-1]]


def _parse(
    source: Path | bytes, columns: list[str], separator: str, lines_before: int, name: str, next_step: str
) -> pa.Table:
    """Parse columns of a CSV file as text; raise the errors of `read_text`."""
    broken = []  # lines of the wrong length

    def note(row: arrow.InvalidRow) -> str:
        broken.append(row)
        return "skip"

    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            header = _read_header(file, columns, separator, lines_before, name, next_step)
            file.seek(0)
            _require_whole_lines(file, lines_before, name, next_step)
            file.seek(0)
            table = arrow.read_csv(
                file,
                # pyarrow reports line numbers only without threads
                arrow.ReadOptions(use_threads=False, column_names=header, skip_rows=lines_before + 1),
                arrow.ParseOptions(delimiter=separator, invalid_row_handler=note, ignore_empty_lines=False),
                arrow.ConvertOptions(
                    include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True
                ),
            )
    except FileNotFoundError:
        raise DataError(f"The file {name} does not exist.", next_step=next_step) from None
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DataError(f"The file {name} cannot be read as CSV.", value=error, next_step=next_step) from None
    if broken:
        line = broken[0]
        comma = separator == "," and line.actual_columns > line.expected_columns
        raise DataError(
            f"{name}, line {line.number}: wrong number of fields ({_count(len(broken), 'such line')}).",
            value=f"{line.actual_columns} fields: {line.text[:80]}",
            expected=f"{line.expected_columns} fields" + (", and numbers with a decimal point" if comma else ""),
            next_step=next_step,
        )
    return table


def _read_header(
    file: BinaryIO, columns: list[str], separator: str, lines_before: int, name: str, next_step: str
) -> list[str]:
    """Return the column names in the header; raise DataError if it is missing, or lacks or repeats one of ``columns``.

    The error gives the line on which the columns were found, or the separator that the file seems to use.
    """
    lines = list(itertools.islice(file, lines_before + MAX_LINES_BEFORE))
    if lines and lines[0].startswith(WORKBOOKS):
        raise DataError(
            f"{name} is not CSV, but an Excel or compressed file.",
            expected=f"text with a header and one row for each {steps.NAME}",
            next_step="save the sheet as CSV UTF-8, or decompress the file",
        )
    line, number = b"".join(lines[lines_before : lines_before + 1]), lines_before + 1
    header = _fields(_decoded(line, number, name), separator)
    if not set(columns) <= set(header):
        _find_header(lines, line, number, columns, separator, name)
    if not header:
        raise DataError(
            f"{name}, line {number}: the line is empty." if lines else f"{name} is empty.",
            value="no header" if lines else "0 bytes",
            expected=f"a header and one row for each {steps.NAME}",
            next_step=next_step,
        )
    _require_separator(header, columns, separator, f"{name}, line {number}")
    require_columns(header, columns, name, next_step)
    duplicates = [column for column, times in Counter(header).items() if times > 1 and column in columns]
    if duplicates:
        raise DataError(
            f"{name}, line {number}: duplicate columns: {', '.join(duplicates)}.",
            value=f"{len(header)} columns: {', '.join(header)[:200]}",
            expected="each column once",
            next_step=f"keep one of each, and rename or remove the others; {next_step}",
        )
    return header


def _find_header(lines: list[bytes], line: bytes, number: int, columns: list[str], separator: str, name: str) -> None:
    """Raise DataError if the columns are on a line other than the expected header line."""
    for before, row in enumerate(lines):
        if set(columns) <= set(_fields(row.decode("utf-8-sig", errors="replace"), separator)):
            raise DataError(
                f"{name}: expected the header on line {number}, but found it on line {before + 1}.",
                value=repr(line[:80].decode(errors="replace")),
                expected=", ".join(columns),
                next_step=f"for your own file, set lines_before_header: {before} in params.yaml (fetch.csv); or remove"
                " the lines before the header",
            )


def _require_separator(header: list[str], columns: list[str], separator: str, place: str) -> None:
    """Raise DataError if the header seems to use a separator other than ``separator``."""
    for other, description in SEPARATORS.items():
        joined = separator.join(header)
        if other != separator and not set(columns) & set(header) and joined.count(other) >= max(1, len(columns) - 1):
            raise DataError(
                f"{place}: the columns are not separated by {SEPARATORS[separator]}.",
                value=f"{joined[:80]} (probably separated by {description})",
                expected=f"{len(columns)} or more columns",
                next_step=f"save the file with {SEPARATORS[separator].removeprefix('a ')}s; for your own file, set"
                f" separator: {other!r} in params.yaml (fetch.csv)",
            )


def _fields(line: str, separator: str) -> list[str]:
    return list(map(_compose, next(csv.reader([line], delimiter=separator), [])))


def _decoded(line: bytes, number: int, name: str) -> str:
    """Decode a line; raise DataError if it is not UTF-8."""
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = (
            "UTF-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else "CP1252"
        )  # spreadsheet programs save CSV as CP1252 by default
        raise DataError(
            f"{name}, line {number}: the text is not UTF-8.",
            value=repr(line[max(error.start - 20, 0) : error.end + 20]),
            expected="text in UTF-8",
            next_step=f"iconv -f {encoding} -t UTF-8 FILE > NEW; or export the file again as uncompressed CSV UTF-8",
        ) from None


def _require_whole_lines(file: BinaryIO, lines_before: int, name: str, next_step: str) -> None:
    """Raise DataError if a line is not UTF-8, a quote is not closed on its line, or the last line is incomplete."""
    open_quote = None
    for number, line in enumerate(file, 1):
        text = _decoded(line, number, name)
        if open_quote is None and number > lines_before and text.count('"') % 2:
            open_quote = number, text[:80].rstrip()
    if open_quote:
        raise DataError(
            f"{name}, line {open_quote[0]}: a quote is not closed.",
            value=open_quote[1],
            expected="quotes in pairs, without a line break between them",
            next_step="correct that line; numbers and times need no quotes",
        )
    if not line.endswith(b"\n"):  # the last number may be incomplete
        raise DataError(
            f"{name}, line {number}: the file ends in the middle of a line.",
            next_step=f"{next_step}; or, if that line is complete, add the missing line break: echo >> {name}",
        )


# -- from text to numbers and times ------------------------------------------------------------------------------------
def convert_text(text: DataFrame, name: str, *, nullable: bool = False) -> DataFrame:
    """Convert columns of text to `utc_timestamp` (datetime64[us, UTC]) and float64; see `utc_times`, `numbers`."""
    converters, number = {"utc_timestamp": utc_times}, partial(numbers, nullable=nullable)
    return DataFrame({column: converters.get(column, number)(text[column], name) for column in text})


def numbers(
    text: Series, name: str, decimal: str = ".", *, thousands: str | None = None, nullable: bool = False
) -> Series:
    """Convert a column of text to float64, empty cells to NaN; raise DataError for anything else.

    ``nullable`` only affects the error's text: `schema.check_cells` rejects empty cells.
    """
    values = _convert(text, decimal, thousands)
    wrong = values.isna() & text.notna()
    next_step = _find_keys(text[wrong], decimal) if wrong.any() else None
    require(~wrong, text, name, "a number" + ", or an empty cell" * nullable, next_step)
    # If all decimals look like "1.234", and no whole number exceeds 999, the mark probably separates thousands.
    if len(text) < MIN_MARKED:  # as in most requests, which need not wait for this
        return values
    marked = text.str.contains(decimal, regex=False, na=False)
    groups = text.str.fullmatch(rf"\s*-?[1-9]\d{{0,2}}\{decimal}\d{{3}}\s*", na=False)
    if marked.sum() >= MIN_MARKED and 100 <= values[~marked].max() < 1000 and groups.equals(marked) and not thousands:
        next_step = f"if each {DECIMALS[decimal]} separates thousands, set `thousands` and `decimal` in params.yaml"
        next_step += " (fetch.csv); otherwise write the whole numbers with decimals, too"
        require(~groups, text, name, f"a number without a {DECIMALS[decimal]} as thousands separator", next_step)
    return values


def _convert(text: Series, decimal: str, thousands: str | None = None) -> Series:
    """Convert text with these separators to float64; anything else becomes NaN."""
    if thousands:
        # Accept all kinds of spaces, and both apostrophes.
        mark = {" ": r"\s", "'": "'\u2019"}.get(thousands, thousands)
        grouped = text.str.fullmatch(rf"\s*[+-]?\d{{1,3}}(?:[{mark}]\d{{3}})+(?:\{decimal}\d*)?\s*", na=False)
        text = text.where(~grouped, text.str.replace(rf"[{mark}]", "", regex=True))
    if decimal == ",":
        text = text.str.replace(".", "no point", regex=False).str.replace(",", ".", regex=False)
    text = text.str.replace("\u2212", "-", regex=False)  # a minus sign
    return pd.to_numeric(text, errors="coerce").astype("float64") + 0.0  # -0.0 becomes 0.0


def _find_keys(wrong: Series, decimal: str) -> str | None:
    """Return a next step for these cells, such as the params.yaml settings for their format; None if none is found."""
    if wrong.iloc[0] == wrong.name:
        return "remove the second header"
    is_number = wrong.str.contains(r"\d") & ~wrong.str.startswith("#")  # not "#DIV/0!"
    numeric, [other] = wrong[is_number], DECIMALS.keys() - {decimal}
    marks = [{"thousands": mark} for mark in (other, " ", "'")]
    for keys in ({"decimal": other}, *marks, {"decimal": other, "thousands": decimal}) if len(numeric) else ():
        if _convert(numeric, **{"decimal": decimal, **keys}).notna().all():
            settings = ", ".join(f"{key}: {value!r}" for key, value in keys.items())
            return f"the numbers have another format: for your own file, set {settings} in params.yaml (fetch.csv)"
    mark = f"{wrong.iloc[0].strip()!r}"
    step = f"if {mark} marks a missing value in your own file, set no_value: [{mark}] in params.yaml (fetch.csv)"
    if wrong.nunique() > 1:
        step = f"encode categories as numbers (see the Visitors section of another_problem.md); {step}"
    return None if len(numeric) else step


def utc_times(text: Series, name: str) -> Series:
    """Convert ISO 8601 times with an offset to datetime64[us, UTC]; raise DataError for anything else."""
    values = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce").dt.as_unit("us")
    # The text must begin with a year: pandas also accepts "today" and "now".
    expected = "a timestamp such as 2013-01-31T23:00:00Z"
    require(values.notna() & text.str.match(r"\d{4}-", na=False), text, name, expected)
    next_step = "write the times with Z or an offset; for your own file, set fetch.csv.time.zone in params.yaml"
    require(has_zone(text), text, name, f"{expected}, with an offset", next_step)
    return values


def has_zone(text: Series) -> Series:
    """Return for each ISO 8601 time whether it has an offset from UTC."""
    return text.str.contains(r"[:T]\d{2}\S*?\s?(?:Z|UTC|[+-]\d{2}(?::?\d{2})?)$", na=False)


def require(good: Series, text: Series, name: str, expected: str, next_step: str | None = None) -> None:
    """Raise DataError for the first cell that is not ``good``; the index holds the line numbers."""
    if good.all():
        return
    line, place = (~good).idxmax(), text.index.name
    raise DataError(
        f"{name}, {place} {line}, column {text.name}: invalid value ({_count((~good).sum(), 'such cell')}).",
        value="an empty cell" if pd.isna(text[line]) else repr(text[line])[:200],
        expected=expected,
        next_step=next_step or f"correct that {place}, or create the file again",
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'} in all"
