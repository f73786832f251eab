"""The engine on different clusters: few slots, busy workers, other environments, TLS, and other machines."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from distributed import Security
from hosts import Client, Cluster, Hosts, document, new_cluster, new_hosts, notebook
from papermill_dask import EngineError
from programs import BIN, clean_environment, run_program, wait_for

MB = 10**6


# -- clusters ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler and two workers with one thread and one slot each."""
    with new_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start_scheduler()
        for name in ("alpha", "beta"):
            cluster.start_worker(name)
        yield cluster


@pytest.fixture
def fresh_cluster(tmp_path):
    """A new cluster with a scheduler and no workers."""
    with new_cluster(tmp_path / "cluster") as cluster:
        cluster.start_scheduler()
        yield cluster


@pytest.fixture
def dask_client(cluster):
    """A client of the cluster in this process."""
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client:
        yield client


# -- slots -------------------------------------------------------------------------------------------------------
@pytest.fixture
def start(fresh_cluster, tmp_path):
    """A function that starts a notebook; it prints its worker, and ends when a file with its name exists."""

    def start_notebook(name: str) -> Client:
        source = (
            "import os, time\nprint(os.environ['WORKER'], flush=True)\n"
            f"while not os.path.exists({str(tmp_path / name)!r}):\n    time.sleep(0.05)"
        )
        return fresh_cluster.start(notebook(tmp_path / f"{name}.ipynb", source), output=f"{name}-done.ipynb")

    return start_notebook


@pytest.mark.parametrize("workers", [["alpha", "beta"], ["both"]])
def test_cluster_gives_a_waiting_notebook_the_first_free_slot(fresh_cluster, start, tmp_path, workers):
    """With two slots (by resource or by threads), a third notebook waits for the first free one.

    Its log names the running notebooks, and it gets the worker of the one that ends.
    """
    options = {"resources": None, "threads": 2} if workers == ["both"] else {}
    for name in workers:
        fresh_cluster.start_worker(name, WORKER=name, **options)
    clients = [start("long"), start("short")]
    for client in clients:
        client.wait_for_text("\n")
    third = start("third")
    wait_for(lambda: "all suitable ones are busy with " in third.words)
    assert {"long", "short"} <= set(re.findall(r"\w+", third.words.partition("busy with ")[2].splitlines()[0]))
    for name in ("third", "short"):
        (tmp_path / name).touch()
    assert third.wait() == 0, third.words
    assert third.text() == clients[1].text()
    (tmp_path / "long").touch()
    assert [client.wait() for client in clients] == [0, 0]
    assert {client.text().strip() for client in clients} == set(workers)


def test_cluster_starts_the_next_notebook_while_a_kernel_shuts_down(fresh_cluster, tmp_path):
    """A slot is free after a notebook's last cell: an exit handler of its kernel sees the next notebook run."""
    fresh_cluster.start_worker("single")
    started, seen = tmp_path / "started", tmp_path / "seen"
    source = (
        "import atexit, os, time\n@atexit.register\ndef wait(end=time.time() + 7):\n"
        f"    while not os.path.exists({str(started)!r}) and time.time() < end:\n        time.sleep(0.05)\n"
        f"    print(time.time() < end, file=open({str(seen)!r}, 'w'))\nprint(1, flush=True)\ntime.sleep(2)"
    )
    first = fresh_cluster.start(notebook(tmp_path / "first.ipynb", source))
    first.wait_for_text("1\n")
    next_notebook = notebook(tmp_path / "next.ipynb", f"open({str(started)!r}, 'w').close()")
    second = fresh_cluster.start(next_notebook, output="second.ipynb")
    assert first.wait() == 0, first.words
    assert seen.read_text() == "True\n"
    assert second.wait() == 0, second.words


# Prints how many kernels of this folder's notebooks are alive, including this one, which takes two seconds to exit.
COUNT_KERNELS = """import atexit, os, time
open(f"kernel-{os.getpid()}", "w").close()
atexit.register(time.sleep, 2)
print(sum(os.path.exists(f"/proc/{name[7:]}") for name in os.listdir() if name.startswith("kernel-")))"""


