"""The search on every kind of cluster, with the commands of the README."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from distributed import Client
from ssh_nodes import EXAMPLE, NOT_COPIED
from workplace import BIN, ROOT, clean_environment, running

BLOCKS = re.findall(r"^```bash\n(.*?)^```", (EXAMPLE / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
BEST = "best: {'svc__C': 1, 'svc__class_weight': None, 'svc__gamma': 0.001}\nheld-out accuracy: 0.9926\n"
WORKERS = 2
IMAGES_BYTES = 1257 * 64 * 8
MOST_SECONDS = 300  # for one command, on a busy machine
# Instead of making digits upright: each call is noted, and one of them kills its worker.
FATAL_STEP = """
import os, signal, time
from pathlib import Path

def deskew(images):
    with Path({calls!r}).open("a") as file:
        file.write("call\\n")
    if Path({calls!r}).stat().st_size >= 30 * 5:
        try:
            Path({calls!r} + ".killed").touch(exist_ok=False)
        except FileExistsError:
            return images
        time.sleep(3)  # the others' results are with the client by then
        os.kill(os.getpid(), signal.SIGKILL)
    return images
"""


@dataclass
class Laptop:
    """A copy of the example in a folder, and the environment in which its commands are typed."""

    folder: Path
    environment: dict[str, str]

    def types(self, command: str, *, code: int = 0) -> tuple[str, str]:
        """Type a command; return what it prints, and its errors and progress."""
        words = ["bash", "-euc", command]
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=MOST_SECONDS
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout, done.stderr

    def runs(self) -> list[tuple]:
        """Return MLflow's runs, the newest last: id, status, where their files are."""
        if not (self.folder / "mlflow.db").exists():
            return []
        return self.query("SELECT run_uuid, status, artifact_uri FROM runs ORDER BY start_time")

    def query(self, words: str, *values: str) -> list[tuple]:
        """Ask MLflow's database."""
        with contextlib.closing(sqlite3.connect(self.folder / "mlflow.db")) as database:
            return database.execute(words, values).fetchall()

    def bytes_sent(self) -> int:
        """Return how many bytes the cluster's workers have sent, most of them to one another."""
        with Client(self.environment["DASK_SCHEDULER_ADDRESS"], set_as_default=False) as client:
            return sum(client.run(lambda dask_worker: dask_worker.transfer_outgoing_bytes_total).values())


@pytest.fixture(scope="module")
def laptop(tmp_path_factory) -> Iterator[Laptop]:
    """A laptop, and a Dask cluster of two workers that have only the requirements, not the example's step."""
    folder = tmp_path_factory.mktemp("laptop") / "digits_search"
    shutil.copytree(EXAMPLE, folder, ignore=NOT_COPIED)
    elsewhere = tmp_path_factory.mktemp("cluster")
    environment = clean_environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    scheduler = [BIN / "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    with running(scheduler, environment, elsewhere, lambda log: re.search(r"Scheduler at:\s+(\S+)", log)) as program:
        address = program.ready[1]
        worker = [BIN / "dask", "worker", address, "--nworkers", WORKERS, "--nthreads", "1", "--no-dashboard"]
        with running(worker, environment, elsewhere, lambda log: log.count("Registered to:") == WORKERS):
            yield Laptop(folder, environment | {"DASK_SCHEDULER_ADDRESS": address})


@pytest.mark.parametrize("command", "".join(BLOCKS[:2]).splitlines())
def test_search_finds_the_same_parameters_everywhere(laptop, command):
    """In one process, on this machine's cores, on a cluster: the same best parameters, and one run with its files.

    The cluster's workers get the images once each, not with each of 54 trainings.
    """
    runs, sent = laptop.runs(), laptop.bytes_sent()
    printed, progress = laptop.types(command)
    assert printed.endswith(BEST)
    assert "Done  54 out of  54" in progress
    assert laptop.bytes_sent() - sent < 1.5 * WORKERS * IMAGES_BYTES
    *before, (run, status, uri) = laptop.runs()
    assert before == runs
    assert status == "FINISHED"
    parameters = dict(laptop.query("SELECT key, value FROM params WHERE run_uuid = ?", run))
    assert (parameters["svc__C"], parameters["svc__gamma"]) == ("1", "0.001")
    metrics = dict(laptop.query("SELECT key, value FROM metrics WHERE run_uuid = ?", run))
    assert round(metrics["held_out_accuracy"], 4) == 0.9926
    assert len(pd.read_csv(Path(uri) / "cv_results.csv")) == 18
    assert (Path(uri) / "heatmap.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense"])
def test_wrong_address_is_an_error_in_words(laptop, address):
    """An address without a cluster: exit 1, the address, and what to give instead."""
    _, error = laptop.types(f"python search.py --cluster {address}", code=1)
    assert f"There is no Dask cluster at '{address}'" in error
    assert "Give --cluster none, local" in error
    assert "Traceback" not in error


def test_changed_step_and_killed_worker(laptop):
    """The step is used as it is now, and a worker that dies in mid-search costs the training that it was at."""
    step = laptop.folder / "src" / "strokes.py"
    calls = laptop.folder / "calls"
    original = step.read_text()
    step.write_text(FATAL_STEP.format(calls=str(calls)))
    try:
        printed, _ = laptop.types('python search.py --cluster "$DASK_SCHEDULER_ADDRESS"')
    finally:
        step.write_text(original)
    assert "best: {'svc__C': 1, 'svc__class_weight': None, 'svc__gamma': 0.001}" in printed
    # Each of the 54 trainings calls the step twice, and the best model once on all and once on the held-out digits.
    repeated = calls.read_text().count("call") - (2 * 54 + 2)
    assert 1 <= repeated <= 8


def test_template_is_clean():
    """cfn-lint finds nothing in the template."""
    done = subprocess.run(
        [BIN / "cfn-lint", EXAMPLE / "cluster.yaml"], capture_output=True, text=True, timeout=MOST_SECONDS
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_workers_have_the_versions_of_this_repository():
    """Every pin of requirements.txt is the repository's."""
    pins = {line.split()[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    for line in (EXAMPLE / "requirements.txt").read_text().splitlines():
        assert line.startswith("#") or line in pins, line


def test_notebook_runs_and_is_a_talk(laptop):
    """The notebook runs from top to bottom, finds the same, and becomes slides."""
    laptop.types(
        "jupyter nbconvert --to notebook --execute --output executed.ipynb digits_search.ipynb\n"
        "jupyter nbconvert --to slides executed.ipynb"
    )
    cells = nbformat.read(laptop.folder / "executed.ipynb", as_version=4).cells
    texts = [output.data["text/plain"] for cell in cells for output in cell.get("outputs", []) if "data" in output]
    best = "({'svc__C': 1, 'svc__class_weight': None, 'svc__gamma': 0.001},"
    assert sum(text.startswith(best) for text in texts) == 2
    assert (laptop.folder / "executed.slides.html").read_text().count("<section>") > 10
