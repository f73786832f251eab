"""A Dask cluster as any site has one, a scheduler and two workers, each a process of its own; a tracking server."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator

import pytest
from hosts import Cluster, end, new_cluster, wait_for
from programs import BIN, free_port

TRACKING_SECONDS = 240  # its tables are made first, which takes long on a busy machine


@functools.cache
def missing_powers() -> str:
    """Return why mounts and network namespaces are not possible here, or nothing where they are."""
    tried = "unshare --mount --net sh -ec 'mount -t tmpfs tmpfs /tmp; ip link add type veth'"
    done = subprocess.run(tried, shell=True, capture_output=True, text=True, check=False)
    return f"needs root that may mount and make networks: {tried}: {done.stderr}" if done.returncode else ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip a privileged test where the powers are missing; fail it where CI promised that they are there."""
    if item.get_closest_marker("privileged") and (reason := missing_powers()):
        (pytest.fail if os.environ.get("WORKSHOP_REQUIRE_PRIVILEGED") else pytest.skip)(reason)


@pytest.fixture(scope="session", autouse=True)
def private_folder() -> Iterator[None]:
    """Have all programs of the tests use a folder of their own for temporary files, with a short path for sockets."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = folder = tempfile.mkdtemp()
    tempfile.tempdir = None
    yield
    os.environ.pop("TMPDIR")
    os.environ |= {"TMPDIR": before} if before else {}
    tempfile.tempdir = None
    shutil.rmtree(folder, ignore_errors=True)  # a fork server may be about to end


@pytest.fixture(scope="session")
def warm_cluster(tmp_path_factory) -> Iterator[Cluster]:
    """A scheduler and two workers of one thread and one `notebook` each, whose kernels are forked.

    The workers see the client's Jupyter folder, so that a kernel put into `kernelspecs` is known on both sides.
    """
    folder = tmp_path_factory.mktemp("cluster")
    imports = {
        "DASK_PAPERMILL_DASK__KERNEL_IMPORTS": '["pandas", "matplotlib"]',
        "JUPYTER_PATH": str(folder / "jupyter"),
    }
    with new_cluster(folder, **imports) as cluster:
        del cluster.environment["TQDM_DISABLE"]
        cluster.start_scheduler()
        for name in ("alpha", "beta"):
            cluster.start_worker(name)
        yield cluster


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
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{address}/health", timeout=5).status == 200
        return False

    try:
        wait_for(is_healthy, TRACKING_SECONDS)
        yield address
    finally:
        end(server)
