"""The gate's decision: pure, from scores to verdict."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from workshop.models.promotion import Policy, Scores, decide, is_night, score

POLICY = Policy(least_gain=0.0, least_r2=0.5, most_night_solar_GW=1.0)
GOOD = Scores(r2=0.7, r2_solar=0.8, r2_wind=0.6, mae_GW=1.5, lowest_GW=0.0, night_solar_GW=0.1, finite=True, hours=100)


def failed(decision):
    """The names of the rules that did not pass."""
    return [rule.name for rule in decision.rules if not rule.passed]


def test_decide_first_model_needs_only_the_rules():
    """Nothing in production: a candidate that passes every rule is promoted."""
    decision = decide(GOOD, None, POLICY)
    assert decision.promoted
    assert failed(decision) == []


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"lowest_GW": -0.01}, "non_negative"),
        ({"night_solar_GW": 1.01}, "night_solar"),
        ({"r2": 0.49}, "least_r2"),
    ],
)
def test_decide_refuses_what_breaks_a_rule(change, rule):
    """One broken rule refuses, and the reason names it with value and limit."""
    decision = decide(replace(GOOD, **change), None, POLICY)
    assert not decision.promoted
    assert failed(decision) == [rule]
    assert rule in decision.reason


def test_decide_refuses_predictions_that_are_no_numbers():
    """A model that predicts NaN fails every comparison."""
    nan = float("nan")
    broken = Scores(nan, nan, nan, nan, nan, nan, finite=False, hours=100)
    assert "finite" in failed(decide(broken, None, POLICY))
    assert not decide(broken, GOOD, POLICY).promoted


@pytest.mark.parametrize(("gain", "wins"), [(0.001, True), (0.0, False), (-0.001, False)])
def test_decide_wants_better_than_the_champion(gain, wins):
    """Equal is not better, so a tie keeps the champion."""
    assert decide(replace(GOOD, r2=GOOD.r2 + gain), GOOD, POLICY).promoted is wins


@pytest.mark.parametrize(("gain", "wins"), [(0.019, False), (0.021, True)])
def test_decide_wants_the_least_gain(gain, wins):
    """With a least gain of 0.02 a smaller one does not do."""
    policy = replace(POLICY, least_gain=0.02)
    assert decide(replace(GOOD, r2=GOOD.r2 + gain), GOOD, policy).promoted is wins


def test_decide_champion_that_predicts_no_numbers_is_beaten():
    """A champion that no longer predicts numbers does not block a sound candidate."""
    nan = float("nan")
    broken = Scores(nan, nan, nan, nan, nan, nan, finite=False, hours=100)
    assert decide(GOOD, broken, POLICY).promoted


@pytest.fixture
def two_days():
    """48 hours of midsummer, measured."""
    stamps = pd.date_range("2016-06-20", periods=48, freq="h", tz="UTC")
    return pd.DataFrame(
        {
            "utc_timestamp": stamps,
            "solar_GW": [float(h % 24) for h in range(48)],
            "wind_GW": [5.0 + h for h in range(48)],
        }
    )


def test_score_of_the_truth_is_one(two_days):
    """Predictions equal to what was measured: R2 1, no miss."""
    scores = score(two_days, two_days[["solar_GW", "wind_GW"]])
    assert (scores.r2, scores.mae_GW, scores.finite, scores.hours) == (1.0, 0.0, True, 48)


def test_score_of_the_mean_is_zero(two_days):
    """Predicting the mean throughout is R2 0, by definition."""
    mean = two_days[["solar_GW", "wind_GW"]] * 0 + two_days[["solar_GW", "wind_GW"]].mean()
    assert score(two_days, mean).r2 == pytest.approx(0)


def test_score_notices_what_is_no_number(two_days):
    """One NaN makes the whole prediction unusable."""
    predicted = two_days[["solar_GW", "wind_GW"]].copy()
    predicted.iloc[3, 0] = float("nan")
    assert not score(two_days, predicted).finite


def test_night_is_by_the_sun_and_not_by_radiation():
    """Midwinter midnight is night, noon is not, nor is the hour of first light; in midsummer it never gets dark."""
    winter = pd.Series(pd.to_datetime(["2015-12-21 23:00", "2015-12-21 11:00", "2015-12-21 06:00"], utc=True))
    assert list(is_night(winter)) == [True, False, False]
    assert not is_night(pd.Series(pd.to_datetime(["2016-06-21 02:00"], utc=True)))[0]
