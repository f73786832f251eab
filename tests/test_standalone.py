"""The pipeline in a repository of its own, as `make take-home` makes it: nothing else of this repository is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from machines import connect, machine
from places import answer_of, free_port, health_of, running, wait_for
from workplace import BIN, PERSON, clean_environment, copy_tree

pytestmark = pytest.mark.walk

pytestmark = pytest.mark.timeout(3600)  # the packages, and two pipelines

ADDRESS = "10.98.1.1"  # of the first machine on the cable to the second


class Home:
    """The copy, its environment, and commands that are typed there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTEST_")
        ours = {name: value for name, value in clean_environment().items() if not name.startswith(hidden)}
        self.environment = ours | PERSON
        self.environment["PATH"] = f"{folder / '.venv' / 'bin'}:/usr/bin:/bin"

    def types(self, *words: object, exit_code: int = 0, seconds: float = 900) -> str:
        """Type a command; return what it prints."""
        done = subprocess.run(
            list(map(str, words)), cwd=self.folder, env=self.environment, capture_output=True, text=True,
            check=False, timeout=seconds,
        )  # fmt: skip
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The copy with the packages of its requirements.txt, a tracking server, and what `dvc repro` makes."""
    clone = copy_tree(tmp_path_factory.mktemp("clone"))
    folder = tmp_path_factory.mktemp("home") / "plants"
    make = ["make", "-o", ".venv/installed", f"BIN={BIN}", "take-home", f"TO={folder}", "NAME=plants"]
    done = subprocess.run(make, cwd=clone, env=os.environ | PERSON, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "git commit" not in done.stdout
    shutil.rmtree(clone)
    place = Home(folder)
    place.types(BIN / "uv", "venv", "--quiet", "--python", BIN / "python", ".venv")
    place.types(BIN / "uv", "pip", "install", "--quiet", "--python", ".venv/bin/python", "-r", "requirements.txt")
    port = free_port()
    place.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
    words = ["mlflow", "server", "--port", str(port), "--workers", "1"]
    environment = place.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(words, environment, folder, lambda _: answer_of(f"http://127.0.0.1:{port}/health")):
        place.output = place.types("dvc", "repro")
        yield place


def test_pipeline_of_the_copy_puts_a_model_into_production(home):
    """Each notebook on Dask's local cluster; the gate says its word in the terminal; nothing is left to do."""
    assert home.output.count("Running stage") == 11
    assert "promoted: every rule passed and nothing was in production yet" in home.output
    assert not re.search(r"Styler|Warning|^\d+$", home.output.partition("Running stage 'promote'")[2], re.MULTILINE)
    status = home.types("mlflow-gate", "status")
    assert re.search(r"wind_solar version 1 .* from commit \w{10} \(branch main\), r2", status), status
    assert "pipeline" in home.types("mlflow-gate", "history")
    assert "production" in home.types("mlflow-gate", "lineage")
    assert home.types("dvc-parallel", "repro").count(": unchanged") == 10


def test_copy_holds_no_word_of_this_repository(home):
    """Its package has the new name, no file imports the old ones; links resolve; git ignores what programs leave."""
    names = home.types("git", "ls-files", "--cached", "--others", "--exclude-standard").split()
    assert "plants/problem.py" in names
    texts = {name: (home.folder / name).read_text(errors="replace") for name in names if not name.endswith(".whl")}
    wrong = re.compile(r"\bforecast[./]|(from|import) workshop|4_pipeline|make (run|lab)\b")
    assert [name for name, text in texts.items() if wrong.search(text)] == []
    pages = {name: text for name, text in texts.items() if name.endswith((".md", ".ipynb"))}
    links = [(name, link) for name, text in pages.items() for link in re.findall(r"\]\(([^)#\s\"]+)[^)\"]*\)", text)]
    links = [(name, link) for name, link in links if not re.match(r"[a-z]+:", link) and "\\" not in link]
    assert [link for link in links if not (home.folder / link[0]).parent.joinpath(link[1]).exists()] == []
    changes = home.types("git", "status", "--porcelain", "--untracked-files=all").split()[1::2]
    assert set(changes) <= {"dvc.lock", "results/metrics.json"}


@pytest.mark.privileged
def test_worker_on_another_machine_trains_with_the_requirements_alone(home, tmp_path):
    """The worker sees its environment, which has no package of the copy, and reaches the other machine's servers."""
    hosts = f"MLFLOW_TRACKING_URI=http://{ADDRESS}:5000 DASK_SCHEDULER_ADDRESS=tcp://{ADDRESS}:8786"
    path = f"export HOME=/tmp PATH={home.environment['PATH']}"
    node_folder = home.folder / ".venv"
    with (
        machine("desk", tmp_path / "desk", home.folder) as desk,
        machine("node", tmp_path / "node", node_folder) as node,
    ):
        connect(desk, [node])
        there = f"{path} {hosts}; cd {home.folder}"
        assert "No module" in node.run(f"{path}; cd /tmp; python -c 'import plants' 2>&1 || true")
        desk.run(f"{there}; mlflow server --host {ADDRESS} --workers 1 >/tmp/server 2>&1 &")
        desk.run(f"{there}; dask scheduler --host {ADDRESS} >/tmp/scheduler 2>&1 &")
        node.run(f"{path}; cd /tmp; dask worker tcp://{ADDRESS}:8786 --nthreads 1 >/tmp/worker 2>&1 &")
        desk.run(f"{there}; until curl -fs {ADDRESS}:5000/health; do sleep 1; done", timeout=120)
        output = desk.run(f"{there}; dvc repro --force --single-item train_rf 2>&1", timeout=300)
    assert "Running stage 'train_rf'" in output, output


def test_dashboard_of_the_copy_serves_the_model(home):
    """`python -m dashboard` finds data, server and alias by itself."""
    port = free_port()
    with running(["python", "-m", "dashboard", "--port", str(port)], home.environment, home.folder, lambda _: True):
        health = wait_for(lambda: (now := health_of(f"http://127.0.0.1:{port}")) and now["version"] and now)
    assert (health["version"], health["learned_from"], health["faults"]) == ("1", "modelled sample", [])


@pytest.mark.parametrize(
    "words",
    [("tests/test_stages.py", "tests/test_parameters.py", "tests/table"), pytest.param((), marks=pytest.mark.soak)],
)
def test_tests_of_the_copy_pass(home, words):
    """They came along."""
    assert " passed" in home.types("pytest", "-q", *words)
