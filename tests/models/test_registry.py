"""The registry, on a real tracking server: the alias, its record and its history, whoever does what simultaneously."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import psutil
import pytest
from mlflow.exceptions import MlflowException
from sklearn.linear_model import LinearRegression
from workplace import copy_tree, git

from workshop import fingerprint
from workshop.data import features, schema
from workshop.errors import ModelError, ParameterError, PromotionConflict, PromotionRefused
from workshop.models import gate, lineage, registry, storage, tracking
from workshop.models.scores import Scores
from workshop.parameters import Promote, read_stage
from workshop.settings import PRODUCTION

# Promotes one model after the other until it is killed; a fork each time saves the imports.
PROMOTE = """
import os, sys
from mlflow import MlflowClient
from workshop.models import gate, registry
from workshop.models.scores import Scores
registry.REGISTERED_MODEL = sys.argv[1]
candidates = [word.split(",") for word in sys.argv[2:]]
scores = Scores(0.7, 0.7, 0.7, 1.0, *[0.0] * 5, finite=True, hours=1)
decision = gate.Decision(True, "promoted: it is a test", (), scores, None)
registry.connect()
while True:
    pid = os.fork()
    if pid == 0:
        while True:
            for run_id, model_uri in candidates:
                registry.apply(decision, run_id, model_uri, registry.production(), "killed in between")
    print(pid, flush=True)
    os.waitpid(pid, 0)
"""
SCORES = Scores(0.7, 0.7, 0.7, 1.0, *[0.0] * 5, finite=True, hours=1)
LENIENT = Promote(
    min_gain=0.0, near_tie=0.002, alpha=0.05, min_r2_solar=-1.0, min_r2_wind=-1.0, max_night_solar_GW=100.0,
    max_latency_ms=60_000.0, max_size_MB=1000.0, max_bias_percent=100.0,
)  # fmt: skip
PROMOTED = gate.Decision(True, "promoted: it is a test", (), SCORES, None)


@pytest.fixture
def registered_model(candidates, monkeypatch):
    """The name of a registered model of this test's own."""
    yield from _named(monkeypatch)


@pytest.fixture
def of_the_pipeline(in_workplace, monkeypatch):
    """The same, on the servers of a clone in which the pipeline ran."""
    yield from _named(monkeypatch)


def _named(monkeypatch):
    name = "a_model_of_its_own"
    for module in (registry, lineage):
        monkeypatch.setattr(module, "REGISTERED_MODEL", name)
    yield name
    with contextlib.suppress(MlflowException):  # not every test makes it
        registry.connect().delete_registered_model(name)


@pytest.mark.parametrize(
    "kills",
    [pytest.param(10, marks=pytest.mark.walk), pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])],
)
def test_alias_never_dangles_when_the_gate_is_killed(registered_model, candidates, kills):
    """At any moment the version in production exists, has the whole record of its promotion, and loads."""
    dice, seen = random.Random(kills), set()
    with subprocess.Popen(
        [sys.executable, "-c", PROMOTE, registered_model, *candidates], stdout=subprocess.PIPE, text=True
    ) as gate:
        try:
            for number in itertools.count():
                if number >= kills and (len(seen) > 1 or number > 6 * kills):
                    break
                promoting = psutil.Process(int(gate.stdout.readline()))
                time.sleep(dice.uniform(0.1, 1.5 if seen else 1.5 + number / 2))  # a busy machine takes longer
                promoting.send_signal(signal.SIGKILL)
                promoting.wait(5)
                serving = registry.production()
                if serving is None:
                    assert not seen, "the alias was there, and is gone"
                    continue
                seen.add(serving.version)
                moves = registry.history()
                assert [move.number for move in moves] == list(range(1, len(moves) + 1))
                assert all(move.replaced == before.version for before, move in itertools.pairwise(moves))
                assert (moves[-1].version, moves[-1].action) == (serving.version, registry.PROMOTED)
                assert all(move.when and move.who and move.reason and move.scores and move.run for move in moves)
                assert storage.load(serving.model_uri).kind in ("sklearn", "keras")
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(gate.pid).children():
                    child.kill()
            os.kill(gate.pid, signal.SIGKILL)
    assert len(seen) > 1


def pipeline_model(place, stage: str = "train_rf") -> tuple[str, str]:
    """Return the run and the address of a model that the pipeline logged."""
    trained = json.loads((place.pipeline / "results" / f"{stage}.json").read_text())
    return trained["run_id"], trained["model_uri"]


