"""Parse and validate the inputs of a prediction request: CSV or JSON in, a checked frame out.

In addition to `features.INPUTS` the rows may have the `schema.CAPACITIES` columns, which override the known capacity.
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
MAX_BYTES = max(222 * MAX_ROWS, 2_000_000)  # several times the usual size of MAX_ROWS rows
YEARS = (1900, 2100)
START = f"the start of {steps.ONE}" + f" in {steps.ZONE}" * steps.IS_DAY
EXAMPLE = f"{steps.starts(pd.Series(pd.Timestamp('2016-06-01T12:00Z')))[0]:{STAMP}}"
# Matches advice in `forecast.table`'s errors that dashboard users cannot follow, since it needs a shell or files.
OWNER_ADVICE = re.compile(r"params\.yaml|another_problem\.md|^iconv |^otherwise ")
_CORRECT = "correct these values and send the rows again"
_UPLOAD = "correct the file and upload it again; write numbers as 1234.5"


@contextmanager
def _user_advice(default: str) -> Iterator[None]:
    """Remove advice that only the pipeline's owner can follow from the next step of an error."""
    try:
        yield
    except DataError as error:
        step = str(error.next_step or "")
        advice = [] if "no_value" in step else [each for each in step.split("; ") if not OWNER_ADVICE.search(each)]
        error.next_step = "; ".join(advice).removeprefix("or ") or default
        raise


@_user_advice(_UPLOAD)
def from_csv(content: bytes, name: str = "weather.csv") -> pd.DataFrame:
    """Return the rows of a CSV file, in file order, with the `features.INPUTS` columns; errors call it ``name``.

    ``content`` is UTF-8, separated by commas, with a header, one row per step, no missing values and at most `MAX_ROWS`
    rows. `utc_timestamp` is ISO 8601 with an offset and becomes datetime64[us, UTC]; the inputs become float64 in
    `schema.UNITS`. Other columns are dropped and listed in `attrs["unused"]`. Raises DataError with lines, columns and
    allowed values.
    """
    if len(content) > MAX_BYTES:
        raise _too_large(f"{len(content):,} bytes")
    if b"\0" in content and not content.startswith(WORKBOOKS):
        what = f"{name} is not UTF-8 text, but compressed, binary or UTF-16."
        value = repr(content[max(content.index(b"\0") - 10, 0) :][:20])
        raise DataError(what, value=value, expected="CSV in UTF-8", next_step="decompress it, or save it as CSV UTF-8")
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # some old programs end lines with a lone CR
    content = content.rstrip(b"\n") + b"\n" * bool(content)  # spreadsheets append empty lines
    columns = _columns(content.split(b"\n", 1)[0].decode(errors="replace"))
    frame = _check(read_text(content, columns, next_step=_UPLOAD, name=name), name, _UPLOAD)
    header = next(csv.reader([content.split(b"\n", 1)[0].decode("utf-8-sig")]))
    frame.attrs["unused"] = [name for name in header if name not in columns]
    return frame


@_user_advice(_CORRECT)
def from_records(rows: object) -> pd.DataFrame:
    """Return the rows of a list of JSON objects with the keys `features.INPUTS`; otherwise like `from_csv`."""
    if not isinstance(rows, list):
        what, expected = "`rows` is not a list.", f"a list of objects, one per {steps.NAME}"
        raise DataError(what, value=f"{rows!r:.40}", expected=expected, next_step=_CORRECT)
    columns = _columns({name for row in rows if isinstance(row, dict) for name in row})
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            what, expected = f"Row {number} is not an object.", f"an object with the keys {', '.join(INPUTS)}"
            raise DataError(what, value=f"{row!r:.40}", expected=expected, next_step=_CORRECT)
        require_columns(row, columns, f"Row {number}", _CORRECT)
        if unknown := [name for name in row if name not in columns]:
            what = f"Row {number} has unknown keys: {', '.join(unknown)[:200]}."
            raise DataError(what, expected=", ".join([*INPUTS, *CAPACITIES.values()]), next_step="remove these keys")
    text = pd.DataFrame([[str(row[name]) for name in columns] for row in rows], columns=columns, dtype="str")
    text.index = pd.RangeIndex(1, len(rows) + 1, name="row")
    return _check(text, "the rows", _CORRECT)


def _columns(header: Container[str]) -> list[str]:
    """Return the columns to read, including all capacity columns if the rows have any of them."""
    return INPUTS + list(CAPACITIES.values()) * any(name in header for name in CAPACITIES.values())


def _check(text: pd.DataFrame, name: str, next_step: str) -> pd.DataFrame:
    """Convert a frame of strings, indexed by row or line number, to typed columns and check the values."""
    from pandera.pandas import Check

    if not len(text):
        raise DataError("There are no rows.", expected=f"one row per {steps.NAME}", next_step="add at least one row")
    if len(text) > MAX_ROWS:
        raise _too_large(f"{len(text)} rows")
    frame = convert_text(text, name)
    times = [
        Check(lambda stamps: steps.starts(stamps) == stamps, error=START),
        Check(lambda stamps: stamps.dt.year.between(*YEARS), error=f"a year from {YEARS[0]} to {YEARS[1]}"),
        Check(lambda stamps: ~stamps.duplicated(keep=False), error=f"each {steps.NAME} once"),
    ]
    check_cells(frame, name, next_step, times=times)
    # Wind speeds in km/h, for example, may each be in range, but their monthly mean is too high. A low mean is fine:
    # in winter, radiation is below its usual yearly mean.
    means = frame[INPUTS[1:]].mean() if len(frame) >= steps.A_MONTH else {}
    high = {name: means[name] for name in USUAL_MEANS if name in means and means[name] > USUAL_MEANS[name][1]}
    if high:
        raise DataError(
            f"The mean of {' and '.join(high)} is implausibly high.",
            value=", ".join(f"{name}: {mean:.3g}" for name, mean in high.items()),
            expected=", ".join(f"{name}: at most {USUAL_MEANS[name][1]} {UNITS[name]}" for name in high),
            next_step="check the units: are they km/h instead of m/s, or °F instead of °C?",
        )
    return frame.reset_index(drop=True)


def _too_large(amount: str) -> DataError:
    return DataError(
        "The request is too large.",
        value=amount,
        expected=f"at most {MAX_ROWS:,} rows (a year of {steps.NAMES}) and {MAX_BYTES:,} bytes",
        next_step="split the rows by year",
    )
