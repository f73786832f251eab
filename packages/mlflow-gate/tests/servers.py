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
from types import SimpleNamespace

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
    """Wait until a condition holds; a refused connection is not yet an answer."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(requests.RequestException):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="session", autouse=True)
def tracking(tmp_path_factory):
    """Start a server that MLFLOW_TRACKING_URI names, for the tests and for the examples in the docstrings."""
    folder, port = tmp_path_factory.mktemp("mlflow"), str(free_port())
    uri, store = f"http://127.0.0.1:{port}", ["--backend-store-uri", "sqlite:///mlflow.db"]
    command = [sys.executable, "-m", "mlflow", "server", "--port", port, "--workers", "1", *store]
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("w") as log:
        for name in [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_"))]:
            patch.delenv(name)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        patch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # starts in half the time
        words = [*command, "--artifacts-destination", "artifacts"]
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(lambda: process.poll() is not None or requests.get(f"{uri}/health", timeout=5).ok, seconds=240)
            assert process.poll() is None, (folder / "log").read_text()
            patch.setenv("MLFLOW_TRACKING_URI", uri)
            yield SimpleNamespace(folder=folder, uri=uri, process=process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
