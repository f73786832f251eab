"""Runs with their lineage, on the real tracking server."""

from __future__ import annotations

import time

import pytest
from forecast.errors import ServiceError
from forecast.tracking import connect, experiment_tags
from places import clean_environment, environment_of, free_port, git


def test_connect_to_a_dead_server_fails_within_seconds():
    """No answer: the address and what to type, in words, long before MLflow itself would give up."""
    address = f"http://127.0.0.1:{free_port()}"
    with environment_of(clean_environment() | {"MLFLOW_TRACKING_URI": address}):
        began = time.monotonic()
        with pytest.raises(ServiceError) as caught:
            connect()
        assert time.monotonic() - began < 30  # after two more tries within 5 s, on a machine with nothing else to do
    assert address in str(caught.value)
    assert "mlflow server" in str(caught.value)


def test_connect_to_a_file_is_refused():
    """MLflow's own fallback, a database in the current folder, is not a server."""
    with (
        environment_of(clean_environment() | {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}),
        pytest.raises(ServiceError, match="MLFLOW_TRACKING_URI"),
    ):
        connect()


def test_experiment_carries_the_parameters_that_differ_from_the_commit(tmp_path, monkeypatch):
    """In `dvc exp run -S split.test_fraction=0.3` the commit says 0.2: the tag says what the model was made with."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "params.yaml").write_text("split: {test_fraction: 0.2}\ntrain_rf: {seed: 1}\n")
    git(tmp_path, "add", "--all")
    git(tmp_path, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "Two tenths")
    (tmp_path / "params.yaml").write_text("split: {test_fraction: 0.3}\ntrain_rf: {seed: 1}\n")
    assert experiment_tags(tmp_path) == {}
    monkeypatch.setenv("DVC_EXP_NAME", "more-to-test")
    assert list(experiment_tags(tmp_path).values()) == ["more-to-test", "split.test_fraction=0.3"]
