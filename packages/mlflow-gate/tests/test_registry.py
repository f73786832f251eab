"""The gate and its record on a real tracking server."""

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
from mlflow_gate import ConfigError, Conflict, Gate, ModelError, Registry, Scores, lock, log_learned
from mlflow_gate.keys import Keys, hash_rows
from mlflow_gate.record import blocking_rollback
from models import HELD_OUT, make_gate, train, train_models

HASH = hash_rows(HELD_OUT, Keys.of(HELD_OUT))


def promote_often(name: str, runs: list[str], count: int) -> None:
    """Promote two runs alternately; called in parallel processes."""
    gate = make_gate(name, comparison=None)
    gate.registry.load = cache(gate.registry.load)
    for number in range(count):
        gate.promote(runs[number % 2], force=True, why=f"{runs[0]} {number}")


def actions(gate: Gate) -> list[tuple[str, str]]:
    """Return action and version of each move."""
    return [(move.action, move.version) for move in gate.registry.history()]


def test_better_model_is_promoted_and_recorded(gate):
    """A better model moves the alias; the record has the reason, the user's `why`, and the scores of both models."""
    now = gate.registry.production()
    assert (now.version, now.run_id, now.move.number) == ("2", gate.runs[1], 2)
    assert (now.move.scores, now.move.replaced_scores) == ({"mae": 0.5}, {"mae": 1.0})
    assert (now.move.score, now.move.held_out["rows"]) == (f"0.5000 (rows {HASH})", len(HELD_OUT))
    assert now.move.why == f"try {gate.runs[1]}"
    assert now.move.reason == "promoted: mae 0.5000 beats the champion's 1.0000"
    assert gate.registry.production(now) is now
    assert gate.registry.load(now.model_uri).predict([[0]])[0] == 0.5


def test_files_of_a_model_are_deleted_with_it(gate, tmp_path, monkeypatch):
    """A model may read its files when it predicts: they are deleted when the model is garbage-collected."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = gate.registry.load(gate.registry.production().model_uri)
    assert list(tmp_path.glob("*/MLmodel"))
    assert model.predict([[0]])[0] == 0.5
    del model
    gc.collect()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("blocks", "promoted"), [(2, True), (3, False)])
def test_comparison_uses_rows_that_neither_model_was_trained_on(name, blocks, promoted):
    """The champion's training rows are left out; with fewer than six blocks the candidate is refused."""
    gate = make_gate(name)
    assert gate.promote(train(0.5, learned=range(1200 + 12 * blocks)), force=True, why="the first").forced
    decision = gate.promote(train(0.2))
    assert (decision.promoted, decision.candidate.rows) == ((True, 72) if promoted else (False, 96))
    assert decision.candidate.held_out == decision.champion.held_out
    assert ("too few: the model in production was trained on 36 of 96" in decision.words) != promoted


def test_candidate_trained_on_held_out_rows_is_refused(gate):
    """Training rows that span or contain held-out rows are refused, and so is a run that declares none."""
    for learned in ({"learned": [1, 1250], "span": True}, {"learned": [1, 1250]}, {"learned": None}):
        refused = gate.promote(train(0.2, **learned))
        assert "refused: held-out rows: it" in refused.reason
        assert ("log_learned" in refused.words) is (learned["learned"] is None)
    with pytest.raises(ConfigError, match="no training rows to declare"):
        train(0.2, learned=[])


def test_rows_of_another_population_are_different_rows(name):
    """Equal keys of two named populations are different rows; if the candidate names none, they are the same rows."""
    gate = make_gate(name)
    gate.promote(train(0.5, learned=range(2000), population="modelled"), force=True, why="the first")
    refused = gate.promote(train(0.3))
    assert "the model in production was trained on 96 of 96" in refused.reason
    assert "a `population` for each" in refused.words
    decision = gate.promote(train(0.2, population="measured"))
    assert (decision.promoted, decision.candidate.rows) == (True, len(HELD_OUT))