def test_cluster_lets_one_kernel_shut_down_beside_the_next(fresh_cluster, tmp_path):
    """With one slot, at most two kernels are alive; only one if the first one's cell may still be running."""
    fresh_cluster.start_worker("single")
    count = notebook(tmp_path / "count.ipynb", COUNT_KERNELS)
    clients = [fresh_cluster.start(count, output=f"{number}.ipynb") for number in range(4)]
    assert [client.wait() for client in clients] == [0] * 4
    assert max(int(client.text()) for client in clients) == 2
    ignores = "while True:\n    try:\n        time.sleep(9)\n    except KeyboardInterrupt:\n        pass"
    stuck = fresh_cluster.start(
        notebook(tmp_path / "stuck.ipynb", COUNT_KERNELS, ignores), "--execution-timeout", "3", output="stuck-out.ipynb"
    )
    stuck.wait_for_text("1\n")
    last = fresh_cluster.run(count)
    assert (stuck.wait(), last.process.returncode, last.text()) == (1, 0, "1\n"), stuck.words


def test_resources_of_a_lent_slot_are_held_until_the_kernel_has_ended(fresh_cluster, tmp_path):
    """Two notebooks that a notebook starts on its own GPU at once never hold it at the same time."""
    fresh_cluster.start_worker("graphics", resources="notebook=1,GPU=1")
    on_gpu = {"papermill_dask": {"resources": {"GPU": 1}}}
    notebook(tmp_path / "count.ipynb", COUNT_KERNELS, **on_gpu)
    run_both = f"""from subprocess import Popen
options = ["--engine", "dask", "--no-progress-bar"]
both = [Popen([{str(BIN / "papermill")!r}, "count.ipynb", f"{{number}}.ipynb", *options]) for number in range(2)]
print([each.wait() for each in both])"""
    parent = fresh_cluster.run(notebook(tmp_path / "parent.ipynb", run_both, **on_gpu))
    assert parent.text().endswith("\n[0, 0]\n"), parent.words
    for number in range(2):
        assert nbformat.read(tmp_path / f"{number}.ipynb", 4).cells[-1].outputs[0].text == "1\n"


def test_cluster_runs_tasks_of_its_notebook(fresh_cluster, tmp_path):
    """On one worker with one thread, a notebook can use its own cluster: client, joblib, dask.dataframe."""
    fresh_cluster.start_worker("single")
    client = fresh_cluster.run(
        notebook(
            tmp_path / "uses.ipynb",
            "from distributed import Client\nclient = Client()\n"
            "print(sum(client.gather(client.map(lambda x: x * x, range(10)))))",
            "import joblib\nfrom sklearn.datasets import make_classification\n"
            "from sklearn.ensemble import RandomForestClassifier\nX, y = make_classification(random_state=0)\n"
            "with joblib.parallel_config(backend='dask'):\n"
            "    print(RandomForestClassifier(8, n_jobs=-1, random_state=0).fit(X, y).score(X, y) > 0.9)",
            "import pandas\nimport dask.dataframe\n"
            "frame = dask.dataframe.from_pandas(pandas.DataFrame({'a': range(100)}), npartitions=4)\n"
            "print(int(frame.a.sum().compute(scheduler=client)))\nclient.close()",
        )
    )
    assert client.process.returncode == 0, client.words
    assert [client.text(cell) for cell in range(3)] == ["285\n", "True\n", "4950\n"]


NEXT = "import papermill\npapermill.execute_notebook({0!r}, 'done-' + {0!r}, engine_name='dask', progress_bar=False)"


