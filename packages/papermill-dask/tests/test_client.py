"""The client: choice of a cluster, variables for the kernel, and writing the output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import dask
import nbformat
import psutil
import pytest
from dask.system import CPU_COUNT
from distributed import Client, Security
from hosts import MARK, Cluster, environment_of, marked, new_cluster, notebook
from papermill_dask import connect
from papermill_dask.client.output import replace_file
from programs import BIN, clean_environment, free_port, run_program, small_disk, wait_for


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Cluster:
    """A scheduler and one worker."""
    with new_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start_scheduler()
        cluster.start_worker("alpha")
        yield cluster


SCRIPT = """
import papermill as pm
pm.execute_notebook("in.ipynb", "out.ipynb", engine_name="dask", progress_bar=False)
print("done")
"""
THREAD = (
    f"import threading\nthread = threading.Thread(target=exec, args=({SCRIPT!r},))\nthread.start()\nthread.join()\n"
)
# Like a Celery worker: a daemonic process must not have children.
DAEMON = f"""
import multiprocessing
process = multiprocessing.get_context("fork").Process(target=exec, args=({SCRIPT!r},), daemon=True)
process.start()
process.join()
"""


@pytest.mark.parametrize("way", ["standard input", "notebook", "thread", "daemon", "twice"])
def test_caller_needs_no_main_guard(tmp_path, way):
    """Programs without a main guard run notebooks on a local cluster, however they start, and leave no process."""
    notebook(tmp_path / "in.ipynb", "print('kept')")
    notebook(tmp_path / "caller.ipynb", SCRIPT)
    program = tmp_path / "caller.py"
    program.write_text({"thread": THREAD, "daemon": DAEMON, "twice": SCRIPT * 2}.get(way, SCRIPT))
    command: dict[str, tuple[str | Path, ...]] = {
        "standard input": ("python", "-"),
        "notebook": ("jupyter", "execute", "--inplace", "caller.ipynb"),
    }
    name, *words = command.get(way, ("python", program))
    typed, environment = SCRIPT if way == "standard input" else None, clean_environment() | {MARK: str(tmp_path)}
    printed = run_program(BIN / name, *words, input=typed, cwd=tmp_path, env=environment, timeout=120)
    printed = printed if way != "notebook" else (tmp_path / "caller.ipynb").read_text()
    assert printed.count("done") >= (2 if way == "twice" else 1)
    assert nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[0].outputs[0].text == "kept\n"
    wait_for(lambda: not marked(str(tmp_path)), 10)


NAMES = ("OMP_NUM_THREADS", "PYTHONHASHSEED", "MALLOC_TRIM_THRESHOLD_")
THREADS = f"import os\nprint([os.environ.get(name) for name in {NAMES}])"


def test_kernel_has_the_threads_of_its_worker(tmp_path):
    """OMP_NUM_THREADS is a worker's threads per slot, unless the client forwards its own; a local cluster sets none."""
    source, output = notebook(tmp_path / "in.ipynb", THREADS), tmp_path / "out.ipynb"

    def run(**variables: str) -> str:
        environment = {name: value for name, value in clean_environment().items() if name != "OMP_NUM_THREADS"}
        command = [BIN / "papermill", source, output, "--engine", "dask"]
        subprocess.run(command, env=environment | variables, capture_output=True, timeout=120, check=True)
        return nbformat.read(output, as_version=4).cells[0].outputs[0].text

    assert run() == "[None, None, None]\n"
    with new_cluster(tmp_path / "cluster") as cluster:
        cluster.start_scheduler()
        cluster.start_worker("alpha", threads=6, resources="notebook=2", nanny=True)
        address = {"DASK_SCHEDULER_ADDRESS": cluster.address}
        assert run(**address) == "['3', None, None]\n"
        own = {"OMP_NUM_THREADS": "5", "DASK_PAPERMILL_DASK__ENVIRONMENT": "OMP_*"}
        assert run(**address, **own) == "['5', None, None]\n"