def test_models_of_one_run_are_told_apart(name, tmp_path):
    """Two models of one run are compared, promoted, traced and blocked separately."""
    gate, (run_id, worse, better), file = make_gate(name), train_models(1.0, 0.5), tmp_path / "decision.json"
    with pytest.raises(ModelError, match="Which model of the run is the candidate"):
        gate.promote(run_id)
    file.write_text(json.dumps(gate.promote(run_id, worse).as_dict()))
    assert gate.promote(run_id, better, dry_run=True).reason == "promoted: mae 0.5000 beats the champion's 1.0000"
    assert "Run the gate again" not in gate.registry.status(file)
    assert gate.promote(run_id, f"runs:/{run_id}/model1").production["version"] == "2"
    assert "version 1 was in production then" in gate.registry.status(file)
    assert gate.registry.production().evaluated.source == better
    assert [gate.registry.lineage(number)[2].facts["model"] for number in ("1", "2")] == [worse, better]
    assert gate.promote(run_id, better).reason.startswith("already in production")
    assert "mae gained over the model in production: -0.5" in gate.promote(run_id, worse).reason
    assert gate.registry.rollback().version == "1"
    assert gate.promote(run_id, worse).promoted
    assert "rolled back before: version 2" in gate.promote(run_id, better).reason


@pytest.mark.parametrize("alias", ["latest", "v1", "V12", " ", "a b", "a/b", "a:b", "ü!", "x" * 300, None])
def test_invalid_alias_or_name_is_an_error_before_anything_is_written(name, alias):
    """A name or an alias that MLflow does not allow is an error at the start."""
    for registry in (Registry(name, alias), Registry(" ", name)):
        for use in (Gate(registry, models.evaluate, HELD_OUT).promote, registry.lineage):
            with pytest.raises(ConfigError, match=r"(?s)MLflow does not allow the model name.*an alias of letters"):
                use("1")
    assert not make_gate(name).registry.client.search_registered_models(f"name LIKE '{name}%'")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"comparison": "mae"}, "`comparison` is not a Comparison"),
        ({"rules": {"two": lambda scores: (1.0, "<= 2")}}, "The rule two is invalid.*not enough values"),
        ({"rules": {"none": lambda scores: None}}, "The rule none is invalid.*NoneType"),
        ({"rules": {"own": lambda scores: 1 / 0}}, "The rule own is invalid.*ZeroDivisionError"),
        (
            {"evaluate": lambda *_: Scores({"mae": HELD_OUT["target"]})},
            "Invalid `Scores.metrics`.*not a single number",
        ),
        ({"evaluate": lambda *_: Scores({"mae": "0.5"})}, "Invalid `Scores.metrics`.*not a single number"),
        ({"evaluate": lambda *_: Scores(0.5)}, "Invalid `Scores.metrics`"),
        ({"evaluate": lambda *_: Scores({"mae": 1}, {1: 0.5, "1": 0.4})}, "Invalid `Scores.blocks`.*the same name"),
        ({"evaluate": lambda *_: 0.9}, "`evaluate` did not return Scores"),
        ({"refit": lambda run, uri: uri}, "`refit` returned an invalid value"),
        ({"refit": lambda run, uri: ("0" * 32, uri)}, "The run does not exist"),
        ({"refit": lambda run, uri: (run.info.run_id, "models:/m-other")}, "The run did not log the refit's model"),
        ({"rules": {"own": lambda scores: (1, "<= 2", "failed")}}, "The rule own is invalid.*neither True nor False"),
        ({"evaluate": lambda *_: Scores({"mae": 1}, period="2020")}, "Invalid `Scores.period`"),
        ({"evaluate": "gate.py"}, "`evaluate` or `refit` is not a function"),
        ({"time_limit": 0}, "Invalid time limit"),
        ({"held_out": iter(HELD_OUT.index)}, "held-out rows are an iterator"),
        ({"held_out": []}, "There are no held-out rows"),
    ],
)
def test_invalid_setting_is_an_error_before_anything_is_written(name, options, words):
    """A mistake in the gate's settings is an error for the first candidate too, and nothing is written."""
    with pytest.raises((ConfigError, ModelError), match=f"(?s){words}"):
        make_gate(name, **options).promote(train(0.5))
    assert not mlflow.MlflowClient().search_registered_models(f"name = '{name}'")


def test_champion_without_a_declaration_is_not_compared(name):
    """For an alias that was set by hand, training rows are declared later, or a user forces the candidate."""
    gate, (champion, uri, _) = make_gate(name), train_models(0.5, 0.6, learned=None)
    client, better = gate.registry.client, train(0.1)
    client.set_registered_model_alias(name, "production", mlflow.register_model(uri, name).version)
    refused = gate.promote(better)
    assert "refused: model in production: its run does not declare its training rows" in refused.reason
    assert f"with mlflow.start_run(run_id='{champion}'): log_learned(keys)" in refused.words
    assert gate.promote(better, dry_run=True, force=True, why="the first with the gate").promoted
    with mlflow.start_run(run_id=champion):
        log_learned(models.LEARNED)
    assert gate.promote(better).reason == "promoted: mae 0.1000 beats the champion's 0.5000"


