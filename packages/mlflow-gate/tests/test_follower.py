"""The follower serves the model in production, whatever happens to the registry."""

from __future__ import annotations

import threading
import time

import pytest
from mlflow_gate import Follower, follower
from models import registry, train
from servers import Server, wait_for


def answer(now) -> float:
    """Return the constant that the model in use predicts."""
    return now.model.predict([[0]])[0]


@pytest.fixture
def gate(name):
    """Return a gate with a version in production that predicts 1.0."""
    gate = registry(name)
    gate.promote(train(1.0))
    return gate


def test_new_version_is_swapped_in_while_the_old_one_is_used(gate):
    """Threads that predict all the time get answers of the old model, then of the new one, and never an error."""
    answers, errors, ended = [], [], threading.Event()

    def use():
        try:
            while not ended.is_set():
                answers.append(answer(following.now))
                time.sleep(0.001)
        except Exception as error:  # noqa: BLE001 - none may happen
            errors.append(error)

    following = Follower(gate)
    following.poll()
    users = [threading.Thread(target=use) for _ in range(3)]
    for user in users:
        user.start()
    gate.promote(train(0.5))
    following.poll()
    wait_for(lambda: following.now.production.version == "2" and answers[-1] == 0.5)
    ended.set()
    for user in users:
        user.join()
    assert not errors
    assert set(answers) == {1.0, 0.5}
    assert following.now.trouble is None


def test_version_that_fails_keeps_the_old_one(gate, monkeypatch, caplog):
    """A version that cannot predict is reported and not used; it is tried again later, and not at each poll."""
    tries = []

    def check(model):
        tries.append(model)
        if model.predict([[0]])[0] == 0.5 and len(tries) < 3:
            raise ValueError("no such column")

    following = Follower(gate, check=check)
    following.poll()
    gate.promote(train(0.5))
    for _ in range(3):
        now = following.poll()
        assert now.trouble == "Version 2 is in production but cannot be used: no such column"
        assert (answer(now), now.production.version, type(now.error)) == (1.0, "1", ValueError)
    assert len(tries) == 2
    assert len([record for record in caplog.records if record.name == follower.__name__]) == 1
    monkeypatch.setattr(follower.time, "monotonic", lambda: time.perf_counter() + 1e9)
    now = following.poll()
    assert (answer(now), now.production.version, now.trouble) == (0.5, "2", None)


def test_alias_that_is_removed_or_returns_keeps_the_model(gate):
    """Without the alias the last model stays; after a rollback from a version that failed it is up to date again."""
    following = Follower(gate, check=lambda model: model.predict([[0]])[0] == 1.0 or 1 / 0)
    following.poll()
    gate.promote(train(0.5))
    assert "cannot be used: division by zero" in following.poll().trouble
    gate.client.delete_registered_model_alias(gate.name, "production")
    now = following.poll()
    assert (answer(now), now.trouble) == (1.0, "Nothing is in production.")
    gate.rollback(to="1")
    now = following.poll()
    assert (answer(now), now.trouble, now.production.move.action) == (1.0, None, "rolled back")


def test_server_that_goes_away_keeps_the_model(tmp_path, monkeypatch, name):
    """While the server is away the model stays in use; when the server is back, the follower catches up."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with Server(tmp_path) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        gate = registry(name)
        runs = [train(1.0), train(0.5)]
        gate.promote(runs[0])
        following = Follower(gate)
        following.poll()
    now = following.poll()
    assert now.trouble.startswith("The registry cannot be read: ")
    assert answer(now) == 1.0
    with server:
        gate.promote(runs[1])
        now = following.poll()
        assert (answer(now), now.trouble) == (0.5, None)
