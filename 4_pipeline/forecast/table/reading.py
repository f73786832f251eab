"""Read CSV files strictly: no guesses, no skipped lines; an error names file, line, column and value."""

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

WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how Excel's files begin, of today and of before 2007
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
DECIMALS = {".": "point", ",": "comma"}
MAX_LINES_BEFORE = 100  # of a header, that are searched for it
MIN_MARKED = 100  # so many numbers, all of three decimals, are not by chance
_compose = partial(unicodedata.normalize, "NFC")  # `ä` may be one character or two, and a reader sees no difference


class Table(NamedTuple):
    """Rows of a raw file in our units; the index is the line in the file; ``names`` are the file's column names.

    ``counts`` are the rows that reading left out or changed, by kind and reason.
    """

    path: Path
    frame: DataFrame
    names: dict[str, str]
    counts: dict[str, dict[str, int]]


# -- a file to text ----------------------------------------------------------------------------------------------------
def read_text(
    source: Path | bytes,
    columns: Sequence[str],
    *,
    next_step: str,
    separator: str = ",",
    name: str | None = None,
    lines_before: int = 0,
) -> DataFrame:
    """Read ``columns`` of a CSV file as text; the index is the line in the file, an empty cell is missing.

    ``source`` is a path, or the content of a file that errors call ``name``. The file is UTF-8, with or without a byte
    order mark, and has ``lines_before`` its header; empty lines at its end are left out. Only these columns are kept in
    memory. Raises DataError: no file, an empty file, a header alone, another encoding or separator, a column missing or
    doubled, a line cut short or too long, a quote that is not closed in its line. ``next_step`` says how to get the
    file again.
    """
    name, columns = name or str(source), list(columns)
    table = _parse(source, list(map(_compose, columns)), separator, lines_before, name, next_step)
    text = table.to_pandas().set_axis(columns, axis="columns")
    text.index = pd.RangeIndex(lines_before + 2, lines_before + len(text) + 2, name="line")
    filled = text.index[text.notna().any(axis="columns")]
    if not len(filled):
        what = f"{name}, line {lines_before + 1}: there is a header, and no row after it."
        raise DataError(what, expected=f"a row {steps.ONE}", next_step=next_step)
    return text.loc[: filled[-1]]


def _parse(
    source: Path | bytes, columns: list[str], separator: str, lines_before: int, name: str, next_step: str
) -> pa.Table:
    """Return columns of a CSV file as texts; raises what `read_text` raises."""
    broken = []  # lines with too few or too many fields

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
                # with threads, pyarrow does not number the lines
                arrow.ReadOptions(use_threads=False, column_names=header, skip_rows=lines_before + 1),
                arrow.ParseOptions(delimiter=separator, invalid_row_handler=note, ignore_empty_lines=False),
                arrow.ConvertOptions(
                    include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True
                ),
            )
    except FileNotFoundError:
        raise DataError(f"There is no file {name}.", next_step=next_step) from None
    except (OSError, ValueError, csv.Error) as error:  # ValueError: of pyarrow
        raise DataError(f"The file {name} cannot be read as CSV.", value=error, next_step=next_step) from None
    if broken:
        line = broken[0]
        comma = separator == "," and line.actual_columns > line.expected_columns
        raise DataError(
            f"{name}, line {line.number}: the line is cut short or too long ({_count(len(broken), 'such line')}).",
            value=f"{line.actual_columns} fields: {line.text[:80]}",
            expected=f"{line.expected_columns} fields" + (", and numbers with a point" if comma else ""),
            next_step=next_step,
        )
    return table


def _read_header(
    file: BinaryIO, columns: list[str], separator: str, lines_before: int, name: str, next_step: str
) -> list[str]:
    """Return the names in the header; raise DataError if there is none, or if ``columns`` are not in it once each.

    The error says which line has them, or which separator the file seems to have.
    """
    lines = list(itertools.islice(file, lines_before + MAX_LINES_BEFORE))
    if lines and lines[0].startswith(WORKBOOKS):
        raise DataError(
            f"{name} is not CSV: it is an Excel file, or a packed one.",
            expected=f"text with a header, and a row {steps.ONE}",
            next_step="save the sheet as CSV UTF-8, or unpack the file",
        )
    line, number = b"".join(lines[lines_before : lines_before + 1]), lines_before + 1
    header = _fields(_decoded(line, number, name), separator)
    if not set(columns) <= set(header):
        _find_header(lines, line, number, columns, separator, name)
    if not header:
        raise DataError(
            f"{name}, line {number}: the line is empty." if lines else f"{name} is empty.",
            value="no header" if lines else "0 bytes",
            expected=f"a header, and a row {steps.ONE}",
            next_step=next_step,
        )
    _require_separator(header, columns, separator, f"{name}, line {number}")
    require_columns(header, columns, name, next_step)
    doubled = [column for column, times in Counter(header).items() if times > 1 and column in columns]
    if doubled:
        raise DataError(
            f"{name}, line {number}: more than once: {', '.join(doubled)}.",
            value=f"{len(header)} columns: {', '.join(header)[:200]}",
            expected="each column once",
            next_step=f"rename or remove the one that is not meant; {next_step}",
        )
    return header


