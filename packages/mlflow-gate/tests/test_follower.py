"""The follower serves the model in production, whatever happens to the registry."""

from __future__ import annotations

import os
import signal
import time

import pytest
from mlflow_gate import Follower, follower
from models import make_gate, train


def answer(now) -> float:
    """Return the constant that the model in use predicts."""
    return now.model.predict([[0]])[0]


@pytest.fixture
def gate(name):
    """Return a gate with a version in production that predicts 1.0."""
    gate = make_gate(name)
    gate.promote(train(1.0))
    return gate


def test_new_version_is_swapped_in_while_the_old_one_is_used(gate):
    """A request that began with the old version ends with it; the next one gets the new version."""
    following = Follower(gate.registry)
    before = following.poll()
    gate.promote(train(0.5))
    now = following.poll()
    assert following.now is now
    assert [(answer(each), each.production.version) for each in (before, now)] == [(1.0, "1"), (0.5, "2")]
    assert now.problem is None


def test_version_that_fails_keeps_the_old_one(gate, monkeypatch, caplog):
    """A version that cannot predict is reported and not used; it is tried again later, and not at each poll."""
    tries = []

    def check(model):
        tries.append(model)
        if model.predict([[0]])[0] == 0.5 and len(tries) < 3:
            raise ValueError("no such column")

    following = Follower(gate.registry, check=check)
    following.poll()
    gate.promote(train(0.5))
    for _ in range(3):
        now = following.poll()
        assert now.problem == "Version 2 is in production but cannot be used: no such column"
        assert (answer(now), now.production.version, type(now.error)) == (1.0, "1", ValueError)
    assert len(tries) == 2
    assert len([record for record in caplog.records if record.name == follower.__name__]) == 1
    monkeypatch.setattr(follower.time, "monotonic", lambda: time.perf_counter() + 1e9)
    now = following.poll()
    assert (answer(now), now.production.version, now.problem) == (0.5, "2", None)


def test_alias_that_is_removed_or_returns_keeps_the_model(gate):
    """Without the alias the last model stays; after a rollback from a version that failed it is up to date again."""
    following = Follower(gate.registry, check=lambda model: model.predict([[0]])[0] == 1.0 or 1 / 0)
    following.poll()
    gate.promote(train(0.5))
    assert "cannot be used: division by zero" in following.poll().problem
    gate.registry.client.delete_registered_model_alias(gate.registry.name, "production")
    now = following.poll()
    assert (answer(now), now.problem) == (1.0, "Nothing is in production.")
    gate.registry.rollback(to="1")
    now = following.poll()
    assert (answer(now), now.problem, now.production.move.action) == (1.0, None, "rolled back")


def test_server_that_goes_away_keeps_the_model(gate, tracking, monkeypatch):
    """While the server is away the model stays in use; when the server is back, the follower catches up."""
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
    assert answer(now) == 1.0
    monkeypatch.undo()
    now = following.poll()
    assert (answer(now), now.problem) == (0.5, None)
