"""The rules of the problem, and what holds for any decision: pure, from scores to verdict."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from forecast.govern.gate import rules
from forecast.learn.evaluation import SIGNATURES
from forecast.parameters import Promote
from hypothesis import assume, given
from hypothesis import strategies as st
from mlflow_gate import Contest, Evaluation, Scores, decide

POLICY = Promote(
    min_gain=0.0, near_tie=0.002, alpha=0.05, min_r2={"solar": 0.5, "wind": 0.5}, max_night={"solar": 1.0},
    max_latency_ms=500.0, max_size_MB=200.0, max_bias_percent=5.0,
)  # fmt: skip
WEEKS = {f"week {week}": 1.0 + 0.01 * week for week in range(40)}
FIGURES = {
    "r2": 0.7, "r2_solar": 0.8, "r2_wind": 0.6, "mae_solar": 1.2, "mae_wind": 1.8, "bias_solar": 0.0, "bias_wind": 0.4,
    "bias_solar_percent": 0.0, "bias_wind_percent": 5.0, "lowest_solar": 0.0, "lowest_wind": 0.0, "night_solar": 0.1,
    "latency_ms": 20.0, "size_MB": 5.0,
}  # fmt: skip
SCORES = Scores(FIGURES, WEEKS, {"signature": SIGNATURES[1]}, held_out="5b15", rows=100)
GOOD = Evaluation(SCORES)
CONTEST = "R2 gained over the model in production"
NAN = float("nan")


def scored(weeks=WEEKS, facts=SCORES.facts, **changes):
    """A good model but for some scores."""
    return Evaluation(replace(SCORES, metrics=FIGURES | changes, blocks=weeks, facts=facts))


def judged(candidate, champion=None, policy=POLICY):
    """The decision under a policy."""
    limits = {name: getattr(policy, name) for name in ("min_gain", "near_tie", "alpha", "max_gain")}
    return decide(candidate, champion, rules(policy), Contest("r2", name="R2", **limits))


def failed(decision):
    """The names of the rules that did not pass."""
    return [each.name for each in decision.findings if not each.passed]


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
        (scored(facts={"signature": None}), "inputs and outputs", "log_model"),
        (replace(GOOD, is_declared=False), "held-out rows", "log_learned"),
        (replace(GOOD, learned_rows=1), "held-out rows", "hold out rows"),
        (Evaluation(trouble="its files are gone"), "loading", ""),
    ],
)
def test_decide_refuses_what_breaks_a_rule(candidate, rule, words):
    """One broken rule refuses, and the reason names it with its unit, the value, the limit, the next step."""
    decision = judged(candidate)
    assert not decision.promoted
    assert failed(decision) == [rule]
    (broken,) = (each for each in decision.findings if not each.passed)
    assert str(broken) in decision.reason
    assert words in decision.words


def test_decide_knows_a_model_of_weather_alone():
    """Both ways to be asked are allowed."""
    assert judged(scored(facts={"signature": SIGNATURES[0]})).promoted


def test_decide_refuses_predictions_that_are_no_numbers():
    """A model that predicts NaN fails every comparison, and the decision is JSON all the same."""
    broken = scored(**dict.fromkeys(FIGURES, NAN))
    assert "metrics" in failed(judged(broken))
    assert not judged(broken, GOOD).promoted
    assert json.dumps(judged(broken, GOOD).as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("gain", "weekly", "least", "wins"),
    [
        (0.0021, 1.0, 0.0, True),  # clearly better, whatever its weeks
        (0.0021, 1.1, 0.0, True),
        (-0.0021, 0.9, 0.0, False),  # clearly worse
        (0.0015, 1.0, 0.0, False),  # the same weeks: chance
        (0.0015, 0.99, 0.0, True),  # each week a little better
        (-0.0015, 0.99, 0.0, True),  # likewise, and the third decimal says otherwise
        (0.0015, 1.01, 0.0, False),
        (0.0, 1.0, 0.0, False),
        (0.0005, 0.9, 0.001, False),  # better weeks do not make up for a gain that is too small,
        (0.0015, 0.9, 0.001, True),
        (0.0015, 1.0, 0.001, False),  # nor the gain for weeks that are the same
    ],
)
def test_decide_near_tie_by_the_weeks_and_else_by_the_score(gain, weekly, least, wins):
    """Within 0.002 of the champion's R2 the paired test over the weeks decides, beyond it R2 alone."""
    weeks = {week: error * weekly for week, error in WEEKS.items()}
    decision = judged(scored(weeks, r2=0.7 + gain), GOOD, POLICY.model_copy(update={"min_gain": least}))
    assert decision.promoted is wins
    verdicts = {each.name: each.passed for each in decision.findings}
    assert verdicts[CONTEST] is wins, "the rule's text is the whole truth: the test is part of it"


