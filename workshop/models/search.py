"""Hyperparameters searched at random, each judged on later hours than it learned from; on all cores or a cluster."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workshop.data.features import inputs, targets
from workshop.errors import ParameterError

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client
    from sklearn.base import BaseEstimator


@dataclass(frozen=True)
class Search:
    """What was tried: a row a candidate, best first, with its parameters, `r2` (the mean of the folds) and `spread`.

    ``spread`` is the standard deviation over the folds; ``best`` holds the parameters of the first row.
    """

    table: pd.DataFrame
    best: dict[str, Any]


def search(
    estimator: BaseEstimator,
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
    the mean of both targets. The fits are independent: they run on the workers of ``client``, or without one on the
    cores of this machine. The result is the same. ``train`` is a processed frame in order of time; nothing else is
    looked at. Raises ParameterError: fewer than one candidate or two folds.
    """
    import joblib
    import pandas as pd
    from sklearn.base import clone
    from sklearn.model_selection import ParameterSampler, TimeSeriesSplit
    from tqdm.auto import tqdm

    if candidates < 1 or folds < 2:
        raise ParameterError(
            "Nothing can be searched.",
            value=f"candidates {candidates}, folds {folds}",
            expected="at least 1 candidate and 2 folds",
        )
    tried = list(ParameterSampler(distributions, candidates, random_state=seed))
    X, y = inputs(train), targets(train)
    tasks = [
        joblib.delayed(_judge)(clone(estimator).set_params(**parameters), X, y, fold, number)
        for fold in reversed(list(TimeSeriesSplit(folds).split(X)))  # the longest first
        for number, parameters in enumerate(tried)
    ]
    # The data to all workers first: where it lay on one, that one would be given most of the fits.
    cluster = {"backend": "dask", "client": client, "scatter": [X, y]}
    where = joblib.parallel_config(**cluster) if client else contextlib.nullcontext()
    with where:
        # One by one: joblib would put fits together, and leave a worker without any at the end.
        results = joblib.Parallel(n_jobs=-1, batch_size=1, pre_dispatch="all", return_as="generator_unordered")(tasks)
        judged = list(tqdm(results, total=len(tasks), desc="fits", disable=not progress))
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


def _judge(estimator: BaseEstimator, X: pd.DataFrame, y: pd.DataFrame, fold: tuple, number: int) -> tuple[int, float]:
    before, after = fold
    return number, estimator.fit(X.iloc[before], y.iloc[before]).score(X.iloc[after], y.iloc[after])
