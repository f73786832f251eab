"""CapacityFactorRegressor: accuracy, levels, prediction band and threads; the hyperparameter search."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import psutil
import pytest
from distributed import Client
from forecast.learn import models
from forecast.learn.evaluation import coverage
from forecast.learn.models import CapacityFactorRegressor, find_levels, search
from forecast.problem import CAPACITY
from forecast.raw.prepare import load_or_make
from forecast.table.features import add_capacity, features, inputs, installed, targets
from forecast.table.schema import FEATURES, TARGETS
from forecast.table.split import split_by_time
from forecast.terms.errors import DataError, ServiceError
from joblib.externals.loky import get_reusable_executor
from places import BIN, PROJECT, clean_environment, wait_for
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from threadpoolctl import threadpool_info, threadpool_limits

TREES = HistGradientBoostingRegressor(max_iter=150, learning_rate=0.1, min_samples_leaf=100, random_state=0)
BAND = HistGradientBoostingRegressor(max_iter=40, learning_rate=0.2, max_leaf_nodes=7, random_state=0)


@pytest.fixture(scope="module", autouse=True)
def joblib_processes():
    """Shut down the processes that joblib keeps for later searches."""
    yield
    get_reusable_executor().shutdown(wait=True)


@pytest.fixture(scope="module")
def parts(germany_csv):
    """The sample's training rows, and its last fifth as test rows."""
    return split_by_time(load_or_make(germany_csv), 0.2)


@pytest.fixture(scope="module")
def fitted(parts):
    """A fitted model with a band; the benchmark `models` fits larger ones, also on other samples."""
    return _fit(CapacityFactorRegressor(TREES, level_days=182, validation_fraction=0.15, band=BAND), parts[0])


def _fit(model, train):
    from sklearn.base import clone

    return clone(model).fit(inputs(train), targets(train))


def test_r2_is_higher_than_with_four_features(parts, fitted):
    """On the last fifth its R2 is more than 0.1 above that of each model of the four weather features."""
    train, test = parts
    plain = [LinearRegression(), RandomForestRegressor(20, max_depth=12, random_state=0, n_jobs=-1)]
    others = [model.fit(features(train), targets(train)).predict(features(test)) for model in plain]
    trees = [TREES.fit(features(train), train[target]).predict(features(test)) for target in TARGETS]
    best = max(r2_score(targets(test), predicted) for predicted in (*others, np.column_stack(trees)))
    assert fitted.score(inputs(test), targets(test)) > best + 0.1


def test_levels_remove_the_bias(parts, fitted):
    """On the last fifth the bias of wind power is below -10 % without levels, and within 4 % with them."""
    train, test = parts
    plain = _fit(CapacityFactorRegressor(TREES), train)
    biases = [(model.predict(inputs(test)) - targets(test)).mean() / targets(test).mean() for model in (plain, fitted)]
    assert biases[0]["wind_GW"] < -0.1
    assert biases[1].abs().max() < 0.04


def test_levels_follow_a_change_of_output():
    """In the last 100 days the output is 1.5 times what the weather explains, and so is the level."""
    random, hours = np.random.default_rng(0), 24 * 250
    weather = random.uniform(0, 1, (hours, 2))
    stamps = pd.date_range("2015-01-01", periods=hours, freq="h", tz="UTC")
    late = stamps >= stamps[-1] - pd.Timedelta(days=100)
    levels = find_levels(weather, weather[:, 0] * np.where(late, 1.5, 1.0), stamps, 100)
    assert len(np.unique(levels)) == 2
    assert levels[-1] / levels[0] == pytest.approx(1.5, rel=0.02)


def test_band_has_its_nominal_coverage(parts, fitted):
    """On the last fifth a band of 80 % covers 76 to 84 % of the hours; for solar power, of the hours of daylight."""
    _, test = parts
    shares = coverage(
        test, *(pd.DataFrame(end, test.index, TARGETS) for end in fitted.predict_with_band(inputs(test))[1:])
    )
    assert all(0.76 <= share <= 0.84 for share in shares.values()), shares


def test_band_contains_the_prediction_and_is_narrow(parts, fitted):
    """The band is never negative; its width is zero at night and at noon less than a quarter of the capacity."""
    _, test = parts
    model = fitted
    predicted, (low, high) = model.predict(inputs(test)), model.predict_with_band(inputs(test))[1:]
    assert (low <= predicted).all()
    assert (predicted <= high).all()
    assert (low >= 0).all()
    midnight = test["utc_timestamp"].dt.hour == 0
    assert (high[midnight, 0] - low[midnight, 0] == 0).all()
    wide = (high - low) / installed(test).to_numpy()
    noon = test["utc_timestamp"].dt.hour == 11
    assert (np.median(wide[noon], axis=0) < 0.25).all()
    assert (np.quantile(low[noon, 0], 0.25)) > 0.5


