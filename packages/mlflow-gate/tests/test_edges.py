"""Edge cases of the gate: a removed alias, deleted or damaged files, outages, and models that misbehave."""

from __future__ import annotations

import getpass
import os
import shutil
import time

import models
import pytest
import requests
from mlflow_gate import Follower, Gate, ModelError, Registry, Scores, ServerError
from mlflow_gate.cli import main
from models import HELD_OUT, make_gate, train


@pytest.mark.parametrize("is_deleted", [False, True])
def test_last_version_of_the_record_is_the_champion_if_the_alias_is_removed(gate, is_deleted):
    """Without alias or version the candidate still has to beat the last champion; status and rollback still work."""
    gate.registry.client.delete_registered_model_alias(gate.registry.name, "production")
    if is_deleted:
        gate.registry.client.delete_model_version(gate.registry.name, "2")
    worse = gate.promote(train(0.9))
    assert worse.reason.startswith("refused: mae gained over the model in production: -0.4 ")
    assert worse.production == {}
    since = gate.registry.history()[-1].when
    assert f"the alias was removed from version 2, in production since {since}" in gate.registry.status()
    if is_deleted:
        assert gate.registry.rollback().version == "1"
    else:
        again = gate.promote(gate.runs[1])
        assert again.reason == "promoted again: all rules passed, and the alias was unset"
        assert gate.registry.production().version == "2"
    better = gate.promote(train(0.1))
    assert better.reason.startswith("promoted: mae 0.1000 beats the champion's")
    assert gate.registry.history()[-1].replaced == ("1" if is_deleted else "2")


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), requests.ReadTimeout("slow"), TimeoutError("late")])
def test_outage_is_an_error_without_a_decision(gate, error, monkeypatch):
    """A network error while a model is evaluated or downloaded raises ServerError, and the alias stays."""
    import mlflow.artifacts

    def fail(*_args, **_kwargs):
        raise RuntimeError("in between") from error

    with pytest.raises(ServerError, match="no decision was made"):
        make_gate(gate.registry.name, evaluate=fail).promote(gate.runs[0])
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", fail)
    with pytest.raises(ServerError, match="no decision was made"):
        gate.promote(gate.runs[0])
    assert gate.registry.production().version == "2"


def test_champion_whose_files_were_deleted_is_not_disqualified(gate, tracking):
    """Without its files the champion cannot be compared: the candidate is refused, unless it is forced."""
    (output,) = gate.registry.client.get_run(gate.runs[1]).outputs.model_outputs
    (folder,) = tracking.folder.rglob(output.model_id)
    shutil.rmtree(folder / "artifacts")
    run_id = train(0.1)
    refused = gate.promote(run_id)
    assert "refused: model in production: deleted: The model has no files." in refused.reason
    assert "roll back to another version" in refused.words
    assert gate.promote(run_id, force=True, why="the store lost it").forced


def test_champion_is_disqualified_by_its_second_failure(gate, capsys, monkeypatch):
    """The champion is evaluated again after one failure; record, exit code and terminal report the second."""
    failures = []

    def evaluate(model, rows):
        if model.predict(rows)[0] == 0.5 and len(failures) < limit:
            failures.append(model)
            raise RuntimeError("no memory")
        return models.evaluate(model, rows)

    flaky = make_gate(gate.registry.name, evaluate=evaluate)
    limit = 1
    assert flaky.promote(train(0.9)).reason.startswith("refused: mae gained")
    failures.clear()
    limit = 2
    monkeypatch.setattr("mlflow_gate.cli.find_gate", lambda *_: flaky)
    with pytest.raises(SystemExit) as error:
        main(["promote", train(0.9)])
    assert error.value.code == 4
    assert "the model in production was disqualified: RuntimeError: no memory" in capsys.readouterr().err
    assert "the champion is disqualified: RuntimeError: no memory" in gate.registry.history()[-1].reason


def exit_process(_folder):
    """Raise SystemExit, as the code of a model may."""
    raise SystemExit(3)


