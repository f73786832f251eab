"""A tracking server with two candidates, for the tests of learn and govern."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from forecast import problem
from forecast.table.features import add_capacity, features, targets
from forecast.table.schema import FEATURES, TARGETS
from forecast.terms.origin import Origin
from places import clean_environment, environment_of, tracking_server
from sklearn.linear_model import LinearRegression, Ridge


@pytest.fixture(scope="session")
def small_server(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The environment variables of an empty tracking server, whose artifacts are in the folder `SMALL_ARTIFACTS`."""
    folder = tmp_path_factory.mktemp("tracking")
    state = {"SMALL_ARTIFACTS": str(folder / "artifacts")}
    with tracking_server(folder) as uri:
        yield clean_environment() | {"MLFLOW_TRACKING_URI": uri} | state


@pytest.fixture(scope="session")
def small_hours() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and held-out rows whose generation is a function of wind speed and radiation."""
    random, count = np.random.default_rng(0), 3000
    rows = pd.DataFrame(random.uniform(0, 10, (count, len(FEATURES))), columns=FEATURES)
    rows["solar_GW"], rows["wind_GW"] = rows["rad_horizontal"], 2 * rows["windspeed"] + random.normal(0, 1, count)
    rows["utc_timestamp"] = pd.date_range("2014-06-01", periods=count, freq="h", tz="UTC")
    rows = add_capacity(rows[["utc_timestamp", *TARGETS, *FEATURES]], problem.CAPACITY)
    rows = Origin(source="sample", modelled=True).mark(rows)
    return rows.iloc[:2000], rows.iloc[2000:].reset_index(drop=True)


@pytest.fixture(scope="session")
def logged(small_server, small_hours, tmp_path_factory) -> list[str]:
    """Two logged models, each as `run_id,model_uri`."""
    from forecast import tracking
    from forecast.learn import evaluation, storage

    train, test = small_hours
    file = tmp_path_factory.mktemp("data") / "train.parquet"
    train.to_parquet(file)
    import mlflow

    candidates = []
    with environment_of(small_server), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Operation with range")  # in MLflow
        for stage, model in (("train_rf", Ridge(100.0)), ("train_linreg", LinearRegression())):
            model.fit(features(train), targets(train))
            with tracking.start_run(stage, data=[file], learned_from=file) as run:
                scores = evaluation.score(test, storage.LoadedModel.of(model).predict(test))
                mlflow.log_metrics(scores.metrics())
                candidates.append(f"{run.info.run_id},{storage.log_model(model, test.head())}")
    return candidates


@pytest.fixture
def candidates(small_server, logged, tmp_path, monkeypatch) -> Iterator[list[str]]:
    """The two logged models, in the environment of their server."""
    with environment_of(small_server):
        monkeypatch.chdir(tmp_path)
        yield logged
        monkeypatch.undo()  # a later undo would restore variables into the wrong environment
