"""A tracking server in which nothing happened yet, and somebody who has done nothing."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from attendee import Attendee, new_repository
from workplace import BIN, clean_environment, environment_of, free_port

from workshop.settings import EXPERIMENT

SERVER_SECONDS = 120


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """The folder of the fresh tracking server's database."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def fresh_server(store) -> Iterator[str]:
    """The address of a tracking server of its own; the session's other one has a model in production."""
    folder = store
    uri = f"http://127.0.0.1:{free_port()}"
    command = [BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", uri.rpartition(":")[2], "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", folder / "artifacts"]
    environment = clean_environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        until = time.monotonic() + SERVER_SECONDS
        while not _answers(f"{uri}/health"):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.5)
        yield uri
    finally:
        server.terminate()
        server.wait(30)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


@pytest.fixture
def attendee(fresh_server, tmp_path) -> Iterator[Attendee]:
    """An attendee who has done nothing; afterwards nothing is left in the store."""
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
