"""The gate and its record on a real server."""

from __future__ import annotations

import gc
import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import pairwise

import mlflow
import models
import pytest
from mlflow_gate import ConfigError, Conflict, ModelError, Registry, turns
from mlflow_gate.keys import Keys, hash_of
from mlflow_gate.record import veto_on
from models import HELD_OUT, registry, train

HASH = hash_of(HELD_OUT, Keys.of(HELD_OUT))


def promote_often(name: str, runs: list[str], count: int) -> None:
    """Promote two runs in turn, as one process among others."""
    gate = registry(name, contest=None)
    gate.load = cache(gate.load)
    for number in range(count):
        gate.promote(runs[number % 2], force=True, why=f"{runs[0]} {number}")


def actions(gate: Registry) -> list[tuple[str, str]]:
    """Return action and version of each move."""
    return [(move.action, move.version) for move in gate.history()]


def test_better_model_is_promoted_and_recorded(gate):
    """A better model moves the alias; the record has the reason, the person's words, and the scores of both."""
    now = gate.production()
    assert (now.version, now.run_id, now.move.number) == ("2", gate.runs[1], 2)
    assert (now.move.scores, now.move.replaced_scores) == ({"mae": 0.5}, {"mae": 1.0})
    assert (now.move.score, now.move.held_out["rows"]) == (f"0.5000 (rows {HASH})", len(HELD_OUT))
    assert now.move.why == f"try {gate.runs[1]}"
    assert now.move.reason == "promoted: mae 0.5000 beats the champion's 1.0000"
    assert gate.production(now) is now
    assert gate.load(now.model_uri).predict([[0]])[0] == 0.5


def test_model_that_is_no_longer_used_leaves_no_file(gate, tmp_path, monkeypatch):
    """A model's files stay as long as the model, which may read them when it predicts, and then go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = gate.load(gate.production().model_uri)
    assert list(tmp_path.glob("*/MLmodel"))
    assert model.predict([[0]])[0] == 0.5
    del model
    gc.collect()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("blocks", "promoted"), [(2, True), (3, False)])
def test_contest_is_held_on_rows_that_neither_learned(name, blocks, promoted):
    """Rows that the champion learned are left out; with fewer than six blocks the candidate is refused."""
    gate = registry(name)
    assert gate.promote(train(0.5, learned=range(1200 + 12 * blocks)), force=True, why="the first").forced
    decision = gate.promote(train(0.2))
    assert (decision.promoted, decision.candidate.rows) == ((True, 72) if promoted else (False, 96))
    assert decision.candidate.held_out == decision.champion.held_out
    assert ("too few: of 96 the model in production learned from 36" in decision.words) != promoted


def test_candidate_that_learned_held_out_rows_is_refused(gate):
    """Neither a span over held-out rows, nor one of them, nor silence passes."""
    for learned in ({"learned": [1, 1250], "span": True}, {"learned": [1, 1250]}, {"learned": None}):
        refused = gate.promote(train(0.2, **learned))
        assert "refused: held-out rows: it" in refused.reason
        assert ("log_learned" in refused.words) is (learned["learned"] is None)
    with pytest.raises(ConfigError, match="learned from nothing"):
        train(0.2, learned=[])


def test_rows_of_another_population_are_other_rows(name):
    """A champion of another population learned none of the rows, even if the keys are the same; unnamed it did."""
    gate = registry(name)
    gate.promote(train(0.5, learned=range(2000), population="modelled"), force=True, why="the first")
    refused = gate.promote(train(0.3))
    assert "of 96 the model in production learned from 96" in refused.reason
    assert "another `population`" in refused.words
    decision = gate.promote(train(0.2, population="measured"))
    assert (decision.promoted, decision.candidate.rows) == (True, len(HELD_OUT))


def test_deciding_again_keeps_the_decision(gate):
    """The run in production stays promoted, with the reason of its promotion and a note on its score today."""
    moves = gate.history()
    again = gate.promote(gate.runs[1])
    assert (again.promoted, again.reason) == (True, moves[-1].reason)
    assert f"mae 0.5000 on rows {HASH}; every rule passed" in again.note
    strict = registry(gate.name, rules={"mae": {"max": 0.1}}).promote(gate.runs[1])
    assert strict.promoted
    assert "it would be refused: mae: 0.5" in strict.note
    assert gate.history() == moves


def test_rollback_is_a_veto_for_a_while(gate):
    """The run that was rolled back from is refused until it is forced, or another candidate is promoted."""
    now = gate.rollback(why="bad at noon")
    assert (now.version, now.move.action, now.move.replaced) == ("1", "rolled back", "2")
    refused = gate.promote(gate.runs[1])
    assert (refused.promoted, refused.reason.partition(":")[0]) == (False, "refused")
    assert "bad at noon" in refused.reason
    forced = gate.promote(gate.runs[1], force=True, why="noon is mended")
    assert (forced.forced, forced.production["version"]) == (True, "2")
    assert forced.reason.startswith("forced against the gate, which said: refused: rolled back from")
    assert actions(gate) == [("promoted", "1"), ("promoted", "2"), ("rolled back", "1"), ("forced", "2")]
    assert len(gate.client.search_model_versions(f"name='{gate.name}'")) == 2
    gate.rollback()
    assert gate.promote(train(0.8)).promoted
    assert gate.promote(gate.runs[1]).promoted


def test_later_version_is_restored(gate):
    """A move to a version that was rolled back from is `restored`, and lifts the veto."""
    gate.rollback()
    assert gate.rollback(to="2", why="it was right after all").move.action == "restored"
    assert veto_on(gate.runs[1], gate.history()) is None
    with pytest.raises(ModelError, match="Version 2 is in production already"):
        gate.rollback(to="2")
    assert gate.rollback().version == "1"
    with pytest.raises(ModelError, match=r"(?s)Nothing was in production before version 1.*--to 2"):
        gate.rollback()


def test_move_by_hand_is_recorded(gate):
    """A move in MLflow's UI is seen, written down by `history(note=True)` or the next move, and a way back."""
    gate.client.set_registered_model_alias(gate.name, "production", "1")
    seen = gate.history()[-1]
    assert (seen.action, seen.version, seen.replaced, seen.recorded) == ("by hand", "1", "2", False)
    assert [move.version for move in gate.history(note=True) if move.recorded] == ["1", "2", "1"]
    gate.client.set_registered_model_alias(gate.name, "production", "2")
    gate.promote(train(0.1))
    assert actions(gate)[2:] == [("by hand", "1"), ("by hand", "2"), ("promoted", "3")]
    assert gate.rollback().version == "2"
    gate.client.delete_registered_model_alias(gate.name, "production")
    assert gate.production() is None
    assert gate.rollback().version == "2"


