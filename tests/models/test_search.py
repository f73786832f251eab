"""The search of hyperparameters, on this machine and on a cluster."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor

from workshop.data.schema import FEATURES, TARGETS
from workshop.errors import ParameterError
from workshop.models.regressor import CapacityFactorRegressor
from workshop.models.search import search

ESTIMATOR = CapacityFactorRegressor(HistGradientBoostingRegressor(max_iter=20, random_state=0))
CHOICES = {"regressor__max_leaf_nodes": [2, 31], "regressor__learning_rate": [0.01, 0.3]}


@pytest.fixture(scope="module")
def hours():
    """Half a year of hours whose generation follows wind and radiation."""
    random, count = np.random.default_rng(0), 4000
    stamps = pd.date_range("2014-01-01", periods=count, freq="h", tz="UTC")
    rows = pd.DataFrame(random.uniform(0, 10, (count, len(FEATURES))), columns=FEATURES)
    made = {"solar_GW": rows["rad_horizontal"], "wind_GW": rows["windspeed"] ** 2 / 10}
    return rows.assign(utc_timestamp=stamps, **made)[["utc_timestamp", *TARGETS, *FEATURES]]


def test_search_finds_the_better_choice(hours, capfd):
    """Larger and faster trees win where few are grown; the table is sorted, and progress is shown."""
    found = search(ESTIMATOR, CHOICES, hours, candidates=4, folds=3, seed=0)
    assert found.best == {"regressor__max_leaf_nodes": 31, "regressor__learning_rate": 0.3}
    assert list(found.table.columns) == ["max_leaf_nodes", "learning_rate", "r2", "spread"]
    assert found.table["r2"].is_monotonic_decreasing
    assert found.table.iloc[0]["max_leaf_nodes"] == 31
    assert "12/12" in capfd.readouterr().err


def test_search_on_a_cluster_finds_the_same(hours):
    """The workers of a Dask cluster, processes of their own, come to the same table."""
    from distributed import Client, LocalCluster

    options = {"candidates": 3, "folds": 2, "seed": 1, "progress": False}
    here = search(ESTIMATOR, CHOICES, hours, **options)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        there = search(ESTIMATOR, CHOICES, hours, client=client, **options)
        ran = {name for worker in client.processing() for name in [worker]}
        assert len(ran) == 2
    pd.testing.assert_frame_equal(there.table, here.table)


@pytest.mark.parametrize(("candidates", "folds"), [(0, 3), (3, 1)])
def test_search_of_nothing_is_refused(hours, candidates, folds):
    """No candidate, or a single fold, is told with what is allowed."""
    with pytest.raises(ParameterError, match=f"candidates {candidates}, folds {folds}"):
        search(ESTIMATOR, CHOICES, hours, candidates=candidates, folds=folds, seed=0)
