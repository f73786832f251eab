"""The papermill engine `dask`, on the real cluster."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time

import nbformat
import psutil
import pytest
from workplace import BIN, ROOT, clean_environment, environment_of

ANCESTORS = "import psutil\n[process.pid for process in psutil.Process().parents()]"
TIMES = {"start_time", "end_time", "duration", "output_path", "input_path"}


@pytest.fixture
def notebook(tmp_path):
    """A function that writes a notebook of the given code cells; a first line `# tags: a b` gives a cell its tags."""

    def write(*sources, name="notebook.ipynb"):
        document = nbformat.v4.new_notebook()
        document.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        for number, source in enumerate(sources):
            cell = nbformat.v4.new_code_cell(source, id=f"cell-{number}")
            if found := re.match(r"# tags: (.*)", source):
                cell.metadata.tags = found[1].split()
            document.cells.append(cell)
        path = tmp_path / name
        nbformat.write(document, path)
        return path

    return write


@pytest.fixture
def papermill(servers, tmp_path):
    """A function that runs the papermill command line on the running cluster and returns process and notebook."""

    def run(source, *options, engine="dask", output="output.ipynb"):
        engine_options = ["--engine", engine] if engine else []
        done = servers.run(
            BIN / "papermill", source, tmp_path / output, *engine_options, "--no-progress-bar", *options, cwd=tmp_path
        )
        return done, nbformat.read(tmp_path / output, as_version=4)

    return run


def comparable(document):
    """The notebook without what differs between two runs anyhow: times, paths, ids."""
    cells = []
    for cell in document.cells:
        metadata = {
            name: {key: value for key, value in values.items() if key not in TIMES} if name == "papermill" else values
            for name, values in cell.metadata.items()
            if name != "execution"
        }
        cells.append({**cell, "id": None, "metadata": metadata})
    papermill = {key: value for key, value in document.metadata.papermill.items() if key not in TIMES}
    return {"cells": cells, "metadata": {**document.metadata, "papermill": papermill}}


def test_engine_runs_the_kernel_on_a_worker(servers, papermill, notebook):
    """The kernel's ancestor is a worker's process, and not the client's."""
    done, output = papermill(notebook(ANCESTORS))
    assert done.returncode == 0, done.stderr
    ancestors = {int(pid) for pid in re.findall(r"\d+", output.cells[0].outputs[0].data["text/plain"])}
    workers = next(service for service in status(servers) if service["name"] == "dask-workers")["pid"]
    assert workers in ancestors
    assert psutil.Process().pid not in ancestors


def status(servers):
    """What `workshop status --json` says."""
    import json

    return json.loads(servers.run(BIN / "workshop", "status", "--json").stdout)["services"]


def test_engine_equals_papermills_own(papermill, notebook):
    """Parameters, rich and streamed outputs, metadata: all as papermill's own engine has them."""
    source = notebook(
        "# tags: parameters\nwho = 'nobody'",
        "import sys\nprint('out', who)\nprint('err', file=sys.stderr)\n42",
        "from IPython.display import HTML, display\ndisplay(HTML('<b>ä</b>'))\ndisplay({'text/plain': 'x'}, raw=True)",
        "import pandas\npandas.DataFrame({'a': [1, 2]})",
    )
    ours, by_us = papermill(source, "-p", "who", "somebody")
    theirs, by_them = papermill(source, "-p", "who", "somebody", engine=None, output="other.ipynb")
    assert ours.returncode == theirs.returncode == 0, ours.stderr
    ours_cells, theirs_cells = comparable(by_us), comparable(by_them)
    assert ours_cells["cells"] == theirs_cells["cells"]
    assert ours_cells["metadata"] == theirs_cells["metadata"]


@pytest.mark.parametrize("tags", ["", "# tags: raises-exception\n"])
def test_engine_cell_error_is_papermills(papermill, notebook, tags):
    """A cell that fails, allowed to or not: exit code, text and notebook as from papermill's own engine."""
    source = notebook("print('before')", tags + "raise ValueError('no good')", "print('after')")
    ours, by_us = papermill(source)
    theirs, by_them = papermill(source, engine=None, output="other.ipynb")
    assert ours.returncode == theirs.returncode == 1
    assert "PapermillExecutionError" in ours.stderr
    assert "ValueError: no good" in ours.stderr
    assert comparable(by_us)["cells"][1:] == comparable(by_them)["cells"][1:]
    assert by_us.metadata.papermill.exception == by_them.metadata.papermill.exception


