"""What tests start: programs of this Python's environment, with a clean environment and ports that are free."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def required(what: str, place: object) -> None:
    """Skip the test when a machine lacks something; fail it where CI promised that it is there."""
    if not place:
        if os.environ.get("WORKSHOP_REQUIRE_ALL"):
            pytest.fail(f"{what} is missing, and WORKSHOP_REQUIRE_ALL is set")
        pytest.skip(f"{what} is not on this machine")


def free_port() -> int:
    """Return a port that nobody listens on now, below those that outgoing connections take for a moment."""
    # Workers of one session choose from different ports: two servers on one would both seem to answer.
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:], os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    while True:
        port = secrets.choice(range(20000 + int(worker), 32000, int(workers)))
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def clean_environment() -> dict[str, str]:
    """Return this environment without what points at servers or a stage, and with this Python's programs first."""
    foreign = ("WORKSHOP_", "MLFLOW_", "DASK_", "DVC_", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    return environment | {"MLFLOW_DISABLE_TELEMETRY": "true", "COLUMNS": "120"}


@contextlib.contextmanager
def environment_of(variables: dict[str, str]) -> Iterator[None]:
    """Make ``variables`` this process's environment for a while, also for Dask's configuration."""
    import dask.config

    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        with dask.config.set(dask.config.collect(paths=[], env=variables)):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
