"""Everything simultaneously, for half an hour, while servers are killed: what was acknowledged is there, and right.

`make soak` runs it for as long as WORKSHOP_SOAK_SECONDS says, the kills in the order that WORKSHOP_SOAK_SEED gives.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import requests
import yaml
from forecast import tracking
from forecast.govern import gate
from forecast.learn import storage
from forecast.terms.errors import PipelineError
from mlflow.exceptions import MlflowException
from mlflow_gate import Decision, Scores
from workplace import BIN, Servers, environment_of, new_workplace, processes_of, wait_for

from workshop import port_owners
from workshop.exports import exports_of
from workshop.servers import supervisor

SECONDS = float(os.environ.get("WORKSHOP_SOAK_SECONDS", "1800"))
SEED = int(os.environ.get("WORKSHOP_SOAK_SEED", "1"))
BETWEEN_KILLS = (3.0, 9.0)  # a tracking server takes six seconds to start
SPARED_SECONDS = 35  # what ends again and again within 30 s of its start is given up, as `workshop status` says
PIPELINE_SECONDS = 300
RECOVERY_SECONDS = 120
FAULTS = (MlflowException, PipelineError, requests.RequestException, OSError)


@dataclass
class Acknowledged:
    """What somebody was told is done: runs with the sha256 of their artifact, versions, and how often the rest went."""

    runs: dict[str, str] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    pipelines: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    kills: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def place(tmp_path) -> Iterator[Servers]:
    """A clone with servers up and a model in production."""
    root, environment = new_workplace(tmp_path / "clone")
    place = Servers(root, environment)
    try:
        place.run(BIN / "workshop", "up", "--repro")
        place.environment |= exports_of(place.settings)
        yield place
    finally:
        place.run(BIN / "workshop", "down")
        assert not processes_of(root), "`workshop down` left processes"


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 1200)
def test_soak_under_kills_loses_nothing(place, capsys):
    """Pipelines, writers, promotions and readers, while any server but the dashboard dies every few seconds."""
    done = Acknowledged()
    over = threading.Event()
    with environment_of(place.environment):
        actors = [
            threading.Thread(target=until, args=(over, actor, done))
            for actor in (run_pipelines(place), write_runs, write_runs, promote, read_dashboard(place), kill(place))
        ]
        for actor in actors:
            actor.start()
        over.wait(SECONDS)
        over.set()
        for actor in actors:
            actor.join()
        with capsys.disabled():
            print(
                f"\n{len(done.kills)} kills; {len(done.runs)} runs, {len(done.versions)} promotions, "
                f"{len(done.pipelines)} pipelines ({done.pipelines.count(0)} to their end), "
                f"{len(done.answers)} answers of the dashboard; refused meanwhile: {done.refused}"
            )
        check(place, done)


def until(over: threading.Event, actor: Callable[[Acknowledged], None], done: Acknowledged) -> None:
    """Let an actor work until it is over; what fails while servers are down was not acknowledged, and is repeated."""
    while not over.is_set():
        try:
            actor(done)
        except FAULTS as error:
            name = type(error).__name__
            done.refused[name] = done.refused.get(name, 0) + 1
            over.wait(0.5)


def run_pipelines(place: Servers) -> Callable[[Acknowledged], None]:
    """Change a parameter and run the pipeline, with either command, again and again until it came to its end."""
    file = place.pipeline / "params.yaml"

    def run(done: Acknowledged) -> None:
        content = yaml.safe_load(file.read_text())
        content["train_rf"]["n_estimators"] = 5 + done.pipelines.count(0)
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        command = [BIN / "workshop", "repro"] if len(done.pipelines) % 2 else [BIN / "dvc", "repro"]
        done.pipelines.append(
            place.run(*command, cwd=place.pipeline, timeout=PIPELINE_SECONDS, exit_code=None).returncode
        )

    return run


def write_runs(done: Acknowledged) -> None:
    """Log a run with a metric and an artifact."""
    client = tracking.connect()
    content = os.urandom(200_000)
    run = client.create_run("0").info.run_id
    client.log_metric(run, "size", len(content))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "content.bin")
        file.write_bytes(content)
        client.log_artifact(run, str(file))
    client.set_terminated(run)
    done.runs[run] = hashlib.sha256(content).hexdigest()


def promote(done: Acknowledged) -> None:
    """Promote the pipeline's models in turn, whatever their scores."""
    client = tracking.connect()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    trained = {run.info.run_id for run in client.search_runs(experiments, f"tags.`{tracking.STAGE_TAG}` LIKE 'train%'")}
    models = [model for model in client.search_logged_models(experiments) if model.source_run_id in trained]
    model = models[len(done.versions) % len(models)]
    decision, place = Decision(True, "promoted: it is a test", (), Scores({"r2": 0.7})), gate.Gate()
    candidate = place._find(model.source_run_id, f"models:/{model.model_id}", "model")
    now = place._move(decision, candidate, None, "soak", lambda: None)
    done.versions.append(now.version)
    time.sleep(1)


