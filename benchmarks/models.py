"""Models: the search on a cluster against joblib's processes, predicting against MLflow's way, what is gained."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from benchmarks.measure import Side
from benchmarks.place import Place
from benchmarks.rows import Figure, Ratio

TITLE = "Searching, predicting, and what is gained"
LOKY, DASK = "joblib's own processes", "workers of the cluster"
ONE, TWO = "one worker", "two workers"
PLAIN, LOADED = "`mlflow.pyfunc`", "`LoadedModel`"
HOUR, YEAR = "one hour predicted", "a year predicted"
REPEATS = {HOUR: 50, YEAR: 5}
CANDIDATES, FOLDS = 8, 3
SEEDS = (2013, 1, 42, 7, 20130101)

ROWS = (
    # Within a tenth is what was promised.
    Ratio("24 fits of a search on the same two cores", LOKY, DASK, 0.9),
    Ratio("the same on workers of another host", ONE, TWO),
    *(Ratio(what, f"{PLAIN}, {what}", f"{LOADED}, {what}") for what in (HOUR, YEAR)),
    Figure("R2 on the held-out fifth of the sample, five of its seeds", "r2", "", digits=3),
    Figure("how much more that is than the best model of four features", "gain", "", digits=3),
    Figure("hours of daylight within the band of solar power", "coverage_solar", "%"),
    Figure("hours within the band of wind power", "coverage_wind", "%"),
)

# What a client on another host does.
PROGRAM = """
import sys, time
import pandas as pd
from distributed import Client
from benchmarks.models import search_on
with Client(sys.argv[1], set_as_default=False) as client:
    print(search_on(pd.read_parquet(sys.argv[2]), client)["seconds"])
"""


def sides(place: Place) -> list[Side]:
    """Return the sides; the model that predicts is fitted once, on the sample."""
    folder = place.new_folder("models")
    train, test = _sample(SEEDS[0], folder / "raw")
    train.to_parquet(folder / "train.parquet")
    seeds = itertools.cycle(SEEDS)

    def on_the_cluster() -> dict[str, float]:
        with place.client() as client:
            return search_on(train, client)

    return [
        Side(LOKY, lambda: search_on(train, None)),
        Side(DASK, on_the_cluster),
        *(Side(name, lambda count=count: _on_other_hosts(folder, count)) for count, name in enumerate((ONE, TWO), 1)),
        *_predicting(train, test, folder),
        Side("gain", lambda: _gain(*_sample(next(seeds), folder / "other"))),
    ]


def search_on(train: pd.DataFrame, client) -> dict[str, float]:
    """Search; return the seconds, without what starting and connecting took."""
    from scipy.stats import loguniform

    from workshop.models.regressor import search

    choices = {
        "regressor__learning_rate": loguniform(0.03, 0.3),
        "regressor__max_leaf_nodes": [7, 15, 31, 63],
        "regressor__min_samples_leaf": [20, 50, 100, 200],
    }
    began = time.perf_counter()
    options = {"candidates": CANDIDATES, "folds": FOLDS, "seed": 0, "progress": False}
    search(_model(), choices, train, client=client, **options)
    return {"seconds": time.perf_counter() - began}


def _model(**options):
    from sklearn.ensemble import HistGradientBoostingRegressor

    from workshop.models.regressor import CapacityFactorRegressor

    trees = HistGradientBoostingRegressor(max_iter=300, learning_rate=0.08, min_samples_leaf=100, random_state=0)
    return CapacityFactorRegressor(trees, watched_share=0.15, **({"band": trees} if options.get("band") else {}))


def _sample(seed: int, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the sample made with ``seed``, in two: to learn from, and the last fifth."""
    from workshop.data.prepare import prepare
    from workshop.data.sample import make_sample
    from workshop.data.sources import POWER_FILE, WEATHER_FILE
    from workshop.data.split import split_by_time

    folder.mkdir(exist_ok=True)
    for name, frame in zip((POWER_FILE, WEATHER_FILE), make_sample(seed), strict=True):
        frame.to_csv(folder / name, index=False)
    return split_by_time(prepare(folder)[0], 0.2)


def _on_other_hosts(folder: Path, workers: int) -> dict[str, float]:
    """Search from one network namespace on workers in another, which do not see the client's files."""
    import subprocess

    root = str(Path(__file__).resolve().parents[1])
    sys.path += [
        f"{root}/tests",
        f"{root}/packages/papermill-dask/tests",
    ]  # where pytest has it, and its modules look for one another
    from hosts import new_cluster, new_hosts

    with new_hosts() as hosts, new_cluster(folder / f"cluster-{time.time_ns()}", PYTHONPATH=root) as cluster:
        cluster.start_scheduler(hosts.scheduler)
        for number in range(workers):
            cluster.start_worker(f"worker-{number}", host=hosts.worker, OMP_NUM_THREADS="1")
        words = hosts.client.command(sys.executable, "-c", PROGRAM, cluster.address, folder / "train.parquet")
        environment = cluster.environment | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, env=environment, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
    return {"seconds": float(done.stdout)}


def _predicting(train: pd.DataFrame, test: pd.DataFrame, folder: Path) -> list[Side]:
    """Return the sides that predict an hour and a year, by MLflow's way and by ours, of the same saved model."""
    import mlflow

    from workshop.data.features import inputs, targets
    from workshop.models import loading

    regressor = _model().fit(inputs(train), targets(train))
    options = loading._sklearn_options(regressor, inputs(test.head()))
    mlflow.sklearn.save_model(regressor, folder / "model", **options)
    plain, loaded = mlflow.pyfunc.load_model(str(folder / "model")), loading.load_folder(folder / "model", "model")
    year = train.tail(8760)
    given = {HOUR: inputs(year.head(1)), YEAR: inputs(year)}
    asked = {HOUR: year.head(1), YEAR: year}
    return [
        Side(f"{name}, {what}", lambda predict=predict, frame=frame[what], what=what: _repeat(predict, frame, what))
        for what in REPEATS
        for name, predict, frame in ((PLAIN, plain.predict, given), (LOADED, loaded.predict, asked))
    ]


def _repeat(predict: Callable, frame: pd.DataFrame, what: str) -> Mapping[str, float]:
    seconds = []
    for _ in range(REPEATS[what]):
        began = time.perf_counter()
        predict(frame)
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds)}


def _gain(train: pd.DataFrame, test: pd.DataFrame) -> dict[str, float]:
    """Return R2 on the last fifth, how far that is ahead of the best model of four features, and the bands' shares."""
    from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import r2_score
    from sklearn.multioutput import MultiOutputRegressor

    from workshop.data.features import features, inputs, targets
    from workshop.models.evaluation import coverage
    from workshop.models.loading import LoadedModel

    plain = (
        LinearRegression(),
        RandomForestRegressor(40, max_depth=12, random_state=0, n_jobs=-1),
        MultiOutputRegressor(HistGradientBoostingRegressor(random_state=0)),
    )
    wanted = targets(test)
    best = max(r2_score(wanted, model.fit(features(train), targets(train)).predict(features(test))) for model in plain)
    model = LoadedModel.of(_model(band=True).fit(inputs(train), targets(train)))
    r2 = r2_score(wanted, model.predict(test))
    held = {name: 100 * share for name, share in coverage(test, *model.predict_band(test)).items()}
    return {"r2": r2, "gain": r2 - best, **held}
