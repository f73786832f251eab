"""The tracking server as `workshop up` starts it: what it refuses, and what it does not tell."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from workplace import free_port

from workshop.servers.services import SERVICES
from workshop.settings import get_settings

API = "api/2.0/mlflow"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The address of a tracking server with the command of `workshop up`, on a database of its own."""
    state = tmp_path_factory.mktemp("tracking") / "state"
    state.mkdir(mode=0o700)
    environment = os.environ | {"WORKSHOP_STATE": str(state), "WORKSHOP_MLFLOW_PORT": str(free_port())}
    for name in ("MLFLOW_TRACKING_URI", "WORKSHOP_HOST"):
        environment.pop(name, None)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        settings = get_settings()
    (service,) = (service for service in SERVICES if service.name == "mlflow")
    log = state / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            service.command(settings), env=environment | service.environment, cwd=state, stdout=out, stderr=out
        )
    with process:
        tree = psutil.Process(process.pid)
        try:
            deadline = time.monotonic() + 120
            while not healthy(settings.tracking_uri):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield settings.tracking_uri
        finally:
            for child in [*tree.children(recursive=True), tree]:
                with suppress(psutil.NoSuchProcess):
                    child.kill()


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


def test_many_writers_lose_nothing(server):
    """Sixteen writers at once: each has its run with all that it logged."""
    client = MlflowClient(server)
    experiment = client.create_experiment("writers")

    def write(number: int) -> str:
        run = client.create_run(experiment).info.run_id
        metrics = [Metric(f"m{key}", key, 0, 0) for key in range(50)]
        client.log_batch(run, metrics, [Param(f"p{key}", str(key)) for key in range(50)])
        client.set_terminated(run)
        return run

    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(write, range(64)))
    for run in map(client.get_run, runs):
        assert (len(run.data.metrics), len(run.data.params), run.info.status) == (50, 50, "FINISHED")


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
