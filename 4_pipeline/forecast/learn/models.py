"""The pipeline's models, which predict capacity factors, and their hyperparameter search.

Installed capacity grows from year to year: a model trained on power underestimates later years. So the targets are
divided by the installed capacity (`features.installed`) before training, and predictions are multiplied by it.

The error bands are split-conformal quantile regression (Romano, Patterson, Candès 2019,
https://arxiv.org/abs/1905.03222) with time-series folds.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import cloudpickle
import joblib
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import ParameterSampler, TimeSeriesSplit
from threadpoolctl import ThreadpoolController
from tqdm import tqdm

from forecast import problem
from forecast.table.features import (
    INPUTS,
    derive,
    inputs,
    installed,
    sun_is_up,
    targets,
    to_utc,
    year_ends_of,
)
from forecast.terms import steps
from forecast.terms.errors import DataError, ServiceError, require_columns

if TYPE_CHECKING:
    from distributed import Client

N_ITER_NO_CHANGE = 10  # early stopping: patience in trees without a smaller validation error
BATCH_CANDIDATES = 6  # candidates per task; they share the derived features, which cost as much time as two fits
# As good as 40 trees at the default learning rate, 0.1, in half the time: 0.8 ** 19 is about 0.9 ** 40.
LEVEL_TREES = {"max_iter": 19, "learning_rate": 0.2, "max_leaf_nodes": 15, "early_stopping": False, "random_state": 0}
LOWER_BOUNDS = [target.possible[0] for target in problem.TARGETS]
MIN_HOURS = 200  # fewer cannot be split into training, validation and calibration rows


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # cached: creating it takes 5 ms, predicting a row only 3 ms


def one_thread() -> AbstractContextManager:
    """Limit OpenMP to one thread: on a busy machine, spinning threads slow a model down twentyfold."""
    return _libraries().limit(limits=1, user_api="openmp")


class TrainingData:
    """Training rows and the features derived from them, shared by the candidates of a search.

    ``values`` are the derived features (rows, features), ``factors`` the capacity factors (targets, rows), and
    ``band_rows`` the rows that each target's error band is fitted on (daytime rows for solar power).
    """

    def __init__(self, X: pd.DataFrame, y: pd.DataFrame) -> None:
        require_columns(X.columns, INPUTS, "The frame")
        self.timestamps = to_utc(X["utc_timestamp"])
        if not self.timestamps.is_monotonic_increasing:
            raise DataError(
                "The rows are not in chronological order.",
                expected="rows sorted by utc_timestamp: the last rows are for early stopping and calibration",
                next_step='frame.sort_values("utc_timestamp")',
            )
        if len(X) < MIN_HOURS:
            expected = f"at least {MIN_HOURS}, even in the first of the `folds`"
            what = f"There are too few {steps.NAMES} to train on."
            raise DataError(
                what, value=f"{len(X)} {steps.NAMES}", expected=expected, next_step="use more years, or fewer folds"
            )
        self.year_ends = year_ends_of(X)
        self.factors = (targets(y).to_numpy() / installed(X).to_numpy()).T
        derived = derive(X)
        self.band_rows = [np.flatnonzero(sun_is_up(derived) | (not target.by_day)) for target in problem.TARGETS]
        self.values = derived.to_numpy()  # not a frame: scikit-learn would compare column names at each prediction
        self._levels: dict[int, list[np.ndarray]] = {}

    def levels(self, level_days: int | None) -> list[np.ndarray]:
        """Return the level of each row (`find_levels`), one array per target; 1 without ``level_days``."""
        if not level_days:
            return [np.ones(len(self.timestamps))] * len(self.factors)
        if level_days not in self._levels:
            self._levels[level_days] = [
                # a level is a ratio of sums, so all values need the same sign
                np.ones(len(factor))
                if lower_bound < 0
                else find_levels(self.values, factor, self.timestamps, level_days)
                for factor, lower_bound in zip(self.factors, LOWER_BOUNDS, strict=True)
            ]
        return self._levels[level_days]


class CapacityFactorRegressor(RegressorMixin, BaseEstimator):
    """Predict the targets from time and weather (columns `features.INPUTS`), with optional error bands.

    ``regressor`` is any scikit-learn regressor; one copy is fitted for each target's capacity factor. A fitted model
    keeps the capacities of its training data (`features.year_ends_of`) for rows without their own.

    Output per installed GW drifts for reasons outside the inputs. With ``level_days`` its level is estimated for each
    period of that length (`find_levels`); predictions use the level of the last period.

    With ``validation_fraction`` (histogram gradient boosting only) the last rows are used for early stopping; with
    ``refit`` the same number of trees is then fitted on all rows.

    ``band`` is a `HistGradientBoostingRegressor` for the quantiles of the error band. Uncalibrated, it is too narrow
    for later years, so the band is calibrated to the nominal ``coverage`` on ``folds`` of the training data; this does
    not account for changes of the level.
    """

    # Defaults for models that were logged before these attributes existed.
    year_ends_, levels_ = problem.CAPACITY, [1.0] * len(problem.TARGETS)

    def __init__(
        self, regressor: Any = None, *, level_days: int | None = None, validation_fraction: float = 0.0,
        refit: bool = True, band: Any = None, coverage: float = 0.8, folds: int = 3,
    ) -> None:  # fmt: skip
        self.level_days = level_days
        self.regressor = regressor
        self.validation_fraction = validation_fraction
        self.refit = refit
        self.band = band
        self.coverage = coverage
        self.folds = folds

    def fit(self, X: pd.DataFrame, y: pd.DataFrame) -> CapacityFactorRegressor:
        """Fit on ``X`` (columns `INPUTS`, in time order) and ``y`` (`TARGETS`).

        Raises DataError if columns are missing, rows are unordered or too few, or capacities are unknown.
        """
        return self.fit_data(TrainingData(X, y))

    def fit_data(self, data: TrainingData) -> CapacityFactorRegressor:
        """Fit on `TrainingData`, which several models can share."""
        self.year_ends_ = data.year_ends
        values = data.values
        levels = data.levels(self.level_days)
        self.levels_ = [float(level[-1]) for level in levels]
        scaled = [factor / level for factor, level in zip(data.factors, levels, strict=True)]
        self.bands_, self.margins_ = [], []
        with one_thread():
            self.regressors_ = [self._fit_one(values, factor) for factor in scaled]
            for factor, rows in zip(scaled, data.band_rows, strict=True) if self.band is not None else ():
                pair, margin = self._fit_band(values[rows], factor[rows])
                self.bands_.append(pair)
                self.margins_.append(margin)
        self.feature_names_in_ = np.array(INPUTS, dtype=object)
        self.n_features_in_ = len(INPUTS)
        return self

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        """Return the predictions, shape (rows, targets); raise the same errors as `features.derive`."""
        predicted = self._predict_factors(derive(X).to_numpy(), self.regressors_)
        return self._from_factors(predicted, installed(X, self.year_ends_))

    def predict_with_band(self, X: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return predictions and the lower and upper bounds of their error bands, each of shape (rows, targets).

        The band always contains the prediction; for solar power at night both ends equal it.
        """
        derived, capacities = (
            derive(X),
            installed(X, self.year_ends_),
        )  # computed only once: together they take most of the time of a single prediction
        values = derived.to_numpy()
        predicted, ends = self._from_factors(self._predict_factors(values, self.regressors_), capacities), []
        for side, sign in enumerate((-1, 1)):
            quantiles = self._predict_factors(values, [pair[side] for pair in self.bands_])
            calibrated = [values + sign * margin for values, margin in zip(quantiles, self.margins_, strict=True)]
            ends.append(self._from_factors(calibrated, capacities))
        # Quantile models are fitted separately and may cross.
        low, high = np.minimum.reduce([predicted, *ends]), np.maximum.reduce([predicted, *ends])
        night = np.outer(~sun_is_up(derived), [target.by_day for target in problem.TARGETS])
        low[night] = high[night] = predicted[night]
        return predicted, low, high

    def _predict_factors(self, values: np.ndarray, regressors: list[Any]) -> list[np.ndarray]:
        with one_thread():
            return [regressor.predict(values) for regressor in regressors]

    def _from_factors(self, factors: list[np.ndarray], capacities: pd.DataFrame) -> np.ndarray:
        return np.clip(np.column_stack(factors) * self.levels_ * capacities.to_numpy(), LOWER_BOUNDS, None)

    def _fit_one(self, derived: np.ndarray, factor: np.ndarray) -> Any:
        regressor = clone(self.regressor)
        if self.validation_fraction:
            cut = round(len(derived) * (1 - self.validation_fraction))
            regressor.set_params(early_stopping=True, n_iter_no_change=N_ITER_NO_CHANGE)
            regressor.fit(derived[:cut], factor[:cut], X_val=derived[cut:], y_val=factor[cut:])
            if not self.refit:
                return regressor
            regressor = clone(self.regressor).set_params(early_stopping=False, max_iter=regressor.n_iter_)
        return _strip_fitting_state(regressor.fit(derived, factor))

    def _fit_band(self, derived: np.ndarray, factor: np.ndarray) -> tuple[list[Any], float]:
        """Return the quantile regressors of the band's two ends, and the calibration margin as a capacity factor.

        For solar power, all rows are from daytime: with night rows, a low quantile would always be zero.
        """
        outside = (1 - self.coverage) / 2
        quantile_model = clone(self.band).set_params(loss="quantile", early_stopping=False)
        ends = [clone(quantile_model).set_params(quantile=quantile) for quantile in (outside, 1 - outside)]
        misses = []
        for before, after in TimeSeriesSplit(self.folds).split(derived):
            fitted = [clone(end).fit(derived[before], factor[before]) for end in ends]
            low, high = (end.predict(derived[after]) for end in fitted)
            misses.append(np.maximum(low - factor[after], factor[after] - high))
        margin = float(np.quantile(np.concatenate(misses), self.coverage))
        return [_strip_fitting_state(end.fit(derived, factor)) for end in ends], margin