def test_predictions_scale_with_the_capacity(parts, fitted):
    """For the same weather two years later, predictions grow by the ratio of the installed capacities."""
    _, test = parts
    then = inputs(test)[test["utc_timestamp"].dt.day_of_year.between(100, 300)]
    before = then.assign(utc_timestamp=then["utc_timestamp"] - pd.DateOffset(years=2))
    model = fitted
    gain = model.predict(then).mean(axis=0) / model.predict(before).mean(axis=0)
    built = (installed(then) / installed(before)).mean()
    assert np.allclose(gain, built, rtol=0.02)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda rows: rows.iloc[::-1], "not in chronological order"),
        (lambda rows: rows.head(100), "too few hours"),
        (lambda rows: rows.drop(columns="utc_timestamp"), "lacks 1 column: utc_timestamp"),
        (lambda rows: rows.assign(utc_timestamp="noon"), "column utc_timestamp has an invalid time"),
        (lambda rows: rows.assign(wind_capacity_GW=np.nan), "installed capacity of .* is unknown"),
    ],
)
def test_invalid_training_data_is_an_error(parts, change, where):
    """Each error says what is wrong with the rows."""
    train, _ = parts
    rows = change(train.head(400))
    with pytest.raises(DataError, match=where):
        CapacityFactorRegressor(LinearRegression()).fit(rows, targets(train.loc[rows.index]))


# -- the search --------------------------------------------------------------------------------------------------------
ESTIMATOR = CapacityFactorRegressor(HistGradientBoostingRegressor(max_iter=10, random_state=0))
CHOICES = {"regressor__max_leaf_nodes": [2, 31], "regressor__learning_rate": [0.01, 0.3]}


@pytest.fixture(scope="module")
def simple_hours():
    """1000 hours whose generation is a function of wind speed and radiation."""
    random, count = np.random.default_rng(0), 1000
    stamps = pd.date_range("2014-01-01", periods=count, freq="h", tz="UTC")
    rows = pd.DataFrame(random.uniform(0, 10, (count, len(FEATURES))), columns=FEATURES)
    generation = {"solar_GW": rows["rad_horizontal"], "wind_GW": rows["windspeed"] ** 2 / 10}
    return rows.assign(utc_timestamp=stamps, **generation)[["utc_timestamp", *TARGETS, *FEATURES]].pipe(
        add_capacity, CAPACITY
    )


class Threads(DummyRegressor):
    """A regressor that records how many OpenMP threads its fit and its predictions may use."""

    def fit(self, X, y):
        """Record the limit, and fit."""
        self.counts_ = {each["num_threads"] for each in threadpool_info() if each["user_api"] == "openmp"}
        return super().fit(X, y)

    def predict(self, X):
        """Record the limit, and predict."""
        self.counts_ |= {each["num_threads"] for each in threadpool_info() if each["user_api"] == "openmp"}
        return super().predict(X)


def test_fits_and_predictions_use_one_thread(simple_hours):
    """OpenMP threads busy-wait for each other: on a machine with other load a fit would take minutes."""
    with threadpool_limits(2, "openmp"):
        model = CapacityFactorRegressor(Threads()).fit(inputs(simple_hours), targets(simple_hours))
        model.predict(inputs(simple_hours))
    assert [each.counts_ for each in model.regressors_] == [{1}] * len(TARGETS)


def kill_tree(program: psutil.Popen) -> None:
    """Kill a program and its child processes, if it is running."""
    if program.is_running():
        for process in (program, *program.children(recursive=True)):
            process.kill()


@pytest.fixture
def cluster(tmp_path):
    """The processes of a Dask scheduler and its two workers, and the scheduler's address."""
    file, programs = tmp_path / "scheduler.json", []
    environment = clean_environment() | {"PYTHONPATH": str(tmp_path)}
    environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "0"

    def start(*arguments: str) -> psutil.Popen:
        command = [BIN / "dask", *arguments, "--scheduler-file", file, "--no-dashboard"]
        programs.append(psutil.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL))
        return programs[-1]

    scheduler = start("scheduler", "--host", "127.0.0.1", "--port", "0")
    workers = start("worker", "--host", "127.0.0.1", "--nworkers", "2", "--nthreads", "1")
    address = json.loads(wait_for(lambda: file.exists() and file.read_text()))["address"]
    yield {"scheduler": scheduler, "workers": workers}, address
    for program in programs:
        kill_tree(program)
        program.wait()