def test_record_survives_deletions_and_strangers(gate):
    """Record and vetoes outlive runs and versions; tags of strangers are ignored."""
    smaller = train(0.1)
    gate.promote(smaller)
    gate.client.delete_run(gate.runs[1])
    gate.client.delete_model_version(gate.name, "1")
    strangers = {"move.000009.0": "{}", "move.000010.0": "no JSON", "move.x": "1", "move.000011.0": "[1]"}
    for tag, text in (strangers | {"move.000012.0": '{"done": 1}', "move.13": "{}", "move.14.x": "{}"}).items():
        gate.client.set_registered_model_tag(gate.name, f"mlflow_gate.{tag}", text)
    assert [move.scores["mae"] for move in gate.history()] == [1.0, 0.5, 0.1]
    with pytest.raises(ModelError, match=r"(?s)Version 1 was never in production, or was deleted.*versions 2"):
        gate.rollback(to="1")
    assert gate.rollback(why="too small").version == "2"
    assert "deleted" in {link.kind: link.facts for link in gate.lineage()}["run"]
    gate.client.delete_model_version(gate.name, "3")
    assert "too small" in gate.promote(smaller).reason
    with pytest.raises(ModelError, match="Nothing was in production before version 2"):
        gate.rollback()


def test_status_compares_the_decision_of_the_tree(gate, tmp_path):
    """The status line names version, commit and score, and whether the tree's decision left the same version."""
    file = tmp_path / "decision.json"
    file.write_text(json.dumps(gate.promote(gate.runs[1]).as_dict()))
    assert gate.status(file).agrees
    assert "version 2 is in production: promoted 20" in gate.status(file).line
    assert f"mae 0.5000 (rows {HASH}); this tree's decision" in gate.status(file).line
    gate.client.set_tag(gate.runs[1], "mlflow.source.git.dirty", "True")
    assert ", with uncommitted changes, mae" in gate.status(file).line
    gate.rollback()
    status = registry(gate.name, decision=file).status()
    assert status.agrees is False
    assert status.line.endswith("left version 2 in production: decide again")
    file.write_text("{")
    with pytest.raises(ConfigError, match="holds no decision"):
        gate.status(file)


@pytest.mark.parametrize("variable", ["DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"])
def test_experiment_moves_nothing(gate, monkeypatch, variable):
    """In an experiment of DVC the gate only decides, unless it is to move the alias there, too."""
    monkeypatch.setenv(variable, "dusty-lamp")
    run_id = train(0.2)
    for options in ({}, {"force": True, "why": "now"}):
        held = gate.promote(run_id, **options)
        assert (held.promoted, held.experiment, held.production["version"]) == (False, "dusty-lamp", "2")
        assert "its verdict: promoted: " in held.reason
        assert "--force" not in held.words
    moved = gate.promote(run_id, force=True, why="now", even_in_experiment=True)
    assert (moved.production["version"], moved.forced) == ("3", False)  # no refusal to overrule


