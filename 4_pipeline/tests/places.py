"""Where the tests run programs: free ports, clean environments, servers of their own."""

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
START_SECONDS = 180  # of a program that starts on a busy machine
SETTINGS = ["MLFLOW_", "DASK_", "DVC_", "MAKE", "PYTHONDONT"]  # their names begin so


# The same examples everywhere, and no folder of them in the repository; what is slow on a busy machine is no fault.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")


def free_port() -> int:
    """Return a port that nobody listens on now, below those that outgoing connections take for a moment."""
    # Workers of one session choose from different ports: two servers on one would both seem to answer.
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:], os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    while True:
        port = secrets.choice(range(20000 + int(worker), 32000, int(workers)))
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def copy_project(folder: Path) -> None:
    """Copy the pipeline's description and package, without data, notebooks and whatever else lies in its folder."""
    for name in ("own", "forecast"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.csv"))
    for name in ("dvc.yaml", "params.yaml", "requirements.txt", ".dvcignore"):
        shutil.copy(PROJECT / name, folder)


def clean_environment() -> dict[str, str]:
    """Return this environment without what points at servers or a stage, and with this Python's programs first."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(tuple(SETTINGS))}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    return environment | {"MLFLOW_DISABLE_TELEMETRY": "true", "COLUMNS": "120"}


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Return what ``condition`` gives once that is true; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        before = time.process_time()
        if result := condition():
            return result
        assert time.monotonic() < deadline, f"waited in vain for {seconds:g} s: {condition}"
        # A condition that takes long to look at must not take the processor from what it waits for.
        time.sleep(0.2 + 2 * (time.process_time() - before))


def answer_of(url: str) -> requests.Response | None:
    """Return the answer of a server, or None where no server answers, or not well."""
    try:
        answer = requests.get(url, timeout=20)
    except requests.RequestException:
        return None
    return answer if answer.ok else None


@dataclass
class Program:
    """A running program: its process, the file of its output, and what ``ready`` of `running` returned."""

    process: subprocess.Popen
    log: Path
    ready: Any


@contextlib.contextmanager
def running(command: list, environment: dict[str, str], folder: Path, ready: Callable[[str], Any]) -> Iterator[Program]:
    """Run a program in ``folder`` until the block ends; wait first until ``ready``, given its output, is true."""
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
    """Make ``variables`` this process's environment for a while."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_program(*command: object, exit_code: int | None = 0, **options) -> subprocess.CompletedProcess:
    """Run a program with options of `subprocess.run`; return it with its output as text.

    Fail unless it ends with ``exit_code``; None allows any.
    """
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert exit_code in (None, done.returncode), done.stdout + done.stderr
    return done


def git(folder: Path, *words: str) -> str:
    """Run git in a folder as a person, and return what it prints."""
    return run_program("git", *words, cwd=folder, env=os.environ | PERSON).stdout


@contextlib.contextmanager
def tracking_server(folder: Path, database: Path | None = None, artifacts: str = "artifacts") -> Iterator[str]:
    """Run a tracking server in a folder, on a copy of a database if there is one, and yield its address."""
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
    """Run a dashboard in ``folder`` on a free port until the block ends; yield address and process."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (folder / "dvc.yaml").touch()  # else it would show the data of this project
    places = {"MLFLOW_TRACKING_URI": tracking_uri, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "dashboard", "--port", str(port)]
    with running(command, environment | places, folder, lambda _: health_of(url)) as program:
        yield url, program.process


def health_of(url: str) -> dict | None:
    """Return what a dashboard says of itself, once it answers."""
    answer = answer_of(f"{url}/health")
    return answer and answer.json()


def check_refusal(good: Path, build: Callable, place: Path) -> None:
    """Make a hostile model of a good one in a folder; it is refused, and nothing has run, been read or been written."""
    (place / "secret.txt").write_text("a line of another file")
    folder, mark = place / "model", place / "sprung"
    shutil.copytree(good, folder)
    build(folder, mark)
    from forecast.learn.storage import load_folder
    from forecast.terms.errors import ModelError

    before = sorted(place.rglob("*"))
    with pytest.raises(ModelError) as refused:
        load_folder(folder, "a model")
    assert sorted(place.rglob("*")) == before
    assert "a model" in str(refused.value)
    assert "a line of another file" not in str(refused.value)