def _find_header(lines: list[bytes], line: bytes, number: int, columns: list[str], separator: str, name: str) -> None:
    """Raise DataError if another line than ``line``, which should be the header, has the columns."""
    for before, row in enumerate(lines):
        if set(columns) <= set(_fields(row.decode("utf-8-sig", errors="replace"), separator)):
            raise DataError(
                f"{name}, line {number}: not the header, which is line {before + 1}.",
                value=repr(line[:80].decode(errors="replace")),
                expected=", ".join(columns),
                next_step=f"for an own file, set lines_before_header: {before} in params.yaml (fetch.csv); or remove"
                " the lines before the header",
            )


def _require_separator(header: list[str], columns: list[str], separator: str, place: str) -> None:
    """Raise DataError if the header seems to have another separator."""
    for other, words in SEPARATORS.items():
        joined = separator.join(header)
        if other != separator and not set(columns) & set(header) and joined.count(other) >= max(1, len(columns) - 1):
            raise DataError(
                f"{place}: the columns are not separated by {SEPARATORS[separator]}.",
                value=f"{joined[:80]} (separated by {words}, it seems)",
                expected=f"{len(columns)} or more columns",
                next_step=f"save the file with {SEPARATORS[separator].removeprefix('a ')}s; for an own file, set"
                f" separator {other!r} in params.yaml (fetch.csv)",
            )


def _fields(line: str, separator: str) -> list[str]:
    return list(map(_compose, next(csv.reader([line], delimiter=separator), [])))


def _decoded(line: bytes, number: int, name: str) -> str:
    """Return a line as text; raise DataError when it is not UTF-8."""
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else "CP1252"  # as a spreadsheet writes it
        raise DataError(
            f"{name}, line {number}: not UTF-8.",
            value=repr(line[max(error.start - 20, 0) : error.end + 20]),
            expected="text in UTF-8",
            next_step=f"iconv -f {encoding} -t UTF-8 FILE > NEW; or export the file again as CSV UTF-8, not packed",
        ) from None


def _require_whole_lines(file: BinaryIO, lines_before: int, name: str, next_step: str) -> None:
    """Raise DataError for a line that is not UTF-8, or has an odd number of quotes: a cell would hold the next line."""
    open_quote = None
    for number, line in enumerate(file, 1):
        text = _decoded(line, number, name)
        if open_quote is None and number > lines_before and text.count('"') % 2:
            open_quote = number, text[:80].rstrip()
    if open_quote:
        raise DataError(
            f"{name}, line {open_quote[0]}: a quote is not closed.",
            value=open_quote[1],
            expected="quotes in pairs, and no line break between them",
            next_step="correct that line; numbers and times need no quotes",
        )
    if not line.endswith(b"\n"):  # the number in the last field may have been cut
        raise DataError(
            f"{name}, line {number}: the file is cut short: its last line is incomplete.",
            next_step=f"{next_step}; or, if that line is whole, end it: echo >> {name}",
        )


# -- text to numbers and times -----------------------------------------------------------------------------------------
def convert_text(text: DataFrame, name: str, *, nullable: bool = False) -> DataFrame:
    """Return columns of text as `utc_timestamp` (datetime64[us, UTC]) and float64; raises what they raise."""
    converters, number = {"utc_timestamp": utc_times}, partial(numbers, nullable=nullable)
    return DataFrame({column: converters.get(column, number)(text[column], name) for column in text})


