"""Runs with their lineage, on the real tracking server."""

from __future__ import annotations

import subprocess
import time

import pytest
from workplace import clean_environment, environment_of, free_port

from workshop.errors import ServiceError
from workshop.models.tracking import connect, git_tags, start_run, store_id


def test_connect_to_a_dead_server_fails_within_seconds():
    """No answer: the address and what to type, in words, long before MLflow itself would give up."""
    address = f"http://127.0.0.1:{free_port()}"
    with environment_of(clean_environment() | {"MLFLOW_TRACKING_URI": address}):
        began = time.monotonic()
        with pytest.raises(ServiceError) as caught:
            connect()
        assert time.monotonic() - began < 5
    assert address in str(caught.value)
    assert "workshop up" in str(caught.value)


def test_connect_to_a_file_is_refused():
    """MLflow's own fallback, a database in the current folder, is not a server."""
    with (
        environment_of(clean_environment() | {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}),
        pytest.raises(ServiceError, match="workshop config --export"),
    ):
        connect()


def test_store_keeps_its_identity(candidates):
    """Asked twice, the same store answers the same."""
    assert store_id() == store_id()


def test_run_that_fails_is_marked_failed(candidates):
    """An error inside the block ends the run as FAILED and goes on to the caller."""
    import mlflow

    with pytest.raises(ZeroDivisionError), start_run("test_stage", parameters={"a": 1}) as run:
        raise ZeroDivisionError
    failed = mlflow.get_run(run.info.run_id)
    assert failed.info.status == "FAILED"
    assert failed.data.params == {"a": "1"}
    assert failed.data.tags["workshop.stage"] == "test_stage"


def test_git_tags_leave_the_local_lock_out(tmp_path):
    """A changed dvc.lock alone does not make a tree dirty; anything else does; no repository, no tags."""
    assert git_tags(tmp_path) == {}

    def git(*words):
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    for name in ("dvc.lock", "code.py"):
        (tmp_path / name).write_text("1\n")
    git("add", "--all")
    git("commit", "--message", "First")
    assert git_tags(tmp_path)["workshop.git.dirty"] == "false"
    (tmp_path / "dvc.lock").write_text("2\n")
    assert git_tags(tmp_path)["workshop.git.dirty"] == "false"
    (tmp_path / "code.py").write_text("2\n")
    tags = git_tags(tmp_path)
    assert tags["workshop.git.dirty"] == "true"
    assert len(tags["mlflow.source.git.commit"]) == 40


def test_hundred_values_take_few_requests(in_workplace):
    """Fifty parameters and fifty metrics are logged in at most three requests, as the server's own log counts them."""
    import mlflow

    log = in_workplace.settings.logs / "mlflow.log"
    before = log.read_text().count("runs/log-")
    with start_run("batches", parameters={f"p{number}": number for number in range(50)}) as run:
        mlflow.log_metrics({f"m{number}": number for number in range(50)})
    logged = mlflow.get_run(run.info.run_id).data
    assert (len(logged.params), len(logged.metrics)) == (50, 50)
    assert 1 <= log.read_text().count("runs/log-") - before <= 3
