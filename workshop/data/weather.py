"""Weather that somebody hands in to be predicted for: rows as CSV or JSON in, a checked frame out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 9000  # a year of hours


def from_csv(content: bytes) -> pd.DataFrame:
    """Return the rows of a CSV file with `features.INPUTS` as columns.

    Raises DataError, which names rows and columns and what was allowed.
    """
    raise NotImplementedError


def from_records(rows: object) -> pd.DataFrame:
    """Return the rows of a list of JSON objects with `features.INPUTS` as keys; raises DataError as `from_csv`."""
    raise NotImplementedError