def read_dashboard(place: Servers) -> Callable[[Acknowledged], None]:
    """Ask the dashboard what a model says; it answers all along, with the model that it has."""
    url = f"{place.settings.dashboard_url}/predict"
    hour = {"windspeed": 5, "temperature": 12, "rad_horizontal": 250, "rad_diffuse": 120}

    def ask(done: Acknowledged) -> None:
        rows = [hour | {"utc_timestamp": "2016-06-21T12:00:00Z"}]
        answer = requests.post(url, json={"rows": rows}, timeout=10)
        # No error of a server that is down: those are expected, and would hide this one.
        assert answer.status_code == 200, answer.text
        assert answer.json()["rows"][0]["wind_GW"] > 0
        done.answers.append(answer.status_code)
        time.sleep(0.3)

    return ask


def kill(place: Servers) -> Callable[[Acknowledged], None]:
    """Kill any one process of the servers, but the dashboard, the supervisor and what has just been started."""
    dice, settings = random.Random(SEED), place.settings

    def strike(done: Acknowledged) -> None:
        time.sleep(dice.uniform(*BETWEEN_KILLS))
        victims = {process.pid: process for process in port_owners.marked_processes(settings.state)}
        with contextlib.suppress(psutil.Error):
            victim = victims[dice.choice(sorted(victims))]
            words = " ".join(victim.cmdline())
            is_new = time.time() - victim.create_time() < SPARED_SECONDS
            if not is_new and "supervisord" not in words and "dashboard" not in words:
                victim.kill()
                done.kills.append(words[-60:])

    return strike


def check(place: Servers, done: Acknowledged) -> None:
    """After the last kill all comes back by itself; the next pipeline is right; all that was told done is there."""
    wait_for(lambda: all(row.healthy for row in supervisor.status(place.settings)), RECOVERY_SECONDS)
    place.run(BIN / "workshop", "repro", cwd=place.pipeline)
    status = place.run(BIN / "dvc", "status", cwd=place.pipeline)
    assert "changed deps" not in status.stdout, status.stdout
    assert min(map(len, (done.kills, done.runs, done.versions, done.pipelines, done.answers))) > 0
    client = tracking.connect()
    for run_id, sha256 in done.runs.items():
        assert client.get_run(run_id).info.status == "FINISHED"
        with tempfile.TemporaryDirectory() as folder:
            content = Path(client.download_artifacts(run_id, "content.bin", folder)).read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256
    names = {version.version for version in client.search_model_versions(f"name='{gate.REGISTERED_MODEL}'")}
    assert {int(version) for version in done.versions} <= {int(name) for name in names}
    assert storage.load(gate.Registry().production().model_uri)
    running = client.search_runs(["0"], "attributes.status = 'RUNNING'")
    assert all(run.info.run_id not in done.runs for run in running)
    subprocess.run(["git", "fsck"], cwd=place.root, check=True, capture_output=True)
