"""What a model learned from: keys, spans and digests, without a server."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow_gate import ConfigError, Learned, log_learned
from mlflow_gate.learned import digest, hash_of, key_of, keys_in

ZONE = timezone(timedelta(hours=1))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("2016-01-01 01:00+01:00", "2016-01-01T00:00:00Z"),
        ("2016-01-01T00:00:00Z", "2016-01-01T00:00:00Z"),
        (datetime(2016, 1, 1, 1, tzinfo=ZONE), "2016-01-01T00:00:00Z"),
        (pd.Timestamp("2016-01-01 01:00", tz="Europe/Berlin"), "2016-01-01T00:00:00Z"),
        ("2016-01-01", "2016-01-01T00:00:00"),
        ("2016-01-01 00:00", "2016-01-01T00:00:00"),
        (date(2016, 1, 1), "2016-01-01T00:00:00"),
        (np.datetime64("2016-01-01"), "2016-01-01T00:00:00"),
        (pd.Timestamp("2016-01-01"), "2016-01-01T00:00:00"),
        (3, "3"),
        (3.0, "3"),
        (np.int64(3), "3"),
        (np.float64(0.5), "0.5"),
        ("fold 1", "fold 1"),
        ("1234-no-date", "1234-no-date"),
        ("20160101", "20160101"),
    ],
)
def test_equal_keys_have_one_text(key, text):
    """Times in any notation and zone, numbers of any type and texts become the same key."""
    assert key_of(key) == text
    assert key_of(text) == text


@pytest.mark.parametrize(
    ("first", "last", "inside", "outside"),
    [
        (
            "2016-01-01T00:00:00Z",
            "2016-12-31T23:00:00Z",
            datetime(2017, 1, 1, tzinfo=ZONE),
            datetime(2017, 1, 1, tzinfo=UTC),
        ),
        ("2016-01-01", "2016-12-31", date(2016, 12, 31), "2017-01-01 00:00"),
        (9, 10, 9.5, 11),
        ("-10", "9", -9, -11),
        ("fold a", "fold c", "fold b", "fold d"),
    ],
)
def test_span_holds_all_keys_between_its_ends(first, last, inside, outside):
    """A span knows its ends and what lies between, by time or number and not by letters."""
    learned = Learned(key_of(first), key_of(last))
    assert [learned.knows(key) for key in (first, last, inside, outside)] == [True, True, True, False]


@pytest.mark.parametrize("key", ["2016-06-01", 7, "fold 1"])
def test_span_refuses_keys_of_another_kind(key):
    """A key that cannot be compared with a span is an error in words, and not simply new."""
    with pytest.raises(ConfigError, match=r"(?s)cannot be compared.*keys of one kind"):
        Learned("2016-01-01T00:00:00Z", "2016-12-31T00:00:00Z").knows(key)


def test_rows_are_known_by_their_digests():
    """Single rows are known by digests; a model that learned nothing knows nothing."""
    learned = Learned(rows=frozenset({digest("3"), digest("2016-01-01T00:00:00Z")}))
    keys = (3, 3.0, "3", datetime(2016, 1, 1, 1, tzinfo=ZONE), 4, "2016-01-01")
    assert [learned.knows(key) for key in keys] == [True, True, True, True, False, False]
    assert not Learned().knows(3)


def test_hash_names_held_out_data():
    """The hash depends on keys and content, and not on the order of rows."""
    frame = pd.DataFrame({"target": [1.0, 2.0]}, index=["a", "b"])
    assert list(keys_in(frame)) == list(keys_in(["a", "b"])) == ["a", "b"]
    assert hash_of(frame) == hash_of(frame[::-1])
    hashes = {hash_of(each) for each in (frame, frame + 1, frame.rename(index={"b": "c"}), ["a", "b"], ["a"])}
    assert len(hashes) == 5


def test_declaration_needs_a_run():
    """Without an active run nothing is logged to a run that MLflow would open by itself."""
    with pytest.raises(ConfigError, match="no active run"):
        log_learned([1])
    assert mlflow.active_run() is None


def test_rows_of_arrays_are_named_by_their_keys():
    """Pandas cannot hash cells that are lists: then the keys alone name the rows."""
    rows = pd.DataFrame({"image": [[1, 2], [3, 4]]}, index=["a", "b"])
    assert hash_of(rows) == hash_of(["a", "b"])
