"""The gate's decision: pure, from scores to verdict."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workshop.models.gate import PAIRED_TEST, SIGNATURES, UNLEARNED, decide, hold
from workshop.models.scores import METRICS, Evaluation, Scores
from workshop.parameters import Promote

POLICY = Promote(
    min_gain=0.0, near_tie=0.002, alpha=0.05, min_r2_solar=0.5, min_r2_wind=0.5, max_night_solar_GW=1.0,
    max_latency_ms=500.0, max_size_MB=200.0, max_bias_percent=5.0,
)  # fmt: skip
HELD_OUT = ("2016-03-14T07:00:00Z", "2016-12-31T23:00:00Z")
BEFORE = ("2013-01-01T00:00:00Z", "2016-03-14T06:00:00Z")
WEEKS = tuple(1.0 + 0.01 * week for week in range(40))
SCORES = Scores(
    r2=0.7, r2_solar=0.8, r2_wind=0.6, mae_GW=1.5, bias_GW=0.0, bias_solar_percent=-1.0, bias_wind_percent=5.0,
    lowest_GW=0.0, night_solar_GW=0.1, finite=True, hours=100, weekly_mae_GW=WEEKS, period=HELD_OUT,
)  # fmt: skip
GOOD = Evaluation(SCORES, BEFORE, "5b15", SIGNATURES[1], latency_ms=20.0, size_MB=5.0)
CONTEST = "R2 gained over the model in production"
NAN = float("nan")
NO_NUMBERS = Scores(*[NAN] * len(METRICS), finite=False, hours=100, period=HELD_OUT)


def scored(**changes):
    """A good model but for some scores."""
    return replace(GOOD, scores=replace(SCORES, **changes))


def changed(policy, **limits):
    """A policy with other limits."""
    return policy.model_copy(update=limits)


def failed(decision):
    """The names of the rules that did not pass."""
    return [rule.name for rule in decision.rules if not rule.passed]


@pytest.mark.parametrize(
    ("candidate", "rule"),
    [
        (scored(lowest_GW=-0.01), "lowest predicted power (GW)"),
        (scored(night_solar_GW=1.01), "mean solar power predicted at night (GW)"),
        (scored(bias_wind_percent=-5.1), "mean error of wind power (% of its mean)"),
        (scored(bias_wind_percent=5.1), "mean error of wind power (% of its mean)"),
        (scored(r2_solar=0.49), "R2 of solar power"),
        (scored(r2_wind=0.49), "R2 of wind power"),
        (replace(GOOD, latency_ms=501.0), "time to predict one hour (ms)"),
        (replace(GOOD, size_MB=201.0), "size of the model's files (MB)"),
        (replace(GOOD, signature="windspeed -> wind_GW"), "inputs and outputs"),
        (replace(GOOD, signature=None), "inputs and outputs"),
        (replace(GOOD, data=None), "hash of the table it learned from"),
        (replace(GOOD, learned=None), "held-out hours"),
        (replace(GOOD, learned=("2013-01-01T00:00:00Z", HELD_OUT[0])), "held-out hours"),
        (replace(GOOD, learned=(HELD_OUT[1], "2017-12-31T23:00:00Z")), "held-out hours"),
        (Evaluation(trouble="its files are gone"), "loading"),
    ],
)
def test_decide_refuses_what_breaks_a_rule(candidate, rule):
    """One broken rule refuses, and the reason names it in plain words with its unit, the value and the limit."""
    decision = decide(candidate, None, POLICY)
    assert not decision.promoted
    assert failed(decision) == [rule]
    (broken,) = (each for each in decision.rules if not each.passed)
    assert f"{rule}: {broken.text} (allowed: {broken.limit})" in decision.reason


def test_decide_knows_a_model_of_weather_alone_and_one_that_learned_from_later_hours():
    """Both ways to be asked are allowed, and held-out hours may lie before those that it learned from."""
    assert decide(replace(GOOD, signature=SIGNATURES[0]), None, POLICY).promoted
    assert decide(replace(GOOD, learned=("2017-01-01T00:00:00Z", "2018-01-01T00:00:00Z")), None, POLICY).promoted


def test_decide_refuses_predictions_that_are_no_numbers():
    """A model that predicts NaN fails every comparison, and the decision is JSON all the same."""
    broken = replace(GOOD, scores=NO_NUMBERS)
    assert "predictions" in failed(decide(broken, None, POLICY))
    assert not decide(broken, GOOD, POLICY).promoted
    assert json.dumps(decide(broken, GOOD, POLICY).as_dict(), allow_nan=False)


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
    weeks = tuple(week * weekly for week in WEEKS)
    decision = decide(scored(r2=0.7 + gain, weekly_mae_GW=weeks), GOOD, changed(POLICY, min_gain=least))
    assert decision.promoted is wins
    verdicts = {rule.name: rule.passed for rule in decision.rules}
    assert verdicts[CONTEST] is wins, "the rule's text is the whole truth: the test is part of it"
    assert (PAIRED_TEST in verdicts) is (abs(gain) <= 0.002)


@pytest.mark.parametrize(("alpha", "wins"), [(0.05, False), (0.1, True)])
def test_decide_near_tie_at_the_level_that_is_asked_for(alpha, wins):
    """Six weeks differ, the third smallest for the worse: 5 of the 64 ways to be better or worse are as good."""
    weeks = list(WEEKS)
    for number, change in enumerate((-0.001, -0.002, 0.003, -0.004, -0.005, -0.006)):
        weeks[number] += change
    decision = decide(scored(r2=0.701, weekly_mae_GW=tuple(weeks)), GOOD, changed(POLICY, alpha=alpha))
    (rule,) = (rule for rule in decision.rules if rule.name == PAIRED_TEST)
    assert rule.value == pytest.approx(5 / 64)
    assert decision.promoted is wins


@pytest.mark.parametrize(
    ("champion", "why"),
    [
        (replace(scored(r2=0.99), learned=None), "not known"),
        (replace(GOOD, scores=NO_NUMBERS), "numbers"),
        (Evaluation(trouble="its files are gone"), "its files are gone"),
    ],
)
def test_decide_disqualifies_a_champion_that_cannot_be_compared(champion, why):
    """One registered by hand, or that is broken, does not block a sound candidate."""
    decision = decide(GOOD, champion, POLICY)
    assert decision.promoted
    assert why in decision.disqualified
    assert why in decision.reason


@pytest.mark.parametrize("r2", [0.1, 0.99])
def test_decide_refuses_without_hours_that_neither_model_learned_from(r2):
    """A champion that learned from the held-out hours is replaced by no model that learned from fewer."""
    champion = replace(scored(r2=r2), learned=("2013-01-01T00:00:00Z", "2016-06-01T00:00:00Z"))
    decision = decide(GOOD, champion, POLICY)
    assert not decision.promoted
    assert failed(decision) == [UNLEARNED]
    assert "too few: it learned from 2013-01-01T00:00:00Z to 2016-06-01T00:00:00Z" in decision.reason
    assert "at least 6 whole weeks" in decision.reason


def test_decide_compares_measured_hours_with_a_model_of_modelled_ones():
    """Years of the sample are no measured years: a champion of them is compared on all held-out hours."""
    learned = ("2013-01-01T00:00:00Z", "2016-12-31T23:00:00Z")
    champion = replace(scored(r2=0.1), learned=learned, learned_from="modelled sample")
    assert decide(replace(GOOD, learned_from="csv"), champion, POLICY).promoted
    assert not decide(replace(GOOD, learned_from="csv"), replace(champion, learned_from="opsd"), POLICY).promoted


def test_hold_keeps_the_verdict_and_moves_nothing():
    """In an experiment of DVC the decision names the experiment; a refusal stays a refusal."""
    held = hold(decide(GOOD, None, POLICY), "two-years")
    assert (held.promoted, held.experiment) == (False, "two-years")
    assert "promoted: every rule passed" in held.reason
    refused = decide(replace(GOOD, data=None), None, POLICY)
    assert hold(refused, "two-years").reason == refused.reason
    assert hold(refused, None) == refused


def test_decide_wants_the_same_hours_for_both():
    """Scores of other hours are no comparison: that is a mistake of the caller's."""
    with pytest.raises(ValueError, match="different hours"):
        decide(GOOD, scored(hours=99), POLICY)