def _strip_fitting_state(regressor: Any) -> Any:
    """Remove attributes that only fitting needs, so that loading the model has to trust fewer types."""
    if isinstance(
        regressor, HistGradientBoostingRegressor
    ):  # private attributes: check them after an upgrade of scikit-learn
        regressor._feature_subsample_rng = None
        regressor._loss.closs = None
    return regressor


def find_levels(derived: np.ndarray, factor: np.ndarray, timestamps: pd.DatetimeIndex, level_days: int) -> np.ndarray:
    """Return the level of each row: the sum of the capacity factors over its period, divided by the expected sum.

    ``factor`` has the shape (rows,), ``derived`` (rows, features); ``timestamps`` are in order. Periods have
    ``level_days`` days, counted from the end; the first period also has the remaining days. Expected values come from a
    small gradient boosting model, fitted on all rows, then again on the factors divided by the first estimate.
    """
    days = (timestamps[-1] - timestamps).days.to_numpy()
    period = np.minimum(days // level_days, max(0, days[0] // level_days - 1))
    level = np.ones(len(factor))
    for _ in range(2):
        trees = HistGradientBoostingRegressor(**LEVEL_TREES)
        with one_thread():
            expected = np.clip(trees.fit(derived, factor / level).predict(derived), 0, None)
        sums = np.bincount(period, factor), np.bincount(period, expected)
        level = np.divide(*sums, out=np.ones(period.max() + 1), where=(sums[0] > 0) & (sums[1] > 0))[period]
    return level


# -- hyperparameter search ---------------------------------------------------------------------------------------------
Scores = list[tuple[int, float]]  # each candidate's number and its R2 on one fold


@dataclass(frozen=True)
class Search:
    """The result of a search: a ``table`` of the candidates, best first, and the ``best`` parameters.

    The columns are the parameters, `r2` (mean of the folds) and `spread` (its standard deviation).
    """

    table: pd.DataFrame
    best: dict[str, Any]


def search(
    estimator: CapacityFactorRegressor,
    distributions: dict[str, Any],
    train: pd.DataFrame,
    *,
    candidates: int,
    folds: int,
    seed: int,
    client: Client | None = None,
    progress: bool = True,
) -> Search:
    """Search hyperparameters: score ``candidates`` sampled from ``distributions`` (scikit-learn's `ParameterSampler`).

    Each candidate is cross-validated on ``folds`` of ``train``, a processed frame in time order (`TimeSeriesSplit`),
    by the mean R2 of the targets. The fits run on ``client``'s workers, or on this machine's cores, with the same
    result. Raises ServiceError if the workers are lost.
    """
    sampled = list(ParameterSampler(distributions, candidates, random_state=seed))
    estimators = [clone(estimator).set_params(refit=False, **parameters) for parameters in sampled]
    batches = np.array_split(np.arange(len(sampled)), -(-len(sampled) // BATCH_CANDIDATES))
    tasks = [
        ({number: estimators[number] for number in batch.tolist()}, fold)
        for fold in reversed(list(TimeSeriesSplit(folds).split(train)))  # longest first
        for batch in batches
    ]
    data = [inputs(train), targets(train)]
    fits = (joblib.delayed(_score_fold)(batch, *data, fold) for batch, fold in tasks)
    parallel = joblib.Parallel(-1, return_as="generator_unordered")
    results = chain.from_iterable(_score_on_workers(client, data, tasks) if client else parallel(fits))
    fold_scores = list(tqdm(results, total=len(sampled) * folds, desc="fits", disable=not progress))
    scores = pd.DataFrame(fold_scores, columns=["candidate", "r2"]).groupby("candidate")["r2"].agg(["mean", "std"])
    # Drop the prefix of nested estimators: `regressor__max_iter` becomes `max_iter`.
    table = (
        pd.DataFrame(sampled)
        .rename(columns=lambda name: name.rpartition("__")[2])
        .assign(r2=scores["mean"], spread=scores["std"])
    )
    table = table.sort_values("r2", ascending=False, kind="stable", ignore_index=True)
    best = sampled[scores["mean"].idxmax()]
    # Convert NumPy numbers, which cannot be written to JSON.
    return Search(table, {name: getattr(value, "item", lambda value=value: value)() for name, value in best.items()})


def _score_on_workers(client: Client, data: list[pd.DataFrame], tasks: list[tuple]) -> Iterator[Scores]:
    """Yield the scores of each task as it finishes; raise ServiceError if workers are lost."""
    from distributed import CancelledError, KilledWorker, as_completed

    def score_fold(function: bytes, *arguments: Any) -> Scores:
        return pickle.loads(function)(*arguments)  # noqa: S301 - pickled by this client

    try:
        # Broadcast, or one worker gets most fits. Do not hash: another search with equal data could release this key.
        data = client.scatter(data, broadcast=True, hash=False)
        futures = [
            client.submit(score_fold, _by_value(partial(_score_fold, batch)), *data, fold, pure=False)
            for batch, fold in tasks
        ]
        for future in as_completed(futures, loop=client.loop):
            yield future.result()
    except (CancelledError, KilledWorker, OSError) as error:
        raise ServiceError(
            "The hyperparameter search failed: a Dask worker or the scheduler has stopped or does not respond.",
            value=f"{type(error).__name__}: {error}",
            next_step="check that the scheduler and the workers are running, then run `dvc repro` again",
        ) from None


class _Pickler(cloudpickle.Pickler):
    """Also pickles cached functions by value, which cloudpickle pickles by reference."""

    dispatch_table = cloudpickle.Pickler.dispatch_table | {
        type(_libraries): lambda cached: (cache, (cached.__wrapped__,))
    }


def _by_value(function: Callable) -> bytes:
    """Pickle a function together with this package's code: a worker may have imported another version."""
    package, file = sys.modules[__name__.partition(".")[0]], io.BytesIO()
    cloudpickle.register_pickle_by_value(package)
    try:
        _Pickler(file).dump(function)
    finally:
        cloudpickle.unregister_pickle_by_value(package)
    return file.getvalue()


def _score_fold(batch: dict[int, CapacityFactorRegressor], X: pd.DataFrame, y: pd.DataFrame, fold: tuple) -> Scores:
    """Fit a batch of candidates on the same training data; return each candidate's number and score."""
    before, after = fold
    data, validation = TrainingData(X.iloc[before], y.iloc[before]), (X.iloc[after], y.iloc[after])
    return [(number, estimator.fit_data(data).score(*validation)) for number, estimator in batch.items()]
