"""Rules, the comparison and the decision, without a server."""

from __future__ import annotations

import json
import math
import pickle
import random

import pytest
from mlflow_gate import Comparison, ConfigError, Evaluation, ModelError, Scores, decide
from mlflow_gate.comparison import PAIRED_TEST, p_value
from mlflow_gate.rules import check, read_rules


def scored(score: float = 0.9, blocks: int = 8, *, shift: float = 0.0, held_out: str = "9f", **facts) -> Evaluation:
    """Return the evaluation of a model with this accuracy and with different errors in each block."""
    errors = {block: 0.1 + block / 100 + shift for block in range(blocks)}
    return Evaluation(Scores({"accuracy": score}, blocks=errors, held_out=held_out, rows=96), **facts)


@pytest.mark.parametrize(
    ("limits", "value", "passed", "limit", "step"),
    [
        ({"min": 0.5, "next_step": "train longer"}, 0.4, False, ">= 0.5", "too low: train longer"),
        ({"max": 500, "unit": "ms"}, 501.0, False, "<= 500", "too high"),
        ({"min": -5, "max": 5, "low": "too little wind"}, -6.0, False, "-5 to 5", "too little wind"),
        ({"min": -5, "max": 5}, 5.0, True, "-5 to 5", ""),
        ({"min": 0.5}, math.nan, False, ">= 0.5", "not a number"),
    ],
)
def test_limits_check_a_metric(limits, value, passed, limit, step):
    """A value at the limit passes, NaN never does; the next step depends on the side."""
    (finding,) = check(read_rules({"metric": limits}), Scores({"metric": value}))
    assert (finding.passed, finding.limit, finding.next_step) == (passed, limit, step)
    assert limits.get("unit", "") in str(finding)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"r2": {"minimum": 0.5}}, "r2.minimum"),
        ({"r2": {}}, "set min, max or both"),
        ({"r2": {"min": 2, "max": 1}}, "min 2 is above max 1"),
        ({"r2": {"min": "high"}}, "r2.min"),
        ({"r2": {"min": math.nan}}, "r2.min"),
        ({"r2": 0.5}, "Invalid rule r2"),
        ([{"r2": {"min": 0.5}}], "Invalid rules"),
    ],
)
def test_invalid_rules_are_named(rules, words):
    """A mistake in YAML is an error that names the rule, its value and what is allowed."""
    with pytest.raises(ConfigError, match=words) as caught:
        read_rules(rules)
    assert "expected: " in str(caught.value)


@pytest.mark.parametrize(("rules", "comparison"), [({"r2": {"min": 0}}, None), ({}, Comparison("r2"))])
def test_missing_metric_is_an_error(rules, comparison):
    """A rule or comparison with an unknown metric raises ConfigError with the known ones, even without a champion."""
    with pytest.raises(ConfigError, match=r"(?s)r2.*one of accuracy"):
        decide(scored(), None, read_rules(rules), comparison)


@pytest.mark.parametrize(
    ("comparison", "candidate", "champion", "promoted"),
    [
        (Comparison("accuracy"), 0.91, 0.90, True),
        (Comparison("accuracy"), 0.89, 0.90, False),
        (Comparison("accuracy", higher_is_better=False), 0.89, 0.90, True),
        (Comparison("accuracy", higher_is_better=False), 0.91, 0.90, False),
        (Comparison("accuracy", min_gain=0.02), 0.92, 0.90, False),
        (Comparison("accuracy", min_gain=0.02), 0.93, 0.90, True),
        (Comparison("accuracy", max_gain=0.05), 0.95, 0.90, True),
        (Comparison("accuracy", max_gain=0.05), 0.96, 0.90, False),
        (Comparison("accuracy"), math.nan, 0.90, False),
    ],
)
def test_comparison_compares_a_metric(comparison, candidate, champion, promoted):
    """The gain must be more than `min_gain` and at most `max_gain`, in the metric's direction."""
    decision = decide(scored(candidate), scored(champion), {}, comparison)
    assert decision.promoted is promoted
    assert decision.words.startswith("promoted: " if promoted else "refused: ")
    assert promoted or "next: " in decision.words


