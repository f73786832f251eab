"""The dashboard behind its real server, on a socket: huge bodies, many connections, and what is no HTTP at all."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
import requests
from dashboard.bodies import URL
from workplace import ROOT, clean_environment, free_port, wait_for

Address = tuple[str, int]
PROGRAM = [sys.executable, ROOT / "4_pipeline" / "dashboard" / "app.py"]


@pytest.fixture(scope="module")
def process(tmp_path_factory) -> Iterator[tuple[subprocess.Popen, dict[str, str]]]:
    """The dashboard as a program, with no data and no servers to follow, and its environment."""
    root = tmp_path_factory.mktemp("dashboard")
    (root / "4_pipeline").mkdir()
    environment = clean_environment() | {
        "WORKSHOP_ROOT": str(root),
        "WORKSHOP_STATE": str(root / "state"),
        "WORKSHOP_DASHBOARD_PORT": str(free_port()),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}",
    }
    with (root / "log").open("w") as log:
        process = subprocess.Popen(PROGRAM, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: _healthy(("127.0.0.1", int(environment["WORKSHOP_DASHBOARD_PORT"]))), 90)
        yield process, environment
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def address(process) -> Address:
    """Its host and port."""
    return "127.0.0.1", int(process[1]["WORKSHOP_DASHBOARD_PORT"])


def _healthy(address: Address) -> bool:
    try:
        return requests.get("http://{}:{}/health".format(*address), timeout=20).ok
    except requests.RequestException:
        return False


def test_fifty_megabytes_are_refused_unread(process, address):
    """A body that is far too large is answered 413 at once, and the process grows by none of it."""
    memory = psutil.Process(process[0].pid).memory_info
    before = memory().rss
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50000000\r\n\r\n"
    with socket.create_connection(address, timeout=20) as sender:
        sender.sendall(head.encode())
        assert sender.recv(200).startswith(b"HTTP/1.1 413 ")
        with contextlib.suppress(ConnectionError):
            for _ in range(50):
                sender.sendall(b" " * 1_000_000)
    assert memory().rss - before < 10e6
    assert _healthy(address)


def test_nothing_to_serve_is_said_to_programs(address):
    """Without data, model and servers the process lives, and `/predict` says what to run."""
    url = "http://{}:{}".format(*address)
    wait_for(lambda: requests.get(f"{url}/health", timeout=20).json()["troubles"] == ["registry"], 60)
    row = dict.fromkeys(("windspeed", "temperature", "rad_horizontal", "rad_diffuse"), 1)
    rows = [row | {"utc_timestamp": "2016-06-01T12:00:00Z"}]
    answer = requests.post(f"{url}/predict", json={"rows": rows}, timeout=20)
    assert answer.status_code == 503
    assert "dvc repro" in answer.json()["next"]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50,
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"x" * 300_000 + b" HTTP/1.1\r\n\r\n",
        b"NONSENSE\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(address, sent):
    """TLS, lengths that are none and endless headers are answered 4xx or hung up on; the server goes on."""
    with socket.create_connection(address, timeout=20) as sender, contextlib.suppress(ConnectionError):
        sender.sendall(sent)
        sender.shutdown(socket.SHUT_WR)
        answer = sender.recv(100)
        assert not answer or answer.split()[1].startswith(b"4")
    assert _healthy(address)


def test_taken_port_is_told(process, address):
    """A second dashboard on the same port ends with 1 and says which port it is, without a traceback."""
    done = subprocess.run(PROGRAM, env=process[1], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 1
    assert f"127.0.0.1:{address[1]}" in done.stderr
    assert "Traceback" not in done.stderr
