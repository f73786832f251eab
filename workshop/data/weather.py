"""Weather that somebody hands in to be predicted for: rows as CSV or JSON in, a checked frame out."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from workshop.data import schema
from workshop.data.features import INPUTS
from workshop.data.tables import SEPARATORS
from workshop.data.thresholds import MONTH_HOURS, RANGES, USUAL_MEANS
from workshop.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 9000  # a year of hours
MOST_BYTES = 2_000_000  # several times what so many rows take
YEARS = (1900, 2100)  # beyond, nobody has weather
SHOWN_CHARACTERS = 40
HEADER = ",".join(INPUTS)

_CORRECT = "correct what is named, and hand it in again"
_A_TIME = "the start of an hour with its zone, such as 2016-06-01T12:00:00Z"


def from_csv(content: bytes) -> pd.DataFrame:
    """Return the rows of a CSV file with `features.INPUTS` as columns, in the file's order.

    ``content`` is UTF-8, separated by commas, with a header, a row an hour (blank lines aside), nothing missing, at
    most `MOST_ROWS` rows. `utc_timestamp` is ISO 8601 with a zone and comes back as datetime64[us, UTC]; the weather
    (units: `schema.UNITS`) as float64. Raises DataError, which names lines and columns and what was allowed.
    """
    lines = _lines(_text(content))
    try:
        _, header = next(lines, (1, []))
        header = [name.strip() for name in header]
        _require_commas(header)
        _require_inputs(header, "The file", "column")
        rows = _take(lines)
    except csv.Error as error:
        raise DataError(
            "The file cannot be read as CSV.", value=error, expected=f"the header {HEADER}, and a row an hour"
        ) from None
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"Line {line} is cut short or too long.",
                value=f"{len(row)} fields: {_shown(','.join(row))}",
                expected=f"{len(header)} fields, and numbers with a point",
                next_step=_CORRECT,
            )
    cells = {name: [row[header.index(name)] for _, row in rows] for name in INPUTS}
    return _frame(cells, [f"line {line}" for line, _ in rows], _number_of_text)


def from_records(rows: object) -> pd.DataFrame:
    """Return the rows of a list of JSON objects with `features.INPUTS` as keys; otherwise as `from_csv`.

    The weather's values are numbers, and no texts that look like numbers.
    """
    if not isinstance(rows, list):
        raise DataError("The rows are no list.", value=_shown(rows), expected="a list of objects, one an hour")
    if len(rows) > MOST_ROWS:
        raise _too_many(f"{len(rows)} rows")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"Row {number} is no object.", value=_shown(row), expected=", ".join(INPUTS))
        if row.keys() != set(INPUTS):
            _require_inputs([str(name) for name in row], f"Row {number}", "key")
    cells = {name: [row[name] for row in rows] for name in INPUTS}
    return _frame(cells, [f"row {number}" for number in range(1, len(rows) + 1)], _number)


# -- a file's text -----------------------------------------------------------------------------------------------------
def _text(content: bytes) -> str:
    if not content.removeprefix(codecs.BOM_UTF8).strip():
        raise DataError("The file is empty.", value=f"{len(content)} bytes", expected=f"the header {HEADER}, and rows")
    if len(content) > MOST_BYTES:
        raise _too_many(f"{len(content):,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"Line {line} is not text in UTF-8.",
            value=_shown(error.object[max(error.start - 10, 0) : error.end + 10]),
            expected="a CSV file in UTF-8",
            next_step="from a spreadsheet: save as CSV UTF-8",
        ) from None


def _lines(text: str):
    """Yield the number and the fields of each line that is not blank; raise csv.Error."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    for fields in reader:
        if any(field.strip() for field in fields):
            yield reader.line_num, fields


def _take(lines) -> list[tuple[int, list[str]]]:
    rows = []
    for row in lines:
        if len(rows) == MOST_ROWS:
            raise _too_many(f"more than {MOST_ROWS} rows")
        rows.append(row)
    return rows


def _too_many(found: str) -> DataError:
    return DataError(
        "That is too much at once.",
        value=found,
        expected=f"at most {MOST_ROWS:,} rows, which is a year of hours, and {MOST_BYTES:,} bytes",
        next_step="hand it in year by year",
    )


# -- columns -----------------------------------------------------------------------------------------------------------
def _require_commas(header: Sequence[str]) -> None:
    if len(header) != 1:
        return
    other = next((name for separator, name in SEPARATORS.items() if separator != "," and separator in header[0]), None)
    if other is not None:
        raise DataError(
            f"The columns are separated by {other}, it seems.",
            value=_shown(header[0]),
            expected=f"commas, as in {HEADER}, and numbers with a point",
            next_step="save the file with commas; in a spreadsheet: CSV, with a point for decimals",
        )


def _require_inputs(found: Sequence[str], what: str, noun: str) -> None:
    """Raise DataError unless each of `INPUTS` is there once, and nothing else."""
    missing = [name for name in INPUTS if name not in found]
    extra = [name for name in found if name not in INPUTS]
    doubled = [name for name, times in Counter(found).items() if times > 1 and name in INPUTS]
    faults = [
        f"{_shown(name, 'an empty name')} is none of them{_meant(name, missing)}" for name in extra[: schema.SHOWN]
    ]
    faults += [f"... and {len(extra) - schema.SHOWN} more"] * (len(extra) > schema.SHOWN)
    faults += [f"{name} is missing" for name in missing]
    faults += [f"{name} is there more than once" for name in doubled]
    if faults:
        raise DataError(
            f"{what} has not the {noun}s that are needed.",
            value=_listed(faults),
            expected=", ".join(f"{name} ({schema.UNITS[name]})" for name in INPUTS) + ", and no others",
            next_step=f"rename, add or leave out the {noun}s",
        )


