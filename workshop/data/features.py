"""What a model sees and what it must predict: the columns of a processed frame, in a fixed order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop.data.schema import FEATURES, TARGETS
from workshop.data.tables import require_columns

if TYPE_CHECKING:
    from pandas import DataFrame


def features(frame: DataFrame) -> DataFrame:
    """Return the four weather features (units: `schema.UNITS`) as float64 columns; DataError if one is missing."""
    return _select(frame, FEATURES)


def targets(frame: DataFrame) -> DataFrame:
    """Return solar and wind generation in GW as float64 columns; DataError if one is missing."""
    return _select(frame, TARGETS)


def _select(frame: DataFrame, columns: list[str]) -> DataFrame:
    require_columns(frame.columns, columns, "The frame")
    return frame[columns].astype("float64")
