"""Fault injection: errors, saved notebooks and leftover processes after faults of real processes."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.request

import psutil
import pytest
from hosts import Client, new_cluster, notebook
from programs import small_disk, wait_for

SECONDS = 10  # until all processes of a notebook have ended, on all hosts
DESCENDANTS_SECONDS = 5  # the same, if only the kernel is affected
RUN_SECONDS = 60  # until its MLflow runs are terminated
OPEN_RUN = """
import json, os, sys, time, urllib.request
address = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/create"
tags = [{"key": "papermill_dask.task", "value": os.environ["PAPERMILL_DASK_TASK"]}]  # as MLflow does
body = json.dumps({"experiment_id": "0", "tags": tags}).encode()
request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
print("run", json.load(urllib.request.urlopen(request))["run"]["info"]["run_id"], flush=True)
"""
SLEEP = "import os, time\nprint(f'pid {os.getpid()}.', flush=True)\ntime.sleep(600)"
LATER = "print('never')"


# -- fixtures and helpers ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cluster(tmp_path_factory, tracking_server):
    """A scheduler and a worker with a nanny, for faults from which the cluster recovers."""
    with new_cluster(tmp_path_factory.mktemp("faults"), MLFLOW_TRACKING_URI=tracking_server) as cluster:
        cluster.start_scheduler()
        cluster.start_worker("alpha", nanny=True)
        yield cluster


@pytest.fixture
def fresh_cluster(request, tmp_path, tracking_server):
    """A new cluster with a scheduler and no workers."""
    allowed = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": getattr(request, "param", "3")}
    with new_cluster(tmp_path / "cluster", MLFLOW_TRACKING_URI=tracking_server) as cluster:
        cluster.start_scheduler(**allowed)
        yield cluster


def run_status(client: Client, tracking_server: str, cell: int = 0) -> str:
    """Return the status of the MLflow run that a cell has started."""
    run_id = client.text(cell).split("run ")[1].split()[0]
    with urllib.request.urlopen(f"{tracking_server}/api/2.0/mlflow/runs/get?run_id={run_id}") as answer:
        return json.load(answer)["run"]["info"]["status"]


def assert_reported(client: Client, *words: str, code: int, cells: list[str], traceback: bool = False) -> None:
    """Fail unless exit code and messages are as expected, and the saved notebook has the right statuses."""
    assert client.process.returncode == code, client.words
    for word in words:
        assert word in client.words
    assert ("Traceback" in client.words) == traceback, client.words
    papermill = client.document.metadata.papermill
    assert papermill.exception is True
    assert papermill.end_time is not None
    assert client.cells == cells
    for cell in client.document.cells:
        assert (
            cell.metadata.papermill.exception
            == {"failed": True, "completed": False, "pending": None}[cell.metadata.papermill.status]
        )


def kernel_of(client: Client, cell: int = 1) -> psutil.Process:
    """Wait until a cell of `SLEEP` runs; return its kernel."""
    client.wait_for_text(".", cell)
    return psutil.Process(int(client.text(cell).split()[1].rstrip(".")))


# -- the notebook itself -----------------------------------------------------------------------------------------
def test_fault_cell_error_fails_the_run(cluster, tracking_server, tmp_path):
    """After an error in a cell: exit code 1, its error, later cells pending, the open MLflow run FAILED."""
    start = "import mlflow\nprint('run', mlflow.start_run().info.run_id)"
    client = cluster.run(notebook(tmp_path / "error.ipynb", start, "1 / 0", LATER))
    assert client.process.returncode == 1
    assert "ZeroDivisionError" in client.words
    client.assert_nothing_left(0)
    # papermill adds markdown cells at the top and before the failed cell.
    statuses = [cell.metadata.papermill.get("status") for cell in client.document.cells if cell.cell_type == "code"]
    assert statuses == ["completed", "failed", "pending"]
    assert run_status(client, tracking_server, 1) == "FAILED"


@pytest.mark.parametrize(
    ("source", "words"),
    [("os._exit(3)", "exit code 3"), ("import signal\nos.kill(os.getpid(), signal.SIGKILL)", "signal 9 (SIGKILL)")],
)
def test_fault_dead_kernel_is_reported_with_its_exit_status(cluster, tracking_server, tmp_path, source, words):
    """The error of a dead kernel has exit status and cell; the exit code is papermill's, and earlier output is kept."""
    words_first = "import time\nprint('last words', flush=True)\ntime.sleep(0.5)\n"
    client = cluster.run(notebook(tmp_path / "dead.ipynb", OPEN_RUN, words_first + source, LATER))
    client.assert_nothing_left(0)
    assert_reported(
        client, "Kernel died", words, "in cell 2", code=138, cells=["completed", "failed", "pending"], traceback=True
    )
    assert client.text(1) == "last words\n"
    assert run_status(client, tracking_server) in ("FAILED", "KILLED")


