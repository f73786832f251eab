"""The rules of the problem, and what holds for any policy: pure, from scores to verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest
from forecast.govern.gate import rules
from forecast.learn.evaluation import SIGNATURES
from forecast.parameters import Promote
from hypothesis import given
from hypothesis import strategies as st
from mlflow_gate import Contest, Evaluation, Scores, decide

POLICY = Promote(
    min_gain=0.0, near_tie=0.002, alpha=0.05, min_r2={"solar": 0.5, "wind": 0.5}, max_night={"solar": 1.0},
    max_latency_ms=500.0, max_size_MB=200.0, max_bias_percent=5.0,
)  # fmt: skip
FIGURES = {
    "r2": 0.7, "r2_solar": 0.8, "r2_wind": 0.6, "mae_solar": 1.2, "mae_wind": 1.8, "bias_solar": 0.0, "bias_wind": 0.4,
    "bias_solar_percent": 0.0, "bias_wind_percent": 5.0, "lowest_solar": 0.0, "lowest_wind": 0.0, "night_solar": 0.1,
    "latency_ms": 20.0, "size_MB": 5.0,
}  # fmt: skip
SCORES = Scores(FIGURES, {}, {"signature": SIGNATURES[1]}, held_out="5b15", rows=100)


def scored(weeks=None, facts=SCORES.facts, **changes):
    """A good model but for some scores."""
    return Evaluation(replace(SCORES, metrics=FIGURES | changes, blocks=weeks or {}, facts=facts))


def judged(candidate, champion=None, policy=POLICY):
    """The decision under a policy."""
    limits = {name: getattr(policy, name) for name in ("min_gain", "near_tie", "alpha", "max_gain")}
    return decide(candidate, champion, rules(policy), Contest("r2", name="R2", **limits))


@pytest.mark.parametrize(
    ("candidate", "rule", "words"),
    [
        (scored(lowest_wind=-0.01), "lowest predicted wind power", "less than is possible"),
        (scored(night_solar=1.01), "mean solar power predicted at night", "too high"),
        (scored(bias_wind_percent=-5.1), "mean error of wind power", "too little is predicted"),
        (scored(bias_wind_percent=5.1), "mean error of wind power", "too much is predicted"),
        (scored(r2_solar=0.49), "R2 of solar power", "too low"),
        (scored(r2_wind=0.49), "R2 of wind power", "too low"),
        (scored(latency_ms=501.0), "time to predict one hour", "too high"),
        (scored(size_MB=201.0), "size of the model's files", "too high"),
        (scored(facts={"signature": "windspeed -> wind_GW"}), "inputs and outputs", "log_model"),
    ],
)
def test_decide_refuses_what_breaks_a_rule(candidate, rule, words):
    """One broken rule refuses, and the reason names it with the next step; nothing else is broken."""
    decision = judged(candidate)
    assert [each.name for each in decision.findings if not each.passed] == [rule]
    assert words in decision.words
    assert all(judged(scored(facts={"signature": signature})).promoted for signature in SIGNATURES)


weekly = st.lists(st.floats(0.01, 5), min_size=8, max_size=8).map(lambda weeks: dict(enumerate(weeks * 5)))


@given(st.floats(-1, 1), st.floats(-1, 1), weekly, weekly, st.floats(0, 0.1), st.floats(0.001, 0.4))
def test_decide_never_lets_two_models_beat_each_other(r2, other, weeks, others, near_tie, alpha):
    """With no least gain, what beats a champion is not beaten by it: the alias could go back and forth forever."""
    policy = POLICY.model_copy(update={"near_tie": near_tie, "alpha": alpha})
    one, two = scored(weeks, r2=r2), scored(others, r2=other)
    assert not (judged(one, two, policy).promoted and judged(two, one, policy).promoted)