def test_search_on_a_lost_cluster_is_an_error(cluster, simple_hours):
    """If the workers are killed, the search raises a ServiceError with a next step."""
    processes, address = cluster
    forest = CapacityFactorRegressor(RandomForestRegressor(200, random_state=0))
    client, pool = Client(address, set_as_default=False, timeout=60), ThreadPoolExecutor()

    def kill() -> None:
        wait_for(lambda: any(client.processing().values()))
        kill_tree(processes["workers"])

    try:
        client.wait_for_workers(2, timeout=300)
        choices = {"regressor__min_samples_leaf": range(1, 50)}
        pool.submit(kill)
        with pytest.raises(ServiceError, match=r"hyperparameter search failed") as error:
            search(forest, choices, simple_hours, candidates=40, folds=5, seed=0, client=client, progress=False)
    finally:
        with contextlib.suppress(TimeoutError):  # the scheduler may not respond
            client.close(1)
        pool.shutdown()
    assert "dvc repro" in error.value.next_step


# Prints the R2 of a search on a cluster, and of the same search in this process.
SEARCH = """
import sys
import pandas as pd
from distributed import Client
from sklearn.linear_model import LinearRegression
from forecast.learn.models import CapacityFactorRegressor, search
model, choices = CapacityFactorRegressor(LinearRegression()), {"level_days": [None]}
hours, options = pd.read_parquet(sys.argv[2]), {"candidates": 1, "folds": 2, "seed": 0, "progress": False}
with Client(sys.argv[1], timeout=60) as client:
    client.wait_for_workers(2, timeout=300)
    for place in (client, None):
        print(search(model, choices, hours, client=place, **options).table["r2"][0])
"""


CHANGES = [
    ("problem.py", "MIDDLE = (51.0, 10.4)", "MIDDLE = (51.0, -100.0)"),
    ("table/features.py", "share: float = 0.5", "share: float = 5.0"),
    ("learn/models.py", "np.clip(np.column_stack(factors) *", "np.clip(np.clip(np.column_stack(factors), 0, 0.1) *"),
]


def test_search_runs_the_clients_code_on_running_workers(cluster, simple_hours, tmp_path):
    """If the code changes between two searches, the workers compute with the new code, though they imported the old."""
    shutil.copytree(PROJECT / "forecast", tmp_path / "forecast")
    simple_hours.to_parquet(tmp_path / "hours.parquet")
    # With one CPU the local search starts no processes.
    environment = clean_environment() | {"PYTHONPATH": str(tmp_path), "LOKY_MAX_CPU_COUNT": "1"}

    def score() -> str:
        command = [BIN / "python", "-c", SEARCH, cluster[1], "hours.parquet"]
        remote, local = subprocess.check_output(command, env=environment, cwd=tmp_path, text=True).split()
        assert remote == local
        return local

    scores = [score()]
    for file, old, new in CHANGES:
        module = tmp_path / "forecast" / file
        assert module.read_text().count(old) == 1
        module.write_text(module.read_text().replace(old, new))
        scores.append(score())
    assert len(set(scores)) == len(scores)


def test_task_of_the_search_contains_all_code(tmp_path):
    """A worker of a copied pipeline cannot import the package."""
    (tmp_path / "task").write_bytes(models._by_value(models._score_fold))
    load = "import pickle, sys; sys.modules['forecast'] = None; pickle.load(open('task', 'rb'))"
    subprocess.run([BIN / "python", "-c", load], cwd=tmp_path, check=True)


@pytest.mark.walk
def test_consecutive_searches_do_not_share_data(cluster, simple_hours):
    """Garbage collection at any moment does not make Dask wait forever for data that an earlier search released."""
    line, moments = CapacityFactorRegressor(LinearRegression()), np.random.default_rng(0).uniform(0, 0.02, 30)
    with Client(cluster[1], set_as_default=False, timeout=60) as client:
        client.wait_for_workers(2, timeout=300)
        options = {"candidates": 1, "folds": 2, "seed": 0, "client": client, "progress": False}
        gc.disable()
        try:
            for moment in moments:
                threading.Timer(moment, gc.collect).start()
                search(line, {"level_days": [None]}, simple_hours, **options)
        finally:
            gc.enable()


def test_search_finds_the_better_hyperparameters(simple_hours, capfd):
    """With few iterations, larger trees and a higher learning rate win."""
    result = search(ESTIMATOR, CHOICES, simple_hours, candidates=4, folds=2, seed=0)
    assert result.best == {"regressor__max_leaf_nodes": 31, "regressor__learning_rate": 0.3}
    assert list(result.table.columns) == ["max_leaf_nodes", "learning_rate", "r2", "spread"]
    assert result.table["r2"].is_monotonic_decreasing
    assert "8/8" in capfd.readouterr().err
