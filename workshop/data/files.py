"""Files of the room: tables read strictly, with every fault located, and files written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import difflib
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workshop.errors import DataError

if TYPE_CHECKING:
    from pandas import DataFrame


def write_whole(path: Path, content: bytes) -> Path:
    """Write ``content`` under a temporary name beside ``path``, then rename it; missing folders are made.

    Raises DataError (disk full, folder not writable); then ``path`` is as it was and nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"The file {path} could not be written.",
            value=error.strerror or error,
            expected=f"a writable folder with {len(content) / 1e6:.1f} MB free",
            next_step=f"free some space or change the rights of {path.parent}, then run the same again",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


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
    ``next_step`` is what to do when the file is absent or damaged.

    Raises DataError naming file, line, column and value: no file, not text, a column missing, a line cut short or too
    long, text where a number or a timestamp belongs.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    path = Path(path)
    require_columns(_read_header(path, next_step), columns, str(path), next_step)
    broken = []  # pyarrow hands over each line that has too few or too many fields

    def note(row: arrow.InvalidRow) -> str:
        broken.append(row)
        return "skip"

    try:
        table = arrow.read_csv(
            path,
            read_options=arrow.ReadOptions(use_threads=False),  # with threads, lines have no number
            parse_options=arrow.ParseOptions(invalid_row_handler=note, ignore_empty_lines=False),
            convert_options=arrow.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True
            ),
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"The file {path} cannot be read as CSV.", value=error, next_step=next_step) from None
    if broken:
        raise DataError(
            f"{path}, line {broken[0].number}: the line is cut short or too long ({_count(len(broken), 'such line')}).",
            value=f"{broken[0].actual_columns} fields: {broken[0].text[:80]}",
            expected=f"{broken[0].expected_columns} fields",
            next_step=next_step,
        )
    text = table.to_pandas()
    text.index += 2
    _require_line_end(path, text.index[-1] if len(text) else 1, next_step)
    return _parse(text, path)


def _read_header(path: Path, next_step: str) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.", next_step=next_step) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The file {path} cannot be read as CSV.", value=error, next_step=next_step) from None


def _require_line_end(path: Path, last_line: int, next_step: str) -> None:
    """Raise DataError when the last line has no end: the number in its last field may have been cut."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            raise DataError(
                f"{path}, line {last_line}: the file is cut short, its last line has no end.", next_step=next_step
            )


def _parse(text: DataFrame, path: Path) -> DataFrame:
    import pandas as pd

    parsed = {}
    for column in text:
        if column == "utc_timestamp":
            values = pd.to_datetime(text[column], format="ISO8601", utc=True, errors="coerce").dt.as_unit("us")
            # pandas takes "today" and "now" for times
            wrong = values.isna() | ~text[column].str.match(r"\d{4}-", na=False)
            expected = "a timestamp such as 2013-01-31T23:00:00Z"
        else:
            values = pd.to_numeric(text[column], errors="coerce").astype("float64")
            wrong, expected = values.isna() & text[column].notna(), "a number, or nothing"
        if wrong.any():
            line = wrong.idxmax()
            raise DataError(
                f"{path}, line {line}, column {column}: not what belongs there ({_count(wrong.sum(), 'such cell')}).",
                value="an empty cell" if pd.isna(text[column][line]) else repr(text[column][line]),
                expected=expected,
                next_step=f"correct that line of {path.name}, or make the file again",
            )
        parsed[column] = values
    return pd.DataFrame(parsed)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'} in all"
