"""Helpers for tests that run programs: free ports, clean environments, tracking servers and dashboards."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests

PROJECT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PERSON = {f"GIT_{role}_{what}": "me@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
START_SECONDS = 180  # time-out of a program's start on a busy machine
SETTINGS = ["MLFLOW_", "DASK_", "DVC_", "MAKE", "PYTHONDONT"]  # prefixes of environment variables


# The same examples everywhere, without a database in the repository; no deadline, since a busy machine is slow.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")


def free_port() -> int:
    """Return a free port below the range of ephemeral ports."""
    # Each pytest-xdist worker has its own ports, so that two of them never start servers on the same one.
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:], os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    while True:
        port = secrets.choice(range(20000 + int(worker), 32000, int(workers)))
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def copy_project(folder: Path) -> None:
    """Copy dvc.yaml, params.yaml, own/ and the package, without data and notebooks."""
    for name in ("own", "forecast"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.csv"))
    for name in ("dvc.yaml", "params.yaml", "requirements.txt", ".dvcignore"):
        shutil.copy(PROJECT / name, folder)


def clean_environment() -> dict[str, str]:
    """Return the environment without settings of servers and stages, with this Python's programs first on PATH."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(tuple(SETTINGS))}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    return environment | {"MLFLOW_DISABLE_TELEMETRY": "true", "COLUMNS": "120"}


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Poll ``condition`` until its value is true, and return it; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        before = time.process_time()
        if result := condition():
            return result
        assert time.monotonic() < deadline, f"waited in vain for {seconds:g} s: {condition}"
        # An expensive condition must not take CPU time from the program it waits for.
        time.sleep(0.2 + 2 * (time.process_time() - before))


def answer_of(url: str) -> requests.Response | None:
    """Return the response of a server, or None if it is down or responds with an error."""
    try:
        answer = requests.get(url, timeout=20)
    except requests.RequestException:
        return None
    return answer if answer.ok else None


@dataclass
class Program:
    """A running program: its process, its log file, and the value that ``ready`` of `running` returned."""

    process: subprocess.Popen
    log: Path
    ready: Any


@contextlib.contextmanager
def running(command: list, environment: dict[str, str], folder: Path, ready: Callable[[str], Any]) -> Iterator[Program]:
    """Run a program in ``folder`` until the block ends; wait first until ``ready(output)`` is true."""
    log = Path(tempfile.mkdtemp()) / "output.log"
    with log.open("w") as output:
        process = subprocess.Popen(list(map(str, command)), cwd=folder, env=environment, stdout=output, stderr=output)

    def ended_or_ready() -> Any:
        assert process.poll() is None, "the program ended"
        return ready(log.read_text())

    try:
        yield Program(process, log, wait_for(ended_or_ready, START_SECONDS))
    except BaseException:
        sys.stderr.write(log.read_text())
        raise
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(log.parent)


@contextlib.contextmanager
def environment_of(variables: dict[str, str]) -> Iterator[None]:
    """Replace this process's environment by ``variables`` within the block."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_program(*command: object, exit_code: int | None = 0, **options) -> subprocess.CompletedProcess:
    """Run a program with options of `subprocess.run`; return the completed process with its output as text.

    Fail unless it exits with ``exit_code``; None allows any.
    """
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert exit_code in (None, done.returncode), done.stdout + done.stderr
    return done


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, with an author, and return its output."""
    return run_program("git", *arguments, cwd=folder, env=os.environ | PERSON).stdout


@contextlib.contextmanager
def tracking_server(folder: Path, database: Path | None = None, artifacts: str = "artifacts") -> Iterator[str]:
    """Run a tracking server in a folder, on a copy of a database if one is given; yield its URL."""
    port = free_port()
    if database:
        shutil.copy(database, folder / "mlflow.db")
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", artifacts]
    environment = clean_environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(command, environment, folder, lambda _: answer_of(f"http://127.0.0.1:{port}/health")):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def dashboard(environment: dict[str, str], folder: Path, tracking_uri: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run a dashboard in ``folder`` on a free port until the block ends; yield its URL and process."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (folder / "dvc.yaml").touch()  # else it would show the data of this project
    variables = {"MLFLOW_TRACKING_URI": tracking_uri, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "dashboard", "--port", str(port)]
    with running(command, environment | variables, folder, lambda _: health_of(url)) as program:
        yield url, program.process


def health_of(url: str) -> dict | None:
    """Return the JSON of a dashboard's /health, or None while it does not respond."""
    answer = answer_of(f"{url}/health")
    return answer and answer.json()


def check_refusal(good: Path, build: Callable, place: Path) -> None:
    """Build a hostile model from a good one: loading raises ModelError, runs no code and leaves all files alone."""
    (place / "secret.txt").write_text("a line of another file")
    folder, mark = place / "model", place / "sprung"
    shutil.copytree(good, folder)
    build(folder, mark)
    from forecast.learn.storage import load_folder
    from forecast.terms.errors import ModelError

    before = sorted(place.rglob("*"))
    with pytest.raises(ModelError) as error:
        load_folder(folder, "a model")
    assert sorted(place.rglob("*")) == before
    assert "a model" in str(error.value)
    assert "a line of another file" not in str(error.value)
