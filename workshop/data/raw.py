"""The one reader of raw files: CSV read strictly, in the layout of Open Power System Data.

Nothing is guessed or skipped; an error names file, line, column and value.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from workshop.errors import DataError

if TYPE_CHECKING:
    from pandas import DataFrame, Series

GERMANY = "DE"
MW_PER_GW = 1000
POWER_FILE, WEATHER_FILE = "time_series_60min_singleindex.csv", "weather_data.csv"
FILES = {"power": POWER_FILE, "weather": WEATHER_FILE}
# A country's columns, without its code in front, and our names of them.
COLUMNS = {
    "power": {"solar_generation_actual": "solar_GW", "wind_generation_actual": "wind_GW"},
    "weather": {
        "windspeed_10m": "windspeed",
        "temperature": "temperature",
        "radiation_direct_horizontal": "rad_horizontal",
        "radiation_diffuse_horizontal": "rad_diffuse",
    },
}
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


class MissingColumns(DataError):
    """A table lacks columns that are needed."""


class Table(NamedTuple):
    """Rows of a raw file in our units; the index is the line in the file; ``names`` are the file's column names."""

    path: Path
    frame: DataFrame
    names: dict[str, str]


# -- the layout of Open Power System Data ------------------------------------------------------------------------------
def read(folder: Path, country: str = GERMANY) -> dict[str, list[Table]]:
    """Return a country's raw tables, by part (`power`, `weather`).

    Each part is one file with the publisher's name, or many whose names start like it (`weather_data_1980.csv`), each
    with some of the years or some of the countries. Raises MissingColumns, and DataError as `read_columns` does.
    """
    tables = {}
    for part, columns in COLUMNS.items():
        names = {ours: f"{country}_{theirs}" for theirs, ours in columns.items()}
        headers = _headers(folder, part)
        # A country that is in no file: the error about the first file says what the file has.
        paths = [path for path, header in headers.items() if country in _countries(header)] or list(headers)[:1]
        tables[part] = []
        for path in paths:
            frame = read_columns(path, ["utc_timestamp", *names.values()], next_step=_get_again(path))
            frame = frame.rename(columns={theirs: ours for ours, theirs in names.items()})
            powers = [ours for ours in names if ours.endswith("_GW")]
            tables[part].append(Table(path, frame.assign(**{name: frame[name] / MW_PER_GW for name in powers}), names))
    return tables


def countries(folder: Path) -> list[str]:
    """Return the codes of the countries that any raw file in ``folder`` has a needed column of."""
    headers = [header for part in COLUMNS for header in _headers(folder, part).values()]
    return sorted({country for header in headers for country in _countries(header)})


def _headers(folder: Path, part: str) -> dict[Path, list[str]]:
    """Return the files of a part, in the order of their names, with their columns."""
    name = Path(FILES[part])
    paths = sorted(Path(folder).glob(f"{name.stem}*{name.suffix}")) or [Path(folder) / name]
    return {path: read_header(path, next_step=_get_again(path)) for path in paths}


def _countries(header: list[str]) -> set[str]:
    names = "|".join(name for columns in COLUMNS.values() for name in columns)
    return {match[1] for column in header if (match := re.fullmatch(rf"([A-Z]{{2}})_(?:{names})", column))}


def _get_again(path: Path) -> str:
    return f"workshop data, or run the notebook that makes {path.name}, to put the raw files there"


# -- any CSV file ------------------------------------------------------------------------------------------------------
def read_columns(path: Path, columns: Sequence[str], *, next_step: str) -> DataFrame:
    """Read ``columns`` of a CSV file: `utc_timestamp` as datetime64[us, UTC], every other column as float64.

    The index is the line in the file (the header is line 1). An empty cell is NaN; a time is never missing. Raises
    DataError as `read_text`, `numbers` and `utc_times` do; ``next_step`` says how to get the file again.
    """
    import pandas as pd

    text = read_text(path, columns, next_step=next_step)
    read = {"utc_timestamp": utc_times}
    return pd.DataFrame({name: read.get(name, numbers)(text[name], Path(path)) for name in text})


