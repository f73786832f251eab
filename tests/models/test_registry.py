"""The gate is killed while it promotes: the alias leads to a whole version with its record, before and after."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from workshop.models import loading, registry
from workshop.settings import PRODUCTION

# Promotes one model after the other until it is killed; a fork each time saves the imports.
PROMOTE = """
import os, sys
from mlflow import MlflowClient
from workshop.models import promotion, registry
registry.REGISTERED_MODEL = sys.argv[1]
candidates = [word.split(",") for word in sys.argv[2:]]
scores = promotion.Scores(0.7, 0.7, 0.7, 1.0, 0.0, 0.0, finite=True, hours=1)
decision = promotion.Decision(True, "promoted: it is a test", (), scores, None)
registry.connect()
while True:
    pid = os.fork()
    if pid == 0:
        while True:
            for run_id, model_uri in candidates:
                registry.apply(decision, run_id, model_uri, registry.production(), "killed in between")
    print(pid, flush=True)
    os.waitpid(pid, 0)
"""


@pytest.fixture
def registered_model(in_workplace, monkeypatch):
    """The name of a registered model of this test's own."""
    name = "promoted_and_killed"
    monkeypatch.setattr(registry, "REGISTERED_MODEL", name)
    yield name
    registry.connect().delete_registered_model(name)


@pytest.fixture
def candidates(in_workplace) -> list[str]:
    """Two logged models of the pipeline, each with its run."""
    client = registry.connect()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    models = client.search_logged_models(experiment_ids=experiments)
    return [f"{model.source_run_id},models:/{model.model_id}" for model in list(models)[:2]]


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_alias_never_dangles_when_the_gate_is_killed(registered_model, candidates, kills):
    """At any moment the version in production exists, has the whole record of its promotion, and loads."""
    assert len(candidates) == 2
    dice, seen = random.Random(kills), set()
    client = registry.connect()
    with subprocess.Popen(
        [sys.executable, "-c", PROMOTE, registered_model, *candidates], stdout=subprocess.PIPE, text=True
    ) as gate:
        try:
            for _ in range(kills):
                promoting = psutil.Process(int(gate.stdout.readline()))
                time.sleep(dice.uniform(0.1, 1.5))
                promoting.send_signal(signal.SIGKILL)
                promoting.wait(5)
                serving = registry.production()
                if serving is None:
                    assert not seen, "the alias was there, and is gone"
                    continue
                seen.add(serving.version)
                tags = client.get_model_version_by_alias(registered_model, PRODUCTION).tags
                record = {name.removeprefix(registry.TAG) for name in tags}
                assert record >= {"r2", "when", "who", "why", "reason", "replaced", "replaced_r2", "rules"}
                assert loading.load(serving.model_uri).kind in ("sklearn", "keras")
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(gate.pid).children():
                    child.kill()
            os.kill(gate.pid, signal.SIGKILL)
    assert len(seen) > 1


def test_lost_model_is_noticed(registered_model, candidates, in_workplace):
    """The version in production is deleted behind our back: `doctor` says so, exits 1 and names the next step."""
    from workshop.teaching.doctor import examine

    run_id, model_uri = candidates[0].split(",")
    client = registry.connect()
    client.create_registered_model(registered_model)
    model_id = model_uri.removeprefix("models:/")
    version = client.create_model_version(registered_model, source=model_uri, run_id=run_id, model_id=model_id)
    client.set_registered_model_alias(registered_model, PRODUCTION, version.version)

    def finding():
        return next(found for found in examine(in_workplace.settings) if found.check == "production")

    assert finding().ok
    (file,) = (in_workplace.settings.artifacts / "mlflow").rglob(
        f"{model_uri.removeprefix('models:/')}/artifacts/MLmodel"
    )
    file.rename(file.with_name("elsewhere"))
    try:
        assert not finding().ok
        assert finding().next_step
    finally:
        file.with_name("elsewhere").rename(file)
    assert finding().ok
