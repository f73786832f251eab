"""Features and targets: columns, order, types."""

from __future__ import annotations

import pandas as pd
import pytest

from workshop.data.features import features, targets
from workshop.errors import DataError


def test_features_and_targets_are_float_columns_in_order(frame):
    """Columns come in the fixed order as float64, whatever the frame's order, and the frame is not changed."""
    before = frame.copy()
    mixed = frame[frame.columns[::-1]].astype({"temperature": "float32"})
    assert list(features(mixed).columns) == ["windspeed", "temperature", "rad_horizontal", "rad_diffuse"]
    assert list(targets(mixed).columns) == ["solar_GW", "wind_GW"]
    assert (features(mixed).dtypes == "float64").all()
    pd.testing.assert_frame_equal(frame, before)


def test_features_name_a_missing_column(frame):
    """A missing column is told with the nearest name."""
    with pytest.raises(DataError, match=r"windspeed \(nearest: windspeed_10m\)"):
        features(frame.rename(columns={"windspeed": "windspeed_10m"}))