def test_notebook_lends_its_slot_to_notebooks_it_runs(fresh_cluster, tmp_path):
    """On two slots, two notebooks run others, nested three deep; a sweep of three inside a notebook shares its slot."""
    for name in ("alpha", "beta"):
        fresh_cluster.start_worker(name)
    notebook(tmp_path / "third.ipynb", "print('third')")
    outputs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sources = NEXT.format("second.ipynb"), NEXT.format("third.ipynb"), "print('third')"
        for file, source in zip(("first", "second", "third"), sources, strict=True):
            notebook(tmp_path / name / f"{file}.ipynb", source)
        outputs.append(fresh_cluster.start(tmp_path / name / "first.ipynb"))
    for client in outputs:
        assert client.wait(120) == 0, client.words
        last = nbformat.read(client.output.with_name("done-third.ipynb"), as_version=4)
        assert last.cells[0].outputs[0].text == "third\n"
    fresh_cluster.stop("beta")
    sweep = "import pathlib, papermill_dask as p\nprint(p.run_many(pathlib.Path('third.ipynb'), 3 * [{}]).exit_code)"
    client = fresh_cluster.run(notebook(tmp_path / "sweep.ipynb", sweep))
    assert client.text().endswith("\n0\n"), client.words


def test_notebook_lends_its_resources_with_the_slot(fresh_cluster, tmp_path):
    """A notebook that holds the only GPU can run another that requests it."""
    fresh_cluster.start_worker("strong", resources="notebook=2,GPU=1")
    request = {"papermill_dask": {"resources": {"GPU": 1}}}
    notebook(tmp_path / "inner.ipynb", "print('inner')", **request)
    client = fresh_cluster.start(notebook(tmp_path / "outer.ipynb", NEXT.format("inner.ipynb"), **request))
    assert client.wait(60) == 0, client.words


def test_notebook_with_the_output_of_its_caller_is_an_error(fresh_cluster, tmp_path):
    """A notebook that runs another with its own output fails instead of waiting forever."""
    fresh_cluster.start_worker("alpha")
    notebook(tmp_path / "inner.ipynb", "1")
    run = "import papermill\npapermill.execute_notebook('inner.ipynb', 'output.ipynb', engine_name='dask')"
    client = fresh_cluster.start(notebook(tmp_path / "outer.ipynb", run))
    assert client.wait(60) == 1
    assert "cannot write to the output of the notebook that runs it" in client.words


ADAPTIVE = """
import pathlib, threading
import dask, papermill_dask
from distributed import Client, LocalCluster

if __name__ == "__main__":
    over, most = threading.Event(), 0
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as cluster:
        cluster.adapt(minimum=0, maximum=3, interval="0.5s")

        def count():
            global most
            while not over.wait(0.2):
                most = max(most, len(cluster.scheduler.workers))

        threading.Thread(target=count).start()
        try:
            with dask.config.set({"scheduler-address": cluster.scheduler_address}):
                sweep = papermill_dask.run_many(pathlib.Path("in.ipynb"), [{"n": n} for n in range(8)])
        finally:
            over.set()
        print([run.status for run in sweep.runs].count("done"), most)
"""


def test_adaptive_cluster_scales_up_for_waiting_notebooks(tmp_path):
    """An adaptive cluster without workers scales up to its maximum, and all workers get notebooks."""
    notebook(tmp_path / "in.ipynb", "# tags: parameters\nn = 0", "import time\ntime.sleep(3)")
    (tmp_path / "adaptive.py").write_text(ADAPTIVE)
    printed = run_program(sys.executable, "adaptive.py", cwd=tmp_path, env=clean_environment(), timeout=240)
    assert printed.splitlines()[-1:] == ["8 3"]


# -- choice of a worker ------------------------------------------------------------------------------------------


def test_query_workers_lists_all_while_the_client_refreshes(dask_client):
    """The client's periodic refresh requests no workers; a concurrent query still lists both."""
    from papermill_dask.client.cluster import query_workers
    from tornado.ioloop import PeriodicCallback

    refresh = PeriodicCallback(dask_client._update_scheduler_info, 1)
    dask_client.loop.add_callback(refresh.start)
    try:
        assert {len(query_workers(dask_client)) for _ in range(100)} == {2}
    finally:
        dask_client.loop.add_callback(refresh.stop)


def test_notebook_runs_on_the_worker_with_the_requested_resource(fresh_cluster, tmp_path):
    """Of two workers, the one that declares the resource is used."""
    fresh_cluster.start_worker("plain")
    fresh_cluster.start_worker("strong", resources="notebook=1,GPU=1", WHICH="strong")
    source = "import os\nprint(os.environ.get('WHICH'))"
    client = fresh_cluster.run(notebook(tmp_path / "requests.ipynb", source, papermill_dask={"resources": {"GPU": 1}}))
    assert client.process.returncode == 0, client.words
    assert client.text() == "strong\n"