def test_keys_of_reset_index_are_suspected(name):
    """If both training and held-out keys count from 0, the refusal suggests that `reset_index` made them."""
    renumbered, words = HELD_OUT.reset_index(drop=True), "the keys count from 0: if reset_index created them"
    gate = make_gate(name, held_out=renumbered)
    assert words in gate.promote(train(0.5)).words
    gate.promote(train(0.5), force=True, why="the first")
    assert words in gate.promote(train(0.4, learned=range(1200, 1210))).words
    assert words not in make_gate(name).promote(train(0.4, learned=range(1290))).words


def test_champion_is_evaluated_again(gate):
    """The model in production stays promoted, and the decision has its current scores."""
    moves = gate.registry.history()
    again = gate.promote(gate.runs[1])
    assert (again.promoted, again.run_id, again.production["version"]) == (True, gate.runs[1], "2")
    assert again.reason == f"already in production; re-evaluated on rows {HASH}: mae 0.5000, all rules pass"
    strict = make_gate(gate.registry.name, rules={"mae": {"max": 0.1}}).promote(gate.runs[1])
    assert strict.promoted
    assert "mae 0.5000, it would be refused: mae: 0.5" in strict.reason
    assert gate.registry.history() == moves


def test_rollback_blocks_the_model_temporarily(gate):
    """The model that was rolled back is refused until it is forced or another candidate is promoted."""
    now = gate.registry.rollback(why="bad at noon")
    assert (now.version, now.move.action, now.move.replaced) == ("1", "rolled back", "2")
    refused = gate.promote(gate.runs[1])
    assert (refused.promoted, refused.reason.partition(":")[0]) == (False, "refused")
    assert "bad at noon" in refused.reason
    forced = gate.promote(gate.runs[1], force=True, why="noon is mended")
    assert (forced.forced, forced.production["version"]) == (True, "2")
    assert forced.reason.startswith("forced; the gate's decision: refused: rolled back before")
    assert actions(gate) == [("promoted", "1"), ("promoted", "2"), ("rolled back", "1"), ("forced", "2")]
    assert len(gate.registry.client.search_model_versions(f"name='{gate.registry.name}'")) == 2
    gate.registry.rollback()
    assert gate.promote(train(0.8)).promoted
    assert gate.promote(gate.runs[1]).promoted


def test_later_version_is_restored(gate):
    """A move to a version that was rolled back is `restored`, and unblocks its model."""
    gate.registry.rollback()
    assert gate.registry.rollback(to="2", why="it was right after all").move.action == "restored"
    assert blocking_rollback(gate.registry.production().evaluated.source, gate.registry.history()) is None
    with pytest.raises(ModelError, match="Version 2 is already in production"):
        gate.registry.rollback(to="2")
    assert gate.registry.rollback().version == "1"
    with pytest.raises(ModelError, match=r"(?s)No version was in production before version 1.*--to 2"):
        gate.registry.rollback()


def test_move_by_hand_is_recorded(gate):
    """A move in MLflow's UI is recorded by `history(note=True)` or the next move, and can be rolled back."""
    gate.registry.client.set_registered_model_alias(gate.registry.name, "production", "1")
    move = gate.registry.history()[-1]
    assert (move.action, move.version, move.replaced, move.recorded) == ("by hand", "1", "2", False)
    assert [move.version for move in gate.registry.history(note=True) if move.recorded] == ["1", "2", "1"]
    gate.registry.client.set_registered_model_alias(gate.registry.name, "production", "2")
    gate.promote(train(0.1))
    assert actions(gate)[2:] == [("by hand", "1"), ("by hand", "2"), ("promoted", "3")]
    assert gate.registry.rollback().version == "2"
    gate.registry.client.delete_registered_model_alias(gate.registry.name, "production")
    assert gate.registry.production() is None
    assert gate.registry.rollback().version == "2"


