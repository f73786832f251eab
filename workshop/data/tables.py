"""CSV tables read strictly: nothing is guessed or skipped, and every fault is told with its line, column and value."""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from workshop.data import scan
from workshop.errors import DataError

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
# What turns a file that is not UTF-8 into one that is, by its first bytes.
REMEDIES = {
    rb"\xff\xfe|\xfe\xff": "iconv -f UTF-16 -t UTF-8 {name} > new.csv",
    rb"\x1f\x8b": "unpack it: gunzip < {name} > new.csv",
    rb"(?s:.*)[\0-\x08\x0e-\x1f]": "that is not text: unpack it, or save it as CSV UTF-8 where it comes from",
    rb"": "iconv -f WINDOWS-1252 -t UTF-8 {name} > new.csv (from Excel: save as CSV UTF-8)",
}


def require_columns(found: Iterable[str], wanted: Sequence[str], name: str, next_step: str | None = None) -> None:
    """Raise DataError naming each of the ``wanted`` columns that ``found`` lacks, with the nearest name it has."""
    found = [str(column) for column in found]
    missing = [column for column in wanted if column not in found]
    if not missing:
        return
    nearest = {column: difflib.get_close_matches(column, found, n=1, cutoff=0.5) for column in missing}
    hints = [f"{column} (nearest: {near[0]})" if near else column for column, near in nearest.items()]
    raise DataError(
        f"{name} lacks {len(missing)} column{'s' if len(missing) > 1 else ''}: {', '.join(hints)}.",
        value=(", ".join(found[:12]) or "no columns") + (", ..." if len(found) > 12 else ""),
        expected=", ".join(wanted),
        next_step=next_step or "rename or add the column",
    )


def read_columns(path: Path, columns: Sequence[str], *, next_step: str) -> DataFrame:
    """Read ``columns`` of the CSV file ``path``: `utc_timestamp` as datetime64[us, UTC], every other one as float64.

    The index is the line in the file (the header is line 1). An empty cell is NaN; a timestamp is never missing.
    ``next_step`` is what to do when the file is absent or damaged. A plain file is read fast (`scan`), any other one
    strictly, to the same result.

    Raises DataError naming file, line, column and value: whatever `read_text`, `numbers` and `utc_times` refuse.
    """
    import pyarrow as pa

    path = Path(path)
    require_header(read_header(path, next_step=next_step), list(columns), path, ",", next_step)
    with pa.OSFile(str(path)) as file:
        table = scan.scan(file, columns, latest_allowed())
    return _read_strictly(path, columns, next_step) if table is None else scan.to_frame(table)


def _read_strictly(path: Path, columns: Sequence[str], next_step: str) -> DataFrame:
    """Read as `read_columns` does, by way of text: slower, but a fault is found and named."""
    import pandas as pd

    text = read_text(path, columns, next_step=next_step)
    read = {
        name: utc_times(text[name], path) if name == "utc_timestamp" else numbers(text[name], path) for name in text
    }
    return pd.DataFrame(read)