number = st.floats(-2, 2) | st.just(NAN) | st.just(float("inf"))
times = st.sampled_from([None, BEFORE, HELD_OUT, ("2013-01-01T00:00:00Z", "2016-06-01T00:00:00Z")])
weekly = st.lists(st.floats(0.01, 5), min_size=8, max_size=8).map(lambda weeks: tuple(weeks * 5))
scores_of_any = st.builds(
    Scores, *[number] * len(METRICS), finite=st.booleans(), hours=st.just(100),
    weekly_mae_GW=weekly, period=st.just(HELD_OUT),
)  # fmt: skip
evaluations = st.builds(
    Evaluation, scores_of_any | st.none(), times, st.sampled_from([None, "", "5b15"]),
    st.sampled_from([None, "x -> y", *SIGNATURES]), number, number, st.none() | st.just("broken"),
)  # fmt: skip
policies = st.builds(
    Promote, min_gain=st.floats(0, 0.5), near_tie=st.floats(0, 0.1), alpha=st.floats(0.001, 0.4),
    min_r2_solar=st.floats(-1, 1), min_r2_wind=st.floats(-1, 1), max_night_solar_GW=st.floats(0.001, 2),
    max_latency_ms=st.floats(0.001, 2), max_size_MB=st.floats(0.001, 2), max_bias_percent=st.floats(0.1, 100),
)  # fmt: skip


