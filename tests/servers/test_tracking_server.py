"""The tracking server as `workshop up` starts it: what it refuses, and what it does not tell."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from workplace import environment_of, free_port

from workshop.models.tracking import connect
from workshop.servers.database import ensure_database
from workshop.servers.services import SERVICES
from workshop.settings import get_settings

API = "api/2.0/mlflow"


class Server:
    """A tracking server with the command of `workshop up`, on a database of its own."""

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
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("a") as out:
            self._process = subprocess.Popen(
                self.service.command(self.settings),
                env=self.environment | self.service.environment,
                stdout=out,
                stderr=out,
            )
        deadline = time.monotonic() + 120
        while not healthy(self.uri):
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill all its processes."""
        if self._process.poll() is not None:
            return
        tree = psutil.Process(self._process.pid)
        for child in [*tree.children(recursive=True), tree]:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The address of a tracking server."""
    server = Server(tmp_path_factory.mktemp("tracking") / "state")
    server.start()
    yield server.uri
    server.kill()


def healthy(uri: str) -> bool:
    """Tell whether an MLflow server answers."""
    try:
        return requests.get(f"{uri}/health", timeout=2).ok
    except requests.RequestException:
        return False


def test_large_json_body_is_refused(server):
    """A body of 100 MB gets 413 before it is read, declared or not; the server goes on."""
    for body in (b" " * 100_000_000, (b" " * 1_000_000 for _ in range(100))):
        try:
            answer = requests.post(f"{server}/{API}/runs/search", data=body, timeout=20)
        except requests.ConnectionError:  # the server has closed the connection while we still sent
            assert healthy(server)
        else:
            assert answer.status_code == 413
            assert "log what is large as an artifact" in answer.json()["message"]


def test_declared_large_body_is_refused_at_once(server):
    """Who only says that 100 MB will come is answered without sending them."""
    parts = urlsplit(server)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    connection.putrequest("POST", f"/{API}/runs/search")
    connection.putheader("Content-Length", "100000000")
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error_code"] == "INVALID_PARAMETER_VALUE"
    connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1:6000", "localhost", "localhost:6000", "[::1]:6000"])
def test_this_machine_is_known_by_its_names(server, host):
    """Also through a tunnel, which has another port."""
    address = f"{server}/{API}/experiments/search?max_results=5"
    assert requests.get(address, headers={"Host": host}, timeout=10).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "10.0.0.7:5000", "192.168.1.1"])
def test_other_hosts_are_refused(server, host):
    """A page of another site that is made to resolve to this machine gets nothing (DNS rebinding)."""
    address = f"{server}/{API}/experiments/search?max_results=5"
    answer = requests.get(address, headers={"Host": host}, timeout=10)
    assert answer.status_code == 403


def test_answers_tell_nothing_of_the_database(server):
    """A number that the database cannot hold is an error in words, without statement, driver or traceback."""
    huge = str(10**30)
    answers = [
        requests.get(f"{server}/{API}/experiments/get", params={"experiment_id": huge}, timeout=10),
        requests.post(f"{server}/{API}/runs/create", json={"experiment_id": huge}, timeout=10),
        requests.post(f"{server}/{API}/runs/search", json={"experiment_ids": [huge], "filter": "x'"}, timeout=10),
        requests.get(f"{server}/{API}/experiments/get", params={"experiment_id": "\0"}, timeout=10),
    ]
    for answer in answers:
        assert answer.status_code >= 400
        for word in ("SQL", "sqlite", "sqlalche", "Traceback", str(Path(sys.prefix))):
            assert word not in answer.text


def write_run(client: MlflowClient, experiment: str) -> str:
    """Make a run of fifty metrics and as many parameters in four requests."""
    run = client.create_run(experiment).info.run_id
    metrics = [Metric(f"m{key}", key, 0, 0) for key in range(50)]
    client.log_batch(run, metrics, [Param(f"p{key}", str(key)) for key in range(50)])
    client.set_terminated(run)
    return run


def test_many_writers_lose_nothing(server):
    """Sixteen writers at once: each has its run with all that it logged."""
    client = MlflowClient(server)
    experiment = client.create_experiment("writers")
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda _: write_run(client, experiment), range(64)))
    for run in map(client.get_run, runs):
        assert (len(run.data.metrics), len(run.data.params), run.info.status) == (50, 50, "FINISHED")


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("rounds", [5])
def test_sixty_four_writers_of_single_values_get_no_error(server, rounds):
    """6,528 requests, each a value of its own as careless code logs them: none fails, and none with a 4xx."""
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=64))

    def call(path: str, **body) -> dict:
        answer = session.post(f"{server}/{API}/{path}", json=body, timeout=60)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return answer.json()

    def write(experiment: str) -> None:
        run = call("runs/create", experiment_id=experiment)["run"]["info"]["run_id"]
        for key in range(50):
            call("runs/log-metric", run_id=run, key=f"m{key}", value=key, timestamp=0, step=0)
            call("runs/log-parameter", run_id=run, key=f"p{key}", value=str(key))
        call("runs/update", run_id=run, status="FINISHED")

    for number in range(rounds):
        experiment = call("experiments/create", name=f"single values {rounds} {number}")["experiment_id"]
        with ThreadPoolExecutor(64) as pool:
            list(pool.map(write, [experiment] * 64))
        found = call("runs/search", experiment_ids=[experiment], max_results=100)["runs"]
        assert [len(run["data"]["metrics"]) + len(run["data"]["params"]) for run in found] == [100] * 64


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_killed_server_has_all_that_it_acknowledged(tmp_path, monkeypatch, kills):
    """Killed while it is written to, again and again: each run that its writer saw ended is there, whole.

    At last it stays dead, which a client of ours is told once a restart would be over, within 40 s.
    """
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = Server(tmp_path / "state")
    acknowledged: list[str] = []
    over = threading.Event()

    def write() -> None:
        client = MlflowClient(server.uri)
        while not over.is_set():
            with suppress(MlflowException):
                acknowledged.append(write_run(client, "0"))

    server.start()
    writers = [threading.Thread(target=write) for _ in range(4)]
    try:
        for writer in writers:
            writer.start()
        for _ in range(kills):
            before = len(acknowledged)
            while len(acknowledged) < before + 10:
                time.sleep(0.05)
            server.kill()
            server.start()
        over.set()
        for writer in writers:
            writer.join()
        with closing(sqlite3.connect(server.settings.database)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        client = MlflowClient(server.uri)
        assert len(acknowledged) >= 10 * kills
        for run in map(client.get_run, acknowledged):
            assert (len(run.data.metrics), len(run.data.params), run.info.status) == (50, 50, "FINISHED")
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
        client = connect(server.uri)
        server.kill()
        began = time.monotonic()
        with pytest.raises(MlflowException, match=server.uri.removeprefix("http://127.0.0.1:")):
            client.log_metric(acknowledged[0], "later", 1.0)
        assert 20 < time.monotonic() - began < 40, "a dead server was not told of in time"
    finally:
        over.set()
        server.kill()


def test_busy_port_is_named_with_its_holder(tmp_path):
    """`mlflow server` itself would notice after twenty seconds, and end with 0."""
    server = Server(tmp_path / "state")
    with socket.create_server(("127.0.0.1", server.settings.mlflow_port)):
        done = subprocess.run(
            server.service.command(server.settings),
            env=server.environment, capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert server.uri.removeprefix("http://") in done.stderr
    assert f"process {os.getpid()}" in done.stderr
    assert "Traceback" not in done.stderr


def test_server_whose_parent_dies_while_it_starts_ends(tmp_path):
    """`mlflow server` is killed when its child still imports: the child does not live on to hold the port."""
    server = Server(tmp_path / "state")
    with subprocess.Popen(
        SERVICES[1].command(server.settings),
        env=server.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 60
        while not (children := psutil.Process(process.pid).children()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
    assert not psutil.wait_procs(children, timeout=60)[1]


@pytest.mark.soak
def test_overload_is_never_a_client_error(tmp_path):
    """Somebody else keeps the database locked for longer than SQLite waits: 503, which clients repeat, and no 400."""
    server = Server(tmp_path / "state")
    ensure_database(server.settings, print)
    server.start()
    try:
        assert requests.post(f"{server.uri}/{API}/runs/create", json={"experiment_id": "0"}, timeout=60).ok
        with closing(sqlite3.connect(server.settings.database)) as database:
            database.execute("BEGIN EXCLUSIVE")
            answer = requests.post(f"{server.uri}/{API}/runs/create", json={"experiment_id": "0"}, timeout=60)
            database.rollback()
        assert answer.status_code == 503
        assert "try again" in answer.json()["message"]
        assert requests.post(f"{server.uri}/{API}/runs/create", json={"experiment_id": "0"}, timeout=60).ok
    finally:
        server.kill()


def test_server_is_one_process_on_loopback(server):
    """No job workers, no more than 600 MB, and nobody but this machine is listened to."""
    port = urlsplit(server).port
    listening = [c for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port]
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
    with suppress(OSError), socket.create_connection(("127.0.0.2", port), timeout=1):
        pytest.fail("it listens on another address")
    processes = {psutil.Process(connection.pid) for connection in listening}
    tree = {child for process in processes for child in [process, *process.children(recursive=True), process.parent()]}
    assert len([process for process in tree if "mlflow" in " ".join(process.cmdline())]) <= 3
    assert sum(process.memory_info().rss for process in processes) < 600e6