def hang(_folder):
    """Sleep longer than any time limit of a test."""
    time.sleep(600)


@pytest.mark.parametrize(
    ("load", "words"),
    [(exit_process, "tried to end the process. SystemExit: 3"), (hang, "did not respond in time. no result after 1 s")],
)
def test_model_that_exits_or_hangs_is_refused(name, load, words):
    """A model that raises SystemExit or hangs is refused; rollback and follower keep the working model."""
    gate, bad = make_gate(name), make_gate(name, load=load)
    gate.promote(train(1.0))
    good = gate.registry.load
    follower = Follower(bad.registry, load=lambda now: good(now.model_uri) if now.version == "1" else load(now))
    assert follower.poll().problem is None
    gate.promote(train(0.5))
    bad.registry.time_limit = 1
    now = follower.poll()
    assert (now.production.version, now.model.predict([[0]])[0]) == ("1", 1.0)
    assert "Version 2 is in production but cannot be used: The model" in now.problem
    assert words in bad.promote(train(0.1)).reason
    with pytest.raises(ModelError, match="cannot be loaded: the alias was not moved"):
        bad.registry.rollback()


def test_rules_alone_decide_without_a_comparison(name):
    """Without a comparison neither the champion's training rows nor its files matter, with or without blocks."""
    gate = make_gate(name, comparison=None, evaluate=lambda model, rows: Scores({"mae": abs(model.predict(rows)[0])}))
    assert gate.promote(train(0.5, learned=range(1250)), force=True, why="the first").forced
    assert gate.promote(train(4.0)).reason == "promoted: all rules passed (no champion comparison is configured)"


def test_champion_with_other_keys_is_not_compared(name):
    """If the champion's training rows have keys of another kind, the candidate is refused, with both kinds."""
    gate = make_gate(name)
    gate.promote(train(0.5, learned=["a"]), force=True, why="the first")
    assert "rows are texts, but those of the held-out rows are numbers" in gate.promote(train(0.1)).reason


def test_damaged_declaration_of_the_champion_is_a_refusal(gate, tracking):
    """A champion whose declaration of training rows is damaged or was deleted stays in production."""
    (file,) = tracking.folder.glob(f"artifacts/*/{gate.runs[1]}/artifacts/mlflow_gate/*")
    content = file.read_bytes()
    file.write_bytes(content[:20])
    assert "declaration of training rows is damaged" in make_gate(gate.registry.name).promote(train(0.1)).reason
    file.unlink()
    assert "the list of its training rows was deleted" in make_gate(gate.registry.name).promote(train(0.1)).reason
    file.write_bytes(content)
    assert gate.promote(train(0.1), dry_run=True).promoted
    for text in ("", "[]", "{}", '{"kinds": 1}'):
        gate.registry.client.set_tag(gate.runs[1], "mlflow_gate.learned", text)
        assert "declaration of training rows is damaged" in make_gate(gate.registry.name).promote(train(0.1)).reason


def test_unusual_names_users_and_reasons_are_recorded(monkeypatch, name):
    """A name with a quote, a uid without a name, 400 rules and a reason of 10,000 letters are recorded."""

    def no_name():
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", no_name)
    rules = {f"a rule with a long name {number}": lambda _: (1.0, "<= 2 " * 10, True) for number in range(400)}
    gate = Gate(Registry(f"o'{name}"), lambda *_: Scores({"mae": 1}), HELD_OUT, rules)
    assert gate.promote(train(1.0), why="x" * 10_000).promoted
    assert gate.promote(train(1.0), why="ü\n'\"" * 2000).promoted
    assert gate.registry.rollback().version == "1"
    moves = Registry(gate.registry.name).history()
    assert [len(move.findings) for move in moves] == [403, 403, 0]
    assert (moves[1].why, moves[1].who) == ("ü\n'\"" * 2000, f"uid {os.getuid()}")
    tags = gate.registry.client.get_registered_model(gate.registry.name).tags
    assert max(map(len, tags.values())) <= 5000
