"""One small run on the data that params.yaml names: raw file, table, a model, the gate's decision, the dashboard."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forecast import problem
from forecast.govern.gate import rules
from forecast.learn.evaluation import SIGNATURES, evaluate
from forecast.learn.models import CapacityFactorRegressor
from forecast.learn.storage import LoadedModel
from forecast.raw import sources
from forecast.raw.prepare import prepare
from forecast.raw.validation import validate
from forecast.table import schema
from forecast.table.features import derive, inputs, targets
from forecast.table.split import by_alternate_weeks, split_by_time
from forecast.terms.parameters import FILE, read_stage
from mlflow_gate import Comparison, Evaluation, Move, Production, decide
from places import PROJECT
from sklearn.ensemble import HistGradientBoostingRegressor


def section(stage: str):
    """Return the parameters of a stage."""
    return read_stage(PROJECT / FILE, stage)


def way_to(file: str, folder: Path = PROJECT) -> str:
    """Return the command that restores or creates a missing own file."""
    if (folder / f"{file}.dvc").exists():
        return f"`dvc pull {file}` brings it"
    is_output = file in (folder / "dvc.yaml").read_text()
    return "`dvc repro fetch` makes it" if is_output else f"put it there, then type `dvc add {file}`"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The processed table and its findings; skips if the data are not on this machine."""
    options, folder = section("fetch"), tmp_path_factory.mktemp("raw")
    if options.source == "csv" and not (PROJECT / options.csv.file).exists():
        pytest.skip(f"{options.csv.file} is missing: {way_to(options.csv.file)}")
    if options.source == "opsd":
        if not (PROJECT / "data" / "raw").exists():
            pytest.skip("data/raw is missing: `dvc repro fetch` downloads it")
        shutil.copytree(PROJECT / "data" / "raw", folder, dirs_exist_ok=True)  # nothing is downloaded again
    sources.fetch(options.source, folder, options, base=PROJECT)
    return prepare(folder, **vars(section("prepare")))


@pytest.fixture(scope="module")
def evaluated(table):
    """A small model with a band, fitted on the training rows; the test weeks; the model's scores on them."""
    train, held_out = split_by_time(table[0], section("split").test_fraction)
    trees = HistGradientBoostingRegressor(max_iter=20, random_state=0)
    model = LoadedModel.of(CapacityFactorRegressor(trees, band=trees, folds=2).fit(inputs(train), targets(train)))
    model, test = replace(model, signature=SIGNATURES[1]), by_alternate_weeks(held_out)[1]
    return model, test, evaluate(model, test)


def decision_on(scores, **changes):
    """Return the gate's decision on scores with some fields changed, without a champion."""
    policy = section("promote")
    comparison = Comparison("r2", **policy.model_dump(include={"min_gain", "near_tie", "alpha", "max_gain"}))
    return decide(Evaluation(replace(scores, **changes)), None, rules(policy), comparison)


def test_data_become_a_valid_table(table):
    """The table is complete and within range, and the checks of the data have results."""
    frame, findings = table
    assert schema.check(frame) is frame
    assert np.isfinite(derive(frame)).all(axis=None)
    assert validate(frame, findings).checks


def test_gate_refuses_a_model_beyond_a_limit(evaluated):
    """A metric below its minimum or above its maximum is refused, with the rule and what is wrong."""
    scores, limits = evaluated[2], rules(section("promote"))
    assert np.isfinite([*scores.metrics.values()]).all()
    assert len(decision_on(scores).findings) >= len(limits)
    cases = [({"facts": {"signature": "anything"}}, "inputs and outputs", "log_model")]
    for metric, rule in limits.items():
        for end, step, words in (
            ((rule.min, -0.01, rule.low), (rule.max, 0.01, rule.high)) if metric in scores.metrics else ()
        ):
            if end is not None:
                cases.append(({"metrics": scores.metrics | {metric: end + step}}, rule.name, words))
    for changes, name, words in cases:
        decision = decision_on(scores, **changes)
        assert not decision.promoted
        assert name in [finding.name for finding in decision.findings if not finding.passed]
        assert words in decision.words


@pytest.mark.skipif(not (PROJECT / "dashboard" / "app.py").exists(), reason="the dashboard was deleted")
def test_pages_of_the_dashboard_render(evaluated):
    """With data and a model in production, the page of each module has the title of the problem."""
    from dashboard import layout
    from dashboard.follower import Snapshot
    from dashboard.pages import PAGES, PATHS
    from dashboard.predictions import Champion

    model, test, _ = evaluated
    move = Move(1, "promoted", "1", when="2026-11-20T10:00:00+00:00", scores={"r2": 0.9})
    production = Production(name=problem.REGISTERED_MODEL, version="1", run_id="a1", model_uri="models:/a/1", move=move)
    served = {"frame": test, "predictions": model.predict_with_band(test), "max_bias_percent": 5.0}
    files = (PROJECT / "dashboard" / "pages").glob("[!_]*.py")
    assert {file.stem for file in files} == {page.__name__.rpartition(".")[2] for page in PAGES}
    for path in PATHS:
        assert problem.TITLE in str(layout.whole_page(Snapshot(True, Champion(production, model), **served), path))
