"""The regressor of capacity factors: what it gains, what it may look at, how sure it is of itself."""

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
    """End the processes that joblib keeps for later searches."""
    yield
    get_reusable_executor().shutdown(wait=True)


@pytest.fixture(scope="module")
def parts(germany_csv):
    """The hours of the sample to learn from, and the last fifth of time."""
    return split_by_time(load_or_make(germany_csv), 0.2)


@pytest.fixture(scope="module")
def fitted(parts):
    """A model with a band; the benchmark `models` fits larger ones, on other samples, too."""
    return _fit(CapacityFactorRegressor(TREES, level_days=182, validation_fraction=0.15, band=BAND), parts[0])


def _fit(model, train):
    from sklearn.base import clone

    return clone(model).fit(inputs(train), targets(train))


def test_gain_over_four_features(parts, fitted):
    """On the last fifth it is ahead of every model of the four weather features by more than 0.1."""
    train, test = parts
    plain = [LinearRegression(), RandomForestRegressor(20, max_depth=12, random_state=0, n_jobs=-1)]
    others = [model.fit(features(train), targets(train)).predict(features(test)) for model in plain]
    trees = [TREES.fit(features(train), train[target]).predict(features(test)) for target in TARGETS]
    best = max(r2_score(targets(test), predicted) for predicted in (*others, np.column_stack(trees)))
    assert fitted.score(inputs(test), targets(test)) > best + 0.1


def test_levels_take_the_bias_away(parts, fitted):
    """Without levels wind is predicted too low by more than 10 % on the last fifth, with them by less than 4 %."""
    train, test = parts
    plain = _fit(CapacityFactorRegressor(TREES), train)
    biases = [(model.predict(inputs(test)) - targets(test)).mean() / targets(test).mean() for model in (plain, fitted)]
    assert biases[0]["wind_GW"] < -0.1
    assert biases[1].abs().max() < 0.04


def test_levels_are_those_of_the_parts_of_time():
    """Two parts and a rest, of which the last gives half as much more than the weather explains."""
    random, hours = np.random.default_rng(0), 24 * 250
    weather = random.uniform(0, 1, (hours, 2))
    stamps = pd.date_range("2015-01-01", periods=hours, freq="h", tz="UTC")
    late = stamps >= stamps[-1] - pd.Timedelta(days=100)
    levels = find_levels(weather, weather[:, 0] * np.where(late, 1.5, 1.0), stamps, 100)
    assert len(np.unique(levels)) == 2
    assert levels[-1] / levels[0] == pytest.approx(1.5, rel=0.02)


def test_band_holds_as_many_hours_as_it_says(parts, fitted):
    """On the last fifth, a band made for 80 % of the hours holds 76 to 84 % of them, of solar those of daylight."""
    _, test = parts
    held = coverage(
        test, *(pd.DataFrame(end, test.index, TARGETS) for end in fitted.predict_with_band(inputs(test))[1:])
    )
    assert all(0.76 <= share <= 0.84 for share in held.values()), held


def test_band_encloses_the_prediction_and_is_none_too_wide(parts, fitted):
    """The prediction lies within, nothing is below zero, at night it has no width, and by day less than a quarter."""
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


def test_more_capacity_is_more_power(parts, fitted):
    """The same weather in the same hour of a later year gives as much more as was built."""
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
def test_hours_that_cannot_be_learned_from_are_errors(parts, change, where):
    """Each error says what is wrong with the hours."""
    train, _ = parts
    rows = change(train.head(400))
    with pytest.raises(DataError, match=where):
        CapacityFactorRegressor(LinearRegression()).fit(rows, targets(train.loc[rows.index]))


# -- the search --------------------------------------------------------------------------------------------------------
ESTIMATOR = CapacityFactorRegressor(HistGradientBoostingRegressor(max_iter=10, random_state=0))
CHOICES = {"regressor__max_leaf_nodes": [2, 31], "regressor__learning_rate": [0.01, 0.3]}


@pytest.fixture(scope="module")
def simple_hours():
    """Half a year of hours whose generation follows wind and radiation."""
    random, count = np.random.default_rng(0), 1000
    stamps = pd.date_range("2014-01-01", periods=count, freq="h", tz="UTC")
    rows = pd.DataFrame(random.uniform(0, 10, (count, len(FEATURES))), columns=FEATURES)
    made = {"solar_GW": rows["rad_horizontal"], "wind_GW": rows["windspeed"] ** 2 / 10}
    return rows.assign(utc_timestamp=stamps, **made)[["utc_timestamp", *TARGETS, *FEATURES]].pipe(
        add_capacity, CAPACITY
    )


