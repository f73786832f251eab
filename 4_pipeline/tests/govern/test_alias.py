"""The registry, on a real tracking server: the alias, its record and its history, whoever does what simultaneously."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from click.testing import CliRunner
from forecast import problem, tracking
from forecast.__main__ import main
from forecast.govern import gate
from forecast.govern.gate import KINDS, Registry
from forecast.learn import storage
from forecast.parameters import Promote
from forecast.table import features
from forecast.tracking import EXPERIMENT_TAG, PRODUCTION, connect
from mlflow.exceptions import MlflowException
from mlflow_gate import Decision, ModelError, Scores
from places import BIN
from sklearn.linear_model import LinearRegression

# Promotes one model after the other until it is killed; a fork each time saves the imports.
PROMOTE = """
import os, sys
from mlflow_gate import Decision, Scores, turns
from forecast import problem
from forecast.govern import gate
turns.STALE_SECONDS = 0.5  # the turn of one that was killed
problem.REGISTERED_MODEL = sys.argv[1]
candidates = [word.split(",") for word in sys.argv[2:]]
decision = Decision(True, "promoted: it is a test", (), Scores({"r2": 0.7}))
gate.connect()
while True:
    pid = os.fork()
    if pid == 0:
        registry = gate.Registry()
        while True:
            for run_id, model_uri in candidates:
                registry.apply(decision, run_id, model_uri, registry.production(), "killed in between")
    print(pid, flush=True)
    os.waitpid(pid, 0)
"""
LENIENT = Promote(
    min_gain=0.0, near_tie=0.002, alpha=0.05, min_r2={"solar": -1.0, "wind": -1.0}, max_night={"solar": 100.0},
    max_latency_ms=60_000.0, max_size_MB=1000.0, max_bias_percent=100.0,
)  # fmt: skip
PROMOTED = Decision(True, "promoted: it is a test", (), Scores({"r2": 0.7}))


@pytest.fixture
def registered_model(candidates, monkeypatch):
    """The name of a registered model of this test's own."""
    name = "a_model_of_its_own"
    monkeypatch.setattr(problem, "REGISTERED_MODEL", name)
    yield name
    with contextlib.suppress(MlflowException):  # not every test makes it
        connect().delete_registered_model(name)


@pytest.mark.parametrize(
    "kills",
    [pytest.param(10, marks=pytest.mark.walk), pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])],
)
def test_alias_never_dangles_when_the_gate_is_killed(registered_model, candidates, kills):
    """At any moment the version in production exists, has the whole record of its promotion, and loads."""
    dice, seen = random.Random(kills), set()
    with subprocess.Popen(
        [sys.executable, "-c", PROMOTE, registered_model, *candidates], stdout=subprocess.PIPE, text=True
    ) as promoter:
        try:
            for number in itertools.count():
                if number >= kills and (len(seen) > 1 or number > 6 * kills):
                    break
                promoting = psutil.Process(int(promoter.stdout.readline()))
                time.sleep(dice.uniform(0.1, 3.0 if len(seen) > 1 else 1.5 + number / 2))  # a busy machine takes longer
                promoting.send_signal(signal.SIGKILL)
                promoting.wait(5)
                serving = gate.production()
                if serving is None:
                    assert not seen, "the alias was there, and is gone"
                    continue
                seen.add(serving.version)
                moves = Registry().history()
                assert [move.number for move in moves] == list(range(1, len(moves) + 1))
                assert all(move.replaced == before.version for before, move in itertools.pairwise(moves))
                assert (moves[-1].version, moves[-1].action) == (serving.version, "promoted")
                assert all(move.when and move.who and move.reason and move.scores and move.run for move in moves)
                assert storage.load(serving.model_uri).kind in ("sklearn", "keras")
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(promoter.pid).children():
                    child.kill()
            os.kill(promoter.pid, signal.SIGKILL)
    assert len(seen) > 1


def promote(candidate: str, why: str = "a test") -> str:
    """Promote a logged model over what is there; return its version."""
    registry = Registry()
    return registry.apply(PROMOTED, *candidate.split(","), gate.production(), why).version


def test_rollback_leaves_the_alias_when_the_version_does_not_load(registered_model, candidates, small_server):
    """A version whose files are gone does not come back; the one that works stays."""
    for candidate in candidates:
        promote(candidate)
    model_id = candidates[0].split("models:/")[1]
    [file] = Path(small_server["SMALL_ARTIFACTS"]).rglob(f"{model_id}/artifacts/model.skops")
    file.rename(file.with_name("elsewhere"))
    try:
        with pytest.raises(ModelError):
            Registry().rollback()
    finally:
        file.with_name("elsewhere").rename(file)
    assert Registry().production().version == "2"
    assert len(Registry().history()) == 2


def log_model_of(hours, folder):
    """Log a linear model of ``hours``; return its run and its address."""
    file = folder / f"{len(hours)}.parquet"
    hours.to_parquet(file)
    model = LinearRegression().fit(features.features(hours), features.targets(hours))
    with tracking.start_run("train_linreg", data=[file], learned_from=file) as run:
        return run.info.run_id, storage.log_model(model, hours.head())


