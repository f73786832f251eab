"""The follower loads new versions in the background; after a failure the old one stays."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator

import pytest
from dashboard import follower, layout
from dashboard.follower import Follower
from forecast import problem
from forecast.govern.gate import Registry
from forecast.table.features import features, targets
from forecast.tracking import connect
from mlflow.exceptions import MlflowException
from sklearn.linear_model import LinearRegression
from workplace import ROOT, wait_for

MODEL = "a_model_that_is_followed"


def put_into_production(source: str, run_id: str) -> str:
    """Register a version and set the alias by hand, as in the MLflow UI; return its number."""
    client, model_id = connect(), source.removeprefix("models:/") if source.startswith("models:/m-") else None
    version = client.create_model_version(MODEL, source=source, run_id=run_id, model_id=model_id).version
    client.set_registered_model_alias(MODEL, "production", str(version))
    return str(version)


@pytest.fixture
def followed(in_workplace, data_file, monkeypatch) -> Iterator[Follower]:
    """A follower after its first poll, with a separate registered model that has a version in production."""
    monkeypatch.setattr(problem, "REGISTERED_MODEL", MODEL)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")  # as the dashboard does
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    trained = json.loads((in_workplace.pipeline / "results" / "trained" / "train_gradient_boosting.json").read_text())
    with contextlib.suppress(MlflowException):  # left by a failed test
        connect().delete_registered_model(MODEL)
    connect().create_registered_model(MODEL)
    put_into_production(trained["model_uri"], trained["run_id"])
    followed = Follower(data_file)
    followed.poll()
    assert (followed.now.faults, followed.now.champion.production.version) == ({}, "1")
    yield followed
    connect().delete_registered_model(MODEL)


@pytest.mark.filterwarnings("ignore:Operation with range")  # in MLflow
def test_version_with_implausible_predictions_is_not_used(followed, in_workplace):
    """For a model with implausible predictions the page shows the reason, `doctor` fails, and rollback helps."""
    from forecast import tracking
    from forecast.learn import storage

    from workshop.teaching import doctor

    frame, model = followed.now.frame, LinearRegression()
    model.fit(features(frame), targets(frame)).intercept_[:] = math.nan
    with tracking.start_run("no_power") as run:
        source = storage.log_model(model, frame.head())
    gate = Registry()
    gate.history(note=True)
    bad = put_into_production(source, run.info.run_id)
    # While the store is busy, the poll has another fault.
    wait_for(lambda: followed.poll() or "not plausible" in str(layout.message(followed.now)), 60)
    assert followed.now.champion.production.version == "1"
    message = str(layout.message(followed.now))
    for words in (f"Version {bad} is in production but cannot be used", "not plausible", "mlflow-gate rollback"):
        assert words in message
    assert "Version 1 remains in use" in message
    finding = doctor._production(in_workplace.settings)
    assert (finding.verdict, "not plausible" in finding.found) == (doctor.WRONG, True)
    assert gate.rollback().version == "1"
    followed.poll()
    assert followed.now.faults == {}
    assert doctor._production(in_workplace.settings).verdict == doctor.OK


def test_deleted_data_file_is_a_fault_after_a_timeout(served, data_file, tmp_path, monkeypatch):
    """A data file may be missing for minutes during a run; after that it is a fault until the file is restored."""
    followed = Follower(tmp_path / "germany.parquet")
    followed.now = served
    followed.poll()
    assert "data" not in followed.now.faults
    assert followed.now.frame is served.frame
    monkeypatch.setattr(follower, "MAX_RUN_SECONDS", 0.0)
    followed.poll()
    assert "was deleted" in followed.now.faults["data"].why
    (tmp_path / "germany.parquet").write_bytes(b"no table")
    followed.poll()
    assert "damaged or not Parquet" in followed.now.faults["data"].why
    assert followed.now.frame is served.frame
    (tmp_path / "germany.parquet").write_bytes(data_file.read_bytes())
    followed.poll()
    assert "data" not in followed.now.faults  # only that of the tracking server is left


def test_invalid_parameters_are_a_fault(served, data_file, tmp_path, monkeypatch):
    """The model stays in use while params.yaml is missing or invalid; a new limit of the bias applies immediately."""
    file = tmp_path / "params.yaml"
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    followed = Follower(data_file)
    followed.now = served
    good = (ROOT / "4_pipeline" / "params.yaml").read_text()
    for content in (None, "promote: [", good.replace("max_bias_percent: 5.0", "max_bias_percent: much")):
        if content is not None:
            file.write_text(content)
        followed.poll()
        assert "parameters" in followed.now.faults
        assert followed.now.predictions is not None
    file.write_text(good.replace("max_bias_percent: 5.0", "max_bias_percent: 7.0"))
    followed.poll()
    assert "parameters" not in followed.now.faults
    assert followed.now.max_bias_percent == 7.0