# -- history and rollback ----------------------------------------------------------------------------------------------
def promote(candidate: str, why: str = "a test", decision: gate.Decision = PROMOTED) -> str:
    """Promote a logged model over what is there; return its version."""
    run_id, model_uri = candidate.split(",")
    return registry.apply(decision, run_id, model_uri, registry.production(), why).version


def moves_of_history() -> list[tuple[str, str, str | None]]:
    """What the history says: action, version and what it replaced."""
    return [(move.action, move.version, move.replaced) for move in registry.history()]


def test_rollback_goes_one_step_further_back_each_time(registered_model, candidates):
    """Until the first; what was rolled back from comes back by its number alone, and later steps start from there."""
    assert registry.history() == []
    promote(candidates[0], "the first")
    promote(candidates[1], "the second")
    promote(candidates[0])
    before = registry.production()
    assert before.learned_from == "modelled sample"
    assert registry.rollback(why="worse at noon").version == "2"
    assert registry.production().why == "worse at noon"
    assert registry.rollback().version == "1"
    assert registry.production().since >= before.since
    with pytest.raises(ModelError, match="Nothing was in production before version 1") as caught:
        registry.rollback()
    assert caught.value.expected == "one of the versions 2, 3"
    assert promote(candidates[1]) == "4"
    assert registry.rollback("2").version == "2"
    assert registry.rollback().version == "4"
    assert moves_of_history() == [
        ("promoted", "1", None),
        ("promoted", "2", "1"),
        ("promoted", "3", "2"),
        ("rolled back", "2", "3"),
        ("rolled back", "1", "2"),
        ("promoted", "4", "1"),
        ("rolled back", "2", "4"),
        ("rolled back", "4", "2"),
    ]
    moves = registry.history()
    assert [move.why for move in moves[:4]] == ["the first", "the second", "a test", "worse at noon"]
    assert all(move.when and move.who and move.run and move.scores["r2"] == 0.7 for move in moves)


def test_rollback_says_what_is_possible(registered_model, candidates):
    """Nothing before, the one that serves, one that never did, and one that is deleted: each in words."""
    with pytest.raises(ModelError, match="Nothing was ever in production"):
        registry.rollback()
    promote(candidates[0])
    with pytest.raises(ModelError, match="Nothing was in production before"):
        registry.rollback()
    promote(candidates[1])
    promote(candidates[0])
    with pytest.raises(ModelError, match="Version 3 is in production already"):
        registry.rollback("3")
    with pytest.raises(ModelError, match="Version 17 was never in production"):
        registry.rollback("17")
    client = registry.connect()
    client.delete_model_version(registered_model, "2")
    with pytest.raises(ModelError, match="Version 2 was never in production, or was deleted") as caught:
        registry.rollback("2")
    assert caught.value.next_step == "workshop rollback --to 1"
    # The version in production is deleted, and the alias with it: the first one can still come back.
    client.delete_model_version(registered_model, "3")
    assert registry.production() is None
    assert registry.rollback().version == "1"
    assert moves_of_history()[-1] == ("rolled back", "1", None)


def test_rollback_leaves_the_alias_when_the_version_does_not_load(registered_model, candidates, model_file):
    """A version whose files are gone does not come back; the one that works stays."""
    for candidate in candidates:
        promote(candidate)
    file = model_file(candidates[0])
    file.rename(file.with_name("elsewhere"))
    try:
        with pytest.raises(ModelError):
            registry.rollback()
    finally:
        file.with_name("elsewhere").rename(file)
    assert registry.production().version == "2"
    assert len(registry.history()) == 2


def test_history_knows_moves_by_hand(registered_model, candidates):
    """The alias was moved in MLflow's own page: the history says so, with its run's R2, also after the next move."""
    for candidate in candidates:
        promote(candidate)
    registry.connect().set_registered_model_alias(registered_model, PRODUCTION, "1")
    assert moves_of_history()[-1] == ("by hand", "1", "2")
    assert registry.production().since is None
    r2 = registry.connect().get_run(candidates[0].split(",")[0]).data.metrics["r2"]
    assert registry.history()[-1].scores["r2"] == registry.production().r2 == round(r2, 6)
    promote(candidates[1])
    assert moves_of_history()[-2:] == [("by hand", "1", "2"), ("promoted", "3", "1")]
    assert [move.number for move in registry.history()] == [1, 2, 3, 4]