def numbers(
    text: Series, name: str, decimal: str = ".", *, thousands: str | None = None, nullable: bool = False
) -> Series:
    """Return a column of text as float64, empty cells as NaN; raise DataError that names what is not a number.

    The error says whether an empty cell is allowed (``nullable``); `schema.check_cells` refuses one that is not.
    """
    values = _convert(text, decimal, thousands)
    wrong = values.isna() & text.notna()
    next_step = _find_keys(text[wrong], decimal) if wrong.any() else None
    require(~wrong, text, name, "a number" + ", or nothing" * nullable, next_step)
    # "1.234", and no other decimals, beside whole numbers of three digits and none of four.
    marked = text.str.contains(decimal, regex=False, na=False)
    groups = text.str.fullmatch(rf"\s*-?[1-9]\d{{0,2}}\{decimal}\d{{3}}\s*", na=False)
    if marked.sum() >= MIN_MARKED and 100 <= values[~marked].max() < 1000 and groups.equals(marked) and not thousands:
        next_step = "for thousands set `thousands` and `decimal` in params.yaml (fetch.csv); otherwise write decimals"
        next_step += " in whole numbers, too"
        require(~groups, text, name, f"a number without a {DECIMALS[decimal]} for thousands", next_step)
    return values


def _convert(text: Series, decimal: str, thousands: str | None = None) -> Series:
    """Return text as float64, NaN for what is not a number with this decimal mark and groups of three digits."""
    if thousands:
        # Spaces have several widths, apostrophes two forms.
        mark = {" ": r"\s", "'": "'\u2019"}.get(thousands, thousands)
        grouped = text.str.fullmatch(rf"\s*[+-]?\d{{1,3}}(?:[{mark}]\d{{3}})+(?:\{decimal}\d*)?\s*", na=False)
        text = text.where(~grouped, text.str.replace(rf"[{mark}]", "", regex=True))
    if decimal == ",":
        text = text.str.replace(".", "no point", regex=False).str.replace(",", ".", regex=False)
    text = text.str.replace("\u2212", "-", regex=False)  # a minus sign
    return pd.to_numeric(text, errors="coerce").astype("float64") + 0.0  # no -0.0, which integers do not have


def _find_keys(wrong: Series, decimal: str) -> str | None:
    """Return the keys of params.yaml with which cells of an own file are numbers, or empty; None if there are none."""
    if wrong.iloc[0] == wrong.name:
        return "remove the second header"
    is_number = wrong.str.contains(r"\d") & ~wrong.str.startswith("#")  # "#DIV/0!" is none
    numeric, [other] = wrong[is_number], DECIMALS.keys() - {decimal}
    marks = [{"thousands": mark} for mark in (other, " ", "'")]
    for keys in ({"decimal": other}, *marks, {"decimal": other, "thousands": decimal}) if len(numeric) else ():
        if _convert(numeric, **{"decimal": decimal, **keys}).notna().all():
            named = ", ".join(f"{key}: {value!r}" for key, value in keys.items())
            return f"the file writes numbers in another form: for an own file, set {named} in params.yaml (fetch.csv)"
    mark = f"{wrong.iloc[0].strip()!r}"
    step = f"if {mark} stands for no value in an own file, set no_value: [{mark}] in params.yaml (fetch.csv)"
    if wrong.nunique() > 1:
        step = f"write a number for each name of a category (as Visitors in another_problem.md does); {step}"
    return None if len(numeric) else step


def utc_times(text: Series, name: str) -> Series:
    """Return a column of text as datetime64[us, UTC]; raise DataError: not a time in ISO 8601, or without a zone."""
    values = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce").dt.as_unit("us")
    # pandas takes "today" and "now" for times
    expected = "a timestamp such as 2013-01-31T23:00:00Z"
    require(values.notna() & text.str.match(r"\d{4}-", na=False), text, name, expected)
    next_step = "write the times with Z or an offset; for an own file: fetch.csv.time.zone in params.yaml"
    require(has_zone(text), text, name, f"{expected}, with its zone", next_step)
    return values


def has_zone(text: Series) -> Series:
    """Return for each time in ISO 8601 whether it has an offset from UTC."""
    return text.str.contains(r"[:T]\d{2}\S*?\s?(?:Z|UTC|[+-]\d{2}(?::?\d{2})?)$", na=False)


def require(good: Series, text: Series, name: str, expected: str, next_step: str | None = None) -> None:
    """Raise DataError for the first cell of a column that is not ``good``; the index is the line."""
    if good.all():
        return
    line, place = (~good).idxmax(), text.index.name
    raise DataError(
        f"{name}, {place} {line}, column {text.name}: wrong content ({_count((~good).sum(), 'such cell')}).",
        value="an empty cell" if pd.isna(text[line]) else repr(text[line])[:200],
        expected=expected,
        next_step=next_step or f"correct that {place}, or make the file again",
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'} in all"