def test_notebook_waits_for_a_slow_worker_unless_another_is_eligible(fresh_cluster, monkeypatch, caplog):
    """The log names a worker that does not respond; waiting ends if it answers or dies, or if another is eligible."""
    from distributed import Client
    from papermill_dask import execute_notebook

    monkeypatch.setattr("papermill_dask.client.cluster.ANSWER_SECONDS", 1)
    slow = fresh_cluster.start_worker("slow")
    source = "import os\nprint(os.environ.get('WHICH'))"
    with (
        Client(fresh_cluster.address, set_as_default=False) as client,
        ThreadPoolExecutor(1) as executor,
        caplog.at_level(logging.INFO, "papermill"),
    ):

        def start():
            """Start executing a notebook."""
            caplog.clear()
            return executor.submit(
                execute_notebook, document(source, papermill={}), "python3", progress_bar=False, client=client
            )

        def is_waited_for() -> bool:
            return "Waiting for slow workers to respond: slow." in caplog.text

        slow.send_signal(signal.SIGSTOP)
        try:
            waiting = start()
            wait_for(is_waited_for)
        finally:
            slow.send_signal(signal.SIGCONT)
        assert waiting.result(60).cells[0].outputs[0].text == "None\n"

        fresh_cluster.start_worker("other", WHICH="other")
        slow.send_signal(signal.SIGSTOP)
        try:
            assert start().result(60).cells[0].outputs[0].text == "other\n"
            fresh_cluster.stop("other")
            waiting = start()
            wait_for(is_waited_for)
        finally:
            slow.kill()
        with pytest.raises(EngineError, match="no worker"):
            waiting.result(60)


def test_notebook_end_is_not_reported_to_other_clients(cluster, dask_client, tmp_path):
    """A completed or interrupted notebook sends no message to other clients, as it could break a new connection."""
    reports = []
    dask_client._stream_handlers["cancelled-keys"] = lambda **report: reports.append(report)
    assert cluster.run(notebook(tmp_path / "ends.ipynb", "1")).process.returncode == 0
    client = cluster.start(notebook(tmp_path / "stopped.ipynb", "import time\nprint('.', flush=True)\ntime.sleep(600)"))
    client.wait_for_text(".")
    client.process.send_signal(signal.SIGINT)
    client.assert_nothing_left(10)
    client.wait()
    assert dask_client.submit(sum, [1, 2]).result() == 3  # earlier messages of the scheduler have arrived
    assert reports == []


# -- environments ------------------------------------------------------------------------------------------------
def other_version(folder: Path, package: str, version: str) -> dict[str, str]:
    """Return variables that simulate another installed version of a package."""
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return {"PYTHONPATH": str(folder)}


def test_worker_with_other_versions_is_not_used(fresh_cluster, tmp_path):
    """If no worker matches, the error lists the differences; otherwise, the log lists the unused worker."""
    fresh_cluster.start_worker("old", **other_version(tmp_path / "other", "papermill", "2.4.1"))
    source = notebook(tmp_path / "any.ipynb", "print('ran')")
    client = fresh_cluster.run(source)
    assert client.process.returncode == 1
    assert "papermill 2.4.1 instead of" in client.words
    fresh_cluster.start_worker("good")
    client = fresh_cluster.run(source)
    assert client.process.returncode == 0, client.words
    assert "Workers not used for this notebook: old (tcp://" in client.words


# -- TLS ---------------------------------------------------------------------------------------------------------


def certificates(folder: Path) -> dict[str, str]:
    """Write a self-signed certificate; return the variables that configure Dask to use it."""
    security = Security.temporary()
    folder.mkdir()
    (folder / "ca.pem").write_text(security.tls_ca_file)
    (folder / "dask.pem").write_text(security.tls_client_cert + security.tls_client_key)
    prefix = "DASK_DISTRIBUTED__COMM__"
    files = dict.fromkeys(("SCHEDULER__CERT", "WORKER__CERT", "CLIENT__CERT"), str(folder / "dask.pem"))
    files["CA_FILE"] = str(folder / "ca.pem")
    return {f"{prefix}TLS__{name}": file for name, file in files.items()} | {f"{prefix}REQUIRE_ENCRYPTION": "true"}