@pytest.mark.filterwarnings("ignore:Operation with range")  # in MLflow
@pytest.mark.parametrize(("learned", "weeks"), [(1200, 10), (2500, None)])
def test_candidate_is_judged_on_hours_that_neither_model_learned_from(
    registered_model, candidates, small_hours, tmp_path, learned, weeks
):
    """A champion that learned from part of the held-out hours is compared on the later ones; too few are a refusal."""
    hours = pd.concat(small_hours, ignore_index=True)
    hours.attrs = small_hours[0].attrs
    gate = Registry(LENIENT, hours[900:])
    gate.apply(PROMOTED, *log_model_of(hours[:learned], tmp_path), None, "it learned more")
    decision, _ = gate.judge(*log_model_of(hours[:900], tmp_path))
    if weeks is None:
        assert not decision.promoted
        assert "too few: of 2100 the model in production learned from 1600" in decision.reason
    else:
        assert "neither model was trained on" not in decision.reason
        assert decision.candidate.period[0] == decision.champion.period[0] == "2014-07-21T00:00:00Z"
        assert len(decision.candidate.blocks) == weeks


@pytest.mark.filterwarnings("ignore:Operation with range")  # in MLflow
def test_experiment_of_dvc_decides_and_moves_nothing(registered_model, candidates, small_hours, tmp_path, monkeypatch):
    """Inside `dvc exp run` the gate's verdict is returned, the alias stays, and runs carry the experiment's name."""
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "58dabc1")
    monkeypatch.setenv("DVC_EXP_NAME", "less-data")
    _, hours = small_hours
    candidate = log_model_of(hours[:500].assign(solar_GW=hours["solar_GW"] + 1.0), tmp_path)
    gate = Registry(LENIENT, hours[500:])
    decision = gate.promote(*candidate)
    assert (gate.production(), decision.production) == (None, {})
    assert (decision.promoted, decision.experiment) == (False, "less-data")
    assert decision.reason.endswith("its verdict: promoted: every rule passed and nothing was in production yet")
    with tracking.start_run("train_rf") as run:
        assert run.data.tags[EXPERIMENT_TAG] == "less-data"
    assert gate.promote(*candidate, why="a person decided", even_in_experiment=True).production["version"] == "1"


# -- lineage -----------------------------------------------------------------------------------------------------------


def test_lineage_of_versions_by_other_hands(registered_model, candidates):
    """A foreign place, a run that is none, a record that is junk or in part: a chain, and what is amiss."""
    run_id, model_uri = candidates[0].split(",")
    client, gate = connect(), Registry()
    client.create_registered_model(registered_model, tags={"mlflow_gate.move.000001.0": "{junk"})
    ours = {"source": model_uri, "run_id": run_id, "model_id": model_uri.removeprefix("models:/")}
    client.create_model_version(registered_model, source="s3://bucket/model", run_id="../x")
    client.create_model_version(registered_model, **ours)
    for version in ("1", "2"):
        client.set_registered_model_alias(registered_model, PRODUCTION, version)
        assert gate.production().version == version
        links = gate.lineage(version)
        assert [link.kind for link in links] == [kind for kind in KINDS if kind != "refit"]
    assert not links[-2].known


@pytest.mark.filterwarnings("ignore:Operation with range")  # in MLflow
def test_tidy_keeps_what_lineages_need(registered_model, small_hours, small_server, tmp_path, monkeypatch):
    """Runs that nothing names go with their models and free the disk; the version's lineage is whole."""
    train, test = small_hours
    monkeypatch.setattr(tracking, "EXPERIMENT", "to_tidy")
    (tmp_path / "results").mkdir()
    (tmp_path / "dvc.yaml").touch()
    train.to_parquet("train.parquet")
    model, made = LinearRegression().fit(features.features(train), features.targets(train)), []
    for stage in ["prepare", "judged", "promoted", "prepare", "refused", "refused", "prepare", "newest", "refused"]:
        with tracking.start_run(stage, data=["train.parquet"]) as run:
            made.append((run.info.run_id, storage.log_model(model, test.head()) if stage != "prepare" else ""))
    registry, gone = Registry(), {made[number][0] for number in (3, 4, 5, 8)}
    registry.apply(PROMOTED, *made[1], None, refitted=made[2])
    Path("results/candidate.json").write_text(json.dumps({"run_id": made[7][0]}))
    models = [file.parent for file in Path(small_server["SMALL_ARTIFACTS"]).rglob("MLmodel")]
    for options, expected in (("1", set()), ("0 --dry-run", gone), ("0", gone), ("0", set())):
        listed = CliRunner().invoke(main, ["tidy", "--older-than", *options.split()]).stdout
        assert {line.split()[0] for line in listed.splitlines()} == expected
    database = Path(small_server["SMALL_ARTIFACTS"]).with_name("mlflow.db")
    subprocess.run([BIN / "mlflow", "gc", "--backend-store-uri", f"sqlite:///{database}"], check=True, timeout=120)
    assert [folder.exists() for folder in models].count(False) == 3
    everything = registry.client.search_runs([registry.client.get_run(made[0][0]).info.experiment_id])
    assert {run_id for run_id, _ in made} - {run.info.run_id for run in everything} == gone
    assert {link.kind for link in registry.lineage("1") if link.known} == set(KINDS) - {"commit", "notebook"}
