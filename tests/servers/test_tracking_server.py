"""The tracking server as started by `workshop up`: accepted requests, concurrent writers, and data after a kill."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine, text
from workplace import environment_of, free_port, wait_for

from workshop.servers.services import SERVICES, is_healthy
from workshop.servers.tracking_server import serialize_writes
from workshop.settings import get_settings

API = "api/2.0/mlflow"


class Server:
    """A tracking server with the command of `workshop up` and its own database."""

    def __init__(self, state: Path) -> None:
        state.mkdir(mode=0o700)
        self.log = state / "log"
        self.environment = os.environ | {"WORKSHOP_STATE": str(state), "WORKSHOP_MLFLOW_PORT": str(free_port())}
        for name in ("MLFLOW_TRACKING_URI", "WORKSHOP_HOST"):
            self.environment.pop(name, None)
        with environment_of(self.environment):
            self.settings = get_settings()
        self.uri = self.settings.tracking_uri
        (self.service,) = (service for service in SERVICES if service.name == "mlflow")
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with self.log.open("a") as out:
            self.process = subprocess.Popen(
                self.service.command(self.settings),
                env=self.environment | self.service.environment,
                stdout=out,
                stderr=out,
            )
        wait_for(lambda: self.process.poll() is not None or is_healthy(self.service, self.settings))
        assert self.process.poll() is None, self.log.read_text()

    def kill(self) -> None:
        """Kill all processes of the server."""
        tree = psutil.Process(self.process.pid)
        for child in [*tree.children(recursive=True), tree]:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_database) -> Iterator[Server]:
    """A running tracking server."""
    server = Server(tmp_path_factory.mktemp("tracking") / "state")
    shutil.copy(new_database, server.settings.database)
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize("host", ["127.0.0.1:6000", "localhost", "localhost:6000", "[::1]:6000"])
def test_names_of_this_machine_are_accepted(server, host):
    """Requests to this machine's names are accepted, on any port (as through a tunnel)."""
    address = f"{server.uri}/{API}/experiments/search?max_results=5"
    assert requests.get(address, headers={"Host": host}, timeout=60).status_code == 200


@pytest.mark.parametrize(
    "header", [{"Host": "evil.example"}, {"Host": "10.0.0.7:5000"}, {"Origin": "http://evil.example"}]
)
def test_other_sites_are_refused(server, header):
    """Requests of other sites' pages are rejected, also of one whose name resolves to this machine (DNS rebinding)."""
    address = f"{server.uri}/{API}/experiments/create"
    answer = requests.post(address, json={"name": "of another site"}, headers=header, timeout=60)
    assert answer.status_code == 403


def test_page_opens_with_the_runs(server):
    """MLflow opens without its GenAI view, assistant and telemetry notice, unless the reader chooses them."""
    assert requests.get(server.uri, timeout=60).text.count("mlflow.workflowType_v1") == 1


def write_run(client: MlflowClient, experiment: str) -> str:
    """Log a run with fifty metrics and fifty parameters in four requests."""
    run = client.create_run(experiment).info.run_id
    metrics = [Metric(f"m{key}", key, 0, 0) for key in range(50)]
    client.log_batch(run, metrics, [Param(f"p{key}", str(key)) for key in range(50)])
    client.set_terminated(run)
    return run


def assert_complete(client: MlflowClient, runs: list[str]) -> None:
    """Assert that each run has all logged values."""
    for run in map(client.get_run, runs):
        assert (len(run.data.metrics), len(run.data.params), run.info.status) == (50, 50, "FINISHED")


def test_writers_to_sqlite_take_turns(tmp_path):
    """Eight concurrent writers lose no row, though none waits for SQLite's own lock."""
    engine = create_engine(f"sqlite:///{tmp_path / 'some.db'}", connect_args={"timeout": 0})
    serialize_writes(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # as in the workshop: readers do not wait
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE rows (number)"))

    def write(number: int) -> None:
        with suppress(ZeroDivisionError), engine.begin() as connection:
            connection.execute(text("SELECT * FROM rows"))
            connection.execute(text("INSERT INTO rows VALUES (:number)"), {"number": number})
            time.sleep(0.05)
            1 / (number % 5)  # every fifth transaction is rolled back

    with ThreadPoolExecutor(8) as writers:
        list(writers.map(write, range(40)))
    with engine.connect() as connection:
        numbers = set(connection.scalars(text("SELECT number FROM rows")))
    engine.dispose()
    assert numbers == {number for number in range(40) if number % 5}


@pytest.mark.soak
def test_writers_on_a_loaded_machine_are_all_answered(server, monkeypatch):
    """With four busy loops and 64 writers whose clients do not retry, no request fails."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    over = time.monotonic() + 90

    def write(_: int) -> list[str]:
        client, runs = MlflowClient(server.uri), []
        while time.monotonic() < over:
            runs.append(write_run(client, "0"))
        return runs

    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        with ThreadPoolExecutor(64) as writers:
            runs = [run for of_writer in writers.map(write, range(64)) for run in of_writer]
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert_complete(MlflowClient(server.uri), runs)


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_killed_server_has_all_that_it_acknowledged(server, monkeypatch, kills):
    """After repeated kills under load, each run whose end was acknowledged is complete."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    acknowledged: list[str] = []
    over = threading.Event()

    def write() -> None:
        client = MlflowClient(server.uri)
        while not over.is_set():
            with suppress(MlflowException):
                acknowledged.append(write_run(client, "0"))

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(kills):
            before = len(acknowledged)
            wait_for(lambda before=before: len(acknowledged) >= before + 10)
            server.kill()
            server.start()
    finally:
        over.set()
        for writer in writers:
            writer.join()
    with closing(sqlite3.connect(server.settings.database)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert_complete(MlflowClient(server.uri), acknowledged)