OWN_TASKS = """
import os, pathlib, time
from distributed import Client
with Client() as client:
    [worker] = client.scheduler_info()["workers"].values()
print(worker["nthreads"], worker["resources"], os.environ.get("OMP_NUM_THREADS"))
pathlib.Path(f"{n} of {parallel}").touch()
while len(list(pathlib.Path().glob(f"* of {parallel}"))) < parallel:
    time.sleep(0.1)
"""


def test_local_cluster_has_all_processors(tmp_path):
    """A local cluster has a thread per processor; the notebooks of a sweep run in parallel and wait for each other."""
    notebook(tmp_path / "in.ipynb", "# tags: parameters\nn = parallel = 1", OWN_TASKS)
    for sweep, parallel, share in (("n=1", 1, None), ("n=1,2", min(2, CPU_COUNT), CPU_COUNT // 2 or None)):
        command = [BIN / "papermill-sweep", "in.ipynb", "--sweep", sweep, "--sweep", f"parallel={parallel}"]
        subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, timeout=120, check=True)
        text = nbformat.read(tmp_path / "executed/in/in-1.ipynb", as_version=4).cells[-1].outputs[0].text
        assert text == f"{CPU_COUNT} {{'notebook': {parallel}}} {share}\n"


FACTORIES = """
import os
from distributed import Client, LocalCluster

def cluster():
    cluster = LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0")
    with open("pids.txt", "a") as file:
        print(cluster.workers[0].pid, file=file)
    return cluster

def client():
    return Client(cluster(), set_as_default=False)

def nothing():
    return None

number = 1
"""


def run_with_factory(function: str, folder: Path, *words: str | Path, **variables: str) -> subprocess.CompletedProcess:
    """Run a command with a function of `FACTORIES` as `papermill-dask.cluster`."""
    (folder / "factories.py").write_text(FACTORIES)
    variables |= {"DASK_PAPERMILL_DASK__CLUSTER": f"factories:{function}", "PYTHONPATH": str(folder)}
    return subprocess.run(
        [BIN / words[0], *words[1:]], cwd=folder, env=clean_environment() | variables,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_configured_function_is_called_once_per_sweep(tmp_path):
    """One cluster runs all notebooks, and its workers end afterwards."""
    notebook(tmp_path / "in.ipynb", "# tags: parameters\nn = 0", "print(n)")
    done = run_with_factory("cluster", tmp_path, "papermill-sweep", "in.ipynb", "--sweep", "n=1,2,3")
    assert [row.split(",")[1] for row in done.stdout.splitlines()] == ["status", "done", "done", "done"], done.stderr
    (pid,) = (tmp_path / "pids.txt").read_text().split()
    assert not psutil.pid_exists(int(pid))


def test_configured_client_is_closed_with_its_cluster(tmp_path):
    """A notebook that runs another uses its own cluster, even if the function is configured in its kernel."""
    command = [str(BIN / "papermill"), "inner.ipynb", "nested.ipynb", "--engine", "dask", "--no-progress-bar"]
    notebook(tmp_path / "inner.ipynb", "1")
    notebook(tmp_path / "in.ipynb", f"import subprocess\nprint(subprocess.run({command}).returncode)")
    variables = {"DASK_PAPERMILL_DASK__ENVIRONMENT": "DASK_PAPERMILL_DASK__CLUSTER"}
    done = run_with_factory("client", tmp_path, "papermill", "in.ipynb", "out.ipynb", "--engine", "dask", **variables)
    assert done.returncode == 0, done.stderr
    outputs = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[0].outputs
    # The inner papermill's log may arrive before or after the cell's output.
    assert [output.text for output in outputs if output.name == "stdout"] == ["0\n"], outputs
    (pid,) = (tmp_path / "pids.txt").read_text().split()
    assert not psutil.pid_exists(int(pid))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("missing", "factories:missing cannot be imported"),
        ("number", "factories:number is not a function but 1"),
        ("nothing", "factories:nothing returned None"),
        ("cluster", "is set together with the scheduler address tcp://127.0.0.1:9"),
    ],
)
def test_invalid_configured_function_is_an_error(function, words, tmp_path):
    """A missing function, not a function, no cluster returned, an additional address: the error names the problem."""
    notebook(tmp_path / "in.ipynb", "1")
    variables = {"DASK_SCHEDULER_ADDRESS": "tcp://127.0.0.1:9"} if function == "cluster" else {}
    done = run_with_factory(function, tmp_path, "papermill", "in.ipynb", "out.ipynb", "--engine", "dask", **variables)
    assert done.returncode == 1
    assert words in done.stderr


