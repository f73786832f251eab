"""The search on every kind of cluster, with the commands of the README."""

from __future__ import annotations

import functools
import html
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from laptops import EXAMPLE, MOST_SECONDS, NOT_COPIED, Laptop, ssh_cluster, two_nodes
from machines import Machine
from workplace import BIN, ROOT, clean_environment, running, wait_for

OTHER_PYTHONS = [f"python3.{minor}" for minor in range(11, 15) if minor != sys.version_info[1]]
README = (EXAMPLE / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
PARAMETERS = "{'svc__C': 1, 'svc__class_weight': None, 'svc__gamma': 0.001}"
BEST = f"best: {PARAMETERS}\nheld-out accuracy: 0.9926\n"
IMAGES_BYTES = 1257 * 64 * 8
# The bytes that the workers have sent, most of them to one another; and whether they imported what others may lack.
WORKERS = """python -c 'import os, sys; from distributed import Client
with Client(os.environ["DASK_SCHEDULER_ADDRESS"]) as client:
    print(sum(client.run(lambda dask_worker: dask_worker.transfer_outgoing_bytes_total).values()))
    print(any(client.run(lambda: {"mlflow", "requests", "urllib3"} & {*sys.modules}).values()))'"""
RUNS = """python -W ignore -c 'import mlflow; from pathlib import Path
from sklearn.datasets import load_digits
images, digits = load_digits(return_X_y=True)
for run in mlflow.search_runs(experiment_names=["digits_search"], output_format="list", order_by=["start_time"]):
    files, model = Path(run.info.artifact_uri), mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    print(run.data.params["cluster"], run.info.status, run.data.params["svc__C"], run.data.params["svc__gamma"],
          round(run.data.metrics["held_out_accuracy"], 4), len((files / "cv_results.csv").read_text().splitlines()),
          (files / "heatmap.png").read_bytes()[:4],
          run.data.metrics["search_seconds"] > 0 and (model.predict(images) == digits).mean() > 0.99)'"""
PROCESSES = "pgrep --full '[d]istributed' || true"
# Instead of making digits upright: each call is noted, and the tenth on one machine kills its worker.
FATAL_STEP = """
import os, signal, socket
from pathlib import Path

def deskew(images):
    with Path("/tmp/calls").open("a") as file:
        file.write("call\\n")
    if socket.gethostname() == "node2" and Path("/tmp/calls").read_text().count("call") == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return images
"""


@pytest.fixture(scope="module")
def machines(tmp_path_factory) -> Iterator[tuple[Laptop, list[Machine]]]:
    """A laptop, and two machines with a Dask cluster, of one worker each; Enter ends it, and all its processes."""
    with two_nodes(tmp_path_factory.mktemp("machines")) as (laptop, nodes):
        with ssh_cluster(laptop) as command:
            laptop.types(f"DASK_SCHEDULER_ADDRESS={command.split()[-1]}")
            assert all(node.run(PROCESSES) for node in nodes)
            yield laptop, nodes
        for node in nodes:
            wait_for(lambda node=node: node.run(PROCESSES) == "")


@pytest.mark.privileged
def test_search_finds_the_same_everywhere(machines):
    """In one process, on the laptop's cores, on machines by SSH: the same best parameters, and a run with its files.

    The machines get the images once each, not with each of 54 trainings; packages beyond requirements.txt are not used.
    """
    laptop, _ = machines
    before, _ = laptop.types(WORKERS).split()
    commands = "".join(BLOCKS[:2]).splitlines()
    for command in commands:
        printed = laptop.types(command)
        assert "Done  54 out of  54" in printed
        assert BEST in printed
    sent, others = laptop.types(WORKERS).split()[-2:]
    assert int(sent) - int(before) < 1.5 * 2 * IMAGES_BYTES
    assert others == "False"
    runs = [line.split() for line in laptop.types(RUNS).splitlines() if " FINISHED " in line][-3:]  # the latest
    assert [run[0] for run in runs] == ["none", "local", "tcp://10.98.1.2:8786"]
    assert all(run[2:] == ["1", "0.001", "0.9926", "19", r"b'\x89PNG'", "True"] for run in runs)


@pytest.mark.privileged
def test_changed_step_and_killed_worker(machines):
    """The step is used as it is now, and a worker that dies in mid-search costs the training that it was at."""
    laptop, nodes = machines
    step = laptop.machine.path("/root/digits_search/src/strokes.py")
    original = step.read_text()
    step.write_text(FATAL_STEP)
    try:
        printed = laptop.types(BLOCKS[1])
    finally:
        step.write_text(original)
    assert f"best: {PARAMETERS}" in printed
    # Each of the 54 trainings calls the step twice, and so may those that were lost; the laptop calls it, too.
    calls = sum(node.path("/tmp/calls").read_text().count("call") for node in nodes)
    assert 1 <= calls - 2 * 54 <= 8


@pytest.mark.privileged
@pytest.mark.soak
def test_machines_are_installed_as_the_readme_says(tmp_path):
    """The README's loop makes what the cluster needs on each machine; packages come from a folder in place of PyPI."""
    wheels = tmp_path / "wheels"
    typed(f"python -m pip download --quiet --dest '{wheels}' --requirement requirements.txt", EXAMPLE)
    with two_nodes(tmp_path / "machines", wheels) as (laptop, nodes):
        for node in nodes:
            node.installs_from(wheels)
            node.run("rm -r ~/digits_search")
        laptop.types(re.search(r"^```text\n(for host.*?)^```", README, flags=re.DOTALL | re.MULTILINE)[1])
        assert all("sklearn" in node.run("ls ~/digits_search/.venv/lib/*/site-packages") for node in nodes)
        with ssh_cluster(laptop) as command:
            assert BEST in laptop.types(command)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense"])
def test_wrong_address_is_an_error_in_words(address):
    """An address without a cluster: exit 1, the address, and what to give instead."""
    done = typed(f"python search.py --cluster {address}", EXAMPLE)
    assert done.returncode == 1
    assert f"There is no Dask cluster at '{address}'" in done.stdout
    assert "Traceback" not in done.stdout


def test_other_python_is_refused_before_anything_is_sent(tmp_path):
    """A cluster with another Python: exit 1, both versions, and what to take instead."""
    paths = filter(None, map(shutil.which, OTHER_PYTHONS))
    other = next((each for each in paths if subprocess.run([each, "-c", ""], check=False).returncode == 0), None)
    if other is None:
        pytest.skip("no other Python is on this machine")
    subprocess.run([BIN / "uv", "venv", "--quiet", "--python", other, tmp_path / "venv"], check=True)
    package = f"distributed=={version('distributed')}"
    subprocess.run([BIN / "uv", "pip", "install", "--quiet", "--python", tmp_path / "venv", package], check=True)
    command = [tmp_path / "venv/bin/dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    find_address = functools.partial(re.search, r"tcp://127\.0\.0\.1:[1-9]\d*")
    with running(command, clean_environment(), tmp_path, find_address) as scheduler:
        done = typed(f"python search.py --cluster {scheduler.ready[0]}", EXAMPLE)
    assert done.returncode == 1
    assert re.search(r"The cluster runs Python 3\.\d+, and this is 3\.\d+", done.stdout)


def test_template_is_clean():
    """cfn-lint finds nothing in the template."""
    done = typed("cfn-lint cluster.yaml", EXAMPLE)
    assert (done.returncode, done.stdout) == (0, "")


def test_workers_have_the_versions_of_this_repository():
    """Every pin of requirements.txt is the repository's."""
    pins = {line.split()[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    assert {line for line in (EXAMPLE / "requirements.txt").read_text().splitlines() if line[0] != "#"} <= pins


def test_notebook_runs_and_is_a_talk(tmp_path):
    """The notebook runs from top to bottom, finds the same twice, and becomes slides."""
    folder = shutil.copytree(EXAMPLE, tmp_path / "example", ignore=NOT_COPIED)
    done = typed(re.search("`(jupyter nbconvert .*)`", README)[1], folder)
    assert done.returncode == 0, done.stdout
    page = html.unescape((folder / "digits_search.slides.html").read_text())
    assert page.count(PARAMETERS) == 2
    assert page.count("<section>") > 10
    assert page.count("<img ") >= 3


def typed(command: str, folder: Path) -> subprocess.CompletedProcess:
    """Type a command in a folder; return it with what it prints."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": MOST_SECONDS}
    return subprocess.run(["bash", "-euc", command], cwd=folder, env=clean_environment(), check=False, **options)
