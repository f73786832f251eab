"""Weather that a visitor hands in for a prediction: rows as CSV or JSON in, a checked frame out."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from workshop.data.features import INPUTS
from workshop.data.raw import SEPARATORS
from workshop.data.schema import MONTH_HOURS, RANGES, SHOWN, STAMP, UNITS, USUAL_MEANS
from workshop.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 9000  # a year of hours
MOST_BYTES = 2_000_000  # several times what so many rows take
YEARS = (1900, 2100)
SHOWN_CHARACTERS = 40
HEADER = ",".join(INPUTS)

_CORRECT = "correct these places, and hand the weather in again"
_TIME = f"the start of an hour with its zone, such as 2016-06-01T12:00:00Z, of the years {YEARS[0]} to {YEARS[1]}"


def from_csv(content: bytes) -> pd.DataFrame:
    """Return the rows of a CSV file with `features.INPUTS` as columns, in the file's order.

    ``content`` is UTF-8, separated by commas, with a header, a row an hour (blank lines aside), nothing missing, at
    most `MOST_ROWS` rows. `utc_timestamp` is ISO 8601 with a zone and comes back as datetime64[us, UTC]; the weather
    (units: `schema.UNITS`) as float64. Raises DataError, which names lines and columns and what is allowed.
    """
    if not content.removeprefix(codecs.BOM_UTF8).strip():
        raise DataError("The file is empty.", value=f"{len(content)} bytes", expected=f"the header {HEADER}, and rows")
    if len(content) > MOST_BYTES:
        raise _too_many(f"{len(content):,} bytes")
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"Line {line} is not text in UTF-8.",
            value=_shown(content[max(error.start - 10, 0) : error.end + 10]),
            expected="a CSV file in UTF-8",
            next_step="from a spreadsheet: save as CSV UTF-8",
        ) from None
    except csv.Error as error:
        raise DataError(
            "The file cannot be read as CSV.", value=error, expected=f"the header {HEADER}, and rows"
        ) from None
    header = [name.strip() for name in lines[0][1]] if lines else []
    other = next((name for sep, name in SEPARATORS.items() if len(header) == 1 and sep in header[0]), None)
    if other:
        raise DataError(
            f"The columns are separated by {other}, it seems.",
            value=_shown(header[0]),
            expected=f"commas, as in {HEADER}, and numbers with a point",
            next_step="save the file with commas; in a spreadsheet: CSV, with a point for decimals",
        )
    _require_inputs(header)
    for line, row in lines:
        if len(row) != len(header):
            raise DataError(
                f"Line {line} is cut short or too long.",
                value=f"{len(row)} fields: {_shown(','.join(row))}",
                expected=f"{len(header)} fields, and numbers with a point",
                next_step=_CORRECT,
            )
    rows = [dict(zip(header, row, strict=True)) for _, row in lines[1:]]
    return _frame(rows, [f"line {line}" for line, _ in lines[1:]], strict=False)


def from_records(rows: object) -> pd.DataFrame:
    """Return the rows of a list of JSON objects with `features.INPUTS` as keys; otherwise as `from_csv`.

    Text that looks like a number is refused.
    """
    if not isinstance(rows, list):
        raise DataError("The rows are not a list.", value=_shown(rows), expected="a list of objects, one an hour")
    return _frame(rows, [f"row {number}" for number in range(1, len(rows) + 1)], strict=True)


def _frame(rows: list[dict[str, Any]], places: Sequence[str], *, strict: bool) -> pd.DataFrame:
    """Return the rows as a checked frame; ``places`` are the names of the rows in errors."""
    import pandas as pd

    if not rows:
        raise DataError("There are no rows.", expected="a row an hour", next_step="add at least one")
    if len(rows) > MOST_ROWS:
        raise _too_many(f"{len(rows)} rows")
    try:
        hours = _hours().validate_python(rows, strict=strict)
    except ValidationError as error:
        raise _cells(error, places) from None
    values = {name: [getattr(hour, name) + 0.0 for hour in hours] for name in INPUTS[1:]}  # + 0.0: no -0.0
    stamps = pd.DatetimeIndex([hour.utc_timestamp for hour in hours]).as_unit("us")
    frame = pd.DataFrame({"utc_timestamp": stamps, **values})
    doubled = frame["utc_timestamp"].duplicated(keep=False)
    if doubled.any():
        stamps = frame["utc_timestamp"][doubled]
        raise DataError(
            f"There are hours more than once ({stamps.nunique()} in all).",
            value=_listed([f"{places[row]}: {stamp:{STAMP}}" for row, stamp in stamps.items()]),
            expected="each hour once (+01:00 and Z may name the same one)",
            next_step=_CORRECT,
        )
    # km/h taken for m/s stays within the range of an hour, but no month has such a mean. Means that are low are
    # allowed: in winter radiation is below what is usual of a year.
    means = frame[INPUTS[1:]].mean() if len(frame) >= MONTH_HOURS else {}
    high = {name: mean for name, mean in means.items() if mean > USUAL_MEANS[name][1]}
    if high:
        raise DataError(
            f"The mean of {' and of '.join(high)} is higher than that of any month.",
            value=", ".join(f"{name}: {mean:.3g}" for name, mean in high.items()),
            expected=", ".join(f"{name}: at most {USUAL_MEANS[name][1]} {UNITS[name]}" for name in high),
            next_step="look at the unit: km/h for m/s, or °F for °C?",
        )
    return frame


@cache
def _hours() -> TypeAdapter:
    """Return pydantic's reader of many hours, each with a time and the weather within `RANGES`."""
    fields: dict[str, Any] = {
        name: (float, Field(ge=RANGES[name][0], le=RANGES[name][1], allow_inf_nan=False)) for name in INPUTS[1:]
    }
    time = (Annotated[datetime, BeforeValidator(_time)], ...)
    hour = create_model("Hour", __config__=ConfigDict(extra="forbid"), utc_timestamp=time, **fields)
    return TypeAdapter(list[hour])


