"""Private interfaces of scikit-learn: what a new version of it may change stands here."""

from __future__ import annotations

from typing import Any

from sklearn.ensemble import HistGradientBoostingRegressor


def strip_fitting_state(regressor: Any) -> Any:
    """Remove what only fitting needs, so that there are fewer types to trust when the model is loaded."""
    if isinstance(regressor, HistGradientBoostingRegressor):
        regressor._feature_subsample_rng = None
        regressor._loss.closs = None
    return regressor
