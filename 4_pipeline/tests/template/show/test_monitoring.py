"""Monitoring: errors compared with baselines, the state, and inputs outside the training range."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from forecast import problem
from forecast.raw.prepare import load_or_make
from forecast.show import monitoring
from forecast.show.monitoring import BASELINES
from forecast.table.features import installed
from forecast.table.schema import FEATURES, TARGETS
from places import PROJECT


@pytest.fixture(scope="module")
def frame(germany_csv):
    """Two years of the sample."""
    return load_or_make(germany_csv).tail(2 * 8766).reset_index(drop=True)


@pytest.fixture
def biased(frame):
    """A processed frame, and predictions that are 10 % too low."""
    return frame, frame[TARGETS] * 0.9


def qualities(frame, predicted, width: float = 0.0, baselines=None):
    """Return the qualities with a band of ``width`` GW around the measured values."""
    band = frame[TARGETS] - width, frame[TARGETS] + width
    return monitoring.qualities(frame, predicted, band, 0.8, baselines or {}, 5.0)


def test_errors_are_those_of_the_rows(biased):
    """Bias, absolute and relative, and mean absolute error as a share of the capacity, for every target."""
    frame, predicted = biased
    for quality, target in zip(qualities(frame, predicted), TARGETS, strict=True):
        assert quality.bias == pytest.approx(-0.1 * frame[target].mean())
        assert quality.bias_percent == pytest.approx(-10)
        share = 0.1 * frame[target].mean() / installed(frame)[target].mean()
        assert quality.nmae_percent == pytest.approx(100 * share)
        assert "(10.0 %) too low" in quality.bias_text


@pytest.mark.parametrize(
    ("factor", "coverage", "state"),
    [
        (0.96, 0.8, "good"),
        (0.93, 0.8, "watch"),
        (1.07, 0.8, "watch"),
        (0.85, 0.8, "bad"),
        (1, 0.65, "watch"),
        (1, 0, "bad"),
    ],
)
def test_state_follows_bias_and_coverage(frame, factor, coverage, state):
    """A bias of 5 % and a coverage within ten points are good, more than twice that is bad; the worst target counts."""
    is_inside = pd.Series(np.random.default_rng(0).random(len(frame)) < coverage)
    low = frame[TARGETS].sub(1).where(is_inside, frame[TARGETS] + 1)
    each_target = monitoring.qualities(frame, frame[TARGETS] * factor, (low, frame[TARGETS] + 2), 0.8, {}, 5.0)
    assert [each.coverage for each in each_target] == pytest.approx([coverage] * len(TARGETS), abs=0.02)
    assert monitoring.worst_state(each_target) == state


@pytest.mark.parametrize(("limit", "state"), [(12, "good"), (6, "watch"), (4, "bad")])
def test_limit_of_the_bias_is_that_of_the_gate(frame, tmp_path, monkeypatch, limit, state):
    """`promote.max_bias_percent` in params.yaml is the limit for `good`, and part of the rule in words."""
    committed = (PROJECT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(re.sub(r"(max_bias_percent): .*", rf"\1: {limit}.0", committed))
    (tmp_path / "dvc.yaml").touch()  # a pipeline's folder
    monkeypatch.chdir(tmp_path)
    assert monitoring.max_bias_percent() == limit
    each_target = monitoring.qualities(frame, frame[TARGETS] * 0.9, None, None, {}, monitoring.max_bias_percent())
    assert {each.state for each in each_target} == {state}
    assert f"at most {limit} % of the mean" in monitoring.state_rule(limit, band=False)


def test_model_that_is_worse_than_a_baseline_is_bad(frame):
    """Even with a small bias."""
    alternating = frame[TARGETS] + np.where(np.arange(len(frame)) % 2, 3.0, -3.0)[:, None]
    each_target = monitoring.qualities(frame, alternating, None, None, {"perfect": frame[TARGETS]}, 5.0)
    assert {each.state for each in each_target} == {"bad"}
    assert "band" not in monitoring.summarize(each_target)


def test_baselines_do_not_use_the_row_itself(frame):
    """One is the day before (missing hours: NaN), the other the mean by month and hour over the training data."""
    until = frame["utc_timestamp"].iloc[len(frame) // 2]
    baselines = monitoring.baselines(frame, until.isoformat())
    assert tuple(baselines) == BASELINES
    before, means = (baseline.set_axis(frame["utc_timestamp"]) for baseline in baselines.values())
    by_time = frame.set_index("utc_timestamp")[TARGETS]
    assert before.iloc[:24].isna().all(axis=None)
    pd.testing.assert_frame_equal(before.iloc[24:], by_time.shift(freq="D").reindex(before.index[24:]))
    hour = by_time.index[-1]
    training = by_time[:until]
    same = training[(training.index.month == hour.month) & (training.index.hour == hour.hour)]
    assert means.loc[hour].tolist() == pytest.approx(same.mean().tolist(), nan_ok=True)


def test_inputs_outside_the_training_range_are_counted(frame):
    """The share of later rows; nothing if the training data are not known."""
    until = frame["utc_timestamp"].iloc[len(frame) // 2]
    later = frame["utc_timestamp"] > until
    name = FEATURES[0]
    stormy = frame.assign(**{name: frame[name].where(~later, 99.0)})
    assert monitoring.input_ranges(stormy, until.isoformat())[name][2] == 1
    assert monitoring.input_ranges(stormy, None) == {}
    assert set(monitoring.input_ranges(stormy, until.isoformat())) == {each.name for each in problem.INPUTS}


def test_training_overlap_names_refit_and_evaluated_model(frame):
    """If the evaluated model predicts the training data of its refit, the text names both."""
    stamps = frame["utc_timestamp"]
    middle, last = (stamps.iloc[row].isoformat() for row in (len(frame) // 2, -1))
    later = frame[stamps > middle]
    words = monitoring.training_overlap(later, middle, last)
    assert "The evaluated model was trained on hours up to" in words
    earlier = frame[stamps <= middle]
    assert monitoring.training_overlap(earlier, middle, last) == monitoring.training_overlap(earlier, middle)
    words = monitoring.training_overlap(later, stamps.iloc[0].isoformat(), middle)
    assert words.startswith(f"The refit in production was trained on hours up to {pd.Timestamp(middle):%d %b %Y}")
    both = monitoring.training_overlap(frame, stamps.iloc[0].isoformat(), middle)
    assert f"The refit predicts the {len(later):,} later hours" in both


def test_r2_of_a_baseline_ignores_missing_predictions(frame):
    """The first day has no day before it, so it does not count."""
    baselines = monitoring.baselines(frame, None)
    r2 = monitoring.baseline_r2(frame, baselines | {"measured": frame[TARGETS]})
    assert r2["measured"] == 1
    assert all(0 < r2[name] < 0.9 for name in BASELINES)


def _decision(candidate, champion, *, promoted=False, version="7", **fields):
    """Return a decision of the gate with the mean absolute wind errors of candidate and champion."""
    scores = {"candidate": {"metrics": {"mae_wind": candidate}}, "champion": {"metrics": {"mae_wind": champion}}}
    rules = [{"name": "R2 gained", "passed": promoted}, {"name": "loading", "passed": True}]
    return {"promoted": promoted, "findings": rules, "production": {"version": version}} | scores | fields


FRESH = "train a new candidate with `dvc repro`"
DECISIONS = [
    ({}, FRESH),
    (_decision(1.0, 2.0, version="6"), FRESH),
    (_decision(1.0, 2.0, experiment="tidal-ruin"), FRESH),
    (_decision(1.0, 2.0), "consider `mlflow-gate promote --force --why REASON`"),
    (_decision(2.0, None), "wait for more hours or change the model"),
    (_decision(1.0, 2.0, promoted=True), "wait for more hours or change the model"),
]


@pytest.mark.parametrize(("decision", "step"), DECISIONS)
@pytest.mark.parametrize(("factor", "state"), [(1, "good"), (0.93, "watch"), (0.85, "bad")])
def test_next_step_depends_on_state_and_last_decision(frame, decision, step, factor, state):
    """A decision about another version is ignored; forcing is suggested only for a candidate with smaller errors."""
    wind = monitoring.qualities(frame, frame[TARGETS] * factor, None, None, {}, 5.0)[1:]
    text = monitoring.next_step(wind, decision, "7")
    assert f", over 8 weeks: {state}." in text
    assert ("refused the last candidate (R2 gained)" in text) == (step != FRESH and not decision["promoted"])
    assert (f"(results/findings.json). If the data are right, {step}" in text) == (state == "bad")