def test_forced_promotion_is_recorded_as_such(registered_model, candidates):
    """A refused candidate needs force, and history and version tell what the gate had said."""
    rule = gate.Rule("R2 of wind power", 0.1, ">= 0.5", passed=False)
    refused = gate.Decision(False, f"refused: {rule}", (rule,), SCORES, None)
    with pytest.raises(PromotionRefused):
        promote(candidates[0], decision=refused)
    promote(candidates[0], "the client wants it", gate.force(refused))
    (move,) = registry.history()
    assert (move.action, move.why) == ("forced", "the client wants it")
    assert "R2 of wind power: 0.1" in move.reason
    assert [rule["passed"] for rule in move.rules] == [False]


def test_two_promotions_at_once_make_one_winner(registered_model, candidates):
    """Two decide against the same champion; one is promoted, the other is told which version came first."""
    promote(candidates[0])
    champion, together = registry.production(), threading.Barrier(2)

    def gate(candidate: str) -> str:
        together.wait(60)
        try:
            return registry.apply(PROMOTED, *candidate.split(","), champion, "simultaneously").version
        except PromotionConflict as error:
            return error.value

    with ThreadPoolExecutor(2) as pool:
        winner, loser = sorted(pool.map(gate, candidates))
    assert winner == "2"
    assert loser.startswith("version 2, since ")
    assert moves_of_history() == [("promoted", "1", None), ("promoted", "2", "1")]


@pytest.mark.parametrize("asker", ["person", "pipeline"])
def test_promote_tells_a_person_of_a_conflict_and_asks_again_for_a_pipeline(
    of_the_pipeline, in_workplace, tmp_path, monkeypatch, asker
):
    """A promotion between verdict and move: a pipeline's candidate is compared with that version in turn."""
    from click.testing import CliRunner

    from workshop.cli.models import promote as command

    run_id, model_uri = pipeline_model(in_workplace, "train_gradient_boosting")
    worse = ",".join(pipeline_model(in_workplace, "train_linreg"))
    evaluate_candidate = registry.evaluate_candidate

    def evaluate_slowly(*arguments):
        verdict = evaluate_candidate(*arguments)
        if not registry.history():
            promote(worse, "in between")
        return verdict

    monkeypatch.setattr(registry, "evaluate_candidate", evaluate_slowly)
    if asker == "pipeline":
        held_out = schema.read(in_workplace.pipeline / "data" / "test.parquet")
        policy = read_stage(in_workplace.pipeline / "params.yaml", "promote")
        decision, _ = registry.promote(run_id, model_uri, held_out, policy)
        assert decision.learned_from == "modelled sample"
        assert moves_of_history() == [("promoted", "1", None), ("promoted", "2", "1")]
    else:
        file = tmp_path / "candidate.json"
        file.write_text(json.dumps({"run_id": run_id, "model_uri": model_uri}))
        done = CliRunner().invoke(command, [str(file)])
        assert done.exit_code == 1
        assert "has changed since the decision" in done.output
        assert moves_of_history() == [("promoted", "1", None)]


def log_model_of(hours, folder):
    """Log a linear model of ``hours``; return its run and its address."""
    file = folder / f"{len(hours)}.parquet"
    hours.to_parquet(file)
    model = LinearRegression().fit(features.features(hours), features.targets(hours))
    with tracking.start_run("train_linreg", data=[file], learned_from=file) as run:
        return run.info.run_id, storage.log_model(model, hours.head())


@pytest.mark.filterwarnings("ignore:Operation with range")  # in MLflow
@pytest.mark.parametrize(("learned", "weeks"), [(1200, 10), (2500, None)])
def test_candidate_is_judged_on_hours_that_neither_model_learned_from(
    registered_model, candidates, small_hours, tmp_path, learned, weeks
):
    """A champion that learned from part of the held-out hours is compared on the later ones; too few are a refusal."""
    hours = pd.concat(small_hours, ignore_index=True)
    hours.attrs = small_hours[0].attrs
    registry.apply(PROMOTED, *log_model_of(hours[:learned], tmp_path), None, "it learned more")
    decision, _ = registry.evaluate_candidate(*log_model_of(hours[:900], tmp_path), hours[900:], LENIENT)
    rules = [rule.name for rule in decision.rules]
    if weeks is None:
        assert not decision.promoted
        assert "too few: it learned from 2014-06-01T00:00:00Z" in decision.reason
    else:
        assert gate.UNLEARNED not in rules
        assert decision.candidate.period[0] == decision.champion.period[0] == "2014-07-21T00:00:00Z"
        assert len(decision.candidate.weekly_mae_GW) == weeks