def _meant(name: str, missing: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), missing, n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


# -- cells -------------------------------------------------------------------------------------------------------------
def _frame(cells: dict[str, list], places: Sequence[str], read_number: Callable[[Any], float | None]) -> pd.DataFrame:
    """Return the cells as a checked frame; ``places`` is what errors call the rows."""
    import pandas as pd

    if not places:
        raise DataError("There are no rows.", expected="a row an hour", next_step="add at least one")
    readers: dict[str, Callable[[Any], Any]] = dict.fromkeys(INPUTS, read_number) | {"utc_timestamp": _time}
    read = {name: [readers[name](cell) for cell in cells[name]] for name in INPUTS}
    _require(
        [
            (places[row], name, _shown(cells[name][row]))
            for row in range(len(places))
            for name in INPUTS
            if read[name][row] is None
        ],
        next_step=_CORRECT,
    )
    # Held against the limits as plain values: of a single hour, which is what most ask for, pandas would take longer
    # than the model.
    beyond = [
        (places[row], name, _shown(cells[name][row]))
        for name in INPUTS[1:]
        for row, value in enumerate(read[name])
        if not RANGES[name][0] <= value <= RANGES[name][1]
    ]
    frame = pd.DataFrame(read).astype({"utc_timestamp": "datetime64[us, UTC]"})
    if beyond:
        words = schema.suspected_units(frame)
        _require(beyond, next_step=f"look at the unit: {words}" if words else _CORRECT)
    _require_each_once(read["utc_timestamp"], places)
    _require_usual(frame)
    return frame


def _number(cell: object) -> float | None:
    """Return a number of JSON, or None when it is none that is finite; to Python, true is a number, too."""
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return None
    try:
        value = float(cell) + 0.0  # no -0.0
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def _number_of_text(cell: str) -> float | None:
    try:
        return None if "_" in cell else _number(float(cell))  # Python alone reads 1_000
    except ValueError:
        return None


def _time(cell: object) -> datetime | None:
    """Return what a cell says in UTC, or None when it is no full hour, has no zone, or is of no year that can be."""
    try:
        time = datetime.fromisoformat(str(cell).strip())
        time = time.astimezone(UTC) if time.tzinfo else None
    except (ValueError, OverflowError):
        return None
    if time is None or (time.minute, time.second, time.microsecond) != (0, 0, 0):
        return None
    return time if YEARS[0] <= time.year <= YEARS[1] else None


def _require(faults: list[tuple[str, str, str]], *, next_step: str) -> None:
    """Raise DataError for cells, each with its place, column and value, that are not what belongs there."""
    if not faults:
        return
    columns = {column for _, column, _ in faults}
    raise DataError(
        f"{_count(len(faults), 'cell')} cannot be used.",
        value=_listed([f"{place}, {column}: {value}" for place, column, value in faults[: schema.SHOWN]])
        + ("" if len(faults) <= schema.SHOWN else f"\n            ... and {len(faults) - schema.SHOWN} more"),
        expected="; ".join(f"{name}: {_allowed(name)}" for name in INPUTS if name in columns),
        next_step=next_step,
    )


def _allowed(column: str) -> str:
    if column == "utc_timestamp":
        return f"{_A_TIME}, of the years {YEARS[0]} to {YEARS[1]}"
    least, most = RANGES[column]
    return f"a number from {least} to {most} {schema.UNITS[column]}"


def _require_each_once(stamps: Sequence[datetime], places: Sequence[str]) -> None:
    first, doubled = {}, []
    for stamp, place in zip(stamps, places, strict=True):
        if stamp in first:
            doubled.append(f"{place} and {first[stamp]}: {stamp:%Y-%m-%dT%H:%M:%SZ}")
        first.setdefault(stamp, place)
    if doubled:
        raise DataError(
            f"{_count(len(doubled), 'hour')} there more than once.",
            value=_listed(doubled[: schema.SHOWN]),
            expected="each hour once (+01:00 and Z may name the same one)",
            next_step=_CORRECT,
        )


def _require_usual(frame: pd.DataFrame) -> None:
    """Raise DataError for a mean that no month has: km/h taken for m/s stays within the range of a single hour.

    Only what is too high counts: in winter months radiation is below what a year's mean can be.
    """
    if len(frame) < MONTH_HOURS:
        return
    means = {name: frame[name].mean() for name in USUAL_MEANS if name in frame}
    high = [name for name, mean in means.items() if mean > USUAL_MEANS[name][1]]
    if high:
        raise DataError(
            f"The mean of {' and of '.join(high)} is higher than that of any month.",
            value=", ".join(f"{name}: {means[name]:.3g}" for name in high),
            expected=", ".join(f"{name}: at most {USUAL_MEANS[name][1]} {schema.UNITS[name]}" for name in high),
            next_step="look at the unit: km/h for m/s, or °F for °C?",
        )


def _listed(lines: Sequence[str]) -> str:
    return "\n            ".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _shown(value: object, empty: str = "nothing") -> str:
    """Return a value as it can be shown: of whatever was sent, its beginning."""
    if value == "":
        return empty
    text = repr(value[: 2 * SHOWN_CHARACTERS] if isinstance(value, str | bytes) else value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
