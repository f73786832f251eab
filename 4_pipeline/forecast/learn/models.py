"""The pipeline's models: raw weather in, targets out, learned as capacity factors; the search for hyperparameters."""

from __future__ import annotations

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

PATIENCE_TREES = 10  # this many trees without a smaller error, and no more are grown
BATCH_CANDIDATES = 6  # of a search, fitted together: what they share takes as long as two fits
# They learn as much as 40 at the usual rate of 0.1, in half the time: 0.8 ** 19 is 0.9 ** 40.
LEVEL_TREES = {"max_iter": 19, "learning_rate": 0.2, "max_leaf_nodes": 15, "early_stopping": False, "random_state": 0}
LEAST = [target.possible[0] for target in problem.TARGETS]
MIN_HOURS = 200  # fewer cannot be cut into parts to learn from, to watch and to calibrate on


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # takes 5 ms, a prediction of one row 3 ms


def one_thread() -> AbstractContextManager:
    """Limit OpenMP to one thread: several wait actively for each other, beside other programs twenty times as long."""
    return _libraries().limit(limits=1, user_api="openmp")


class Hours:
    """Hours to learn from, with what `CapacityFactorRegressor` makes of them; candidates of a search share it.

    ``values`` are the derived features (hours, features), ``factors`` the capacity factors (targets, hours), and
    ``counted`` the rows that count for the band of each target.
    """

    def __init__(self, X: pd.DataFrame, y: pd.DataFrame) -> None:
        require_columns(X.columns, INPUTS, "The frame")
        self.stamps = to_utc(X["utc_timestamp"])
        if not self.stamps.is_monotonic_increasing:
            raise DataError(
                "The hours are not in order of time.",
                expected="rows sorted by utc_timestamp: the last ones are for early stopping and calibration",
                next_step='frame.sort_values("utc_timestamp")',
            )
        if len(X) < MIN_HOURS:
            rows, least = f"{len(X)} {steps.NAMES}", f"at least {MIN_HOURS}, in the first of `folds`, too"
            what = f"There are too few {steps.NAMES} to learn from."
            raise DataError(what, value=rows, expected=least, next_step="take more years, or fewer folds")
        self.year_ends = year_ends_of(X)
        self.factors = (targets(y).to_numpy() / installed(X).to_numpy()).T
        derived = derive(X)
        self.counted = [np.flatnonzero(sun_is_up(derived) | (not target.by_day)) for target in problem.TARGETS]
        self.values = derived.to_numpy()  # without names, which would be compared again for each prediction
        self._levels: dict[int, list[np.ndarray]] = {}

    def levels(self, level_days: int | None) -> list[np.ndarray]:
        """Return the level of each hour (`find_levels`), an array a target; without ``level_days`` it is 1."""
        if not level_days:
            return [np.ones(len(self.stamps))] * len(self.factors)
        if level_days not in self._levels:
            self._levels[level_days] = [
                # what may be below zero has no sum to be compared by
                np.ones(len(factor)) if least < 0 else find_levels(self.values, factor, self.stamps, level_days)
                for factor, least in zip(self.factors, LEAST, strict=True)
            ]
        return self._levels[level_days]


