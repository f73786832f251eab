"""A prediction for each of fifty simultaneous readers: the dashboard's `/predict`, and MLflow's server of models."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

from benchmarks.clone import Clone
from benchmarks.measure import Side
from benchmarks.table import Row
from tests.workplace import BIN, answer_of, free_port, wait_for

TITLE = "A prediction over HTTP, the 95th percentile of 50 connections"
READERS, TIMES = 50, 20
WEATHER = {"windspeed": 5.2, "temperature": 15.0, "rad_horizontal": 300.0, "rad_diffuse": 200.0}
STOCK, OURS = "`mlflow models serve`, without an error band", "`POST /predict` of the dashboard"
ROWS = (Row("a prediction, 50 connections, 95th percentile", STOCK, OURS),)


def sides(clone: Clone) -> list[Side]:
    """Return both servers, each with the version in production; the first to ask is not timed."""
    clone.do("workshop", "repro", cwd=clone.pipeline)
    wait_for(lambda: (health := answer_of(clone.settings.dashboard_url + "/health")) and health.json()["version"])
    rows = {"rows": [{"utc_timestamp": "2016-06-01T12:00:00Z"} | WEATHER]}
    records = {"dataframe_records": [{"utc_timestamp": "2016-06-01T12:00:00"} | WEATHER]}

    def stock() -> float:
        with model_server(clone) as port:
            return slowest_but_few(port, "/invocations", records)

    return [Side(STOCK, stock), Side(OURS, lambda: slowest_but_few(clone.settings.dashboard_port, "/predict", rows))]


@contextlib.contextmanager
def model_server(clone: Clone) -> Iterator[int]:
    """Yield the port of MLflow's own server of the model in production."""
    port = free_port()
    words = ("-m", "models:/wind_solar@production", "--env-manager", "local", "--port", str(port))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen([BIN / "mlflow", "models", "serve", *words], env=clone.environment, **quiet) as server:
        try:
            wait_for(lambda: answer_of(f"http://127.0.0.1:{port}/ping"))
            yield port
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def slowest_but_few(port: int, path: str, body: dict) -> float:
    """Ask from all connections together, again and again; return the 95th percentile of the seconds of an answer."""
    content, headers = json.dumps(body), {"Content-Type": "application/json"}

    def read(times: int) -> list[float]:
        seconds = []
        with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            for _ in range(times):
                began = time.perf_counter()
                connection.request("POST", path, content, headers)
                answer = connection.getresponse()
                if answer.status != 200 or not answer.read():
                    raise RuntimeError(f"{path} answers {answer.status}")
                seconds.append(time.perf_counter() - began)
        return seconds

    read(1)
    with ThreadPoolExecutor(READERS) as pool:
        seconds = [second for reader in pool.map(read, [TIMES] * READERS) for second in reader]
    return statistics.quantiles(seconds, n=20)[-1]
