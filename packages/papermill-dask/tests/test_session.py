"""The private cluster of a `dvc-parallel` run: who can use it, what it preloads, and that it ends with the run."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from distributed import Client
from distributed.security import Security
from notebooks import notebook
from programs import BIN, clean_environment, run_program, wait_for

pytest.importorskip("dvc_parallel")
linux = pytest.mark.skipif(sys.platform != "linux", reason="programs are forked on Linux alone")
# Holds a session and prints its variables, as `dvc-parallel` does; the third argument is the number of notebooks.
HOLD = """
import json, sys
from pathlib import Path
from papermill_dask.session import private_cluster
commands = ["papermill in.ipynb out.ipynb --engine dask"] * int(sys.argv[1])
with private_cluster(commands, list, jobs=2, folder=Path()) as variables:
    print(json.dumps(variables), flush=True)
    sys.stdin.read()
"""
CELLS = """
import os
is_forked = "distributed" in open(f"/proc/{os.getppid()}/cmdline").read()  # the fork server's list of modules
from distributed import Client
with Client() as client:
    results = client.gather(client.map(abs, range(-99, 0)))  # more tasks than the cluster has threads
    print(client.scheduler.address, is_forked, sum(results), os.environ.get("GIVEN"), flush=True)
"""
WAIT = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(300)"


@contextlib.contextmanager
def session(folder: Path, notebooks: int = 2, **variables: str):
    """Hold a session in another process; yield the process and the variables for its commands."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = clean_environment() | {"TMPDIR": str(temporary)} | variables
    words = [sys.executable, "-c", HOLD, str(notebooks)]
    with subprocess.Popen(words, cwd=folder, env=environment, stdin=-1, stdout=-1) as process:
        yield process, environment, json.loads(process.stdout.readline())