class CapacityFactorRegressor(RegressorMixin, BaseEstimator):
    """Predicts the targets from an hour and its weather (columns `features.INPUTS`).

    Installed capacity grows from year to year, and a model trained on power underestimates later years. So each target
    is divided by the capacity that was installed at the time (`features.installed`; 1 if the problem knows of none), a
    regressor learns that capacity factor from `features.derive`, and its prediction is multiplied again. No prediction
    is below what is possible.
    The figures of capacity are those of the frame that the model is fitted on (`features.year_ends_of`), and stay with
    the model, for hours that bring none.

    How much the capacity gives may change for reasons that no input shows: with ``level_days``, this level is
    found for each part of time of so many days (`find_levels`). Capacity factors are divided by it before they are
    learned, and predictions are multiplied by the level of the last part.

    ``regressor`` is any scikit-learn regressor; each target gets a copy. With ``watched_share`` above zero, which needs
    a histogram gradient boosting, the last share of the hours is first kept aside for early stopping: trees are grown
    until ten more make the error on it no smaller; then, with ``refit``, as many are grown on all hours.

    ``band`` is a histogram gradient boosting, too: copies of it learn the quantiles that enclose ``coverage`` of the
    hours. Learned quantiles are too narrow for years that the model has not seen. So they are widened (or narrowed) by
    what would have been right for later hours, along the ``folds`` of the time to learn from: conformalized quantile
    regression (Romano, Patterson, Candès 2019, https://arxiv.org/abs/1905.03222), with the folds of a time series, each
    hour at the level of its own part of time: the band promises nothing about a level that changes. For solar power
    only hours with the sun up count.
    """

    # Of models that were logged before figures came with the data, and before there were levels.
    year_ends_, levels_ = problem.CAPACITY, [1.0] * len(problem.TARGETS)

    def __init__(
        self, regressor: Any = None, *, level_days: int | None = None, watched_share: float = 0.0, refit: bool = True,
        band: Any = None, coverage: float = 0.8, folds: int = 3,
    ) -> None:  # fmt: skip
        self.level_days = level_days
        self.regressor = regressor
        self.watched_share = watched_share
        self.refit = refit
        self.band = band
        self.coverage = coverage
        self.folds = folds

    def fit(self, X: pd.DataFrame, y: pd.DataFrame) -> CapacityFactorRegressor:
        """Learn from ``X`` (columns `INPUTS`, in order of time) and ``y`` (`TARGETS`); return itself.

        Raises DataError: columns missing, hours not in order, too few of them, hours without a figure of capacity.
        """
        return self.fit_hours(Hours(X, y))

    def fit_hours(self, learned: Hours) -> CapacityFactorRegressor:
        """Learn as `fit` does from hours that several models learn from."""
        self.year_ends_ = learned.year_ends
        values = learned.values
        levels = learned.levels(self.level_days)
        self.levels_ = [float(level[-1]) for level in levels]
        scaled = [factor / level for factor, level in zip(learned.factors, levels, strict=True)]
        self.bands_, self.margins_ = [], []
        with one_thread():
            self.regressors_ = [self._fit_one(values, factor) for factor in scaled]
            for factor, hours in zip(scaled, learned.counted, strict=True) if self.band is not None else ():
                pair, margin = self._fit_band(values[hours], factor[hours])
                self.bands_.append(pair)
                self.margins_.append(margin)
        self.feature_names_in_ = np.array(INPUTS, dtype=object)
        self.n_features_in_ = len(INPUTS)
        return self

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        """Return an array with a row an hour and the columns of `TARGETS`; errors as `features.derive`."""
        predicted = self._predict_factors(derive(X).to_numpy(), self.regressors_)
        return self._from_factors(predicted, installed(X, self.year_ends_))

    def predict_with_band(self, X: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what `predict` returns, and the lower and the upper end of its band, in the same shape.

        The prediction lies within; for solar power with the sun down both ends are the prediction.
        """
        derived, capacities = derive(X), installed(X, self.year_ends_)  # once: most of the time of an hour
        values = derived.to_numpy()
        predicted, ends = self._from_factors(self._predict_factors(values, self.regressors_), capacities), []
        for side, sign in enumerate((-1, 1)):
            learned = self._predict_factors(values, [pair[side] for pair in self.bands_])
            widened = [values + sign * margin for values, margin in zip(learned, self.margins_, strict=True)]
            ends.append(self._from_factors(widened, capacities))
        # Each is learned alone: where there are few hours to learn from, they may cross.
        low, high = np.minimum.reduce([predicted, *ends]), np.maximum.reduce([predicted, *ends])
        night = np.outer(~sun_is_up(derived), [target.by_day for target in problem.TARGETS])
        low[night] = high[night] = predicted[night]
        return predicted, low, high

    def _predict_factors(self, values: np.ndarray, regressors: list[Any]) -> list[np.ndarray]:
        with one_thread():
            return [regressor.predict(values) for regressor in regressors]

    def _from_factors(self, factors: list[np.ndarray], capacities: pd.DataFrame) -> np.ndarray:
        return np.clip(np.column_stack(factors) * self.levels_ * capacities.to_numpy(), LEAST, None)

    def _fit_one(self, derived: np.ndarray, factor: np.ndarray) -> Any:
        regressor = clone(self.regressor)
        if self.watched_share:
            cut = round(len(derived) * (1 - self.watched_share))
            regressor.set_params(early_stopping=True, n_iter_no_change=PATIENCE_TREES)
            regressor.fit(derived[:cut], factor[:cut], X_val=derived[cut:], y_val=factor[cut:])
            if not self.refit:
                return regressor
            regressor = clone(self.regressor).set_params(early_stopping=False, max_iter=regressor.n_iter_)
        return _strip_fitting_state(regressor.fit(derived, factor))

    def _fit_band(self, derived: np.ndarray, factor: np.ndarray) -> tuple[list[Any], float]:
        """Return the regressors of both ends, and how much (as a capacity factor) each has to be moved outwards.

        For solar power the hours are those of daylight: with the nights a low quantile would start at zero, and no tree
        would lead away from there.
        """
        outside = (1 - self.coverage) / 2
        learner = clone(self.band).set_params(loss="quantile", early_stopping=False)
        ends = [clone(learner).set_params(quantile=quantile) for quantile in (outside, 1 - outside)]
        missed = []
        for before, after in TimeSeriesSplit(self.folds).split(derived):
            fitted = [clone(end).fit(derived[before], factor[before]) for end in ends]
            low, high = (end.predict(derived[after]) for end in fitted)
            missed.append(np.maximum(low - factor[after], factor[after] - high))
        margin = float(np.quantile(np.concatenate(missed), self.coverage))
        return [_strip_fitting_state(end.fit(derived, factor)) for end in ends], margin


def _strip_fitting_state(regressor: Any) -> Any:
    """Remove what only fitting needs, so that there are fewer types to trust when the model is loaded."""
    if isinstance(regressor, HistGradientBoostingRegressor):  # private names: a new scikit-learn may change them
        regressor._feature_subsample_rng = None
        regressor._loss.closs = None
    return regressor


def find_levels(derived: np.ndarray, factor: np.ndarray, stamps: pd.DatetimeIndex, level_days: int) -> np.ndarray:
    """Return for each hour the level of its part of time: the sum of its values by what its weather makes expect.

    ``factor`` are the values (hours,), ``derived`` what they are expected from (hours, features) and
    ``stamps`` the hours, in order. The parts have ``level_days`` days, counted from the end; the first one also has the
    rest. Expected is what few, small trees learn from all hours, twice: the second time from values that are divided by
    the level.
    """
    days = (stamps[-1] - stamps).days.to_numpy()
    part = np.minimum(days // level_days, max(0, days[0] // level_days - 1))
    level = np.ones(len(factor))
    for _ in range(2):
        trees = HistGradientBoostingRegressor(**LEVEL_TREES)
        with one_thread():
            expected = np.clip(trees.fit(derived, factor / level).predict(derived), 0, None)
        sums = np.bincount(part, factor), np.bincount(part, expected)
        level = np.divide(*sums, out=np.ones(part.max() + 1), where=(sums[0] > 0) & (sums[1] > 0))[part]
    return level


# -- the search for hyperparameters ------------------------------------------------------------------------------------
Scores = list[tuple[int, float]]  # of a fold: the number of a candidate, and its R2


@dataclass(frozen=True)
class Search:
    """The result of a search: ``table`` has a row for each candidate, best first, ``best`` the parameters of the first.

    The columns are the parameters, `r2` (the mean of the folds) and `spread`, its standard deviation over the folds.
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
    """Try ``candidates`` drawn from ``distributions`` (as scikit-learn's `ParameterSampler` takes them) on ``train``.

    Each is fitted ``folds`` times on the hours up to a moment and scored on those after it (`TimeSeriesSplit`), by R2,
    the mean of all targets. The fits are independent: they run on the workers of ``client``, or without one on the
    cores of this machine, with the same result. ``train`` is a processed frame in order of time. Raises ServiceError
    when the workers are lost.
    """
    tried = list(ParameterSampler(distributions, candidates, random_state=seed))
    estimators = [clone(estimator).set_params(refit=False, **parameters) for parameters in tried]
    batches = np.array_split(np.arange(len(tried)), -(-len(tried) // BATCH_CANDIDATES))
    tasks = [
        ({number: estimators[number] for number in batch.tolist()}, fold)
        for fold in reversed(list(TimeSeriesSplit(folds).split(train)))  # the longest first
        for batch in batches
    ]
    data = [inputs(train), targets(train)]
    fits = (joblib.delayed(_score_fold)(batch, *data, fold) for batch, fold in tasks)
    here = joblib.Parallel(-1, return_as="generator_unordered")
    results = chain.from_iterable(_score_on_workers(client, data, tasks) if client else here(fits))
    judged = list(tqdm(results, total=len(tried) * folds, desc="fits", disable=not progress))
    scores = pd.DataFrame(judged, columns=["candidate", "r2"]).groupby("candidate")["r2"].agg(["mean", "std"])
    # Without the path through nested estimators: `regressor__max_iter` is `max_iter`.
    table = (
        pd.DataFrame(tried)
        .rename(columns=lambda name: name.rpartition("__")[2])
        .assign(r2=scores["mean"], spread=scores["std"])
    )
    table = table.sort_values("r2", ascending=False, kind="stable", ignore_index=True)
    best = tried[scores["mean"].idxmax()]
    # Plain numbers: they go to JSON and into the model.
    return Search(table, {name: getattr(value, "item", lambda value=value: value)() for name, value in best.items()})


def _score_on_workers(client: Client, data: list[pd.DataFrame], tasks: list[tuple]) -> Iterator[Scores]:
    """Yield what `_score_fold` returns for each of ``tasks``, as it ends; raise ServiceError if workers are lost."""
    from distributed import CancelledError, KilledWorker, as_completed

    def score_fold(function: bytes, *arguments: Any) -> Scores:
        return pickle.loads(function)(*arguments)  # noqa: S301 - from the client alone

    try:
        # To all, or one gets most of the fits; not named by content, or the end of a search before takes it away.
        data = client.scatter(data, broadcast=True, hash=False)
        futures = [
            client.submit(score_fold, _by_value(partial(_score_fold, batch)), *data, fold, pure=False)
            for batch, fold in tasks
        ]
        for future in as_completed(futures, loop=client.loop):
            yield future.result()
    except (CancelledError, KilledWorker, OSError) as error:
        raise ServiceError(
            "The search for hyperparameters was lost: a Dask worker or the scheduler ended, or did not answer.",
            value=f"{type(error).__name__}: {error}",
            next_step="look whether scheduler and workers run, and type `dvc repro` again",
        ) from None


def _by_value(function: Callable) -> bytes:
    """Pickle a function with the code of this package that it uses: a worker may have imported other code."""
    package = sys.modules[__name__.partition(".")[0]]
    cloudpickle.register_pickle_by_value(package)
    try:
        return cloudpickle.dumps(function)
    finally:
        cloudpickle.unregister_pickle_by_value(package)


def _score_fold(batch: dict[int, CapacityFactorRegressor], X: pd.DataFrame, y: pd.DataFrame, fold: tuple) -> Scores:
    """Return the number and the score of each estimator of a batch; they share what only depends on the hours."""
    before, after = fold
    hours, later = Hours(X.iloc[before], y.iloc[before]), (X.iloc[after], y.iloc[after])
    return [(number, estimator.fit_hours(hours).score(*later)) for number, estimator in batch.items()]