def test_engine_streams_each_cell_as_it_finishes(servers, notebook, tmp_path):
    """While the second cell still runs the first one's output is in the notebook on the client's disk."""
    source = notebook("print('first is done')", "import time\ntime.sleep(30)")
    output = tmp_path / "output.ipynb"
    command = [BIN / "papermill", source, output, "--engine", "dask", "--no-progress-bar"]
    with subprocess.Popen(command, cwd=tmp_path, env=servers.environment, stderr=subprocess.PIPE) as client:
        try:
            deadline = time.monotonic() + 25
            while not first_output(output) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert first_output(output) == "first is done\n"
            assert client.poll() is None
        finally:
            client.terminate()


def first_output(file):
    """What the first cell of a notebook that is being written has printed so far."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return nbformat.read(file, as_version=4).cells[0].outputs[0].text


def read(file):
    """A file's text, or nothing as long as it is not there."""
    return file.read_text() if file.exists() else ""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_engine_client_that_goes_leaves_no_kernel(servers, notebook, tmp_path, how):
    """Ctrl-C or kill -9 on the client: within 10 s the notebook's kernel, and what it started, is gone."""
    pids = tmp_path / "pids"
    source = notebook(
        f"import os, subprocess, time\nchild = subprocess.Popen(['sleep', '300'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\ntime.sleep(300)"
    )
    command = [BIN / "papermill", source, tmp_path / "output.ipynb", "--engine", "dask", "--no-progress-bar"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=servers.environment,
        stderr=subprocess.DEVNULL,
        # A shell starts its background jobs deaf to Ctrl-C, and these tests may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as client:
        deadline = time.monotonic() + 30
        while not read(pids) and time.monotonic() < deadline:
            time.sleep(0.1)
        family = [int(pid) for pid in read(pids).split()]
        assert len(family) == 2
        client.send_signal(how)
        client.wait(timeout=20)
    # A client killed without a word is noticed by the scheduler when its connection closes.
    deadline = time.monotonic() + 10
    while any(map(psutil.pid_exists, family)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(psutil.pid_exists, family))


def test_engine_two_notebooks_use_both_workers_and_no_more(servers, notebook, tmp_path):
    """Each notebook takes a unit of the resource `notebook`: three at once run two and then one."""
    source = notebook("import time\nbegan = time.time()\ntime.sleep(3)\nprint(began, time.time())")
    clients = [
        subprocess.Popen(
            [BIN / "papermill", source, tmp_path / f"output{n}.ipynb", "--engine", "dask", "--no-progress-bar"],
            cwd=tmp_path, env=servers.environment, stderr=subprocess.DEVNULL,
        )
        for n in range(3)
    ]  # fmt: skip
    assert [client.wait(timeout=90) for client in clients] == [0, 0, 0]
    spans = [
        tuple(map(float, nbformat.read(tmp_path / f"output{n}.ipynb", as_version=4).cells[0].outputs[0].text.split()))
        for n in range(3)
    ]
    assert max(sum(began <= moment < ended for began, ended in spans) for moment, _ in spans) == 2


def test_engine_notebook_uses_the_cluster_itself(papermill, notebook):
    """A notebook on a worker can send work to the cluster that it runs on, without a deadlock."""
    done, output = papermill(
        notebook(
            "import os\nfrom distributed import Client\n"
            "client = Client(os.environ['DASK_SCHEDULER_ADDRESS'])\n"
            "print(sum(client.gather(client.map(lambda x: x * x, range(10)))))\nclient.close()"
        )
    )
    assert done.returncode == 0, done.stderr
    assert output.cells[0].outputs[0].text == "285\n"


def test_engine_without_a_scheduler_starts_one_for_the_call(notebook, tmp_path):
    """No address and no servers: a local cluster runs the notebook and is gone afterwards."""
    (tmp_path / "4_pipeline").mkdir()
    (tmp_path / "pyproject.toml").touch()
    command = [BIN / "papermill", notebook(ANCESTORS), tmp_path / "output.ipynb", "--engine", "dask"]
    done = subprocess.run(
        command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "local Dask cluster" in done.stderr
    output = nbformat.read(tmp_path / "output.ipynb", as_version=4)
    (kernels_parent, *_) = re.findall(r"\d+", output.cells[0].outputs[0].data["text/plain"])
    assert not psutil.pid_exists(int(kernels_parent))


def test_engine_local_cluster_listens_on_loopback_alone(tmp_path, monkeypatch):
    """The cluster started for a call, its page included, cannot be reached from another machine."""
    import dask
    from papermill_dask.cluster import connect

    (tmp_path / "4_pipeline").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    # Dask keeps the address that was in the environment when it was imported, by whichever test that was.
    with environment_of(clean_environment()), dask.config.set({"scheduler-address": None}), connect():
        this = psutil.Process()
        pids = {this.pid, *(child.pid for child in this.children(recursive=True))}
        listening = {
            connection.laddr.ip
            for connection in psutil.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN and connection.pid in pids
        }
    assert listening == {"127.0.0.1"}


def test_engine_scheduler_that_does_not_answer_is_named(notebook, tmp_path):
    """A dead address: words with the address and the next step, exit code 1, no traceback."""
    environment = clean_environment() | {"DASK_SCHEDULER_ADDRESS": "tcp://127.0.0.1:9"}
    command = [BIN / "papermill", notebook("1"), tmp_path / "output.ipynb", "--engine", "dask"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "tcp://127.0.0.1:9" in done.stderr
    assert "workshop up" in done.stderr
    assert "Traceback" not in done.stderr


def test_repro_names_the_cluster_that_the_shell_gives(tmp_path):
    """DASK_SCHEDULER_ADDRESS, set by hand, wins over this clone's scheduler, and the command says so."""
    environment = clean_environment() | {"DASK_SCHEDULER_ADDRESS": "tcp://127.0.0.1:9", "WORKSHOP_STATE": str(tmp_path)}
    done = subprocess.run(
        [BIN / "workshop", "repro"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "cluster for notebooks: tcp://127.0.0.1:9, as DASK_SCHEDULER_ADDRESS says" in done.stderr


def test_engine_keeps_secrets_at_home(servers, notebook, tmp_path):
    """Variables of the client reach the kernel, but none that holds a password or a token."""
    source = notebook("import os\nprint(os.environ.get('MLFLOW_NOTE'), os.environ.get('MLFLOW_TRACKING_PASSWORD'))")
    environment = servers.environment | {"MLFLOW_NOTE": "hello", "MLFLOW_TRACKING_PASSWORD": "hush"}
    done = servers.run(
        BIN / "papermill", source, tmp_path / "output.ipynb", "--engine", "dask", cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "hello None" in read(tmp_path / "output.ipynb")


def test_runs_carry_the_commit_and_state_of_the_clients_folder(servers, notebook, tmp_path):
    """The worker's own repository is another: so it is when DVC tries an experiment in a copy (`--temp`)."""
    copy = tmp_path / "copy"
    (copy / "4_pipeline").mkdir(parents=True)
    for file in ("pyproject.toml", "4_pipeline/params.yaml"):
        (copy / file).write_text("1\n")

    def git(*words):
        command = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *words]
        return subprocess.run(command, cwd=copy, capture_output=True, text=True, check=True).stdout.strip()

    for words in (("init",), ("add", "--all"), ("commit", "--message", "First")):
        git(*words)
    (copy / "4_pipeline" / "params.yaml").write_text("2\n")
    source = notebook("from workshop.models.tracking import git_tags\nprint(*git_tags().values())")
    environment = {name: value for name, value in servers.environment.items() if name != "WORKSHOP_ROOT"}
    command = [BIN / "papermill", source, tmp_path / "output.ipynb", "--engine", "dask"]
    done = servers.run(*command, cwd=copy / "4_pipeline", env=environment)
    assert done.returncode == 0, done.stderr
    assert f"{git('rev-parse', 'HEAD')} true" in read(tmp_path / "output.ipynb")