def read_text(path: Path, columns: Sequence[str], *, separator: str = ",", next_step: str) -> DataFrame:
    """Read ``columns`` of a CSV file as text; the index is the line in the file, an empty cell is missing.

    The file is UTF-8, with or without a byte order mark. Only these columns are kept in memory. Raises DataError: no
    file, an empty file, a header alone, another encoding or separator, a column missing or doubled, a line cut short
    or too long, a quote that is not closed in its line.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    path, columns = Path(path), list(columns)
    _require_header(read_header(path, separator, next_step=next_step), columns, path, separator, next_step)
    _require_closed_lines(path, next_step)
    broken = []  # lines with too few or too many fields

    def note(row: arrow.InvalidRow) -> str:
        broken.append(row)
        return "skip"

    try:
        table = arrow.read_csv(
            path,
            read_options=arrow.ReadOptions(use_threads=False),  # with threads, pyarrow does not number the lines
            parse_options=arrow.ParseOptions(delimiter=separator, invalid_row_handler=note, ignore_empty_lines=False),
            convert_options=arrow.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True
            ),
        )
    except (pa.ArrowInvalid, OSError) as error:
        _require_utf8(path)
        raise DataError(f"The file {path} cannot be read as CSV.", value=error, next_step=next_step) from None
    if broken:
        line = broken[0]
        comma = separator == "," and line.actual_columns > line.expected_columns
        raise DataError(
            f"{path}, line {line.number}: the line is cut short or too long ({_count(len(broken), 'such line')}).",
            value=f"{line.actual_columns} fields: {line.text[:80]}",
            expected=f"{line.expected_columns} fields" + (", and numbers with a point" if comma else ""),
            next_step=next_step,
        )
    if not len(table):
        raise DataError(
            f"{path}, line 1: there is a header, and no row after it.", expected="a row an hour", next_step=next_step
        )
    text = table.to_pandas()
    text.index += 2
    return text


def numbers(text: Series, path: Path, decimal: str = ".") -> Series:
    """Return a column of text as float64, empty cells as NaN; raise DataError that names what is not a number."""
    import pandas as pd

    plain = text
    if decimal == ",":
        plain = text.str.replace(".", "no point", regex=False).str.replace(",", ".", regex=False)
    values = pd.to_numeric(plain, errors="coerce").astype("float64") + 0.0  # no -0.0, which integers do not have
    wrong = values.isna() & text.notna()
    other = {".": ",", ",": "."}[decimal]
    expected, next_step = "a number, or nothing", None
    # "12,5" and nothing but such cells: the file writes its numbers so.
    if wrong.any() and text[wrong].str.fullmatch(rf"\s*-?\d+\{other}\d+\s*").all():
        mark = {".": "point", ",": "comma"}
        expected = f"a number with a decimal {mark[decimal]}, or nothing"
        next_step = f"this file writes decimal {mark[other]}s: set `decimal` in params.yaml (source csv)"
    require(~wrong, text, path, expected, next_step)
    return values


def utc_times(text: Series, path: Path) -> Series:
    """Return a column of text as datetime64[us, UTC]; raise DataError: not a time, without a zone, in the future."""
    import pandas as pd

    values = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce").dt.as_unit("us")
    # pandas takes "today" and "now" for times
    expected = "a timestamp such as 2013-01-31T23:00:00Z"
    require(values.notna() & text.str.match(r"\d{4}-", na=False), text, path, expected)
    next_step = "write the times with Z or an offset, or set their zone: fetch.csv.time.zone in params.yaml"
    require(has_zone(text), text, path, f"{expected}, with its zone", next_step)
    require_past(values, text, path)
    return values


def has_zone(text: Series) -> Series:
    """Return for each time in ISO 8601 whether it has an offset from UTC."""
    return text.str.contains(r":\d{2}\S*?\s?(?:Z|UTC|[+-]\d{2}(?::?\d{2})?)$", na=False)


def latest_allowed() -> datetime:
    """Return the time, by this machine's clock, after which no value can have been measured; a day is tolerated."""
    return datetime.now(UTC) + timedelta(days=1)


