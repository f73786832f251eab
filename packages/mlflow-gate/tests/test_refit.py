"""A promoted model is refitted on all rows; the record keeps the scores of the evaluated model."""

from __future__ import annotations

import mlflow
import pytest
from models import LEARNED, make_gate, train, train_models

ALL_ROWS = range(1296)  # including the held-out ones


@pytest.fixture
def gate(name):
    """Return a gate that refits promoted models on all rows; the refit's error is `gate.constant`."""

    def refit(run, model_uri):
        gate.calls.append((run.info.run_id, model_uri))
        run_id = train(gate.constant, learned=ALL_ROWS)
        return run_id, f"runs:/{run_id}/model"

    gate = make_gate(name, refit=refit)
    gate.constant, gate.calls = 0.1, []
    return gate


def test_refit_is_in_production_with_the_scores_of_the_evaluated_model(gate):
    """The version is the refit; decision and record have the evaluated model's scores, and the version names it."""
    evaluated = train(1.0)
    decision = gate.promote(evaluated)
    now = gate.registry.production()
    assert decision.run_id == evaluated == now.evaluated.run_id == gate.calls[0][0]
    assert now.run_id == decision.production["run_id"] != evaluated
    assert now.move.scores == decision.candidate.as_dict()["metrics"] == {"mae": 1.0}
    assert gate.registry.load(now.model_uri).predict([[0]])[0] == 0.1
    assert (now.evaluated.declared["rows"], now.declared["rows"]) == (len(LEARNED), len(ALL_ROWS))
    links = {link.kind: link.facts for link in gate.registry.lineage()}
    assert (links["run"]["id"], links["refit"]["id"]) == (evaluated, now.run_id)
    assert f"{len(ALL_ROWS)} rows" in links["refit"]["learned"]
    assert f"{len(LEARNED)} rows" in links["data"]["learned"]
    assert gate.promote(evaluated).reason.startswith("already in production")
    assert len(gate.calls) == 1


def test_refit_in_the_run_of_its_candidate(gate):
    """A refit that is logged to the candidate's run is distinguished from the candidate by its model id."""
    run_id, evaluated, refit = train_models(1.0, 0.1)
    gate._refit = lambda run, model_uri: (run.info.run_id, refit)
    gate.promote(run_id, evaluated)
    now = gate.registry.production()
    assert (now.source, now.refit_of.source, now.move.scores) == (refit, evaluated, {"mae": 1.0})
    assert gate.promote(run_id, evaluated).reason.startswith("already in production")


def test_candidate_that_is_registered_already_is_refitted(gate):
    """A candidate that was registered without the gate is refitted like any other."""
    run_id, uri = train_models(1.0)
    mlflow.register_model(uri, gate.registry.name)
    gate.promote(run_id)
    now = gate.registry.production()
    assert (now.refit_of.source, len(gate.calls)) == (uri, 1)


def test_refit_that_breaks_a_rule_is_refused(gate):
    """The rules also apply to the refit; if it fails one, the alias stays."""
    gate.constant = 7
    decision = gate.promote(train(1.0))
    assert not decision.promoted
    assert "refit on all rows: mae: 7 (allowed: <= 5)" in decision.reason
    assert gate.registry.production() is None


def test_rollback_from_a_refit_blocks_the_evaluated_model(gate):
    """After a rollback the evaluated run is refused; if it is forced, its version returns without another refit."""
    gate.promote(train(1.0))
    run_id = train(0.5)
    assert gate.promote(run_id, dry_run=True).promoted
    assert gate.promote(run_id).reason == "promoted: mae 0.5000 beats the champion's 1.0000"
    assert gate.registry.rollback(why="bad at noon").version == "1"
    assert "bad at noon" in gate.promote(run_id).reason
    assert gate.promote(run_id, force=True, why="noon is mended").promoted
    assert (gate.registry.production().version, len(gate.calls)) == ("2", 2)


def test_forced_promotion_records_all_failed_rules(gate):
    """The record of a forced promotion has each rule that failed, including those of the refit."""
    gate.promote(train(1.0))
    gate.constant = 7
    gate.promote(train(6.0, learned=None), force=True, why="a test")
    move = gate.registry.history()[-1]
    for words in ("mae: 6 (allowed: <= 5)", "does not declare", "gained over", "refit on all rows: mae: 7"):
        assert words in move.reason
    failed = [finding["name"] for finding in move.findings if not finding["passed"]]
    assert failed == ["mae", "held-out rows", "mae gained over the model in production", "refit on all rows"]
