"""The search on every kind of cluster, with the README's commands."""

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
from laptops import EXAMPLE, NOT_COPIED, TIMEOUT_SECONDS, Laptop, ssh_cluster, two_nodes
from machines import Machine
from workplace import BIN, ROOT, clean_environment, running, wait_for

OTHER_PYTHONS = [f"python3.{minor}" for minor in range(11, 15) if minor != sys.version_info[1]]
README = (EXAMPLE / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
PARAMETERS = "{'svc__C': 1, 'svc__class_weight': None, 'svc__gamma': 0.001}"
BEST = f"best: {PARAMETERS}\nheld-out accuracy: 0.9926\n"
IMAGES_BYTES = 1257 * 64 * 8
# The bytes that the workers have sent, mostly to one another; whether they imported packages that others may lack.
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
# Instead of deskewing, count the calls; the tenth on one machine kills its worker.
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
    """A laptop, and a Dask cluster on two machines with one worker each; Enter stops it and all its processes."""
    with two_nodes(tmp_path_factory.mktemp("machines")) as (laptop, nodes):
        with ssh_cluster(laptop) as command:
            laptop.run(f"DASK_SCHEDULER_ADDRESS={command.split()[-1]}")
            assert all(node.run(PROCESSES) for node in nodes)
            yield laptop, nodes
        for node in nodes:
            wait_for(lambda node=node: node.run(PROCESSES) == "")


@pytest.mark.privileged
def test_search_has_the_same_result_on_every_cluster(machines):
    """In one process, on local cores, on machines over SSH: the same best parameters, and a run with its files.

    Each machine gets the images once, not with each of 54 fits, and uses no packages beyond requirements.txt.
    """
    laptop, _ = machines
    before, _ = laptop.run(WORKERS).split()
    commands = "".join(BLOCKS[:2]).splitlines()
    for command in commands:
        output = laptop.run(command)
        assert "Done  54 out of  54" in output
        assert BEST in output
    sent, has_other_imports = laptop.run(WORKERS).split()[-2:]
    assert int(sent) - int(before) < 1.5 * 2 * IMAGES_BYTES
    assert has_other_imports == "False"
    runs = [line.split() for line in laptop.run(RUNS).splitlines() if " FINISHED " in line][-3:]  # the latest
    assert [run[0] for run in runs] == ["none", "local", "tcp://10.98.1.2:8786"]
    assert all(run[2:] == ["1", "0.001", "0.9926", "19", r"b'\x89PNG'", "True"] for run in runs)


@pytest.mark.privileged
def test_search_uses_the_changed_step_and_survives_a_killed_worker(machines):
    """The workers use the current step; a worker killed during the search costs only its current fit."""
    laptop, nodes = machines
    step = laptop.machine.path("/root/digits_search/src/strokes.py")
    original = step.read_text()
    step.write_text(FATAL_STEP)
    try:
        output = laptop.run(BLOCKS[1])
    finally:
        step.write_text(original)
    assert f"best: {PARAMETERS}" in output
    # Each of the 54 fits calls the step twice, and repeated fits may; the laptop calls it, too.
    calls = sum(node.path("/tmp/calls").read_text().count("call") for node in nodes)
    assert 1 <= calls - 2 * 54 <= 8


@pytest.mark.privileged
@pytest.mark.soak
def test_readme_installs_the_machines(tmp_path):
    """The README's loop installs the cluster's packages on each machine, from a folder in place of PyPI."""
    wheels = tmp_path / "wheels"
    run_in(f"python -m pip download --quiet --dest '{wheels}' --requirement requirements.txt", EXAMPLE)
    with two_nodes(tmp_path / "machines", wheels) as (laptop, nodes):
        for node in nodes:
            node.installs_from(wheels)
            node.run("rm -r ~/digits_search")
        laptop.run(re.search(r"^```text\n(for host.*?)^```", README, flags=re.DOTALL | re.MULTILINE)[1])
        assert all("sklearn" in node.run("ls ~/digits_search/.venv/lib/*/site-packages") for node in nodes)
        with ssh_cluster(laptop) as command:
            assert BEST in laptop.run(command)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense"])
def test_wrong_address_is_an_error(address):
    """An address without a cluster: exit 1; the message has the address and the allowed values."""
    done = run_in(f"python search.py --cluster {address}", EXAMPLE)
    assert done.returncode == 1
    assert f"There is no Dask cluster at '{address}'" in done.stdout
    assert "Traceback" not in done.stdout


def test_cluster_with_another_python_is_refused(tmp_path):
    """A cluster with another Python: exit 1; the message has both versions and the next step."""
    paths = filter(None, map(shutil.which, OTHER_PYTHONS))
    other = next((each for each in paths if subprocess.run([each, "-c", ""], check=False).returncode == 0), None)
    if other is None:
        pytest.skip("this machine has no other Python")
    subprocess.run([BIN / "uv", "venv", "--quiet", "--python", other, tmp_path / "venv"], check=True)
    package = f"distributed=={version('distributed')}"
    subprocess.run([BIN / "uv", "pip", "install", "--quiet", "--python", tmp_path / "venv", package], check=True)
    command = [tmp_path / "venv/bin/dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    find_address = functools.partial(re.search, r"tcp://127\.0\.0\.1:[1-9]\d*")
    with running(command, clean_environment(), tmp_path, find_address) as scheduler:
        done = run_in(f"python search.py --cluster {scheduler.ready[0]}", EXAMPLE)
    assert done.returncode == 1
    assert re.search(r"The cluster runs Python 3\.\d+ and this program 3\.\d+", done.stdout)


def test_template_passes_its_linter():
    """cfn-lint reports no problems in the template."""
    done = run_in("cfn-lint cluster.yaml", EXAMPLE)
    assert (done.returncode, done.stdout) == (0, "")


def test_requirements_pin_the_repositorys_versions():
    """Every pin in requirements.txt equals the repository's."""
    pins = {line.split()[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    assert {line for line in (EXAMPLE / "requirements.txt").read_text().splitlines() if line[0] != "#"} <= pins


def test_notebook_runs_and_converts_to_slides(tmp_path):
    """The notebook runs, both searches have the same result, and nbconvert writes slides."""
    folder = shutil.copytree(EXAMPLE, tmp_path / "example", ignore=NOT_COPIED)
    done = run_in(re.search("`(jupyter nbconvert .*)`", README)[1], folder)
    assert done.returncode == 0, done.stdout
    page = html.unescape((folder / "digits_search.slides.html").read_text())
    assert page.count(PARAMETERS) == 2
    assert page.count("<section>") > 10
    assert page.count("<img ") >= 3


def run_in(command: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a command in a folder; return the completed process with its output."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": TIMEOUT_SECONDS}
    return subprocess.run(["bash", "-euc", command], cwd=folder, env=clean_environment(), check=False, **options)
