"""The table of params.yaml is split and scored as the gate expects; faulty tables are refused."""

from __future__ import annotations

import subprocess

import numpy as np
import pandas as pd
import pytest
import tumours
from mlflow_gate import ConfigError
from tumours import ID, KEY, TARGET

FAULTS = {
    "1 ids are missing or repeated": lambda raw: raw.assign(**{ID: [*raw[ID][:-1], raw[ID][0]]}),
    "columns that the table lacks": lambda raw: raw.drop(columns=TARGET),
    "weight contains numbers that are text": lambda raw: raw.assign(weight=["1,5", *["2"] * (len(raw) - 1)]),
    "Too little to learn": lambda raw: raw.assign(**{TARGET: 1}),
}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """The rows of the table."""
    return tumours.clean(tumours.read())


def test_keys_are_in_one_part(rows):
    """No id or group is both in the training and in the test rows, and no row is lost."""
    train, test = tumours.split(rows)
    assert {*train[KEY]}.isdisjoint(test[KEY])
    assert {*train.index, *test.index} == {*rows.index}
    assert 0 < len(test) < len(train)


def test_rows_keep_their_part_when_others_are_added(rows):
    """The test rows of the first half of the table are those of the whole table that are in this half."""
    half = rows.iloc[: len(rows) // 2]
    assert {*tumours.split(half)[1].index} == {*tumours.split(rows)[1].index} & {*half.index}


def test_equal_rows_have_the_same_part():
    """A row that is in the table again, under another id, is in the same part."""
    raw = tumours.read()
    if raw.drop(columns=ID).duplicated().mean() > tumours.MAX_EQUAL / 2:
        pytest.skip("in this table, equal rows are different cases")
    again = raw.assign(**{ID: raw[ID].astype("str") + " again"}).head(len(raw) // 20)
    parts = tumours.split(tumours.clean(pd.concat([raw, again], ignore_index=True)))
    assert {*parts[0].index.astype("str").str.removesuffix(" again")}.isdisjoint({*parts[1].index.astype("str")})


@pytest.mark.parametrize("words", FAULTS)
def test_faulty_table_is_refused(words):
    """Each fault is refused, with what is wrong and the next step."""
    with pytest.raises(ConfigError, match=words) as error:
        tumours.clean(FAULTS[words](tumours.read()))
    assert error.value.next_step


def test_copy_of_the_target_gives_it_away(rows):
    """A column that says the same as the target in other words is found, and no other column."""
    target = rows[TARGET]
    found = tumours.giveaways(
        rows.assign(copy=2 * target if tumours.is_amount(rows) else "was " + target.astype("str"))
    )
    assert [*found.index[found > tumours.TABLE["max_alone"]].drop(ID, errors="ignore")] == ["copy"]


def test_gate_has_finite_scores_and_blocks(rows):
    """A model trained on the training rows gets all scores that the rules name, and an error for each block."""
    train, test = tumours.split(rows)
    model = (
        tumours.search(next(iter(tumours.PARAMETERS["models"])), train)
        .fit(tumours.features(train), train[TARGET])
        .best_estimator_
    )
    scores = tumours.evaluate(model, test)
    assert {tumours.SCORE, *tumours.GATE["rules"]} <= scores.metrics.keys()
    assert np.isfinite([*scores.metrics.values(), *scores.blocks.values()]).all()
    assert len(scores.blocks) > min(tumours.BLOCKS / 2, test[KEY].nunique() / 3)


def test_stages_declare_the_code_that_they_import():
    """A change of the module runs each stage that imports it."""
    subprocess.run(["dvc-parallel", "check"], cwd=tumours.FOLDER, check=True)