# -- the client --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_fault_client_interrupted_ends_the_notebook(cluster, tracking_server, tmp_path, how, code):
    """On Ctrl-C or SIGTERM the kernel ends within 10 s, the saved statuses are right, the run is KILLED."""
    client = cluster.start(notebook(tmp_path / "interrupted.ipynb", OPEN_RUN, SLEEP, LATER))
    kernel_of(client)
    client.process.send_signal(how)
    client.assert_nothing_left(SECONDS)
    client.wait(SECONDS)
    assert_reported(client, code=code, cells=["completed", "failed", "pending"])
    wait_for(lambda: run_status(client, tracking_server) == "KILLED", RUN_SECONDS)


def test_fault_client_killed_ends_the_notebook(cluster, tracking_server, tmp_path):
    """If the client is killed, the kernel ends within 10 s, the run is KILLED, and received outputs are saved."""
    client = cluster.start(notebook(tmp_path / "killed.ipynb", OPEN_RUN, SLEEP, LATER))
    kernel_of(client)
    client.process.kill()
    client.wait(SECONDS)
    client.assert_nothing_left(SECONDS)
    assert client.text(1).startswith("pid")
    assert client.cells == ["completed", "running", "pending"]
    wait_for(lambda: run_status(client, tracking_server) == "KILLED", RUN_SECONDS)


# -- the worker --------------------------------------------------------------------------------------------------
def worker_of(kernel: psutil.Process) -> psutil.Process:
    """Return the worker process of a kernel."""
    for parent in kernel.parents():
        words = " ".join(parent.cmdline())
        if "papermill_dask.worker.kernels" not in words and "forkserver" not in words:
            return parent
    raise AssertionError(f"no worker among {kernel.parents()}")


def test_fault_worker_killed_is_an_error(fresh_cluster, tracking_server, tmp_path):
    """If a worker is killed, the client fails within 10 s, and a free worker does not run the notebook again."""
    workers = {name: fresh_cluster.start_worker(name) for name in ("one", "two")}
    count = tmp_path / "count"
    effect = f"open({str(count)!r}, 'a').write('once\\n')\n" + SLEEP
    client = fresh_cluster.start(notebook(tmp_path / "lost.ipynb", OPEN_RUN, effect, LATER))
    worker_of(kernel_of(client)).kill()
    client.assert_nothing_left(DESCENDANTS_SECONDS)
    client.wait(30)
    words = ("worker that ran the notebook was lost", "retries")
    assert_reported(client, *words, code=1, cells=["completed", "failed", "pending"])
    assert any(
        f"see the worker's log ({socket.gethostname()}:{fresh_cluster.folder}/{name}.log)" in client.words
        for name in workers
    )
    assert run_status(client, tracking_server) in ("FAILED", "KILLED")
    time.sleep(2)  # in which the other worker would have started
    assert count.read_text() == "once\n"
    assert sum(process.poll() is None for process in workers.values()) == 1


def test_fault_scheduler_killed_is_an_error(fresh_cluster, tracking_server, tmp_path):
    """If the scheduler is killed, the client fails, the kernel ends within 10 s, and the run is terminated."""
    fresh_cluster.start_worker("one")
    client = fresh_cluster.start(notebook(tmp_path / "lost.ipynb", OPEN_RUN, SLEEP, LATER))
    kernel_of(client)
    fresh_cluster.processes["scheduler"].kill()
    client.assert_nothing_left(SECONDS)
    client.wait(30)
    assert_reported(client, "scheduler was lost", code=1, cells=["completed", "failed", "pending"])
    assert run_status(client, tracking_server) in ("FAILED", "KILLED")


