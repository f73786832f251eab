"""Helpers for the packages' tests: programs of this Python's environment, clean environments and free ports."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

BIN = Path(sys.executable).parent
SETTINGS = ("WORKSHOP_", "MLFLOW_", "DASK_", "DVC_", "PYTEST_")  # prefixes of the tools' environment variables
TRACKING_SECONDS = 240  # creating the database is slow on a busy machine


def required(what: str, answer: object) -> None:
    """Skip the test if the machine lacks ``what``; fail it if CI guarantees it."""
    if not answer:
        if os.environ.get("WORKSHOP_REQUIRE_ALL"):
            pytest.fail(f"{what} is missing, and WORKSHOP_REQUIRE_ALL is set")
        pytest.skip(f"{what} is not on this machine")


@functools.cache
def missing_powers() -> str:
    """Return why mounts and network namespaces are not possible on this machine, or "" if they are."""
    command = "unshare --mount --net sh -ec 'mount -t tmpfs tmpfs /tmp; ip link add type veth'"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    return f"needs root that may mount and make networks: {command}: {done.stderr}" if done.returncode else ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip a privileged test without the privileges; fail it if CI guarantees them."""
    if item.get_closest_marker("privileged") and (reason := missing_powers()):
        (pytest.fail if os.environ.get("WORKSHOP_REQUIRE_PRIVILEGED") else pytest.skip)(reason)


def free_port() -> int:
    """Return a free port below the range of ephemeral ports."""
    # Each pytest-xdist worker has its own ports, so that two of them never start servers on the same one.
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:], os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    while True:
        port = secrets.choice(range(20000 + int(worker), 32000, int(workers)))
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def clean_environment() -> dict[str, str]:
    """Return the environment without settings of servers and stages, with this Python's programs first on PATH."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    return environment | {"MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1", "COLUMNS": "120"}


def wait_for(condition: Callable[[], Any], seconds: float = 120, what: str = "") -> Any:
    """Poll ``condition`` until it is true, and return it; a refused connection is false. Fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        before = time.process_time()
        with contextlib.suppress(OSError):
            if result := condition():
                return result
        assert time.monotonic() < deadline, f"waited in vain for {seconds:g} s: {what or condition}"
        # An expensive condition must not take CPU time from the program it waits for.
        time.sleep(0.05 + 2 * (time.process_time() - before))


def run_program(*command: object, **options: Any) -> str:
    """Run a program with options of `subprocess.run`; return its output, or fail with it."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def running(
    command: list, folder: Path, url: str, environment: dict[str, str] | None = None, seconds: float = 120
) -> Iterator[subprocess.Popen]:
    """Run a server in ``folder`` until the block ends, with its output in the file `log`; wait first for ``url``."""
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*map(str, command)], cwd=folder, env=environment or clean_environment(),
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip

    def is_healthy() -> bool:
        assert process.poll() is None, log.read_text()
        return urllib.request.urlopen(url, timeout=5).status == 200

    try:
        wait_for(is_healthy, seconds, url)
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """Terminate a process and its descendants, or kill them; keep fork servers, which others may use."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            is_server = child.ppid() == process.pid and "serve_forks" in " ".join(child.cmdline())
            family += [] if is_server else [child]
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, 15)
    for child in alive:
        child.kill()
    assert not alive, f"{process.args} left processes: {alive}"


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of ``size`` at ``folder``, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def tracking_server(
    folder: Path, artifacts: str = "artifacts", **environment: str
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run `mlflow server` in a folder; yield its URL and its process."""
    port = str(free_port())
    command = [BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    command += ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", artifacts]
    variables = clean_environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | environment
    uri = f"http://127.0.0.1:{port}"
    with running(command, folder, f"{uri}/health", variables, TRACKING_SECONDS) as process:
        yield uri, process


def install_alone(package: Path, folder: Path, *requirements: str, extra: str = "") -> Path:
    """Build a package's wheel and install it in a new environment below ``folder``; return its folder `bin`."""
    uv = shutil.which("uv", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    required("uv", uv)
    venv = folder / "venv"
    # From a copy, since a build leaves a folder next to the sources.
    source = shutil.copytree(package, folder / "source", ignore=shutil.ignore_patterns("*.egg-info", "build", "tests"))
    run_program(uv, "build", "--quiet", "--wheel", "--out-dir", folder, source)
    run_program(uv, "venv", "--quiet", "--python", sys.executable, venv)
    (wheel,) = folder.glob("*.whl")
    run_program(uv, "pip", "install", "--quiet", "--python", venv / "bin" / "python", f"{wheel}{extra}", *requirements)
    return venv / "bin"