number = st.floats(-2, 2) | st.just(NAN) | st.just(float("inf"))
weekly = st.lists(st.floats(0.01, 5), min_size=8, max_size=8).map(lambda weeks: dict(enumerate(weeks * 5)))
metrics = st.fixed_dictionaries(dict.fromkeys(FIGURES, number))
scores_of_any = st.builds(
    Scores, metrics, weekly, st.fixed_dictionaries({"signature": st.sampled_from([None, "x -> y", *SIGNATURES])}),
    held_out=st.just("5b15"), rows=st.just(100),
)  # fmt: skip
evaluations = st.builds(
    Evaluation, scores_of_any | st.none(), st.none() | st.just("broken"), st.booleans(), st.integers(0, 2)
)
policies = st.builds(
    Promote, min_gain=st.floats(0, 0.5), near_tie=st.floats(0, 0.1), alpha=st.floats(0.001, 0.4),
    min_r2=st.fixed_dictionaries({"solar": st.floats(-1, 1), "wind": st.floats(-1, 1)}),
    max_night=st.fixed_dictionaries({"solar": st.floats(0.001, 2)}),
    max_latency_ms=st.floats(0.001, 2), max_size_MB=st.floats(0.001, 2), max_bias_percent=st.floats(0.1, 100),
    max_gain=st.none() | st.floats(0.001, 1),
)  # fmt: skip


@given(evaluations, evaluations | st.none(), policies)
def test_decide_always_answers_and_says_why(candidate, champion, policy):
    """Whatever comes: promoted when, and only when, every rule passed; the reason names each that did not."""
    decision = judged(candidate, champion, policy)
    assert decision.promoted is all(each.passed for each in decision.findings)
    assert all(each.name in decision.reason for each in decision.findings if not each.passed)
    assert len({each.name for each in decision.findings}) == len(decision.findings)
    assert json.dumps(decision.as_dict(), allow_nan=False)
    compared = champion is not None and not decision.disqualified and candidate.scores is not None
    contested = compared and "neither model was trained on" not in decision.reason
    assert any(each.name == CONTEST for each in decision.findings) is contested


@given(st.floats(-1, 1), st.floats(-1, 1), weekly, weekly, policies)
def test_decide_never_lets_two_models_beat_each_other(r2, other, weeks, others, policy):
    """With no least gain, what beats a champion is not beaten by it: the alias could go back and forth forever."""
    policy = policy.model_copy(update={"min_gain": 0.0})
    one, two = scored(weeks, r2=r2), scored(others, r2=other)
    assert not (judged(one, two, policy).promoted and judged(two, one, policy).promoted)


@given(st.floats(0, 0.2), st.floats(0, 1), weekly, policies)
def test_decide_is_not_harder_on_a_better_score(gain, more, weeks, policy):
    """A candidate that is promoted would be with a higher R2 beyond doubt as well."""
    changes = {name: getattr(policy, name) for name in ("min_gain", "near_tie", "alpha")}
    policy, champion = POLICY.model_copy(update=changes), scored(dict.fromkeys(weeks, 1.0))
    r2 = FIGURES["r2"] + gain
    assume(judged(scored(weeks, r2=r2), champion, policy).promoted)  # fails if too few are
    assert judged(scored(weeks, r2=r2 + 2 * policy.near_tie + more + 1e-9), champion, policy).promoted