@pytest.mark.parametrize("fresh_cluster", ["0"], indirect=True)
def test_fault_worker_lost_with_retries_runs_again(fresh_cluster, tmp_path):
    """With `retries` the notebook runs again, and its metadata record the loss, even if `allowed-failures` is 0."""
    fresh_cluster.start_worker("single", nanny=True)  # restarts the worker with a new address
    count = tmp_path / "count"
    source = notebook(
        tmp_path / "again.ipynb",
        f"import os, time\nfile = open({str(count)!r}, 'a')\nfile.write(f'{{os.getpid()}}\\n')\nfile.close()",
        f"if len(open({str(count)!r}).readlines()) == 1:\n    time.sleep(600)\nprint('done')",
    )
    client = fresh_cluster.start(source, DASK_PAPERMILL_DASK__RETRIES="1")
    wait_for(lambda: count.exists() and count.read_text().endswith("\n"))
    wait_for(lambda: client.cells == ["completed", "running"])
    first = worker_of(psutil.Process(int(count.read_text())))
    first.kill()
    assert client.wait() == 0, client.words
    assert len(count.read_text().split()) == 2
    assert client.cells == ["completed", "completed"]
    assert client.document.metadata.papermill.exception is None
    assert client.text(1) == "done\n"
    (loss,) = client.document.metadata.papermill_dask.lost
    assert set(loss) == {"worker", "began", "ended", "error"}
    assert loss["began"] < loss["ended"] < time.time()
    assert "lost" in loss["error"]
    assert client.descendants() == []


# -- child processes ---------------------------------------------------------------------------------------------
CHILDREN = """
import os, subprocess, sys, time
sleep = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
subprocess.Popen(sleep)
subprocess.Popen(sleep, start_new_session=True)
if os.fork() == 0:  # a daemon: double fork with a new session
    os.setsid()
    if os.fork() == 0:
        os.execv(sleep[0], sleep)
    os._exit(0)
os.wait()
"""
ENDS = {
    "end": "",
    "error": "1 / 0",
    "exit": "os._exit(1)",
    "kill": "os.kill(os.getpid(), 9)",
    "stuck": "import ctypes; ctypes.PyDLL(None).sleep(600)",
}


@pytest.mark.parametrize("how", ENDS)
def test_fault_children_of_a_notebook_end_with_it(cluster, tmp_path, how):
    """Children, also in new sessions, daemonized or ignoring SIGTERM, end with the kernel, however it ends."""
    options = ["--execution-timeout", "3"] if how == "stuck" else []
    wait = "time.sleep(1)\nprint('started', flush=True)\ntime.sleep(1)\n"
    client = cluster.start(notebook(tmp_path / "children.ipynb", CHILDREN, wait + ENDS[how]), *options)
    wait_for(lambda: len(client.descendants()) == 4)
    client.wait()
    client.assert_nothing_left(0 if how != "stuck" else DESCENDANTS_SECONDS)


# -- full disks --------------------------------------------------------------------------------------------------
@pytest.mark.privileged
def test_fault_client_disk_full_keeps_the_last_saved_notebook(cluster, tmp_path):
    """If the client's disk is full: exit code 1, the kernel ends, and the last saved notebook is intact."""
    with small_disk(tmp_path / "small", "1m") as folder:
        more = "import time\nprint('x' * 2_000_000, flush=True)\ntime.sleep(600)"
        client = cluster.start(notebook(folder / "full.ipynb", "print('first')", more))
        client.wait(60)
        client.assert_nothing_left(DESCENDANTS_SECONDS)
        assert client.process.returncode == 1
        assert "No space left on device" in client.words
        assert client.text() == "first\n"
        assert sorted(file.name for file in folder.iterdir()) == ["full.ipynb", "output.ipynb"]
