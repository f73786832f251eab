"""Time ten notebooks with papermill's own engine and with papermill-dask: `python benchmarks/ten_notebooks.py`.

Takes two minutes, and needs only papermill-dask. The notebooks import Dask and sleep for half a second.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import nbformat
from distributed import LocalCluster, Security

COUNT, RUNS, JOBS = 10, 3, 2
CELLS = ["import time\n\nimport distributed", "time.sleep(0.5)\nprint(i)"]
SETTINGS = {"distributed.worker.preload": ["papermill_dask.preload"], "papermill-dask.kernel-imports": ["distributed"]}
PROGRAMS = Path(sys.executable).parent


def main() -> None:
    """Time each variant, and print its median, minimum and maximum."""
    # PYTHONDONTWRITEBYTECODE would make every process compile its imports again.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder, dask.config.set(SETTINGS):
        cells = [nbformat.v4.new_code_cell("i = 0", metadata={"tags": ["parameters"]})]
        cells += map(nbformat.v4.new_code_cell, CELLS)
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), f"{folder}/tiny.ipynb")
        key, key_file = Security.temporary(), Path(folder, "key.pem")
        key_file.write_text(f"{key.tls_client_key}{key.tls_ca_file}")
        options = {"protocol": "tls://", "security": key, "dashboard_address": None}
        with LocalCluster(n_workers=JOBS, threads_per_worker=1, **options) as cluster:
            environment["DASK_SCHEDULER_ADDRESS"] = cluster.scheduler_address
            for name in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY"):
                environment[f"DASK_DISTRIBUTED__COMM__TLS__{name}"] = str(key_file)

            def run(program: str, *words: str) -> None:
                command = [PROGRAMS / program, "tiny.ipynb", *words]
                subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)

            def run_each(jobs: int) -> None:
                with ThreadPoolExecutor(jobs) as pool:
                    list(pool.map(lambda i: run("papermill", f"{i}.ipynb", "-p", "i", str(i)), range(COUNT)))

            variants = {
                "papermill, one after another": lambda: run_each(1),
                f"papermill, {JOBS} at a time": lambda: run_each(JOBS),
                "papermill-sweep": lambda: run("papermill-sweep", "--sweep", f"i={','.join(map(str, range(COUNT)))}"),
            }
            run("papermill", "warm.ipynb", "--engine", "dask")
            seconds: dict[str, list[float]] = {name: [] for name in variants}
            for _ in range(RUNS):
                for name, run_variant in variants.items():
                    start = time.perf_counter()
                    run_variant()
                    seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        print(f"{name}: {statistics.median(times):.1f} s ({min(times):.1f} to {max(times):.1f})")


if __name__ == "__main__":
    main()
