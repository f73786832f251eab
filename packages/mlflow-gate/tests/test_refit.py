"""What passed the gate is fitted again on all rows: the judged fit stays its evidence."""

from __future__ import annotations

import mlflow
import pytest
from models import LEARNED, make_gate, train, train_models

ALL_ROWS = range(1296)  # the held-out ones, too


@pytest.fixture
def gate(name):
    """Return a gate that fits again what passes: the refit's error is `gate.constant`, and it learned all rows."""

    def refit(run, model_uri):
        gate.calls.append((run.info.run_id, model_uri))
        run_id = train(gate.constant, learned=ALL_ROWS)
        return run_id, f"runs:/{run_id}/model"

    gate = make_gate(name, refit=refit)
    gate.constant, gate.calls = 0.1, []
    return gate


def test_refit_goes_into_production_with_its_evidence(gate):
    """The version is the refit; decision and record have the evaluated scores, and the version names that model."""
    judged = train(1.0)
    decision = gate.promote(judged)
    now = gate.registry.production()
    assert decision.run_id == judged == now.evaluated.run_id == gate.calls[0][0]
    assert now.run_id == decision.production["run_id"] != judged
    assert now.move.scores == decision.candidate.as_dict()["metrics"] == {"mae": 1.0}
    assert gate.registry.load(now.model_uri).predict([[0]])[0] == 0.1
    assert (now.evaluated.declared["rows"], now.declared["rows"]) == (len(LEARNED), len(ALL_ROWS))
    links = {link.kind: link.facts for link in gate.registry.lineage()}
    assert (links["run"]["id"], links["refit"]["id"]) == (judged, now.run_id)
    assert f"{len(ALL_ROWS)} rows" in links["refit"]["learned"]
    assert f"{len(LEARNED)} rows" in links["data"]["learned"]
    assert gate.promote(judged).reason.startswith("already in production")
    assert len(gate.calls) == 1


def test_refit_in_the_run_of_its_candidate(gate):
    """A refit that the run of the candidate logs is told from the candidate by its model."""
    run_id, judged, refit = train_models(1.0, 0.1)
    gate._refit = lambda run, model_uri: (run.info.run_id, refit)
    gate.promote(run_id, judged)
    now = gate.registry.production()
    assert (now.source, now.refit_of.source, now.move.scores) == (refit, judged, {"mae": 1.0})
    assert gate.promote(run_id, judged).reason.startswith("already in production")


def test_candidate_registered_before_is_fitted_again(gate):
    """A version that never went through the gate is no reason to leave out the refit."""
    run_id, uri = train_models(1.0)
    mlflow.register_model(uri, gate.registry.name)
    gate.promote(run_id)
    now = gate.registry.production()
    assert (now.refit_of.source, len(gate.calls)) == (uri, 1)


def test_refit_that_breaks_a_rule_is_refused(gate):
    """The rules are applied to the refit, too; then nothing moves."""
    gate.constant = 7
    decision = gate.promote(train(1.0))
    assert not decision.promoted
    assert "refit on all rows: mae: 7 (allowed: <= 5)" in decision.reason
    assert gate.registry.production() is None


def test_rollback_from_a_refit_blocks_the_evaluated_model(gate):
    """A refit blocks no retraining; the judged run is refused, and forced gets its version back without another fit."""
    gate.promote(train(1.0))
    run_id = train(0.5)
    assert gate.promote(run_id, dry_run=True).promoted
    assert gate.promote(run_id).reason == "promoted: mae 0.5000 beats the champion's 1.0000"
    assert gate.registry.rollback(why="bad at noon").version == "1"
    assert "bad at noon" in gate.promote(run_id).reason
    assert gate.promote(run_id, force=True, why="noon is mended").promoted
    assert (gate.registry.production().version, len(gate.calls)) == ("2", 2)


def test_forced_promotion_keeps_all_its_reasons(gate):
    """The record of a forced promotion has each rule that failed, and what the refit breaks besides."""
    gate.promote(train(1.0))
    gate.constant = 7
    gate.promote(train(6.0, learned=None), force=True, why="a test")
    move = gate.registry.history()[-1]
    for words in ("mae: 6 (allowed: <= 5)", "does not declare", "gained over", "refit on all rows: mae: 7"):
        assert words in move.reason
    failed = [finding["name"] for finding in move.findings if not finding["passed"]]
    assert failed == ["mae", "held-out rows", "mae gained over the model in production", "refit on all rows"]