def test_cluster_with_tls_rejects_clients_of_another_ca(tmp_path):
    """`tls://` with Dask's settings works, also for the notebook's client; a client of another CA cannot connect."""
    ours, theirs = certificates(tmp_path / "ours"), certificates(tmp_path / "theirs")
    with new_cluster(tmp_path / "cluster", **ours) as cluster:
        cluster.start_scheduler(protocol="tls")
        cluster.start_worker("secure", "--protocol", "tls")
        source = notebook(
            tmp_path / "secure.ipynb",
            "from distributed import Client\n"
            "with Client() as client:\n    print(client.scheduler.address, client.submit(sum, [1, 2]).result())",
        )
        client = cluster.run(source)
        assert client.process.returncode == 0, client.words
        assert client.text().startswith("tls://")
        assert client.text().endswith(" 3\n")
        stranger = cluster.run(source, **theirs)
        assert stranger.process.returncode == 1
        assert "distributed.comm.tls" in stranger.words


# -- other machines ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SeparateHosts:
    """A cluster with scheduler, worker and client on three hosts, and a DVC repository on the client's host."""

    cluster: Cluster
    hosts: Hosts
    repository: Path

    def run_on_client(self, *words: str) -> subprocess.CompletedProcess:
        """Run a program in the repository on the client's host."""
        return subprocess.run(
            self.hosts.client.command(*words),
            cwd=self.repository, env=self.cluster.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip

    def repro(self, *options: str, **environment: str):
        """Run `dvc repro` to its end; return it as a client, with the stage's notebook."""
        client = self.cluster.start_client(
            [BIN / "dvc", "repro", *options], self.repository, self.repository / "executed.ipynb", **environment
        )
        client.wait()
        return client

    def bytes_to_worker(self) -> int:
        """Return the number of bytes that the worker has received so far."""
        listing = subprocess.run(
            ["ip", "-n", self.hosts.worker.name, "-s", "-j", "link", "show", "eth0"], capture_output=True, check=True
        )
        return json.loads(listing.stdout)[0]["stats64"]["rx"]["bytes"]

    def scratch_folders(self) -> list[Path]:
        """Return the scratch folders on the worker's disk."""
        root = Path(f"/proc/{self.cluster.processes['far'].pid}/root{self.hosts.worker.hidden}")
        return list(root.glob("dask-scratch-space/worker-*/papermill-dask/scratch/*"))


STAGE = """
stages:
  square:
    cmd: papermill square.ipynb executed.ipynb --engine dask --no-progress-bar -p factor ${factor}
    params: [factor]
    deps: [square.ipynb, data, helpers.py]
    outs: [result.json, made]
    metrics:
    - metrics/square.json:
        cache: false
"""
SQUARE = """
import json, os, pathlib, helpers
names = sorted(str(path) for path in pathlib.Path().rglob("*") if path.is_file() and "__pycache__" not in str(path))
size = pathlib.Path("data/large.bin").stat().st_size
result = helpers.square(json.loads(pathlib.Path("data/number.json").read_text())) * factor
pathlib.Path("result.json").write_text(json.dumps(result))
for folder in ("made/deep", "metrics"):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
pathlib.Path("made/deep/copy.bin").write_bytes(os.urandom(1000))
pathlib.Path("metrics/square.json").write_text(json.dumps({"result": result}))
print(names, size, os.getcwd())
"""


@pytest.fixture(scope="module")
def separate_hosts(tmp_path_factory):
    """Three hosts and a repository with one notebook stage; the worker does not see the client's disk."""
    folder = tmp_path_factory.mktemp("separate_hosts")
    with new_hosts(folder) as hosts, new_cluster(folder / "cluster", hosts.client) as cluster:
        cluster.environment |= {"GIT_CEILING_DIRECTORIES": str(folder), "DVC_NO_ANALYTICS": "true"}
        cluster.start_scheduler(hosts.scheduler)
        cluster.start_worker("far", host=hosts.worker)
        repository = folder / "repository"
        (repository / "data").mkdir(parents=True)
        (repository / "dvc.yaml").write_text(STAGE)
        (repository / "params.yaml").write_text("factor: 2\n")
        (repository / "data" / "large.bin").write_bytes(os.urandom(20 * MB))
        (repository / "data" / "number.json").write_text("3")
        (repository / "helpers.py").write_text("def square(number):\n    return number * number\n")
        (repository / "unrelated.txt").write_text("not sent")
        notebook(repository / "square.ipynb", "# tags: parameters\nfactor = 1", SQUARE)
        place = SeparateHosts(cluster, hosts, repository)
        place.run_on_client("git", "init", "--quiet")
        place.run_on_client(str(BIN / "dvc"), "init", "--quiet")
        yield place
        assert place.scratch_folders() == []


@pytest.mark.privileged
def test_stage_on_another_machine_gets_deps_and_returns_outs(separate_hosts):
    """`dvc repro` on a worker without shared disk sends deps and fetches outs; the next sends only changed files."""
    before = separate_hosts.bytes_to_worker()
    client = separate_hosts.repro()
    assert client.process.returncode == 0, client.words
    first = separate_hosts.bytes_to_worker() - before
    assert first > 20 * MB
    files = {path: (separate_hosts.repository / path).read_bytes() for path in ("result.json", "metrics/square.json")}
    assert files == {"result.json": b"18", "metrics/square.json": b'{"result": 18}'}
    assert (separate_hosts.repository / "made" / "deep" / "copy.bin").stat().st_size == 1000
    sent = ["data/large.bin", "data/number.json", "dvc.yaml", "helpers.py", "params.yaml", "square.ipynb"]
    assert client.text(2).startswith(f"{sent} {20 * MB}")
    assert str(separate_hosts.repository) not in client.text(2)
    assert "up to date" in separate_hosts.run_on_client(str(BIN / "dvc"), "status").stdout

    (separate_hosts.repository / "params.yaml").write_text("factor: 3\n")
    before = separate_hosts.bytes_to_worker()
    client = separate_hosts.repro()
    assert client.process.returncode == 0, client.words
    assert (separate_hosts.repository / "result.json").read_bytes() == b"27"
    assert separate_hosts.bytes_to_worker() - before < 2 * MB
    assert separate_hosts.scratch_folders() == []


@pytest.mark.privileged
def test_failed_notebook_on_another_machine_writes_no_outs(separate_hosts):
    """After an error in the notebook no out is fetched."""
    source = notebook(separate_hosts.repository / "fails.ipynb", "open('out.txt', 'w').write('half')", "1 / 0")
    client = separate_hosts.cluster.run(source, output="failed.ipynb", DASK_PAPERMILL_DASK__OUTS="out.txt")
    assert client.process.returncode == 1
    assert "ZeroDivisionError" in client.words
    assert not (separate_hosts.repository / "out.txt").exists()
    assert separate_hosts.scratch_folders() == []


@pytest.mark.privileged
def test_network_failure_ends_the_notebook_on_both_sides(tmp_path):
    """If the worker's network fails while a cell runs, the client raises and the kernel is killed within 10 s."""
    with new_hosts(tmp_path) as hosts, new_cluster(tmp_path / "cluster", hosts.client) as cluster:
        cluster.start_scheduler(hosts.scheduler)
        cluster.start_worker("far", host=hosts.worker)
        source = notebook(tmp_path / "cut.ipynb", "print('first')", "import time\nprint('pid')\ntime.sleep(600)", "1")
        client = cluster.start(source)
        client.wait_for_text("pid", 1)
        assert client.descendants()
        hosts.worker.disconnect()
        client.assert_nothing_left(10)
        assert client.wait(10) == 1, client.words
        assert "network connection to the Dask worker failed" in client.words
        assert client.cells == ["completed", "failed", "pending"]
        assert client.document.metadata.papermill.exception is True