@given(evaluations, evaluations | st.none(), policies)
def test_decide_always_answers_and_says_why(candidate, champion, policy):
    """Whatever comes: promoted when, and only when, every rule passed; the reason names each that did not."""
    decision = decide(candidate, champion, policy)
    assert decision.promoted is all(rule.passed for rule in decision.rules)
    assert all(rule.name in decision.reason for rule in decision.rules if not rule.passed)
    assert len({rule.name for rule in decision.rules}) == len(decision.rules)
    assert json.dumps(decision.as_dict(), allow_nan=False)
    compared = champion is not None and not decision.disqualified and candidate.scores is not None
    contested = compared and UNLEARNED not in failed(decision)
    assert any(rule.name == CONTEST for rule in decision.rules) is contested


@given(st.floats(-1, 1), st.floats(-1, 1), weekly, weekly, policies)
def test_decide_never_lets_two_models_beat_each_other(r2, other, weeks, others, policy):
    """With no least gain, what beats a champion is not beaten by it: the alias could go back and forth forever."""
    policy = changed(policy, min_gain=0.0)
    one, two = scored(r2=r2, weekly_mae_GW=weeks), scored(r2=other, weekly_mae_GW=others)
    assert not (decide(one, two, policy).promoted and decide(two, one, policy).promoted)


@given(st.floats(-1, 1), st.floats(0, 1), weekly, policies)
def test_decide_is_not_harder_on_a_better_score(r2, more, weeks, policy):
    """A candidate that is promoted would be with a higher R2 beyond doubt as well."""
    policy = changed(POLICY, min_gain=policy.min_gain, near_tie=policy.near_tie, alpha=policy.alpha)
    better = r2 + 2 * policy.near_tie + more
    if decide(scored(r2=r2, weekly_mae_GW=weeks), GOOD, policy).promoted and better > r2:
        assert decide(scored(r2=better + 1e-9, weekly_mae_GW=weeks), GOOD, policy).promoted
