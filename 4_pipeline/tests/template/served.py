"""The dashboard's app in this process: real data and a real model, no servers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

HOURS = 24 * 31  # the end of the sample


@pytest.fixture(scope="session")
def germany_csv(tmp_path_factory) -> Path:
    """A processed CSV of the embedded sample."""
    from forecast.raw.prepare import load_or_make

    file = tmp_path_factory.mktemp("germany") / "germany.csv"
    load_or_make(file)
    return file


@pytest.fixture(scope="session")
def data_file(germany_csv, tmp_path_factory):
    """The last hours of the sample as the pipeline leaves them."""
    from forecast.raw.prepare import load_or_make

    file = tmp_path_factory.mktemp("data") / "germany.parquet"
    load_or_make(germany_csv).tail(HOURS).reset_index(drop=True).to_parquet(file)
    return file


@pytest.fixture(scope="session")
def model(data_file):
    """A model with a band, small, as it is once it is loaded."""
    from forecast.learn.models import CapacityFactorRegressor
    from forecast.learn.storage import LoadedModel
    from forecast.table import processed
    from forecast.table.features import inputs, targets
    from sklearn.ensemble import HistGradientBoostingRegressor

    frame, trees = processed.read(data_file), HistGradientBoostingRegressor(max_iter=8, random_state=0)
    return LoadedModel.of(CapacityFactorRegressor(trees, band=trees, folds=2).fit(inputs(frame), targets(frame)))


@pytest.fixture(scope="session")
def served(data_file, model):
    """What is served once data and a version in production are there."""
    from dashboard.follower import Snapshot
    from dashboard.predictions import Champion
    from forecast.table import processed
    from mlflow_gate import Move, Production

    frame = processed.read(data_file)
    production = Production(
        name="wind_solar", version="7", run_id="a1", model_uri="models:/wind_solar/7", source="models:/m-a1",
        run_url="http://127.0.0.1/#/experiments/1/runs/a1",
        move=Move(1, "promoted", "7", when="2026-11-20T10:00:00+00:00", why="the best", scores={"r2": 0.9}),
        tags={"pipeline.stage": "train_gradient_boosting", "mlflow_gate.learned": '{"source": "modelled sample"}'},
    )  # fmt: skip
    return Snapshot(
        is_ready=True,
        champion=Champion(production, model),
        frame=frame,
        predictions=model.predict_with_band(frame),
        data_stamp=(1, 1),
        max_bias_percent=5.0,
    )


@pytest.fixture
def made(served, data_file):
    """A function that returns an app that serves this, by default data and model, and its test client."""
    from dashboard import app
    from dashboard.follower import Follower

    def make(what=served):
        followed = Follower(data_file)
        followed.now = replace(what)  # with a revision of its own
        made = app.make_app(followed)
        made.server.testing = False  # errors are answered, as they are in front of readers
        return made, made.server.test_client()

    return make
