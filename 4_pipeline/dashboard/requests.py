"""Read the weather that a visitor sends for a prediction: rows as CSV or JSON in, a checked frame out.

Beside `features.INPUTS` the rows may have the columns `schema.CAPACITIES`, which count before known figures.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Container, Iterator
from contextlib import contextmanager

import pandas as pd
from forecast.table.features import INPUTS
from forecast.table.reading import WORKBOOKS, convert_text, read_text
from forecast.table.schema import CAPACITIES, STAMP, UNITS, USUAL_MEANS, check_cells
from forecast.terms import steps
from forecast.terms.errors import DataError, require_columns

MAX_ROWS = max(375 * steps.A_DAY, 1000)  # a year
MAX_BYTES = max(222 * MAX_ROWS, 2_000_000)  # several times what so many rows take
YEARS = (1900, 2100)
START = f"the start of {steps.ONE}" + f" in {steps.ZONE}" * steps.IS_DAY
EXAMPLE = f"{steps.starts(pd.Series(pd.Timestamp('2016-06-01T12:00Z')))[0]:{STAMP}}"
# Advice of `forecast.table` that needs the pipeline's folder or a shell: whoever sends rows may have a browser alone.
ELSEWHERE = re.compile(r"params\.yaml|another_problem\.md|^iconv |^otherwise ")
_CORRECT = "correct these places, and send the rows again"
_UPLOAD = "correct the file, and upload it again; write numbers as 1234.5"


@contextmanager
def _advice(otherwise: str) -> Iterator[None]:
    """Leave out of an error's next step what only the owner of the pipeline can do."""
    try:
        yield
    except DataError as error:
        step = str(error.next_step or "")
        advice = [] if "no_value" in step else [each for each in step.split("; ") if not ELSEWHERE.search(each)]
        error.next_step = "; ".join(advice).removeprefix("or ") or otherwise
        raise


@_advice(_UPLOAD)
def from_csv(content: bytes, name: str = "weather.csv") -> pd.DataFrame:
    """Return the rows of a CSV file, which errors call ``name``, with `features.INPUTS` as columns, in its order.

    ``content`` is UTF-8, separated by commas, with a header, a row a step, nothing missing, at most `MAX_ROWS` rows;
    other columns are left out, and named by the attribute `unused`. `utc_timestamp` is ISO 8601 with a zone and comes
    back as datetime64[us, UTC]; the weather (units: `schema.UNITS`) as float64. Raises DataError, which names lines and
    columns and what is allowed.
    """
    if len(content) > MAX_BYTES:
        raise _too_many(f"{len(content):,} bytes")
    if b"\0" in content and not content.startswith(WORKBOOKS):
        what = f"{name} is not text in UTF-8, but packed, binary or in UTF-16."
        value = repr(content[max(content.index(b"\0") - 10, 0) :][:20])
        raise DataError(what, value=value, expected="CSV in UTF-8", next_step="unpack it, or save it as CSV UTF-8")
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # old programs end lines with CR alone
    content = content.rstrip(b"\n") + b"\n" * bool(content)  # spreadsheets leave lines empty at the end
    columns = _columns(content.split(b"\n", 1)[0].decode(errors="replace"))
    frame = _check(read_text(content, columns, next_step=_UPLOAD, name=name), name, _UPLOAD)
    header = next(csv.reader([content.split(b"\n", 1)[0].decode("utf-8-sig")]))
    frame.attrs["unused"] = [name for name in header if name not in columns]
    return frame


@_advice(_CORRECT)
def from_records(rows: object) -> pd.DataFrame:
    """Return the rows of a list of JSON objects with `features.INPUTS` as keys; otherwise as `from_csv`."""
    if not isinstance(rows, list):
        what, expected = "The rows are not a list.", f"a list of objects, one {steps.ONE}"
        raise DataError(what, value=f"{rows!r:.40}", expected=expected, next_step=_CORRECT)
    columns = _columns({name for row in rows if isinstance(row, dict) for name in row})
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            what, expected = f"Row {number} is not an object.", f"an object with the keys {', '.join(INPUTS)}"
            raise DataError(what, value=f"{row!r:.40}", expected=expected, next_step=_CORRECT)
        require_columns(row, columns, f"Row {number}", _CORRECT)
        if unknown := [name for name in row if name not in columns]:
            what = f"Row {number} has unknown keys: {', '.join(unknown)[:200]}."
            raise DataError(what, expected=", ".join([*INPUTS, *CAPACITIES.values()]), next_step="leave them out")
    text = pd.DataFrame([[str(row[name]) for name in columns] for row in rows], columns=columns, dtype="str")
    text.index = pd.RangeIndex(1, len(rows) + 1, name="row")
    return _check(text, "the rows", _CORRECT)


def _columns(header: Container[str]) -> list[str]:
    """Return the columns to read: those of the capacity, too, if the rows have one of them."""
    return INPUTS + list(CAPACITIES.values()) * any(name in header for name in CAPACITIES.values())


def _check(text: pd.DataFrame, name: str, next_step: str) -> pd.DataFrame:
    """Return rows of text as a checked frame; the index says which row or line each is."""
    from pandera.pandas import Check

    if not len(text):
        raise DataError("There are no rows.", expected=f"a row {steps.ONE}", next_step="add at least one")
    if len(text) > MAX_ROWS:
        raise _too_many(f"{len(text)} rows")
    frame = convert_text(text, name)
    times = [
        Check(lambda stamps: steps.starts(stamps) == stamps, error=START),
        Check(lambda stamps: stamps.dt.year.between(*YEARS), error=f"of the years {YEARS[0]} to {YEARS[1]}"),
        Check(lambda stamps: ~stamps.duplicated(keep=False), error=f"each {steps.NAME} once"),
    ]
    check_cells(frame, name, next_step, times=times)
    # km/h taken for m/s stays within the range of a row, but no month has such a mean. Means that are low are
    # allowed: in winter radiation is below what is usual of a year.
    means = frame[INPUTS[1:]].mean() if len(frame) >= steps.A_MONTH else {}
    high = {name: means[name] for name in USUAL_MEANS if name in means and means[name] > USUAL_MEANS[name][1]}
    if high:
        raise DataError(
            f"The mean of {' and of '.join(high)} is higher than that of any month.",
            value=", ".join(f"{name}: {mean:.3g}" for name, mean in high.items()),
            expected=", ".join(f"{name}: at most {USUAL_MEANS[name][1]} {UNITS[name]}" for name in high),
            next_step="look at the unit: km/h for m/s, or °F for °C?",
        )
    return frame.reset_index(drop=True)


def _too_many(amount: str) -> DataError:
    return DataError(
        "The request is too large.",
        value=amount,
        expected=f"at most {MAX_ROWS:,} rows, which is a year of {steps.NAMES}, and {MAX_BYTES:,} bytes",
        next_step="send it year by year",
    )