def read_text(path: Path, columns: Sequence[str], *, separator: str = ",", next_step: str) -> DataFrame:
    """Read ``columns`` of the CSV file ``path`` as text; the index is the line in the file, an empty cell is missing.

    The file is UTF-8, with or without a byte order mark. Only the columns asked for are kept in memory. Raises
    DataError: no file, nothing in it, a header alone, another encoding or separator, a column missing or there twice,
    a line cut short or too long, a quote that is not closed in its line.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    path, columns = Path(path), list(columns)
    require_header(read_header(path, separator, next_step=next_step), columns, path, separator, next_step)
    _require_closed_quotes(path)
    broken = []  # pyarrow hands over each line that has too few or too many fields

    def note(row: arrow.InvalidRow) -> str:
        broken.append(row)
        return "skip"

    try:
        table = arrow.read_csv(
            path,
            read_options=arrow.ReadOptions(use_threads=False),  # with threads, lines have no number
            parse_options=arrow.ParseOptions(delimiter=separator, invalid_row_handler=note, ignore_empty_lines=False),
            convert_options=arrow.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True
            ),
        )
    except (pa.ArrowInvalid, OSError) as error:
        _require_utf8(path)
        raise DataError(f"The file {path} cannot be read as CSV.", value=error, next_step=next_step) from None
    if broken:
        fields = broken[0]
        comma = separator == "," and fields.actual_columns > fields.expected_columns
        raise DataError(
            f"{path}, line {fields.number}: the line is cut short or too long ({_count(len(broken), 'such line')}).",
            value=f"{fields.actual_columns} fields: {fields.text[:80]}",
            expected=f"{fields.expected_columns} fields" + (", and numbers with a point" if comma else ""),
            next_step=next_step,
        )
    text = table.to_pandas()
    text.index += 2
    _require_line_end(path, text.index[-1] if len(text) else 1, next_step)
    if text.empty:
        raise DataError(
            f"{path}, line 1: there is a header, and no row after it.", expected="a row an hour", next_step=next_step
        )
    return text


def numbers(text: Series, path: Path, decimal: str = ".") -> Series:
    """Return a column of text as float64, empty cells as NaN; raise DataError naming what is no number."""
    import pandas as pd

    plain = (
        text if decimal == "." else text.str.replace(".", "no point", regex=False).str.replace(",", ".", regex=False)
    )
    values = pd.to_numeric(plain, errors="coerce").astype("float64") + 0.0  # no -0.0, which integers do not have
    wrong = values.isna() & text.notna()
    other = {".": ",", ",": "."}[decimal]
    # "12,5" and nothing but such cells: not a slip of a hand but how the file writes numbers.
    swapped = wrong.any() and text[wrong].str.fullmatch(rf"\s*-?\d+\{other}\d+\s*").all()
    mark = {".": "point", ",": "comma"}
    expected, next_step = "a number, or nothing", None
    if swapped:
        expected = f"a number with a decimal {mark[decimal]}, or nothing"
        next_step = f"this file writes decimal {mark[other]}s: say so with `decimal` in params.yaml (source csv)"
    require(~wrong, text, path, expected, next_step)
    return values


def utc_times(text: Series, path: Path) -> Series:
    """Return a column of text as datetime64[us, UTC]; raise DataError naming what is no time, or has no zone."""
    import pandas as pd

    values = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce").dt.as_unit("us")
    # pandas takes "today" and "now" for times
    expected = "a timestamp such as 2013-01-31T23:00:00Z"
    require(values.notna() & text.str.match(r"\d{4}-", na=False), text, path, expected)
    next_step = (
        "write the times with Z or an offset, or say their zone in params.yaml (source csv, fetch.csv.time.zone)"
    )
    require(has_zone(text), text, path, f"{expected}, with its zone", next_step)
    require_past(values, text, path)
    return values


def has_zone(text: Series) -> Series:
    """Return for each time in ISO 8601 whether it says its offset from UTC."""
    return text.str.contains(r":\d{2}\S*?\s?(?:Z|UTC|[+-]\d{2}(?::?\d{2})?)$", na=False)


def latest_allowed() -> datetime:
    """Return the time, by this machine's clock, after which nothing can have been measured; a day is let pass."""
    return datetime.now(UTC) + timedelta(days=1)


def require_past(values: Series, text: Series, path: Path) -> None:
    """Raise DataError naming the first of the UTC times ``values`` that is yet to come."""
    expected = f"a time that is past (this machine's clock says {datetime.now(UTC):%Y-%m-%d})"
    next_step = f"leave forecasts out of {path.name}; a clock that is wrong is set with timedatectl"
    require(~(values > latest_allowed()), text, path, expected, next_step)