@pytest.mark.filterwarnings("ignore:Operation with range")  # in MLflow
def test_experiment_of_dvc_decides_and_moves_nothing(registered_model, candidates, small_hours, tmp_path, monkeypatch):
    """Inside `dvc exp run` the gate's verdict is returned, the alias stays, and runs carry the experiment's name."""
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "58dabc1")
    monkeypatch.setenv("DVC_EXP_NAME", "less-data")
    _, hours = small_hours
    candidate = log_model_of(hours[:500].assign(solar_GW=hours["solar_GW"] + 1.0), tmp_path)
    decision, production = registry.promote(*candidate, hours[500:], LENIENT)
    assert production is registry.production() is None
    assert (decision.promoted, decision.experiment) == (False, "less-data")
    assert decision.reason.endswith("its verdict: promoted: every rule passed and nothing was in production yet")
    with tracking.start_run("train_rf") as run:
        assert run.data.tags[tracking.EXPERIMENT_TAG] == "less-data"
    forced = gate.force(decision)
    assert registry.apply(forced, *candidate, None, "a person decided").version == "1"


def test_rollback_loads_the_model_before_the_lock(registered_model, candidates, monkeypatch):
    """While a slow store is read another promotion may happen; the rollback then says so instead of undoing it."""
    for candidate in candidates:
        promote(candidate)
    load = storage.load

    def load_slowly(*arguments):
        promote(candidates[0], "meanwhile")
        return load(*arguments)

    monkeypatch.setattr(storage, "load", load_slowly)
    with pytest.raises(PromotionConflict, match="has changed since"):
        registry.rollback()
    assert [version for _, version, _ in moves_of_history()] == ["1", "2", "3"]


def test_reason_that_cannot_be_kept_is_an_error_before_anything_happens(registered_model, candidates):
    """Too long for a tag of MLflow's: in words, and no version is made; bytes that are no text are replaced."""
    with pytest.raises(ParameterError, match="too long"):
        promote(candidates[0], "a" * (registry.REASON_CHARACTERS + 1))
    assert registry.production() is None
    assert promote(candidates[0], "tea\udce9") == "1"
    assert registry.production().why == "tea?"


def test_judge_wants_the_run_that_logged_the_model(registered_model, candidates, small_hours):
    """Another run's tags tell what another model learned from: such a pair is no candidate."""
    _, held_out = small_hours
    (run_id, _), (_, model_uri) = (candidate.split(",") for candidate in candidates)
    with pytest.raises(ModelError, match="logged by another run"):
        registry.evaluate_candidate(run_id, model_uri, held_out, LENIENT)


# -- lineage -----------------------------------------------------------------------------------------------------------
def test_lineage_leads_from_the_data_to_the_alias(in_workplace):
    """Every link of the model in production is known, and holds."""
    links = lineage.check(lineage.trace())
    assert [link.kind for link in links] == list(lineage.KINDS)
    assert [link.name for link in links if link.trouble or not link.known] == []
    facts = {link.kind: link.facts for link in links}
    hashes = {f"md5 of {name}" for name in ("train.parquet", "test.parquet")}
    assert hashes <= facts["data"].keys()
    assert facts["data"]["source"] == "sample (modelled)"
    assert facts["data"]["period"].startswith("2013-01-01T00:00:00Z to 2016-")
    assert facts["stage"]["coverage"] == "0.8"
    assert facts["commit"]["uncommitted changes"] == "no"
    version = registry.production().version
    assert lineage.trace(facts["run"]["id"])[-3:] == lineage.trace(f"wind_solar/{version}")[-3:]
    report = in_workplace.pipeline / "results" / "report.html"
    if "wind_solar/" in report.read_text(encoding="utf-8"):
        assert lineage.trace(str(report)) == lineage.trace(version)


def test_lineage_accepts_a_later_commit_of_the_code_that_ran(tmp_path, monkeypatch):
    """Code that runs first and is committed later has a sound chain from the commit on, also an amended one."""
    root = copy_tree(tmp_path)
    monkeypatch.setenv("WORKSHOP_ROOT", str(root))
    commit, stage, pipeline = git(root, "rev-parse", "HEAD").strip(), "train_rf", root / "4_pipeline"
    problem = root / "workshop" / "problem.py"
    problem.write_text(problem.read_text().replace("(51.0, 10.4)", "(48.0, 11.5)"))
    ran = fingerprint.fingerprint(fingerprint.code_of(fingerprint.stages(pipeline)[stage], pipeline, root))
    links = [
        lineage.Link("commit", commit[:10], {"commit": commit}),
        lineage.Link("code", ran, {"stage": stage, "fingerprint": ran}),
    ]

    def trouble() -> str | None:
        return lineage.check(links)[1].trouble

    assert "neither the commit nor a later one has this code" in trouble()
    git(root, "commit", "--quiet", "--all", "--message", "Another place")
    assert trouble() is None
    git(root, "commit", "--quiet", "--amend", "--message", "Munich")
    assert trouble() is None
    git(root, "reset", "--quiet", "--hard", commit)
    assert trouble() is not None


