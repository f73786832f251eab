"""Keys of rows and declared training rows: kinds, spans and digests, without a server."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow_gate import ConfigError, log_learned
from mlflow_gate.keys import AWARE, NAIVE, NUMBER, TEXT, Keys, TrainingRows, hash_rows

ZONE = timezone(timedelta(hours=1))
HOURS = pd.date_range("2020-01-01", periods=48, freq="h", tz="UTC")


def declare(keys, *, span: bool = False) -> TrainingRows:
    """Return training rows declared by these keys."""
    rows = Keys.of(keys)
    return TrainingRows(rows.kinds, rows.ends) if span else TrainingRows(rows.kinds, None, frozenset(rows.digests()))


def find(learned, held_out, *, span: bool = False) -> list[bool]:
    """Return which held-out keys are training rows; fail if they cannot be compared."""
    rows, problem = declare(learned, span=span).find(Keys.of(held_out))
    assert not problem
    return rows


@pytest.mark.parametrize(
    ("key", "kind", "text"),
    [
        ("2016-01-01 01:00+01:00", AWARE, "2016-01-01T00:00:00Z"),
        (datetime(2016, 1, 1, 1, tzinfo=ZONE), AWARE, "2016-01-01T00:00:00Z"),
        (pd.Timestamp("2016-01-01 01:00", tz="Europe/Berlin"), AWARE, "2016-01-01T00:00:00Z"),
        ("2016-01-01", NAIVE, "2016-01-01T00:00:00"),
        (date(2016, 1, 1), NAIVE, "2016-01-01T00:00:00"),
        (np.datetime64("2016-01-01"), NAIVE, "2016-01-01T00:00:00"),
        (3.0, NUMBER, "3"),
        (np.int64(3), NUMBER, "3"),
        (np.float64(0.5), NUMBER, "0.5"),
        ("007", TEXT, "007"),
        ("20160101", TEXT, "20160101"),
    ],
)
def test_equal_keys_have_one_text(key, kind, text):
    """Times in any notation and time zone, numbers of any type, and strings have one canonical text."""
    assert Keys.of([key]) == Keys((kind,), [(text,)])


@pytest.mark.parametrize(
    ("learned", "held_out"),
    [
        (HOURS, HOURS.tz_convert("Europe/Berlin")),
        (HOURS.astype(str), HOURS),
        (["2016-01-01", "x", "1e5"], ["x", "1e5", "2016-01-01"]),  # not all are dates, so all are texts
        (pd.RangeIndex(48), np.arange(48.0)),
        (
            pd.MultiIndex.from_product([["A", "B"], HOURS]),
            pd.MultiIndex.from_product([pd.Categorical(["A", "B"]), HOURS.tz_convert("Asia/Tokyo")]),
        ),
        (
            pd.MultiIndex.from_product([np.array([1, 2], "int32"), [7, 8]]),
            pd.MultiIndex.from_product([np.array([1, 2], "float64"), np.array([7, 8], "int16")]),
        ),
    ],
)
def test_training_rows_are_found_in_any_form_of_their_keys(learned, held_out):
    """Equal times, numbers and tuples are the same rows, whatever their time zone, dtype or notation."""
    assert all(find(learned, held_out))
    assert all(find(learned, held_out, span=True))


@pytest.mark.parametrize("span", [False, True])
@pytest.mark.parametrize(
    ("learned", "held_out", "kinds"),
    [
        (HOURS.tz_localize(None), HOURS, (NAIVE, AWARE)),
        (["007"], [7], (TEXT, NUMBER)),
        (np.array([0.1]), [np.float32(0.1), 2], (NUMBER, f"{NUMBER} rounded to float32")),
        (["2020-01-01T00:00:00.123456789"], pd.DatetimeIndex(["2020-01-01T00:00:00.123456789"]), (TEXT, NAIVE)),
        (pd.Index([0.1]), pd.Index([0.1], dtype="float32"), (NUMBER, f"{NUMBER} rounded to float32")),
        ([2**53 + 1], [2.0**53], (NUMBER, f"{NUMBER} rounded to float64")),
        (["a"], [b"a"], (TEXT, "bytes")),
        ([("A", 1)], [("A", "1")], (f"{TEXT} and {NUMBER}", f"{TEXT} and {TEXT}")),
    ],
)
def test_keys_of_another_kind_cannot_be_compared(learned, held_out, kinds, span):
    """Keys of different kinds are a problem that names both kinds."""
    rows, problem = declare(learned, span=span).find(Keys.of(held_out))
    assert not any(rows)
    assert problem == f"the keys of its training rows are {kinds[0]}, but those of the held-out rows are {kinds[1]}"


@pytest.mark.parametrize(
    ("first", "last", "inside", "outside"),
    [
        (
            datetime(2016, 1, 1, tzinfo=UTC),
            "2016-12-31T23:00:00Z",
            datetime(2017, 1, 1, tzinfo=ZONE),
            "2017-01-01T00:00Z",
        ),
        ("2016-01-01", "2016-12-31", date(2016, 12, 31), "2017-01-01 00:00"),
        (9, 10, 9.5, 11),
        (-10, 9, -9, -11),
        (("A", 1), ("B", 9), ("A", 5), ("A", 10)),
    ],
)
def test_span_contains_all_keys_between_its_ends(first, last, inside, outside):
    """A span includes its ends; keys are ordered as times or numbers, not as text, also in tuples."""
    for key, expected in ((first, True), (last, True), (inside, True), (outside, False)):
        assert find([str(first), str(last)] if isinstance(last, str) else [first, last], [key], span=True) == [expected]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([1, "a"], "mixed or unsupported kinds.*int, str"),
        ([HOURS[0], HOURS[0].tz_localize(None)], "mixed or unsupported kinds"),
        ([("A", 1), "A"], "mixed or unsupported kinds"),
        ([[1, 2], [3, 4]], "The rows have no keys.*list"),
        ("test.csv", "The rows have no keys.*test.csv"),
        ([Decimal("1.0")], "mixed or unsupported kinds.*Decimal"),
        ([1.0, float("nan")], "key of a row is missing"),
        ([HOURS[0], pd.NaT], "key of a row is missing"),
    ],
)
def test_invalid_keys_are_explained(rows, words):
    """Mixed kinds, rows without keys and missing keys raise ConfigError."""
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        Keys.of(rows)


def test_hash_identifies_held_out_data():
    """The hash depends on keys and values, but not on the order of rows; arrays in cells are ignored."""
    frame = pd.DataFrame({"target": [1.0, 2.0]}, index=["a", "b"])
    frames = (frame, frame + 1, frame.rename(index={"b": "c"}), ["a", "b"], ["a"])
    assert hash_rows(frame, Keys.of(frame)) == hash_rows(frame[::-1], Keys.of(frame[::-1]))
    assert len({hash_rows(each, Keys.of(each)) for each in frames}) == 5
    arrays = pd.DataFrame({"image": [[1, 2], [3, 4]]}, index=["a", "b"])
    assert hash_rows(arrays, Keys.of(arrays)) == hash_rows(["a", "b"], Keys.of(["a", "b"]))


def test_declaration_needs_a_run():
    """Without an active run it is an error, and MLflow does not start a run of its own."""
    with pytest.raises(ConfigError, match="no active run"):
        log_learned([1])
    assert mlflow.active_run() is None