def require_past(values: Series, text: Series, path: Path) -> None:
    """Raise DataError that names the first of the UTC times ``values`` that is in the future."""
    expected = f"a time that is past (this machine's clock says {datetime.now(UTC):%Y-%m-%d})"
    next_step = f"leave forecasts out of {path.name}; set a wrong clock with timedatectl"
    require(~(values > latest_allowed()), text, path, expected, next_step)


def require(good: Series, text: Series, path: Path, expected: str, next_step: str | None = None) -> None:
    """Raise DataError for the first cell of a column that is not ``good``; the index is the line."""
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
    """Return the column names of a CSV file; raise DataError: no file, an empty file, not UTF-8."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
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
            f"{path}, line 1: the line is empty." if size else f"The file {path} is empty.",
            value=f"{size} bytes",
            expected="a header, and a row an hour",
            next_step=next_step,
        )
    return header


def require_columns(present: Iterable[str], wanted: Sequence[str], name: str, next_step: str | None = None) -> None:
    """Raise MissingColumns that names each ``wanted`` column that is absent, with the nearest name present."""
    present = [str(column) for column in present]
    missing = [column for column in wanted if column not in present]
    if not missing:
        return
    nearest = {column: difflib.get_close_matches(column, present, n=1, cutoff=0.5) for column in missing}
    hints = [f"{column} (nearest: {near[0]})" if near else column for column, near in nearest.items()]
    raise MissingColumns(
        f"{name} lacks {len(missing)} column{'s' if len(missing) > 1 else ''}: {', '.join(hints)}.",
        value=(", ".join(present[:12]) or "no columns") + (", ..." if len(present) > 12 else ""),
        expected=", ".join(wanted),
        next_step=next_step or "rename or add the column",
    )


def _require_header(header: list[str], columns: list[str], path: Path, separator: str, next_step: str) -> None:
    """Raise DataError when the file has another separator, or one of ``columns`` is missing or doubled."""
    for other, name in SEPARATORS.items():
        if other != separator and len(header) == 1 and len(columns) > 1 and other in header[0]:
            raise DataError(
                f"{path}, line 1: the columns are not separated by {SEPARATORS[separator]}.",
                value=f"{header[0][:80]} (separated by {name}, it seems)",
                expected=f"{len(columns)} or more columns",
                next_step=f"for an own file: separator {other!r} in params.yaml (fetch.csv); else {next_step}",
            )
    require_columns(header, columns, str(path), next_step)
    doubled = [column for column, times in Counter(header).items() if times > 1 and column in columns]
    if doubled:
        raise DataError(
            f"{path}, line 1: more than once: {', '.join(doubled)}.",
            value=f"{len(header)} columns: {', '.join(header)[:200]}",
            expected="each column once",
            next_step=f"rename or remove the one that is not meant; {next_step}",
        )


def _require_closed_lines(path: Path, next_step: str) -> None:
    """Raise DataError for a line with an odd number of quotes, since a cell would hold the next line too, or no end."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.count(b'"') % 2:
                raise DataError(
                    f"{path}, line {number}: a quote is not closed.",
                    value=line[:80].decode(errors="replace").rstrip(),
                    expected="quotes in pairs, and no line break between them",
                    next_step=f"correct that line of {path.name}; numbers and times need no quotes",
                )
    if not line.endswith(b"\n"):  # the number in the last field may have been cut
        raise DataError(
            f"{path}, line {number}: the file is cut short, its last line has no end.",
            next_step=f"{next_step}; or, if that line is whole, end it: echo >> {path.name}",
        )


def _require_utf8(path: Path) -> None:
    """Raise DataError for the first line that is not UTF-8, if there is one."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not UTF-8.",
                    value=repr(line[max(error.start - 20, 0) : error.end + 20]),
                    expected="text in UTF-8",
                    next_step=f"save {path.name} as CSV UTF-8 where it comes from; unpack it first if it is packed",
                ) from None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'} in all"
