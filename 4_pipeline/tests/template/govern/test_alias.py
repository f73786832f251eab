"""The pipeline's gate on a real tracking server; the tests of `mlflow_gate` cover the registry itself."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from forecast import problem, tracking
from forecast.__main__ import main
from forecast.govern.gate import KINDS, Gate
from forecast.learn import storage
from forecast.table import features
from forecast.terms.parameters import Promote
from forecast.tracking import EXPERIMENT_TAG, connect
from mlflow.exceptions import MlflowException
from mlflow_gate import Decision, Scores
from places import BIN
from sklearn.linear_model import LinearRegression

LENIENT = Promote(
    min_gain=0.0, near_tie=0.002, alpha=0.05, min_r2={"solar": -1.0, "wind": -1.0}, max_night={"solar": 100.0},
    max_latency_ms=60_000.0, max_size_MB=1000.0, max_bias_percent=100.0,
)  # fmt: skip
PROMOTED = Decision(True, "promoted: it is a test", (), Scores({"r2": 0.7}))


@pytest.fixture
def registered_model(candidates, monkeypatch):
    """The name of a registered model that only this test uses."""
    name = "a_model_of_its_own"
    monkeypatch.setattr(problem, "REGISTERED_MODEL", name)
    yield name
    with contextlib.suppress(MlflowException):  # not every test creates it
        connect().delete_registered_model(name)


def log_model_of(hours, folder):
    """Log a linear model fitted on ``hours``; return its run id and model URI."""
    file = folder / f"{len(hours)}.parquet"
    hours.to_parquet(file)
    model = LinearRegression().fit(features.features(hours), features.targets(hours))
    with tracking.start_run("train_linreg", data=[file], learned_from=file) as run:
        return run.info.run_id, storage.log_model(model, hours.head())


@pytest.mark.filterwarnings("ignore:Operation with range")  # in MLflow
def test_champion_trained_on_held_out_hours_is_compared_on_later_ones(
    registered_model, small_hours, tmp_path, monkeypatch
):
    """A champion trained on part of the held-out hours is compared on the later ones.

    Runs are tagged with their DVC experiment, and a champion with another step is disqualified.
    """
    hours = pd.concat(small_hours, ignore_index=True)
    hours.attrs = small_hours[0].attrs
    gate = Gate(LENIENT, hours[900:])
    gate.promote(*log_model_of(hours[:1200], tmp_path), force=True, why="it learned more")
    monkeypatch.setenv("DVC_EXP_NAME", "less-data")
    candidate = log_model_of(hours[:900], tmp_path)
    assert connect().get_run(candidate[0]).data.tags[EXPERIMENT_TAG] == "less-data"
    decision, _ = gate.evaluate(*candidate)
    assert "in neither model's training rows" not in decision.reason
    assert decision.candidate.period[0] == decision.champion.period[0] == "2014-07-21T00:00:00Z"
    assert len(decision.candidate.blocks) == 10
    with monkeypatch.context() as patch:
        patch.setitem(storage.PROBLEM, "step", "0.25 h")
        patch.delenv("DVC_EXP_NAME")
        gate.promote(*log_model_of(hours[:900], tmp_path), force=True, why="quarter hours")
    assert "step 0.25 h, not 1 h" in gate.evaluate(*candidate)[0].disqualified


@pytest.mark.filterwarnings("ignore:Operation with range")  # in MLflow
def test_tidy_keeps_the_runs_of_a_lineage(registered_model, small_hours, small_server, tmp_path, monkeypatch):
    """Unreferenced runs are deleted with their models, which frees the disk; the version's lineage stays complete."""
    train, test = small_hours
    monkeypatch.setattr(tracking, "EXPERIMENT", "to_tidy")
    (tmp_path / "results").mkdir()
    (tmp_path / "dvc.yaml").touch()
    train.to_parquet("train.parquet")
    model, runs = LinearRegression().fit(features.features(train), features.targets(train)), []
    for stage in ["prepare", "judged", "promoted", "prepare", "refused", "refused", "prepare", "newest", "refused"]:
        with tracking.start_run(stage, data=["train.parquet"]) as run:
            runs.append((run.info.run_id, storage.log_model(model, test.head()) if stage != "prepare" else ""))
    gate, deleted = Gate(), {runs[number][0] for number in (3, 4, 5, 8)}
    registry = gate.registry
    registry.client.create_registered_model(registry.name)
    models = [gate._find(*runs[number], "model") for number in (1, 2)]
    gate._move(PROMOTED, *models, "", registry.record(), lambda: None)
    Path("results/candidate.json").write_text(json.dumps({"run_id": runs[7][0]}))
    models = [file.parent for file in Path(small_server["SMALL_ARTIFACTS"]).rglob("MLmodel")]
    for options, expected in (("1", set()), ("0 --dry-run", deleted), ("0", deleted), ("0", set())):
        listed = CliRunner().invoke(main, ["tidy", "--older-than", *options.split()]).stdout
        assert {line.split()[0] for line in listed.splitlines()} == expected
    database = Path(small_server["SMALL_ARTIFACTS"]).with_name("mlflow.db")
    subprocess.run([BIN / "mlflow", "gc", "--backend-store-uri", f"sqlite:///{database}"], check=True, timeout=120)
    assert [folder.exists() for folder in models].count(False) == 3
    remaining = registry.client.search_runs([registry.client.get_run(runs[0][0]).info.experiment_id])
    assert {run_id for run_id, _ in runs} - {run.info.run_id for run in remaining} == deleted
    assert {link.kind for link in registry.lineage("1") if link.known} == set(KINDS) - {"commit", "notebook"}
