"""A raw file in pieces: cut where it lies, read wherever there is room, so that its size is no matter of memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from workshop.data import scan
from workshop.data.tables import latest_allowed, read_columns

if TYPE_CHECKING:
    import pyarrow as pa

# Dask warns of more than 10 MB in a task, and a piece travels in its task: then one that a lost worker had is not lost.
PIECE_BYTES = 8 << 20


class Piece(NamedTuple):
    """Whole lines of a CSV file, and its header."""

    name: str
    header: bytes
    lines: bytes


def cut(path: Path, size: int = PIECE_BYTES) -> Iterator[Piece]:
    """Yield the file ``path`` in pieces of about ``size`` bytes, one at a time."""
    with path.open("rb") as file:
        header = file.readline()
        while lines := file.read(size):
            yield Piece(path.name, header, lines + file.readline())


def read(piece: Piece, columns: Sequence[str]) -> pa.Table:
    """Return ``columns`` of a piece: `utc_timestamp` as timestamp[us, UTC], every other as float64, empty as null.

    Raises DataError for what `tables.read_columns` refuses, but with the line in the piece, not in the file.
    """
    import pyarrow as pa

    content = piece.header + piece.lines
    table = scan.scan(pa.BufferReader(content), columns, latest_allowed(), use_threads=False)
    if table is not None:
        return table.combine_chunks()  # what is in a few buffers travels faster
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / piece.name
        path.write_bytes(content)
        return pa.Table.from_pandas(read_columns(path, columns, next_step=""), preserve_index=False)
