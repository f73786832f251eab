"""A long sweep leaks neither memory nor open files."""

from __future__ import annotations

import time

import psutil
import pytest
from hosts import new_cluster, notebook
from programs import BIN, wait_for

NOTEBOOKS = 1000
FIRST = 400  # notebooks until caches are full and connections open
GROWTH = 1.05
# Limit Dask's history (an hour of profiles, thousands of log lines), so that it is full after the first notebooks.
MEMORY = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "100",
    "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "100",
    "DASK_DISTRIBUTED__DIAGNOSTICS__COMPUTATIONS__MAX_HISTORY": "10",
}


def usage(cluster) -> dict[str, tuple[float, int]]:
    """Return memory (MB) and open files of the scheduler, the average worker, and the shared fork server."""
    usages = {"scheduler": [], "worker": [], "fork server": []}
    for name, process in cluster.processes.items():
        worker = psutil.Process(process.pid)
        usages["scheduler" if name == "scheduler" else "worker"].append(worker)
        usages["fork server"] += [child for child in worker.children() if "serve_forks" in " ".join(child.cmdline())]
    assert len(usages["fork server"]) == 1
    return {
        name: (
            sum(process.memory_full_info().pss for process in processes) / len(processes) / 1e6,
            sum(process.num_fds() for process in processes) // len(processes),
        )
        for name, processes in usages.items()
    }


@pytest.mark.soak
@pytest.mark.parametrize("workers", [2, 16])
def test_thousand_notebooks_leak_nothing(tmp_path, workers):
    """Run a sweep of a thousand tiny notebooks; print its rate, memory and open files."""
    with new_cluster(tmp_path / "cluster", DASK_PAPERMILL_DASK__KERNEL_IMPORTS='["pandas"]', **MEMORY) as cluster:
        cluster.start_scheduler()
        for number in range(workers):
            cluster.start_worker(f"worker-{number}")
        source = notebook(tmp_path / "tiny.ipynb", "# tags: parameters\nnumber = 0", "import pandas\nprint(number)")

        def sweep(count):
            values = ",".join(map(str, range(count)))
            words = [BIN / "papermill-sweep", source, "--sweep", f"number={values}"]
            start = time.monotonic()
            client = cluster.start_client(words, tmp_path, tmp_path / "none")
            assert client.wait(3600) == 0, client.words
            minutes = (time.monotonic() - start) / 60
            wait_for(lambda: not list(cluster.folder.glob("kernel-*")))
            return count / minutes

        sweep(FIRST)
        before = usage(cluster)
        rate = sweep(NOTEBOOKS)
        after = usage(cluster)
    print(f"\n{workers} workers: {rate:.0f} notebooks a minute")
    for part, (megabytes, files) in after.items():
        print(f"{part}: {before[part][0]:.0f} to {megabytes:.0f} MB, {before[part][1]} to {files} open files")
    for part, (megabytes, files) in after.items():
        assert megabytes < GROWTH * before[part][0], part
        assert files <= GROWTH * before[part][1] + 2, part