def test_record_survives_deletions_and_foreign_tags(gate):
    """Record and rollbacks still work after runs and versions were deleted; foreign tags are ignored."""
    smaller = train(0.1)
    gate.promote(smaller)
    gate.registry.client.delete_run(gate.runs[1])
    gate.registry.client.delete_model_version(gate.registry.name, "1")
    foreign = {"move.000009.0": "{}", "move.000010.0": "no JSON", "move.x": "1", "move.000011.0": "[1]"}
    for tag, text in (foreign | {"move.000012.0": '{"done": 1}', "move.13": "{}", "move.14.x": "{}"}).items():
        gate.registry.client.set_registered_model_tag(gate.registry.name, f"mlflow_gate.{tag}", text)
    assert [move.scores["mae"] for move in gate.registry.history()] == [1.0, 0.5, 0.1]
    with pytest.raises(ModelError, match=r"(?s)Version 1 was never in production, or was deleted.*such as 2"):
        gate.registry.rollback(to="1")
    assert gate.registry.rollback(why="too small").version == "2"
    assert "deleted" in {link.kind: link.facts for link in gate.registry.lineage()}["run"]
    gate.registry.client.delete_model_version(gate.registry.name, "3")
    assert "too small" in gate.promote(smaller).reason
    with pytest.raises(ModelError, match="No version was in production before version 2"):
        gate.registry.rollback()


def test_status_compares_the_decision_of_the_working_tree(gate, tmp_path):
    """The status has version, commit and score, and says if another version was in production at the decision."""
    file = tmp_path / "decision.json"
    file.write_text(json.dumps(gate.promote(gate.runs[1]).as_dict()))
    assert "version 2 is in production: promoted 20" in (line := gate.registry.status(file))
    assert f"mae 0.5000 (rows {HASH}); this working tree's decision: already in production" in line
    assert "Run the gate again" not in line
    gate.registry.client.set_tag(gate.runs[1], "mlflow.source.git.dirty", "True")
    assert ", with uncommitted changes, mae" in gate.registry.status(file)
    gate.registry.rollback()
    status = make_gate(gate.registry.name, decision=file).registry.status()
    assert status.endswith("but version 2 was in production then. Run the gate again.")
    file.write_text("{")
    with pytest.raises(ConfigError, match="is not a decision"):
        gate.registry.status(file)


@pytest.mark.parametrize("variable", ["DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"])
def test_experiment_does_not_move_the_alias(gate, monkeypatch, variable):
    """In a DVC experiment the gate only decides."""
    monkeypatch.setenv(variable, "dusty-lamp")
    run_id = train(0.2)
    for options in ({}, {"force": True, "why": "now"}):
        decision = gate.promote(run_id, **options)
        assert (decision.promoted, decision.experiment, decision.production["version"]) == (True, "dusty-lamp", "2")
        assert decision.words.endswith("the alias does not move, because this is the DVC experiment dusty-lamp")
        assert gate.registry.production().version == "2"


def test_candidate_that_cannot_be_evaluated_is_an_error(gate):
    """A run without a model, a model of another run and force without a reason are errors."""
    with mlflow.start_run() as run:
        mlflow.log_metric("mae", 0.1)
    for attempt, words in [
        (lambda: gate.promote(run.info.run_id), "the run logged 0.*log_model"),
        (lambda: gate.promote(gate.runs[0], model_uri="models:/m-other"), "did not log the candidate's model"),
        (lambda: gate.promote(gate.runs[0], force=True, why=" "), "requires a reason"),
    ]:
        with pytest.raises((ConfigError, ModelError), match=f"(?s){words}"):
            attempt()
    failing = make_gate(gate.registry.name, evaluate=lambda model, rows: rows["no such column"])
    assert failing.promote(gate.runs[0]).reason.startswith("refused: loading: KeyError: 'no such column'")


def test_lineage_is_from_data_to_production(gate):
    """The lineage has each link with its facts; a deleted run is marked."""
    chain = gate.registry.lineage()
    links = {link.kind: link.facts for link in chain}
    assert list(links) == ["data", "commit", "run", "model", "decision", "production"]
    assert links["data"]["learned"] == "100 rows, 0 to 99, as the run declares"
    assert links["decision"]["replaced score"] == "1.0"
    assert gate.registry.lineage("2") == gate.registry.lineage(f"{gate.registry.name}/2") == chain
    gate.registry.client.delete_run(gate.runs[1])
    assert "mlflow runs restore" in gate.registry.lineage()[2].facts["deleted"]
    with pytest.raises(ModelError, match=r"Version 9 of .* does not exist"):
        gate.registry.lineage("9")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.soak)])
