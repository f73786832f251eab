"""A regressor that is given raw weather and answers in GW: it learns capacity factors, and knows how unsure it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import TimeSeriesSplit

from workshop.data import capacity
from workshop.data.features import INPUTS, derive, installed, targets, to_utc
from workshop.data.tables import require_columns
from workshop.errors import DataError, ParameterError

if TYPE_CHECKING:
    import pandas as pd

NO_TREES_MORE = 10  # that many trees without a smaller error, and no more are grown
LEAST_HOURS = 200  # fewer cannot be cut into parts to learn from, to watch and to calibrate on


class CapacityFactorRegressor(RegressorMixin, BaseEstimator):
    """Predicts solar and wind power in GW from an hour and its weather (columns `features.INPUTS`).

    What is built grows from year to year, and a model of GW that has seen the small years only stays too low. So each
    target is divided by the capacity that was installed at the time (`capacity.installed`), a regressor learns that
    capacity factor from what `features.derive` makes of the inputs, and its answer is multiplied again. It is never
    below zero. The figures of capacity come with the frame that it is fitted on (`capacity.of_frame`), and stay with
    it.

    ``regressor`` is any scikit-learn regressor; each target gets a copy. With ``watched_share`` above zero, which takes
    a histogram gradient boosting, the last share of the hours is first kept aside, and trees are grown until ten more
    make the error on it no smaller; as many, those ten too, are grown on all hours. Nothing outside of what `fit` is
    given is looked at.

    ``band`` is a histogram gradient boosting, too: copies of it learn the quantiles that enclose ``coverage`` of the
    hours. Quantiles that are learned are too sure of years that they have not seen. So they are widened (or narrowed)
    by what would have been right for later hours, again and again along the ``folds`` of the time that they were given:
    conformalized quantile regression (Romano, Patterson, Candès 2019, https://arxiv.org/abs/1905.03222), with the folds
    of a time series. For solar power only hours with the sun up count.
    """

    year_ends_ = capacity.YEAR_ENDS_GW  # of models that were logged before figures came with the data

    def __init__(self, regressor=None, *, watched_share=0.0, band=None, coverage=0.8, folds=5):
        self.regressor = regressor
        self.watched_share = watched_share
        self.band = band
        self.coverage = coverage
        self.folds = folds

    def fit(self, X: pd.DataFrame, y: pd.DataFrame) -> CapacityFactorRegressor:
        """Learn from ``X`` (columns `INPUTS`, in order of time) and ``y`` (`TARGETS` in GW); return itself.

        Raises DataError: columns missing, hours not in order, too few of them, hours without a figure of capacity;
        ParameterError: a share or coverage that cannot be, no regressor.
        """
        self._check(X)
        self.year_ends_ = capacity.of_frame(X)
        factors = (targets(y).to_numpy() / installed(X, self.year_ends_).to_numpy()).T
        derived = derive(X)
        counted = [np.flatnonzero(_sun_is_up(derived)), np.arange(len(X))]
        self.regressors_ = [self._fit_one(derived, factor) for factor in factors]
        self.bands_, self.margins_ = [], []
        if self.band is not None:
            for regressor, factor, hours in zip(self.regressors_, factors, counted, strict=True):
                pair, margin = self._fit_band(derived, factor, hours, getattr(regressor, "n_iter_", None))
                self.bands_.append(pair)
                self.margins_.append(margin)
        self.feature_names_in_ = np.array(INPUTS, dtype=object)
        self.n_features_in_ = len(INPUTS)
        return self

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        """Return GW as an array with a row an hour and the columns of `TARGETS`; errors as `features.derive`."""
        return self._in_GW(self._predict_factors(derive(X)), installed(X, self.year_ends_))

    def predict_with_band(self, X: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what `predict` returns, and the lower and the upper end of its band in GW, shaped alike.

        What is predicted lies within; for solar power of hours with the sun down the band is nothing else.
        """
        derived, capacities = derive(X), installed(X, self.year_ends_)  # once: a single hour is mostly these
        predicted, ends = self._in_GW(self._predict_factors(derived), capacities), []
        for side, sign in enumerate((-1, 1)):
            learned = [pair[side].predict(derived) for pair in self.bands_]
            moved = [values + sign * margin for values, margin in zip(learned, self.margins_, strict=True)]
            ends.append(self._in_GW(moved, capacities))
        # Each is learned alone, and where little is known they may cross.
        low, high = np.minimum.reduce([predicted, *ends]), np.maximum.reduce([predicted, *ends])
        night = ~_sun_is_up(derived)
        low[night, 0] = high[night, 0] = predicted[night, 0]
        return predicted, low, high

    def predict_band(self, X: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Return both ends of the band alone, see `predict_with_band`."""
        return self.predict_with_band(X)[1:]

    def _predict_factors(self, derived: pd.DataFrame) -> list[np.ndarray]:
        return [regressor.predict(derived) for regressor in self.regressors_]

    @staticmethod
    def _in_GW(factors: list[np.ndarray], capacities: pd.DataFrame) -> np.ndarray:
        return np.clip(np.column_stack(factors), 0, None) * capacities.to_numpy()

    def _check(self, X: pd.DataFrame) -> None:
        if not 0 <= self.watched_share < 1 or not 0 < self.coverage < 1 or self.folds < 2:
            raise ParameterError(
                "The regressor's settings cannot be used.",
                value=f"watched_share {self.watched_share}, coverage {self.coverage}, folds {self.folds}",
                expected="shares between 0 and 1, and at least 2 folds",
            )
        if self.regressor is None:
            raise ParameterError(
                "There is nothing to fit.",
                value="regressor None",
                expected="a scikit-learn regressor",
                next_step="CapacityFactorRegressor(HistGradientBoostingRegressor())",
            )
        require_columns(X.columns, INPUTS, "The frame")
        if not to_utc(X["utc_timestamp"]).is_monotonic_increasing:
            raise DataError(
                "The hours are not in order of time.",
                expected="rows sorted by utc_timestamp: what is watched and calibrated on are the last ones",
                next_step='frame.sort_values("utc_timestamp")',
            )
        if len(X) < LEAST_HOURS:
            raise DataError(
                "There are too few hours to learn from.", value=f"{len(X)} hours", expected=f"at least {LEAST_HOURS}"
            )

    def _fit_one(self, derived: pd.DataFrame, factor: np.ndarray):
        regressor = clone(self.regressor)
        if self.watched_share:
            cut = round(len(derived) * (1 - self.watched_share))
            regressor.set_params(early_stopping=True, n_iter_no_change=NO_TREES_MORE)
            regressor.fit(derived[:cut], factor[:cut], X_val=derived[cut:], y_val=factor[cut:])
            regressor = clone(self.regressor).set_params(early_stopping=False, max_iter=regressor.n_iter_)
        return _slim(regressor.fit(derived, factor))

    def _fit_band(self, derived: pd.DataFrame, factor: np.ndarray, counted: np.ndarray, trees: int | None):
        """Return the regressors of both ends, and how much (as a capacity factor) each has to be moved outwards.

        They learn from the hours ``counted`` alone. With the nights a low quantile of solar power would start at zero,
        below which nothing is and from which no tree leads away.
        """
        derived, factor = derived.iloc[counted], factor[counted]
        outside = (1 - self.coverage) / 2
        ends = [clone(self.band).set_params(loss="quantile", quantile=q) for q in (outside, 1 - outside)]
        for end in ends:
            end.set_params(early_stopping=False, **({"max_iter": trees} if trees else {}))
        missed = []
        for before, after in TimeSeriesSplit(self.folds).split(derived):
            fitted = [clone(end).fit(derived.iloc[before], factor[before]) for end in ends]
            low, high = (end.predict(derived.iloc[after]) for end in fitted)
            missed.append(np.maximum(low - factor[after], factor[after] - high))
        margin = float(np.quantile(np.concatenate(missed), self.coverage))
        return [_slim(end.fit(derived, factor)) for end in ends], margin


class CapacityFactorNetwork:
    """A fitted Keras network from `features.DERIVED` to capacity factors of `TARGETS`, given raw weather all the same.

    It is what `CapacityFactorRegressor` is to scikit-learn's regressors; the network is fitted by whoever has it, and
    ``year_ends`` are the figures of the frame that it was fitted on (`capacity.of_frame`).
    """

    def __init__(self, network, year_ends: capacity.YearEnds):
        self.network = network
        self.year_ends_ = year_ends

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        """Return GW as an array with a row an hour and the columns of `TARGETS`; errors as `features.derive`."""
        factors = self.network.predict(derive(X).to_numpy("float32"), verbose=0)
        return np.clip(factors, 0, None) * installed(X, self.year_ends_).to_numpy()


def _sun_is_up(derived: pd.DataFrame) -> np.ndarray:
    return derived["sun_elevation"].to_numpy() > 0


def _slim(regressor):
    """Drop what only fitting needs: whoever loads the model has fewer kinds of things to trust."""
    if isinstance(regressor, HistGradientBoostingRegressor):
        regressor._feature_subsample_rng = None
        regressor._loss.closs = None
    return regressor
