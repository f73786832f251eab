"""A Dask cluster as any site has one, a scheduler and two workers, each a process of its own; a tracking server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from programs import BIN, clean_environment, free_port, processes_of

START_SECONDS = 60
TRACKING_SECONDS = 240  # its tables are made first, which takes long on a busy machine
STOP_SECONDS = 30


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    ``environment`` is what a client needs: the address, and the Jupyter folder that the workers see too, so that a
    kernel put into ``kernelspecs`` is known on both sides. The log of each process lies in ``folder``.
    """

    address: str
    environment: dict[str, str]
    kernelspecs: Path
    folder: Path


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """A scheduler and two workers of one thread and one `notebook` each, on free ports of the loopback interface."""
    folder = tmp_path_factory.mktemp("cluster")
    file = folder / "scheduler.json"
    environment = clean_environment() | {
        "JUPYTER_PATH": str(folder / "jupyter"),
        "IPYTHONDIR": str(folder / "ipython"),
        # Kernels are forked here, too, but from a process that is ready at once.
        "DASK_PAPERMILL_DASK__KERNEL_IMPORTS": '["pandas"]',
    }
    # ipykernel captures less of what is printed when it believes itself to be under test.
    environment.pop("PYTEST_CURRENT_TEST", None)

    def start(name: str, *command: str) -> subprocess.Popen:
        with (folder / f"{name}.log").open("w") as log:
            return stack.enter_context(
                ended(subprocess.Popen([BIN / "dask", *command], cwd=folder, env=environment, stdout=log, stderr=log))
            )

    with contextlib.ExitStack() as stack:
        stack.callback(assert_gone, folder)
        loopback = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file))
        processes = [start("scheduler", "scheduler", "--port", "0", *loopback)]
        one_notebook = ("--nthreads", "1", "--resources", "notebook=1", "--local-directory", str(folder))
        names = ("alpha", "beta")
        processes += [start(name, "worker", "--name", name, *loopback, *one_notebook) for name in names]
        wait_until(lambda: workers_of(file) == len(names), processes, folder)
        address = json.loads(file.read_text())["address"]
        environment["DASK_SCHEDULER_ADDRESS"] = address
        yield Cluster(address, environment, folder / "jupyter" / "kernels", folder)


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory) -> Iterator[str]:
    """The address of an MLflow tracking server with a store of its own."""
    folder = tmp_path_factory.mktemp("tracking")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", folder / "artifacts"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = folder / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)

    def is_healthy() -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{address}/health", timeout=5).status == 200
        return False

    with contextlib.ExitStack() as stack:
        stack.callback(assert_gone, folder)
        stack.enter_context(ended(server))
        wait_until(is_healthy, [server], folder, TRACKING_SECONDS)
        yield address


@contextlib.contextmanager
def ended(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """End a process and all that it started, kindly if it lets us."""
    try:
        yield process
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _, alive = psutil.wait_procs(family, STOP_SECONDS)
        for child in alive:
            child.kill()
        assert not alive, f"{process.args} left processes: {alive}"


def assert_gone(folder: Path) -> None:
    """Fail if a process of the cluster, or a kernel that it started, is still there."""
    left = processes_of(folder)
    assert not left, f"the cluster left processes: {left}"


def workers_of(file: Path) -> int:
    """Return the number of workers of the scheduler that wrote ``file``; 0 as long as it does not answer."""
    from distributed import Client

    if not file.exists():
        return 0
    with Client(scheduler_file=str(file), set_as_default=False, timeout=START_SECONDS) as client:
        client.wait_for_workers(2, timeout=START_SECONDS)
        return len(client.scheduler_info(n_workers=-1)["workers"])


def wait_until(is_ready, processes: list[subprocess.Popen], folder: Path, seconds: float = START_SECONDS) -> None:
    """Wait until they are ready; fail with the logs in ``folder`` when one has ended or it takes too long."""
    deadline = time.monotonic() + seconds
    while not is_ready():
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            pytest.fail("\n".join(log.read_text() for log in sorted(folder.glob("*.log"))))
        time.sleep(0.1)