def test_parallel_promotions_are_all_recorded(name, count):
    """Two processes promote in parallel: each move has a record and a unique number; the alias is at the last one."""
    pairs = [[train(constant), train(constant + 0.1)] for constant in (0.1, 0.3)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(promote_often, [name] * 2, pairs, [count] * 2))
    moves = make_gate(name).registry.history()
    assert {move.why for move in moves} == {f"{pair[0]} {number}" for pair in pairs for number in range(count)}
    assert all(move.recorded for move in moves)
    assert all(move.replaced == before.version for before, move in pairwise(moves))
    client = make_gate(name).registry.client
    tags = [tag for tag in client.get_registered_model(name).tags if tag.endswith(".0")]
    assert (len(client.search_model_versions(f"name='{name}'")), len(moves), len(tags)) == (4, *[2 * count] * 2)
    assert make_gate(name).registry.production().version == moves[-1].version


def lock_tags(gate: Gate) -> list[str]:
    """Return the tags of the processes that hold the lock or wait for it."""
    tags = gate.registry.client.get_registered_model(gate.registry.name).tags
    return [tag for tag in tags if tag.startswith(lock.LOCK_TAG)]


def test_stale_lock_of_a_killed_process_is_skipped(gate, monkeypatch, caplog):
    """A process that was killed with the lock delays others only until the lock is stale; they log that they wait."""
    gate.registry.client.set_registered_model_tag(gate.registry.name, f"{lock.LOCK_TAG}killed", "1")
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.5)
    monkeypatch.setattr(lock, "NOTICE_SECONDS", 0.1)
    with pytest.raises(Conflict, match="Another promotion or rollback is in progress"):
        gate.registry.rollback()
    assert "waiting for another promotion or rollback; a killed process is skipped after 30 s" in caplog.text
    monkeypatch.setattr(lock, "WAIT_SECONDS", 30)
    monkeypatch.setattr(lock, "STALE_SECONDS", 1)
    assert gate.registry.rollback().version == "1"
    assert not lock_tags(gate)


def test_lost_lock_is_noticed(gate):
    """A process whose lock was removed as stale does not move the alias."""
    with lock.locked(gate.registry.client, gate.registry.name) as check:
        check()
        for tag in lock_tags(gate):
            gate.registry.client.delete_registered_model_tag(gate.registry.name, tag)
        with pytest.raises(Conflict, match="The lock on the alias was lost"):
            check()


def test_decision_is_repeated_if_the_champion_changed(gate, monkeypatch):
    """A candidate is compared with the champion at the time when the alias moves, not with an earlier one."""
    decide, better = gate._decide, train(0.1)

    def interfere(*arguments):
        decision = decide(*arguments)
        monkeypatch.undo()
        make_gate(gate.registry.name).promote(better)
        return decision

    monkeypatch.setattr(gate, "_decide", interfere)
    decision = gate.promote(train(0.3))
    assert (decision.promoted, gate.registry.production().run_id) == (False, better)
    assert decision.champion.metrics["mae"] == pytest.approx(0.1)


def test_rollback_during_a_decision_counts(gate, monkeypatch):
    """A model that was promoted and rolled back during its evaluation is refused, though the alias is the same."""
    decide, better = gate._decide, train(0.1)

    def interfere(*arguments):
        decision = decide(*arguments)
        monkeypatch.undo()
        gate.promote(better)
        gate.registry.rollback(why="a person says no")
        return decision

    monkeypatch.setattr(gate, "_decide", interfere)
    assert "a person says no" in gate.promote(better).reason
    assert gate.registry.production().version == "2"


def test_copied_version_has_the_identity_of_its_model(gate):
    """A version made by `copy_model_version` is the same model as the copied one."""
    client, name = gate.registry.client, gate.registry.name
    copy = client.copy_model_version(f"models:/{name}/2", f"{name}_copy")
    client.set_registered_model_alias(copy.name, "production", copy.version)
    model = gate.registry.production().evaluated
    assert Registry(copy.name).production().evaluated.source == model.source
    assert make_gate(copy.name).promote(model.run_id).reason.startswith("already in production")


def test_each_alias_has_its_own_record(gate):
    """Moves of another alias of the model are not in the history of this one."""
    other = Gate(Registry(gate.registry.name, "staging"), models.evaluate, HELD_OUT)
    assert (other.registry.production(), other.registry.history()) == (None, [])
    before = gate.registry.history()
    assert other.promote(gate.runs[0]).promoted
    assert [(move.number, move.action) for move in other.registry.history()] == [(1, "promoted")]
    assert gate.registry.history() == before
    assert other.registry.production().version != gate.registry.production().version
