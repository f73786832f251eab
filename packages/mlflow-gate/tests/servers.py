"""`mlflow server` as a person starts it, on a free port and in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest
import requests


def free_port() -> int:
    """Return a free port, below those that outgoing connections take for a moment."""
    # Workers of one session choose from different ports: two servers on one would both seem to answer.
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:], os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    while True:
        port = secrets.choice(range(20000 + int(worker), 32000, int(workers)))
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Server:
    """A tracking server with SQLite; a context ends the server and its processes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        """Start the server, and wait until it answers."""
        store = ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "artifacts"]
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1", *store]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # starts in half the time
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self.answers, seconds=240)
        return self

    def __exit__(self, *_exception: object) -> None:
        """End the server, with all processes of its session."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def answers(self) -> bool:
        """Return whether the server is ready; fail if it has ended."""
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.uri}/health", timeout=5).ok
        return False


@pytest.fixture(scope="session", autouse=True)
def tracking(tmp_path_factory):
    """Start a server that MLFLOW_TRACKING_URI names, for the tests and for the examples in the docstrings."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_"))]:
            patch.delenv(name)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        with Server(tmp_path_factory.mktemp("mlflow")) as server:
            patch.setenv("MLFLOW_TRACKING_URI", server.uri)
            yield server
