"""Compare the latency of the dashboard's `/predict` and of MLflow's model server, over fifty connections."""

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

TITLE = "A prediction over HTTP, 95th percentile with 50 connections"
CONNECTIONS, REQUESTS = 50, 20
WEATHER = {"windspeed": 5.2, "temperature": 15.0, "rad_horizontal": 300.0, "rad_diffuse": 200.0}
STOCK, OURS = "`mlflow models serve`, without an error band", "`POST /predict` of the dashboard"
ROWS = (Row("a prediction, 50 connections, 95th percentile", STOCK, OURS),)


def sides(clone: Clone) -> list[Side]:
    """Return one side per server; both serve the model in production, and the first request is not timed."""
    clone.do("workshop", "repro", cwd=clone.pipeline)
    wait_for(lambda: (health := answer_of(clone.settings.dashboard_url + "/health")) and health.json()["version"])
    rows = {"rows": [{"utc_timestamp": "2016-06-01T12:00:00Z"} | WEATHER]}
    records = {"dataframe_records": [{"utc_timestamp": "2016-06-01T12:00:00"} | WEATHER]}

    def run_stock() -> float:
        with model_server(clone) as port:
            return percentile_95(port, "/invocations", records)

    return [Side(STOCK, run_stock), Side(OURS, lambda: percentile_95(clone.settings.dashboard_port, "/predict", rows))]


@contextlib.contextmanager
def model_server(clone: Clone) -> Iterator[int]:
    """Yield the port of MLflow's own server with the model in production."""
    port = free_port()
    options = ("-m", "models:/wind_solar@production", "--env-manager", "local", "--port", str(port))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen([BIN / "mlflow", "models", "serve", *options], env=clone.environment, **quiet) as server:
        try:
            wait_for(lambda: answer_of(f"http://127.0.0.1:{port}/ping"))
            yield port
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def percentile_95(port: int, path: str, body: dict) -> float:
    """Send requests over all connections at once; return the 95th percentile of the response times, in seconds."""
    content, headers = json.dumps(body), {"Content-Type": "application/json"}

    def send(requests: int) -> list[float]:
        seconds = []
        with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            for _ in range(requests):
                start = time.perf_counter()
                connection.request("POST", path, content, headers)
                response = connection.getresponse()
                if response.status != 200 or not response.read():
                    raise RuntimeError(f"{path} returned status {response.status}")
                seconds.append(time.perf_counter() - start)
        return seconds

    send(1)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        seconds = [value for values in pool.map(send, [REQUESTS] * CONNECTIONS) for value in values]
    return statistics.quantiles(seconds, n=20)[-1]
