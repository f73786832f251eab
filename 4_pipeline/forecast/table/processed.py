"""Reading and writing the processed table as CSV and Parquet, with validation of its schema."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pandas import DataFrame
from pyarrow import parquet

from forecast.table.reading import convert_text, read_text
from forecast.table.schema import CAPACITIES, COLUMNS, MAKE_AGAIN, STAMP, check
from forecast.terms.errors import DataError, require_columns
from forecast.terms.files import write_atomically


def read(path: Path | str) -> DataFrame:
    """Read and check a processed table from a .csv or .parquet file.

    The columns are `schema.COLUMNS` and, in a .parquet file, any of `schema.CAPACITIES`. Raises DataError for a missing
    or damaged file, and the errors of `reading.read_text` and `schema.check`.
    """
    path = Path(path)
    try:
        if path.suffix == ".csv":
            frame = convert_text(read_text(path, COLUMNS, next_step=MAKE_AGAIN), str(path))
        else:
            names = parquet.read_schema(path).names
            require_columns(names, COLUMNS, str(path), MAKE_AGAIN)
            frame = pd.read_parquet(path, columns=[*COLUMNS, *(name for name in CAPACITIES.values() if name in names)])
    except FileNotFoundError:
        raise DataError(f"The file {path} does not exist.", next_step=MAKE_AGAIN) from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"The file {path} is damaged or not Parquet.", value=str(error).splitlines()[0], next_step=MAKE_AGAIN
        ) from None
    return check(frame, str(path)).reset_index(drop=True)


def write(frame: DataFrame, folder: Path, name: str = "germany") -> list[Path]:
    """Write the processed table as ``name``.parquet and ``name``.csv to ``folder`` and return both paths.

    The files are reproducible byte for byte. Raises DataError for an invalid table, a full disk or a read-only folder.
    """
    parquet = write_parquet(frame, Path(folder) / f"{name}.parquet")
    return [parquet, write_csv(frame, Path(folder) / f"{name}.csv")]


def write_parquet(frame: DataFrame, path: Path) -> Path:
    """Write a processed table, or a part of it, as Parquet and return its path; see `write`."""
    buffer = io.BytesIO()
    check(frame, Path(path).name).to_parquet(buffer, index=False)
    return write_atomically(path, buffer.getvalue())


def write_csv(frame: DataFrame, path: Path) -> Path:
    """Write a processed table as CSV and return its path; see `write`."""
    frame = frame.round(dict.fromkeys(CAPACITIES.values(), 3))
    return write_atomically(path, frame.to_csv(index=False, date_format=STAMP, lineterminator="\n").encode())
