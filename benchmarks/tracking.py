"""The tracking server under many writers, against `mlflow server` as it comes: both on SQLite, each on its own."""

from __future__ import annotations

import functools
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import requests

from benchmarks.measure import Side
from benchmarks.place import Place
from benchmarks.rows import Figure, Ratio
from tests.workplace import BIN, free_port
from workshop.servers import tracking_server
from workshop.servers.services import SERVICES

TITLE = "Tracking server"
MANY, FEW, VALUES = 64, 4, 50
API = "api/2.0/mlflow"
START_SECONDS = 120
STOCK, OURS = "`mlflow server`", "ours"
FAILED, SLOWEST, MEDIAN, MEMORY = "failed", "slowest", "median at 4 writers", "memory"

ROWS = (
    Ratio("6,528 requests of 64 writers: the slowest", STOCK, OURS),
    Figure("the same: the slowest, ours", f"{SLOWEST}, {OURS}", "s", at_most=5),
    Figure("the same: requests that failed, ours", f"{FAILED}, {OURS}", "", at_most=0, digits=0),
    Figure("the same: requests that failed, `mlflow server`", f"{FAILED}, {STOCK}", "", digits=0),
    Figure("a request at 4 writers, median, ours", f"{MEDIAN}, {OURS}", "ms", at_most=15),
    Figure("a request at 4 writers, median, `mlflow server`", f"{MEDIAN}, {STOCK}", "ms"),
    Figure("memory of all processes, ours", f"{MEMORY}, {OURS}", "MB", at_most=600, digits=0),
    Figure("memory of all processes, `mlflow server`", f"{MEMORY}, {STOCK}", "MB", digits=0),
)


def sides(place: Place) -> list[Side]:
    """Return both servers."""
    return [Side(name, functools.partial(run, place, name)) for name in (STOCK, OURS)]


def run(place: Place, name: str) -> dict[str, float]:
    """Start a server on an empty database, write to it, and end it; return its figures."""
    folder = place.new_folder("tracking")
    port = free_port()
    settings = place.settings.model_copy(update={"mlflow_port": port, "state": folder})
    environment = dict(place.environment)
    if name == OURS:
        (service,) = (service for service in SERVICES if service.name == "mlflow")
        tracking_server.ensure_database(settings)  # as `workshop up` does
        command = tracking_server.command(settings)
        environment |= service.environment | {"WORKSHOP_STATE": str(folder), "WORKSHOP_MLFLOW_PORT": str(port)}
    else:
        command = [
            BIN / "mlflow",
            "server",
            "--port",
            str(port),
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
        ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    tree = psutil.Process(process.pid)
    try:
        uri = f"http://127.0.0.1:{port}"
        wait_until_healthy(uri)
        few = write(uri, FEW)
        memory = sum(p.memory_info().rss for p in [tree, *tree.children(recursive=True)]) / 1e6
        many = write(uri, MANY)
    finally:
        for child in [*tree.children(recursive=True), tree]:
            child.kill()
        process.wait()
    slowest = max(seconds for seconds, _ in many)
    return {
        "seconds": slowest,
        f"{SLOWEST}, {name}": slowest,
        f"{FAILED}, {name}": sum(not ok for _, ok in many),
        f"{MEDIAN}, {name}": 1000 * statistics.median(seconds for seconds, _ in few),
        f"{MEMORY}, {name}": memory,
    }


def wait_until_healthy(uri: str) -> None:
    """Wait for an answer; raise RuntimeError when none comes."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if requests.get(f"{uri}/health", timeout=2).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    raise RuntimeError(f"no server at {uri}")


def write(uri: str, writers: int) -> list[tuple[float, bool]]:
    """Write a run a writer, each value in a request of its own; return each request's seconds and success."""
    answers: list[tuple[float, bool]] = []
    sessions = threading.local()

    def call(path: str, **body) -> dict:
        if not hasattr(sessions, "session"):
            sessions.session = requests.Session()
        began = time.perf_counter()
        try:
            answer = sessions.session.post(f"{uri}/{API}/{path}", json=body, timeout=120)
            answers.append((time.perf_counter() - began, answer.ok))
            return answer.json() if answer.ok else {}
        except requests.RequestException:
            answers.append((time.perf_counter() - began, False))
            return {}

    def one(_: int) -> None:
        run = call("runs/create", experiment_id="0").get("run", {}).get("info", {}).get("run_id", "")
        for key in range(VALUES):
            call("runs/log-metric", run_id=run, key=f"m{key}", value=key, timestamp=0, step=0)
            call("runs/log-parameter", run_id=run, key=f"p{key}", value=str(key))
        call("runs/update", run_id=run, status="FINISHED")

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(one, range(writers)))
    return answers


def settle(place: Place) -> None:
    """Nothing: each run starts with a server of its own."""
