"""Runs with their lineage, on the real tracking server."""

from __future__ import annotations

import subprocess
import time

import pytest
from workplace import clean_environment, environment_of, free_port

from workshop.errors import ServiceError
from workshop.models.tracking import connect, git_tags


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
