"""The follower keeps serving a model, whatever happens to the registry."""

from __future__ import annotations

import os
import signal
import time

import pytest
from mlflow_gate import Follower, follower
from models import make_gate, train


def prediction(now) -> float:
    """Return the constant that the current model predicts."""
    return now.model.predict([[0]])[0]


@pytest.fixture
def gate(name):
    """Return a gate whose version in production predicts 1.0."""
    gate = make_gate(name)
    gate.promote(train(1.0))
    return gate


def test_new_version_is_loaded_while_the_old_one_is_used(gate):
    """A request that started with the old version ends with it; the next one gets the new version."""
    following = Follower(gate.registry)
    before = following.poll()
    gate.promote(train(0.5))
    now = following.poll()
    assert following.now is now
    assert [(prediction(each), each.production.version) for each in (before, now)] == [(1.0, "1"), (0.5, "2")]
    assert now.problem is None


def test_failing_version_is_not_used(gate, monkeypatch, caplog):
    """A version that fails its check is reported, and the old one stays; it is retried later, not at each poll."""
    attempts = []

    def check(model):
        attempts.append(model)
        if model.predict([[0]])[0] == 0.5 and len(attempts) < 3:
            raise ValueError("no such column")

    following = Follower(gate.registry, check=check)
    following.poll()
    gate.promote(train(0.5))
    for _ in range(3):
        now = following.poll()
        assert now.problem == "Version 2 is in production but cannot be used: no such column"
        assert (prediction(now), now.production.version, type(now.error)) == (1.0, "1", ValueError)
    assert len(attempts) == 2
    assert len([record for record in caplog.records if record.name == follower.__name__]) == 1
    monkeypatch.setattr(follower.time, "monotonic", lambda: time.perf_counter() + 1e9)
    now = following.poll()
    assert (prediction(now), now.production.version, now.problem) == (0.5, "2", None)


def test_model_is_kept_while_the_alias_is_removed(gate):
    """Without the alias the last model stays; a rollback from a failing version makes it current again."""
    following = Follower(gate.registry, check=lambda model: model.predict([[0]])[0] == 1.0 or 1 / 0)
    following.poll()
    gate.promote(train(0.5))
    assert "cannot be used: division by zero" in following.poll().problem
    gate.registry.client.delete_registered_model_alias(gate.registry.name, "production")
    now = following.poll()
    assert (prediction(now), now.problem) == (1.0, "Nothing is in production.")
    gate.registry.rollback(to="1")
    now = following.poll()
    assert (prediction(now), now.problem, now.production.move.action) == (1.0, None, "rolled back")


def test_model_is_kept_while_the_server_is_down(gate, tracking, monkeypatch):
    """While the server is down the model stays in use; once it is up, the follower catches up."""
    following = Follower(gate.registry)
    following.poll()
    gate.promote(train(0.5))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    os.killpg(tracking.process.pid, signal.SIGSTOP)
    try:
        now = following.poll()
    finally:
        os.killpg(tracking.process.pid, signal.SIGCONT)
    assert now.problem.startswith("The registry cannot be read: ")
    assert prediction(now) == 1.0
    monkeypatch.undo()
    now = following.poll()
    assert (prediction(now), now.problem) == (0.5, None)