def _time(cell: object) -> datetime:
    """Return the time in UTC of a text in ISO 8601; raise ValueError: no full hour, no zone, not of `YEARS`."""
    time = datetime.fromisoformat(str(cell).strip())
    if time.tzinfo is None or (time.minute, time.second, time.microsecond) != (0, 0, 0):
        raise ValueError
    if not YEARS[0] <= time.year <= YEARS[1]:
        raise ValueError
    return time.astimezone(UTC)


def _cells(error: ValidationError, places: Sequence[str]) -> DataError:
    """Return the error that names the first cells that pydantic refused, and counts the others."""
    faults = []
    for fault in error.errors(include_url=False, include_context=False):
        row, *names = fault["loc"]
        words = {"missing": "missing", "extra_forbidden": "unknown"}.get(fault["type"]) or _shown(fault["input"])
        faults.append((", ".join([places[row], *map(str, names)])[: 2 * SHOWN_CHARACTERS], names, words))
    columns = [name for name in INPUTS if [name] in [names for _, names, _ in faults]] or INPUTS
    allowed = {name: f"a number from {RANGES[name][0]} to {RANGES[name][1]} {UNITS[name]}" for name in INPUTS[1:]}
    return DataError(
        f"{len(faults)} cell{'' if len(faults) == 1 else 's'} cannot be used.",
        value=_listed([f"{place}: {words}" for place, _, words in faults]),
        expected="; ".join(f"{name}: {allowed.get(name, _TIME)}" for name in columns),
        next_step=_CORRECT,
    )


def _require_inputs(present: Sequence[str]) -> None:
    """Raise DataError unless each of `INPUTS` is a column once, and nothing else is."""
    missing = [name for name in INPUTS if name not in present]
    faults = []
    for name in (name for name in present if name not in INPUTS):
        near = difflib.get_close_matches(name.lower(), missing, n=1, cutoff=0.5)
        faults.append(f"{_shown(name)} is unknown" + (f" (did you mean {near[0]}?)" if near else ""))
    faults += [f"{name} is missing" for name in missing]
    faults += [f"{name} is there more than once" for name, times in Counter(present).items() if times > 1]
    if faults:
        raise DataError(
            "The file has not the columns that are needed.",
            value=_listed(faults),
            expected=", ".join(f"{name} ({UNITS[name]})" for name in INPUTS) + ", and no others",
            next_step="rename, add or leave out the columns",
        )


def _too_many(amount: str) -> DataError:
    return DataError(
        "That is too much at once.",
        value=amount,
        expected=f"at most {MOST_ROWS:,} rows, which is a year of hours, and {MOST_BYTES:,} bytes",
        next_step="hand it in year by year",
    )


def _listed(lines: Sequence[str]) -> str:
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n            ".join([*lines[:SHOWN], *more])


def _shown(value: object) -> str:
    """Return the start of a value, as it can be shown."""
    text = repr(value[: 2 * SHOWN_CHARACTERS] if isinstance(value, str | bytes) else value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