def test_lineage_names_what_is_broken(of_the_pipeline, in_workplace):
    """Data that is gone, a run that was deleted, a notebook, a model and a tag that were changed: each is named."""
    import mlflow

    run_id, model_uri = pipeline_model(in_workplace)
    promote(f"{run_id},{model_uri}")
    client = registry.connect()

    def broken():
        return {link.kind: link.trouble for link in lineage.check(lineage.trace("1")) if link.trouble}

    assert broken() == {}
    (notebook,) = client.list_artifacts(run_id, "notebook")
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/{notebook.path}")
    test = in_workplace.pipeline / "data" / "test.parquet"
    kept = in_workplace.root / ".dvc" / "cache"
    (model,) = in_workplace.settings.artifacts.rglob(f"{model_uri[8:]}/artifacts/model.skops")
    content = model.read_bytes()
    name = "workshop.learned.last"
    with contextlib.ExitStack() as undo:
        undo.callback(client.set_tag, run_id, name, client.get_run(run_id).data.tags[name])
        client.set_tag(run_id, name, "2013-01-02T00:00:00Z")  # the gate kept what it was
        undo.callback(client.log_text, run_id, text, notebook.path)
        client.log_text(run_id, text + " ", notebook.path)
        undo.callback(client.restore_run, run_id)
        client.delete_run(run_id)
        undo.callback(model.write_bytes, content)
        model.write_bytes(b"{")
        for place in (test, kept):
            away = place.with_name("away")
            undo.callback(away.rename, place)
            place.rename(away)
        troubles = broken()
    assert set(troubles) == {"data", "notebook", "run", "model", "decision"}
    assert "test.parquet" in troubles["data"]
    assert "restore" in troubles["run"]
    assert name in troubles["decision"]
    assert broken() == {}


def test_lineage_of_versions_by_other_hands(registered_model, candidates):
    """A foreign place, a run that is none, a record that is junk or in part: a chain, and what is amiss."""
    run_id, model_uri = candidates[0].split(",")
    client = registry.connect()
    client.create_registered_model(registered_model)
    ours = {"source": model_uri, "run_id": run_id, "model_id": model_uri.removeprefix("models:/")}
    client.create_model_version(registered_model, source="s3://bucket/model", run_id="../x")
    client.create_model_version(registered_model, **ours, tags={registry.MOVE_TAG + "000001": "{junk"})
    for version in ("1", "2"):
        client.set_registered_model_alias(registered_model, PRODUCTION, version)
        assert registry.production().version == version
        links = lineage.check(lineage.trace(version))
        assert [link.kind for link in links] == list(lineage.KINDS)
        troubles = {link.kind: link.trouble for link in links if link.trouble}
        assert set(troubles) == {"model" if version == "1" else "data"}  # the table is in no pipeline's folder
    assert not links[-2].known


@pytest.mark.parametrize(
    ("subject", "error", "text"),
    [
        ("winter", ParameterError, "neither a model, nor a run, nor a prediction"),
        ("99", ModelError, "There is no version 99"),
        ("9" * 20, ParameterError, "neither a model, nor a run, nor a prediction"),
        ("a" * 5000, ParameterError, "neither a model, nor a run, nor a prediction"),
        ("f" * 32, ModelError, "There is no such run"),
    ],
)
def test_lineage_says_what_it_does_not_know(in_workplace, subject, error, text):
    """A name that leads nowhere is told in words."""
    with pytest.raises(error, match=text):
        lineage.trace(subject)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('<meta name="workshop.model" content="wind_solar/3">', "3"),
        ("utc_timestamp,solar_GW,wind_GW,model\n2016-01-01T00:00Z,0,1,wind_solar/12\n", "12"),
        ('{"coverage": 0.8, "model": {"name": "wind_solar", "run_id": "ab", "version": "4"}}', "4"),
        ('{"production": {\n "name": "wind_solar",\n "version": "5"}}', "5"),
        ('{"model": "wind_solar"}', None),
        ("wind_solar/1 and wind_solar/2", None),
    ],
)
def test_lineage_finds_the_model_in_what_it_said(tmp_path, text, version):
    """A report, a table of predictions, an answer of the dashboard, the gate's decision; none, or two, is an error."""
    file = tmp_path / "said"
    file.write_text(text)
    with contextlib.nullcontext() if version else pytest.raises(ModelError):
        assert lineage.version_in(file) == version
