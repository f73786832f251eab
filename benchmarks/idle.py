"""Measure the CPU seconds that idle servers use per minute."""

from __future__ import annotations

import contextlib
import subprocess
import time

import psutil

from benchmarks.clone import Clone
from benchmarks.measure import Side
from benchmarks.table import Row
from tests.workplace import free_port, processes_of

TITLE = "Idle servers, CPU seconds per minute"
STOCK, OURS = "`mlflow server`, `dask scheduler` and two workers", "all servers of `workshop up`"
ROWS = (Row("CPU seconds of idle servers, per minute", STOCK, OURS),)
SETTLE_SECONDS, SECONDS = 90, 60  # 90: longer than the dashboard takes to become idle


def warm_up(_clone: Clone) -> None:
    """Do nothing: each side waits until its servers are idle."""


def sides(clone: Clone) -> list[Side]:
    """Return two sides: servers started as their documentation says, and ours, which include a dashboard and FTP."""

    def run_stock() -> float:
        with contextlib.ExitStack() as stack:
            folder, dask, mlflow = clone.new_folder("stock"), free_port(), free_port()
            for command in (
                ["mlflow", "server", "--port", str(mlflow), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"],
                ["dask", "scheduler", "--port", str(dask), "--dashboard-address", "127.0.0.1:0"],
                ["dask", "worker", f"tcp://127.0.0.1:{dask}", "--nworkers", "2", "--nthreads", "1"],
            ):
                environment = {name: value for name, value in clone.environment.items() if not name.startswith("DASK_")}
                program = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
                stack.callback(program.wait)
                stack.callback(program.terminate)
            time.sleep(SETTLE_SECONDS)
            return _seconds(psutil.Process().children(recursive=True))

    def run_ours() -> float:
        time.sleep(SETTLE_SECONDS)
        return _seconds(processes_of(clone.folder))

    return [Side(STOCK, run_stock), Side(OURS, run_ours)]


def _seconds(processes: list[psutil.Process]) -> float:
    """Return the CPU seconds that the processes use in the next minute."""
    before = {each: sum(each.cpu_times()[:2]) for each in processes}
    time.sleep(SECONDS)
    return sum(sum(each.cpu_times()[:2]) - before[each] for each in processes if each.is_running())