def test_gate_that_cannot_decide_is_an_error(gate):
    """A gate needs a function that scores, rows, and a run with one model; errors say so."""
    with mlflow.start_run() as run:
        mlflow.log_metric("mae", 0.1)
    no_scores = registry(gate.name, evaluate=lambda model, rows: 0.9)
    for attempt, words in [
        (lambda: Registry(gate.name).promote(gate.runs[0]), "A gate needs a function that scores"),
        (lambda: no_scores.promote(gate.runs[0]), "returned no Scores"),
        (lambda: gate.promote(run.info.run_id), "the run logged 0.*log_model"),
        (lambda: gate.promote(gate.runs[0], model_uri="models:/m-other"), "logged by another run"),
        (lambda: gate.promote(gate.runs[0], force=True, why=" "), "needs a reason"),
    ]:
        with pytest.raises((ConfigError, ModelError), match=f"(?s){words}"):
            attempt()
    failing = registry(gate.name, evaluate=lambda model, rows: rows["no such column"])
    assert failing.promote(gate.runs[0]).reason.startswith("refused: loading: KeyError: 'no such column'")


def test_lineage_leads_from_data_to_production(gate):
    """Each link is there with its facts; a deleted run says so."""
    chain = gate.lineage()
    links = {link.kind: link.facts for link in chain}
    assert list(links) == ["data", "commit", "run", "model", "decision", "production"]
    assert links["data"]["learned"] == "100 rows, 0 to 99, as the run declares"
    assert links["decision"]["replaced score"] == "1.0"
    assert gate.lineage("2") == gate.lineage(f"{gate.name}/2") == chain
    gate.client.delete_run(gate.runs[1])
    assert "mlflow runs restore" in gate.lineage()[2].facts["deleted"]
    with pytest.raises(ModelError, match="There is no version 9"):
        gate.lineage("9")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.soak)])
def test_two_processes_lose_no_record(name, count):
    """Two processes that promote all the time leave a record of each move, unique numbers, the alias at the last."""
    pairs = [[train(constant), train(constant + 0.1)] for constant in (0.1, 0.3)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(promote_often, [name] * 2, pairs, [count] * 2))
    moves = registry(name).history()
    assert {move.why for move in moves} == {f"{pair[0]} {number}" for pair in pairs for number in range(count)}
    assert all(move.recorded for move in moves)
    assert all(move.replaced == before.version for before, move in pairwise(moves))
    client = registry(name).client
    tags = [tag for tag in client.get_registered_model(name).tags if tag.endswith(".0")]
    assert (len(client.search_model_versions(f"name='{name}'")), len(moves), len(tags)) == (4, *[2 * count] * 2)
    assert registry(name).production().version == moves[-1].version


def test_process_that_was_killed_is_passed_over(gate, monkeypatch, caplog):
    """A process that was killed while it had its turn delays the others only until its turn is stale; they say so."""
    gate.client.set_registered_model_tag(gate.name, f"{turns.TURN_TAG}killed", "1")  # which it leaves
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.5)
    monkeypatch.setattr(turns, "NOTICE_SECONDS", 0.1)
    with pytest.raises(Conflict, match="Another promotion or rollback is under way"):
        gate.rollback()
    assert "waiting for another promotion or rollback; one that was killed is passed over after 30 s" in caplog.text
    monkeypatch.setattr(turns, "WAIT_SECONDS", 30)
    monkeypatch.setattr(turns, "STALE_SECONDS", 1)
    assert gate.rollback().version == "1"
    assert not [tag for tag in gate.client.get_registered_model(gate.name).tags if tag.startswith(turns.TURN_TAG)]


def test_lost_turn_is_noticed(gate):
    """A process whose turn was taken as stale does not move the alias."""
    with turns.turn(gate.client, gate.name) as keep:
        keep()
        for tag in [tag for tag in gate.client.get_registered_model(gate.name).tags if tag.startswith(turns.TURN_TAG)]:
            gate.client.delete_registered_model_tag(gate.name, tag)
        with pytest.raises(Conflict, match="The turn to move the alias was lost"):
            keep()


def test_decision_is_made_again_when_production_changed(gate, monkeypatch):
    """A candidate is compared with the model that is in production when the alias moves, not with an earlier one."""
    judge, better = gate.judge, train(0.1)

    def interfere(*arguments):
        decision = judge(*arguments)
        monkeypatch.undo()
        registry(gate.name).promote(better)
        return decision

    monkeypatch.setattr(gate, "judge", interfere)
    decision = gate.promote(train(0.3))
    assert (decision.promoted, gate.production().run_id) == (False, better)
    assert decision.champion.metrics["mae"] == pytest.approx(0.1)


def test_aliases_have_records_of_their_own(gate):
    """A move of another alias of the model is not in the history of this one, and the numbers stay unique."""
    other = Registry(gate.name, "staging", evaluate=models.evaluate, held_out=HELD_OUT)
    assert (other.production(), other.history()) == (None, [])
    before = gate.history()
    assert other.promote(gate.runs[0]).promoted
    assert [(move.number, move.action) for move in other.history()] == [(1, "promoted")]
    assert gate.history() == before
    assert other.production().version != gate.production().version