@pytest.mark.parametrize(
    ("shift", "blocks", "min_gain", "promoted"),
    [(-0.01, 8, 0, True), (0.01, 8, 0, False), (0, 8, 0, False), (-0.01, 5, 0, False), (-0.01, 8, 0.02, False)],
)
def test_near_tie_is_decided_by_the_paired_test(shift, blocks, min_gain, promoted):
    """A near-tie needs smaller errors in at least six blocks, and a gain of `min_gain` if it is set."""
    comparison = Comparison("accuracy", near_tie=0.05, min_gain=min_gain)
    decision = decide(scored(0.901, blocks, shift=shift), scored(0.90, blocks), {}, comparison)
    assert decision.promoted is promoted
    finding = next(each for each in decision.findings if each.name == PAIRED_TEST)
    if blocks < 6:
        assert finding.value == "no test possible with 5 blocks"
    else:
        assert finding.passed is (shift < 0)
    assert ("is in a near-tie with" in decision.reason) is promoted


def test_two_models_never_beat_each_other():
    """Without `min_gain`, a model never loses to one that it beats: the alias would move back and forth forever."""
    rng = random.Random(0)
    for _ in range(300):
        comparison = Comparison("accuracy", near_tie=rng.uniform(0, 0.1), alpha=rng.uniform(0.001, 0.4))
        blocks = [{block: rng.uniform(0.01, 5) for block in range(8)} for _ in range(2)]
        one, two = (Evaluation(Scores({"accuracy": rng.uniform(0.8, 1)}, each, held_out="9f")) for each in blocks)
        assert not (decide(one, two, {}, comparison).promoted and decide(two, one, {}, comparison).promoted)


def test_paired_test_ignores_equal_blocks():
    """With fewer than six blocks that differ the p-value is 1; different sets of blocks are an error."""
    errors = dict.fromkeys(range(20), 0.1)
    five, six = (errors | {block: 0.05 + block / 1000 for block in range(count)} for count in (5, 6))
    assert p_value(five, errors) == 1
    assert p_value(six, errors) == 1 / 64
    assert p_value(errors, six) == 1
    with pytest.raises(ConfigError, match=r"(?s)different blocks.*found: +19"):
        p_value(dict.fromkeys(range(19), 0.1), errors)


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_gain", -0.1), ("near_tie", math.nan), ("alpha", 1.1), ("alpha", None), ("alpha", "much"), ("max_gain", "1")],
)
def test_invalid_comparison_is_an_error(field, value):
    """Numbers out of range, strings and None are errors that name the field."""
    with pytest.raises(ConfigError, match=f"Invalid {field} of the comparison"):
        Comparison("accuracy", **{field: value})


@pytest.mark.parametrize(
    ("champion", "reason"),
    [
        (Evaluation(problem="OSError: gone"), "OSError: gone"),
        (scored(math.nan), "its accuracy is not a number"),
    ],
)
def test_champion_without_a_score_is_disqualified(champion, reason):
    """A champion without a valid score is replaced without a comparison, and the reason says so."""
    decision = decide(scored(0.8), champion, {}, Comparison("accuracy"))
    assert (decision.promoted, decision.disqualified) == (True, reason)
    assert decision.reason.endswith(f"the champion is disqualified: {reason}")


def test_decision_is_json_and_text():
    """The JSON has no NaN, the text of a refusal ends with how to override it, and errors can be pickled."""
    decision = decide(scored(math.nan), scored(), read_rules({"accuracy": {"min": 0.8}}), Comparison("accuracy"))
    content = json.loads(json.dumps(decision.as_dict(), allow_nan=False))
    assert content["candidate"]["metrics"] == {}
    assert content["champion"]["metrics"] == {"accuracy": 0.9}
    assert decision.words.splitlines()[-1].endswith("the user and the reason are recorded")
    assert [row["result"] for row in decision.table][:2] == ["passed", "failed"]
    error = pickle.loads(pickle.dumps(ModelError("No.", value=1, next_step="3")))
    assert (type(error), error.exit_code, str(error)) == (ModelError, 1, "No.\n  found:    1\n  next:     3")