def repository(folder: Path, **cells: str) -> Path:
    """Return a DVC repository with a stage for each notebook."""
    folder.mkdir()
    run_program(BIN / "dvc", "init", "--quiet", "--no-scm", cwd=folder, env=clean_environment())
    stages = {}
    for name, cell in cells.items():
        nbformat.write(notebook(f"# %%\n{cell}"), folder / f"{name}.ipynb")
        command = f"papermill {name}.ipynb executed/{name}.ipynb --engine dask --no-progress-bar"
        stages[name] = {"cmd": command, "deps": [f"{name}.ipynb"], "outs": [f"executed/{name}.ipynb"]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    return folder


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """Return a process's descendants."""
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("reason", ["one notebook", "address", "function", "in a notebook"])
def test_session_starts_nothing_without_need(tmp_path, reason):
    """A single notebook, a configured cluster and a notebook's own run need no private cluster."""
    variables = {
        "address": {"DASK_SCHEDULER_ADDRESS": "tcp://127.0.0.1:9"},
        "function": {"DASK_PAPERMILL_DASK__CLUSTER": "module:function"},
        "in a notebook": {"PAPERMILL_DASK_TASK": "key"},
    }
    with session(tmp_path, 1 if reason == "one notebook" else 2, **variables.get(reason, {})) as (process, _, given):
        assert given == {}
        assert not family(process)
        process.stdin.close()


def test_failed_start_is_an_error(tmp_path):
    """If the cluster does not start, the error quotes the end of its log."""
    words = [sys.executable, "-c", HOLD, "2"]
    environment = clean_environment() | {"DASK_TEMPORARY_DIRECTORY": "/dev/null"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "The private Dask cluster of this run did not start.\n  found:    FileExistsError" in done.stderr


def test_session_ends_with_a_killed_run(tmp_path):
    """After `kill -9` of the run no process, port or temporary file is left, even if a notebook was running."""
    nbformat.write(notebook(f"# %%\n{WAIT}"), tmp_path / "in.ipynb")
    with session(tmp_path) as (process, environment, variables):
        words = [BIN / "papermill", "in.ipynb", "out.ipynb", "--engine", "dask"]
        with subprocess.Popen(words, cwd=tmp_path, env=environment | variables, stderr=subprocess.DEVNULL) as client:
            wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
            processes = family(process)
            assert int((tmp_path / "pid").read_text()) in [each.pid for each in processes]
            process.kill()
            assert not psutil.wait_procs(processes, 30)[1]
            assert client.wait(60)
    port = int(variables["DASK_SCHEDULER_ADDRESS"].rpartition(":")[2])
    assert port not in [each.laddr.port for each in psutil.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    wait_for(lambda: not list((tmp_path / "tmp").iterdir()), 30)  # the fork server has also ended


def test_session_has_access_by_key_only(tmp_path):
    """The cluster listens on the loopback interface, and its key is in no file and no argument."""
    with session(tmp_path) as (process, _, variables), contextlib.ExitStack() as stack:
        stack.callback(process.stdin.close)
        assert variables["DASK_SCHEDULER_ADDRESS"].startswith("tls://127.0.0.1:")
        listening = [each.laddr.ip for child in family(process) for each in child.net_connections("inet")]
        assert set(listening) == {"127.0.0.1"}
        with pytest.raises(OSError, match="certificate"):
            Client(variables["DASK_SCHEDULER_ADDRESS"], timeout=10, security=Security.temporary())
        key = variables["DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY"][30:80]
        assert not [file for file in tmp_path.rglob("*") if file.is_file() and key.encode() in file.read_bytes()]
        assert not [child for child in family(process) if key in " ".join(child.cmdline())]


@linux
def test_stages_of_a_run_share_a_private_cluster(tmp_path):
    """Kernels have shared imports and their command's variables; two runs have two clusters; `executed/` is created."""
    words, runs = [BIN / "dvc-parallel", "repro", "--jobs", "2"], []
    for name in ("one", "two"):
        folder = repository(tmp_path / name, a=CELLS, b=CELLS)
        environment = clean_environment() | {"GIVEN": name}
        runs.append(subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True))
    addresses = set()
    for name, run in zip(("one", "two"), runs, strict=True):
        assert run.wait(200) == 0, run.stderr.read()
        run.stderr.close()
        for stage in ("a", "b"):
            document = nbformat.read(tmp_path / name / "executed" / f"{stage}.ipynb", as_version=4)
            address, *rest = document.cells[0].outputs[0].text.split(maxsplit=1)
            assert rest == [f"True 4950 {name}\n"]
            addresses.add(address)
        lock = (tmp_path / name / "dvc.lock").read_text()
        assert "tls" not in lock
    assert len(addresses) == 2
    assert json.loads(run_program(BIN / "dvc", "status", "--json", cwd=folder, env=clean_environment())) == {}


@linux
@pytest.mark.parametrize("signal_number", [0, signal.SIGINT, signal.SIGKILL])
def test_private_cluster_ends_with_its_run(tmp_path, signal_number):
    """A stage that fails, Ctrl-C and `kill -9` leave no process; the run reports the failure as before."""
    folder = repository(tmp_path / "repository", a=WAIT if signal_number else "1 / 0", b="import time; time.sleep(1)")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = clean_environment() | {"TMPDIR": str(temporary)}
    words = [BIN / "dvc-parallel", "repro"]
    with subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as run:
        processes = wait_for(lambda: [each for each in family(run) if "papermill_dask.session" in each.cmdline()])
        if signal_number:
            wait_for(lambda: (folder / "pid").exists() and (folder / "pid").read_text())
            processes = family(run)
            run.send_signal(signal_number)
        _, text = run.communicate(timeout=120)
    assert run.returncode == {0: 1, signal.SIGINT: 130, signal.SIGKILL: -9}[signal_number]
    assert signal_number or "ZeroDivisionError" in text
    assert not psutil.wait_procs(processes, 30)[1]
    wait_for(lambda: not list(temporary.iterdir()), 30)
