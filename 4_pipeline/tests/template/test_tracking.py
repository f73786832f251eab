"""The tracking store, and the tags of experiments."""

from __future__ import annotations

import os
import time

import mlflow
import pytest
from forecast.terms.errors import ServiceError
from forecast.tracking import connect, experiment_tags, run_url, start_run, tracking_uri
from places import clean_environment, environment_of, free_port, git


def test_connect_to_a_dead_server_fails_within_seconds():
    """The error names the address and the next step, long before MLflow's own time-out."""
    address = f"http://127.0.0.1:{free_port()}"
    with environment_of(clean_environment() | {"MLFLOW_TRACKING_URI": address}):
        start = time.monotonic()
        with pytest.raises(ServiceError) as caught:
            connect()
        assert time.monotonic() - start < 30  # 5 s on an idle machine
    assert address in str(caught.value)
    assert "mlflow server" in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from SQLAlchemy, for MLflow
def test_dvc_repository_needs_no_server(tmp_path, monkeypatch):
    """The SQLite store is beside dvc.yaml, also for `dvc exp run --temp`; other folders and files are errors."""
    temporary = tmp_path / ".dvc" / "tmp" / "exps" / "tmp1"
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    with environment_of(clean_environment()):
        for uri, words in {"sqlite:///other.db": "other.db", "": "is not set"}.items():
            os.environ["MLFLOW_TRACKING_URI"] = uri
            with pytest.raises(ServiceError, match=words):
                connect()
        temporary.mkdir(parents=True)
        with start_run("train_rf") as run:
            mlflow.log_text("kept", "note.txt")
        assert [*(tmp_path / "mlartifacts").rglob(f"{run.info.run_id}/artifacts/note.txt")]
        (temporary / "dvc.yaml").touch()
        monkeypatch.chdir(temporary)
        assert (tracking_uri(), run_url(run.info.run_id, "1")) == (f"sqlite:///{tmp_path}/mlflow.db", None)


def test_experiment_tags_have_the_changed_parameters(tmp_path, monkeypatch):
    """After `dvc exp run -S split.test_fraction=0.3` with 0.2 in the commit, the tag has the 0.3."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "params.yaml").write_text("split: {test_fraction: 0.2}\ntrain_rf: {seed: 1}\n")
    git(tmp_path, "add", "--all")
    git(tmp_path, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "Two tenths")
    (tmp_path / "params.yaml").write_text("split: {test_fraction: 0.3}\ntrain_rf: {seed: 1}\n")
    assert experiment_tags(tmp_path) == {}
    monkeypatch.setenv("DVC_EXP_NAME", "more-to-test")
    assert list(experiment_tags(tmp_path).values()) == ["more-to-test", "split.test_fraction=0.3"]