def test_local_cluster_is_private(tmp_path):
    """Another user's Dask folder is not used; the notebook's client has the TLS key, and another key is rejected."""
    taken = tmp_path / "dask-scratch-space"
    taken.mkdir()
    (taken / "papermill_dask.py").write_text("raise SystemExit('a module of another user')")
    cells = (
        "import sys\nfrom distributed import Client\nwith Client() as client:\n    address = client.scheduler.address"
    )
    cells += f"\n    print(address, client.submit(lambda: {str(taken)!r} in sys.path).result())"
    cells += "\n    print(client.run_on_scheduler(lambda: sys.path[0]), client.submit(lambda: sys.path[0]).result())"
    source = notebook(tmp_path / "in.ipynb", cells)
    command, environment = [BIN / "papermill", source, tmp_path / "out.ipynb"], clean_environment()
    run_program(*command, "--engine", "dask", cwd=tmp_path, env=environment | {"TMPDIR": str(tmp_path)}, timeout=120)
    words = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[0].outputs[0].text.split()
    assert words[0].startswith("tls://")
    assert words[1] == "False"
    assert all(folder.startswith(f"{tmp_path}/papermill-dask-") for folder in words[2:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dask-scratch-space", "in.ipynb", "out.ipynb"]
    with (
        environment_of(clean_environment()),
        dask.config.set({"scheduler-address": None}),
        connect() as client,
        pytest.raises(OSError, match="certificate"),
    ):
        Client(client.scheduler.address, timeout=10, security=Security.temporary())


def test_local_cluster_listens_on_loopback_only():
    """A local cluster cannot be reached from other machines."""
    this = psutil.Process()
    others = set(this.children(recursive=True))  # from another test's cluster
    with environment_of(clean_environment()), dask.config.set({"scheduler-address": None}), connect():
        pids = {this.pid, *(child.pid for child in set(this.children(recursive=True)) - others)}
        listening = {
            connection.laddr.ip
            for connection in psutil.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN and connection.pid in pids
        }
    assert listening == {"127.0.0.1"}


def test_connection_survives_cancelled_tasks_of_other_clients(cluster):
    """Clients can connect while another client keeps cancelling tasks, which the scheduler reports to all clients."""
    program = (
        "from distributed import Client\nclient = Client(set_as_default=False)\nprint('began', flush=True)\n"
        "while True:\n    client.submit(int, pure=False).cancel()"
    )
    with subprocess.Popen([sys.executable, "-c", program], env=cluster.environment, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"began\n"
            with environment_of(cluster.environment):
                for _ in range(60):
                    with connect() as client:
                        assert client.status == "running"
        finally:
            other.kill()


def test_unreachable_tracking_server_is_a_warning(cluster, tmp_path):
    """The notebook runs, and the warning names the address; the output's name may have 255 bytes."""
    address, longest = f"http://127.0.0.1:{free_port()}", f"{'n' * 249}.ipynb"
    client = cluster.run(notebook(tmp_path / "in.ipynb", "print('ran')"), output=longest, MLFLOW_TRACKING_URI=address)
    assert client.process.returncode == 0, client.words
    assert f"(MLFLOW_TRACKING_URI={address})" in client.words
    assert client.text() == "ran\n"


def test_unwritable_output_is_not_reported_as_full_disk(cluster, tmp_path):
    """Without Java, writing to `hdfs://` fails; the error names the cause and does not suggest to free space."""
    command = [BIN / "papermill", notebook(tmp_path / "in.ipynb", "1"), "hdfs://nowhere/out.ipynb", "--engine", "dask"]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=60, check=False)
    assert "hdfs://nowhere/out.ipynb: Unable to load" in done.stderr
    assert (done.returncode, "free space" in done.stderr) == (1, False)


def test_secrets_are_not_forwarded(cluster, tmp_path):
    """The client's MLFLOW_* variables reach the kernel, but passwords and tokens only if named in the options."""
    names = ("MLFLOW_NOTE", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "OTHER")
    source = notebook(tmp_path / "in.ipynb", f"import os\nprint(*(os.environ.get(name) for name in {names}))")
    variables = {"DASK_PAPERMILL_DASK__ENVIRONMENT": "MLFLOW_TRACKING_TOKEN"}
    client = cluster.run(source, **dict.fromkeys(names, "here"), **variables)
    assert client.process.returncode == 0, client.words
    assert client.text() == "here None here None\n"


def test_cells_with_a_tag_are_skipped(cluster, tmp_path):
    """Skipped cells keep their source without outputs, even if a later cell fails; an unknown tag is a warning."""
    sources = ["print('first')", "# tags: slow big\nx = 1", "# tags: plots\n1 / 0", "print('x' in dir())", "1 / 0"]
    source = notebook(tmp_path / "in.ipynb", *sources, papermill_dask={"skip_tags": ["big"]})
    document = nbformat.read(source, as_version=4)
    document.cells[1].outputs = [nbformat.v4.new_output("stream", text="of an earlier execution")]
    document.cells[1].execution_count = 7
    nbformat.write(document, source)

    def run(**environment):
        client = cluster.run(source, **environment)
        # papermill adds cells that link to the failed one.
        cells = [cell for cell in client.document.cells if cell.id.startswith("cell-")]
        return client.words, cells, [cell.metadata.papermill.status for cell in cells]

    assert run()[2] == ["completed", "skipped", "failed", "pending", "pending"]
    words, cells, statuses = run(DASK_PAPERMILL_DASK__SKIP_TAGS="slow, plots, typo")
    assert statuses == ["completed", "skipped", "skipped", "completed", "failed"]
    assert [cell.execution_count for cell in cells] == [1, None, None, 2, 3]
    assert (cells[1].source, cells[1].outputs, cells[3].outputs[0].text) == (sources[1], [], "False\n")
    assert "No code cell has these tags to skip: typo." in words


def test_notebook_ends_with_its_dvc_process(cluster, tmp_path):
    """If DVC is killed, papermill in its stage ends as on SIGTERM, and later commands of the stage do not start."""
    source = notebook(tmp_path / "in.ipynb", "print('began', flush=True)\nimport time\ntime.sleep(600)")
    papermill = f"{BIN / 'papermill'} in.ipynb output.ipynb --engine dask --no-progress-bar"
    # DVC runs a stage's commands in a shell, with DVC_STAGE set.
    dvc = (
        "import os, subprocess\n"
        f"subprocess.run({papermill!r} + '; ' + {papermill.replace('output', 'late')!r},\n"
        "               shell=True, env=os.environ | {'DVC_STAGE': 'run'})"
    )
    client = cluster.start_client([sys.executable, "-c", dvc], tmp_path, source.with_name("output.ipynb"))
    client.wait_for_text("began")
    stage = psutil.Process(client.process.pid).children(recursive=True)
    client.process.send_signal(signal.SIGKILL)
    client.process.wait()
    _, alive = psutil.wait_procs(stage, 60)
    assert not alive, client.words
    client.assert_nothing_left(10)
    assert client.cells == ["failed"]
    assert "has died" in client.words
    assert not source.with_name("late.ipynb").exists()


def test_notebook_waits_for_an_earlier_run_with_its_output(cluster, tmp_path):
    """If a client is killed and restarted, the new kernel starts after the old one has ended."""
    cluster.start_worker("beta")
    log = tmp_path / "log"
    cell = (
        f"import os, time\nfile = open({str(log)!r}, 'a')\n"
        "for _ in range(20 if os.path.getsize(file.name) else 6000):\n"
        "    print(os.getpid(), file=file, flush=True)\n    time.sleep(0.1)"
    )
    source = notebook(tmp_path / "in.ipynb", cell)
    first = cluster.start(source)
    wait_for(lambda: log.exists() and log.read_text())
    first.process.kill()
    first.process.wait()
    again = cluster.run(source)
    assert again.process.returncode == 0, again.words
    pids = log.read_text().split()
    assert len(dict.fromkeys(pids)) == 2
    assert pids == sorted(pids, key=pids.index)  # never interleaved
    cluster.stop("beta")


# -- writing the output --------------------------------------------------------------------------------------------
def test_replaced_file_keeps_mode_and_links(tmp_path):
    """Hard links, a dangling link and the mode are kept; no other file is left in the folder."""
    file, second, link = (tmp_path / name for name in ("file", "second", "link"))
    file.write_text("old" * 4000)
    file.chmod(0o600)
    second.hardlink_to(file)
    link.symlink_to("target")
    for path in (file, link):
        (tmp_path / "new").write_text(path.name)
        replace_file(tmp_path / "new", path)
    assert (second.read_text(), oct(file.stat().st_mode), file.stat().st_nlink) == ("file", "0o100600", 2)
    assert (link.is_symlink(), (tmp_path / "target").read_text()) == (True, "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "second", "target"]


@pytest.mark.privileged
def test_replaced_file_keeps_its_owner(tmp_path):
    """Root replaces another user's file."""
    for name in ("new", "file"):
        (tmp_path / name).write_text(name)
    os.chown(tmp_path / "file", 4242, 4242)
    replace_file(tmp_path / "new", tmp_path / "file")
    assert ((tmp_path / "file").read_text(), (tmp_path / "file").stat().st_uid) == ("new", 4242)


@pytest.mark.privileged
def test_replace_file_on_a_mount_point_and_a_full_disk(tmp_path):
    """A mount point is written in place; on a full disk a hard-linked file keeps its complete old content."""
    new, file, other = tmp_path / "new", tmp_path / "file", tmp_path / "other"
    with small_disk(tmp_path / "disk", "256k") as disk:
        other.write_text("old")
        file.write_text("")
        subprocess.run(["mount", "--bind", other, file], check=True)
        try:
            new.write_text("new")
            replace_file(new, file)
            assert (file.read_text(), other.read_text(), new.exists()) == ("new", "new", False)
        finally:
            subprocess.run(["umount", file], check=True)
        (disk / "kept").write_text("kept")
        (disk / "second").hardlink_to(disk / "kept")
        new.write_bytes(bytes(1_000_000))
        with pytest.raises(OSError, match="No space"):
            replace_file(new, disk / "kept")
        assert (disk / "second").read_text() == "kept"
        assert new.exists()


def test_read_only_file_is_not_replaced(tmp_path):
    """A read-only file stays unchanged, even in a writable folder."""
    new, file = tmp_path / "new", tmp_path / "file"
    new.write_text("new")
    file.write_text("old")
    file.chmod(0o444)
    user = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.getuid() == 0 else []  # root without its powers
    program = "import sys, pathlib; from papermill_dask.client.output import replace_file; "
    program += "replace_file(*map(pathlib.Path, sys.argv[1:]))"
    command = [*user, BIN / "python", "-c", program, new, file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "PermissionError" in done.stderr
    assert file.read_text() == "old"
