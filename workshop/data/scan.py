"""CSV columns read fast, or not at all: what is not plain is left to the strict reading in `tables`.

Five libraries were measured on raw files of the true size, 276 MB, on two cores (benchmarks/README.md). pandas needs
1.2 s and 780 MB for the whole files; for the columns needed pandas (`usecols`) 0.35 s and 36 MB, polars 0.43 s and
210 MB, Dask 0.7 s and 380 MB, duckdb 2.3 s and 300 MB, pyarrow 0.3 to 0.45 s and 130 MB. pyarrow is taken: pandas,
as fast and leaner, and polars read a line with too few or too many fields without a word; pyarrow refuses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    from pandas import DataFrame

STAMP_CHARACTERS = len("2013-01-31T23:00:00Z")


def scan(
    source: pa.NativeFile, columns: Sequence[str], latest: datetime, *, use_threads: bool = True
) -> pa.Table | None:
    """Return ``columns`` of an open CSV file, or None when anything in it is not plain; the header is checked already.

    A time after ``latest`` is not plain either.
    `utc_timestamp` comes as timestamp[us, UTC], every other column as float64, an empty cell as null. The file goes by
    in blocks; only these columns are kept. What is returned, the strict reading would return, too.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    types = {name: pa.string() if name == "utc_timestamp" else pa.float64() for name in columns}
    try:
        source.seek(source.size() - 1)
        if source.read(1) != b"\n":
            return None  # cut short, perhaps
        source.seek(0)
        if any(b'"' in block for block in iter(lambda: source.read(1 << 16), b"")):
            return None  # a quote that is not closed would take in the lines after it
        source.seek(0)
        table = csv.read_csv(
            source,
            read_options=csv.ReadOptions(use_threads=use_threads),
            parse_options=csv.ParseOptions(ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(include_columns=list(columns), column_types=types),
        )
        stamps = table["utc_timestamp"]
        # Of the forms that the cast takes only that with seconds and Z is as long; some others have no zone.
        if not len(table) or not pc.all(pc.equal(pc.binary_length(stamps), STAMP_CHARACTERS)).as_py():
            return None
        times = stamps.cast(pa.timestamp("us", "UTC"))
        if pc.max(times).value > latest.timestamp() * 1e6:  # microseconds since 1970
            return None
        table = table.set_column(table.column_names.index("utc_timestamp"), "utc_timestamp", times)
    except (pa.ArrowInvalid, OSError):
        return None
    # An empty cell is null; a NaN is text that only looks like a number to a lenient reader.
    odd = (pc.any(pc.is_nan(table[name])).as_py() for name in columns if name != "utc_timestamp")
    return None if any(odd) else table


def to_frame(table: pa.Table, first_line: int = 2) -> DataFrame:
    """Return what `scan` gave as a frame, null as NaN; the index is the line in the file."""
    import pandas as pd

    frame = table.to_pandas(split_blocks=True)
    numbers = [name for name in frame if name != "utc_timestamp"]
    frame[numbers] += 0.0  # no -0.0, as `tables.numbers`
    frame.index = pd.RangeIndex(first_line, first_line + len(frame))
    return frame