class Threads(DummyRegressor):
    """Notes how many threads of OpenMP its fit and its prediction may have."""

    def fit(self, X, y):
        """Note the number."""
        self.counts_ = {each["num_threads"] for each in threadpool_info() if each["user_api"] == "openmp"}
        return super().fit(X, y)

    def predict(self, X):
        """Note the number, too."""
        self.counts_ |= {each["num_threads"] for each in threadpool_info() if each["user_api"] == "openmp"}
        return super().predict(X)


def test_fits_and_predictions_have_one_thread(simple_hours):
    """Those of OpenMP wait for each other actively: beside other programs a fit would take minutes."""
    with threadpool_limits(2, "openmp"):
        model = CapacityFactorRegressor(Threads()).fit(inputs(simple_hours), targets(simple_hours))
        model.predict(inputs(simple_hours))
    assert [each.counts_ for each in model.regressors_] == [{1}] * len(TARGETS)


def kill_tree(program: psutil.Popen) -> None:
    """Kill a program and the processes that it has started, if it runs."""
    if program.is_running():
        for process in (program, *program.children(recursive=True)):
            process.kill()


@pytest.fixture
def cluster(tmp_path):
    """The processes of a Dask scheduler and of its two workers, and the scheduler's address."""
    file, programs = tmp_path / "scheduler.json", []
    environment = clean_environment() | {"PYTHONPATH": str(tmp_path)}
    environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "0"

    def start(*words: str) -> psutil.Popen:
        command = [BIN / "dask", *words, "--scheduler-file", file, "--no-dashboard"]
        programs.append(psutil.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL))
        return programs[-1]

    scheduler = start("scheduler", "--host", "127.0.0.1", "--port", "0")
    workers = start("worker", "--host", "127.0.0.1", "--nworkers", "2", "--nthreads", "1")
    address = json.loads(wait_for(lambda: file.exists() and file.read_text()))["address"]
    yield {"scheduler": scheduler, "workers": workers}, address
    for program in programs:
        kill_tree(program)
        program.wait()


def test_search_whose_cluster_is_lost_says_so(cluster, simple_hours):
    """Killed under it, its workers end a search with words and a next step."""
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
        with contextlib.suppress(TimeoutError):  # Dask may wait in vain for the scheduler
            client.close(1)
        pool.shutdown()
    assert "dvc repro" in error.value.next_step


# Prints the scores of a search on a cluster, and of the same search here.
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


def test_search_runs_the_code_of_its_client_on_living_workers(cluster, simple_hours, tmp_path):
    """Code that is changed between two searches is what the workers compute with, though they imported the old one."""
    shutil.copytree(PROJECT / "forecast", tmp_path / "forecast")
    simple_hours.to_parquet(tmp_path / "hours.parquet")
    # On one processor the search here starts no processes.
    environment = clean_environment() | {"PYTHONPATH": str(tmp_path), "LOKY_MAX_CPU_COUNT": "1"}

    def score() -> str:
        command = [BIN / "python", "-c", SEARCH, cluster[1], "hours.parquet"]
        remote, local = subprocess.check_output(command, env=environment, cwd=tmp_path, text=True).split()
        assert remote == local
        return local

    scores = [score()]
    for file, old, new in CHANGES:
        changed = tmp_path / "forecast" / file
        assert changed.read_text().count(old) == 1
        changed.write_text(changed.read_text().replace(old, new))
        scores.append(score())
    assert len(set(scores)) == len(scores)


@pytest.mark.walk
def test_searches_in_a_row_do_not_take_data_from_one_another(cluster, simple_hours):
    """Whenever Python frees what a search has left: Dask would wait forever for data that it takes to be there."""
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


def test_search_finds_the_better_choice(simple_hours, capfd):
    """Larger and faster trees win where few are grown; the pipeline searches on its cluster."""
    result = search(ESTIMATOR, CHOICES, simple_hours, candidates=4, folds=2, seed=0)
    assert result.best == {"regressor__max_leaf_nodes": 31, "regressor__learning_rate": 0.3}
    assert list(result.table.columns) == ["max_leaf_nodes", "learning_rate", "r2", "spread"]
    assert result.table["r2"].is_monotonic_decreasing
    assert "8/8" in capfd.readouterr().err