def require(good: Series, text: Series, path: Path, expected: str, next_step: str | None = None) -> None:
    """Raise DataError for the first cell of a column that is not ``good``; the index says its line."""
    import pandas as pd

    if good.all():
        return
    line = (~good).idxmax()
    raise DataError(
        f"{path}, line {line}, column {text.name}: not what belongs there ({_count((~good).sum(), 'such cell')}).",
        value="an empty cell" if pd.isna(text[line]) else repr(text[line]),
        expected=expected,
        next_step=next_step or f"correct that line of {path.name}, or make the file again",
    )


def read_header(path: Path, separator: str = ",", *, next_step: str) -> list[str]:
    """Return the names of the columns of the CSV file ``path``; raise DataError: no file, nothing in it, not UTF-8."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file.readlines(1), delimiter=separator), None)  # one line, whatever its quotes
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.", next_step=next_step) from None
    except UnicodeDecodeError:
        _require_utf8(path)
        raise
    except (OSError, csv.Error) as error:
        raise DataError(f"The file {path} cannot be read as CSV.", value=error, next_step=next_step) from None
    if not header:
        size = path.stat().st_size
        raise DataError(
            f"The file {path} is empty." if not size else f"{path}, line 1: the line is empty.",
            value=f"{size} bytes",
            expected="a header, and a row an hour",
            next_step=next_step,
        )
    return header


def require_header(header: list[str], columns: list[str], path: Path, separator: str, next_step: str) -> None:
    """Raise DataError when the columns are separated otherwise, or one of ``columns`` is missing or there twice."""
    for other, name in SEPARATORS.items():
        if other != separator and len(header) == 1 and len(columns) > 1 and other in header[0]:
            raise DataError(
                f"{path}, line 1: the columns are not separated by {SEPARATORS.get(separator, repr(separator))}.",
                value=f"{header[0][:80]} (separated by {name}, it seems)",
                expected=f"{len(columns)} or more columns",
                next_step=f"for a file of your own: separator {other!r} in params.yaml (fetch.csv); else {next_step}",
            )
    require_columns(header, columns, str(path), next_step)
    doubled = [column for column, times in Counter(header).items() if times > 1 and column in columns]
    if doubled:
        raise DataError(
            f"{path}, line 1: {_count(len(doubled), 'column')} there more than once: {', '.join(doubled)}.",
            value=", ".join(f"{name} as columns {_places(header, name)}" for name in doubled),
            expected="each column once",
            next_step=f"rename or remove the one that is not meant; {next_step}",
        )


def _places(header: list[str], name: str) -> str:
    return " and ".join(str(place) for place, column in enumerate(header, 1) if column == name)


def _require_closed_quotes(path: Path) -> None:
    """Raise DataError for the first line with an odd number of quotes: a cell would hold the lines after it, too."""
    with path.open(encoding="latin-1") as file:
        for number, line in enumerate(file, 1):
            if line.count('"') % 2:
                raise DataError(
                    f"{path}, line {number}: a quote is not closed.",
                    value=line[:80].rstrip(),
                    expected="quotes in pairs, and no line break between them",
                    next_step=f"correct that line of {path.name}; numbers and times need no quotes",
                )


def _require_utf8(path: Path) -> None:
    """Raise DataError for the first line that is not UTF-8, if there is one."""
    with path.open("rb") as file:
        beginning = file.read(1000)
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not UTF-8.",
                    value=repr(line[max(error.start - 20, 0) : error.end + 20]),
                    expected="text in UTF-8",
                    next_step=next(
                        text.format(name=path.name) for form, text in REMEDIES.items() if re.match(form, beginning)
                    ),
                ) from None


def _require_line_end(path: Path, last_line: int, next_step: str) -> None:
    """Raise DataError when the last line has no end: the number in its last field may have been cut."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            raise DataError(
                f"{path}, line {last_line}: the file is cut short, its last line has no end.",
                next_step=f"{next_step}; or, if that line is whole, end it: echo >> {path.name}",
            )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'} in all"
