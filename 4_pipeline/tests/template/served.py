"""Fixtures of the dashboard's app in this process: real data and a real model, no servers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

HOURS = 24 * 31  # the end of the sample


@pytest.fixture(scope="session")
def germany_csv(tmp_path_factory) -> Path:
    """A processed CSV of the built-in sample."""
    from forecast.raw.prepare import load_or_make

    file = tmp_path_factory.mktemp("germany") / "germany.csv"
    load_or_make(file)
    return file


@pytest.fixture(scope="session")
def data_file(germany_csv, tmp_path_factory):
    """The last month of the sample as the pipeline writes it."""
    from forecast.raw.prepare import load_or_make

    file = tmp_path_factory.mktemp("data") / "germany.parquet"
    load_or_make(germany_csv).tail(HOURS).reset_index(drop=True).to_parquet(file)
    return file


@pytest.fixture(scope="session")
def model(data_file):
    """A small loaded model with a band."""
    from forecast.learn.models import CapacityFactorRegressor
    from forecast.learn.storage import LoadedModel
    from forecast.table import processed
    from forecast.table.features import inputs, targets
    from sklearn.ensemble import HistGradientBoostingRegressor

    frame, trees = processed.read(data_file), HistGradientBoostingRegressor(max_iter=8, random_state=0)
    return LoadedModel.of(CapacityFactorRegressor(trees, band=trees, folds=2).fit(inputs(frame), targets(frame)))


@pytest.fixture(scope="session")
def served(data_file, model):
    """A snapshot with data and a version in production."""
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
    """A function that returns the app for a snapshot (by default `served`) and its test client."""
    from dashboard import app
    from dashboard.follower import Follower

    def make(snapshot=served):
        follower = Follower(data_file)
        follower.now = replace(snapshot)  # with a new revision
        dashboard = app.make_app(follower)
        dashboard.server.testing = False  # return errors as responses, as in production
        return dashboard, dashboard.server.test_client()

    return make
