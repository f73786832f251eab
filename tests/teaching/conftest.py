"""Fixtures: an empty tracking server, and an attendee who has done nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from attendee import Attendee, new_repository
from forecast.problem import EXPERIMENT
from places import tracking_server
from workplace import clean_environment, environment_of


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """The folder of the empty tracking server's database."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def fresh_server(store, new_database) -> Iterator[str]:
    """The address of an empty tracking server; the session's own has a model in production."""
    with tracking_server(store, new_database) as uri:
        yield uri


@pytest.fixture
def attendee(fresh_server, tmp_path) -> Iterator[Attendee]:
    """An attendee who has done nothing; the store is emptied afterwards."""
    import mlflow

    root = new_repository(tmp_path / "clone")
    environment = clean_environment() | {"WORKSHOP_ROOT": str(root), "MLFLOW_TRACKING_URI": fresh_server}
    environment |= {"WORKSHOP_MLFLOW_PORT": fresh_server.rpartition(":")[2], "HOME": os.environ["HOME"]}
    before = mlflow.get_tracking_uri()
    with environment_of(environment):
        mlflow.set_tracking_uri(fresh_server)
        mlflow.set_experiment(EXPERIMENT)
        client = mlflow.MlflowClient(fresh_server)
        try:
            yield Attendee(root, client)
        finally:
            for run in client.search_runs([each.experiment_id for each in client.search_experiments()]):
                client.delete_run(run.info.run_id)
            for model in client.search_registered_models():
                client.delete_registered_model(model.name)
            mlflow.set_tracking_uri(before)
