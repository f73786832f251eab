"""The dashboard as a real server: huge bodies, and polling after idle time."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys

import places
import psutil
from dashboard.follower import IDLE_FACTOR, POLL_SECONDS
from places import answer_of, clean_environment, free_port, health_of, wait_for
from request_bodies import URL


def test_large_bodies_are_rejected_unread(tmp_path):
    """A body of 50 MB gets status 413 immediately, and the memory of the process does not grow."""
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50000000\r\n\r\n"
    with places.dashboard(clean_environment(), tmp_path, f"http://127.0.0.1:{free_port()}") as (url, process):
        memory = psutil.Process(process.pid).memory_info
        before = memory().rss
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20) as sender:
            sender.sendall(head.encode())
            assert sender.recv(200).startswith(b"HTTP/1.1 413 ")
            with contextlib.suppress(ConnectionError):
                for _ in range(50):
                    sender.sendall(b" " * 1_000_000)
        assert memory().rss - before < 10e6
        assert answer_of(f"{url}/health")


def test_first_request_after_idle_time_triggers_a_poll(data_file, tmp_path):
    """An idle dashboard polls rarely; the first request triggers a poll."""
    (tmp_path / "data").mkdir()
    (tmp_path / "dvc.yaml").touch()
    port, environment = free_port(), clean_environment() | {"PYTHONPATH": str(places.PROJECT)}
    environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "dashboard", "--port", port]
    with places.running(command, environment, tmp_path, lambda output: "registry:" in output):  # after the first poll
        shutil.copy(data_file, tmp_path / "data")
        assert health_of(f"http://127.0.0.1:{port}")["data"] is False
        wait_for(lambda: health_of(f"http://127.0.0.1:{port}")["data"], POLL_SECONDS * IDLE_FACTOR - 2)
