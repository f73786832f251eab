"""What a model learned from, as its run declares it: by this the gate knows that held-out rows are new to a model."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from mlflow_gate.errors import ConfigError

if TYPE_CHECKING:
    from mlflow import MlflowClient

LEARNED_TAG = "mlflow_gate.learned"
KEYS_FILE = "mlflow_gate/learned_keys.txt"  # the digests of the keys, a line each
DIGEST_BYTES = 8


@dataclass(frozen=True)
class Learned:
    """What a model learned from: all keys from ``first`` to ``last``, or the single ``rows``, by their digests.

    ``source`` names the data for people. Rows of another ``population`` (modelled and measured hours, say) are never
    the same rows, whatever their keys.

    >>> Learned(first="2024-01-01", last="2024-12-31").knows("2024-06-01")
    True
    """

    first: str | None = None
    last: str | None = None
    rows: frozenset[str] | None = None
    source: str = ""
    population: str = ""

    def knows(self, key: Any) -> bool:
        """Return whether the model learned from the row of a key."""
        key = key_of(key)
        if self.rows is not None:
            return digest(key) in self.rows
        if self.first is None or self.last is None:
            return False
        first, place, last = map(_order, (self.first, key, self.last))
        if not first[0] == place[0] == last[0]:
            raise ConfigError(
                "A held-out row's key cannot be compared with what a model learned from.",
                value=f"{key}, and learned was {self.first} to {self.last}",
                expected="keys of one kind: numbers, times of a time zone, times without one, or texts",
            )
        return first <= place <= last


def log_learned(keys: Iterable[Any], *, span: bool = False, source: str = "", population: str = "") -> None:
    """Declare in the active run what its model learns from: the key of each row, such as a frame's index.

    With ``span`` all that lies between the first and the last key counts as learned, which suits time series; else the
    digest of each key is logged as an artifact. ``source`` and ``population`` are as in `Learned`. Raises ConfigError
    without keys.

    >>> import mlflow
    >>> with mlflow.start_run():
    ...     log_learned(range(400))
    """
    import mlflow

    names = [key_of(key) for key in keys_in(keys)]
    if mlflow.active_run() is None:
        step = "call it between `with mlflow.start_run():` and its end"
        raise ConfigError("There is no active run to declare this in.", next_step=step)
    if not names:
        raise ConfigError("A model that learned from nothing cannot be declared.", expected="the key of each row")
    facts: dict[str, Any] = {"rows": len(names), "source": source, "population": population}
    facts["first"], facts["last"] = min(names, key=_order), max(names, key=_order)
    facts["span"] = span
    if not span:
        mlflow.log_text("\n".join(sorted({digest(name) for name in names})), KEYS_FILE)
    mlflow.set_tag(LEARNED_TAG, json.dumps(facts))


def read_learned(run_id: str, tags: Mapping[str, str], client: MlflowClient) -> Learned | None:
    """Return what a run declared with `log_learned`; None when it declared nothing that can be read."""
    from mlflow.exceptions import MlflowException

    try:
        facts = json.loads(tags[LEARNED_TAG])
        words: dict[str, Any] = {name: str(facts[name]) for name in ("source", "population")}
        if facts["span"]:
            return Learned(key_of(facts["first"]), key_of(facts["last"]), **words)
        rows = frozenset(_read_rows(run_id, client).split())
        return Learned(rows=rows, **words)
    except (KeyError, TypeError, ValueError, MlflowException, OSError):
        return None


def _read_rows(run_id: str, client: MlflowClient) -> str:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, KEYS_FILE, folder)).read_text()


def key_of(key: Any) -> str:
    """Return a key as text, the same for equal keys: times with a zone in UTC, whole numbers without a point.

    >>> key_of("2016-01-01 01:00+01:00"), key_of(3.0), key_of("fold 1")
    ('2016-01-01T00:00:00Z', '3', 'fold 1')
    """
    if isinstance(key, str):
        try:
            key = datetime.fromisoformat(key) if key[4:5] == "-" else key
        except ValueError:
            return str(key)
    elif type(key).__name__ == "datetime64":  # of NumPy
        key = key.astype("datetime64[us]").item()
    elif not isinstance(key, date) and hasattr(key, "item"):
        key = key.item()
    if isinstance(key, datetime):
        return key.isoformat() if key.tzinfo is None else key.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(key, date):
        return datetime(key.year, key.month, key.day).isoformat()  # noqa: DTZ001 - a date has no time zone
    return str(int(key)) if isinstance(key, float) and key.is_integer() else str(key)


def keys_in(rows: Any) -> Iterable[Any]:
    """Return the key of each row: a pandas object's index, or the rows themselves."""
    return rows.index if hasattr(rows, "iloc") else rows


def ends_of(rows: Any) -> tuple[str, str] | None:
    """Return the first and the last key of times; None for other keys. Raises ConfigError for keys of several kinds."""
    keys = [key_of(key) for key in keys_in(rows)]
    if len(kinds := {_order(key)[0] for key in keys}) > 1:
        expected = "keys of one kind: numbers, times of a time zone, times without one, or texts"
        raise ConfigError(
            "The keys of the held-out rows are of several kinds.", value=", ".join(kinds), expected=expected
        )
    is_time = any(kind.startswith("time") for kind in kinds)
    return (min(keys, key=_order), max(keys, key=_order)) if is_time else None


def digest(key: str) -> str:
    """Return the digest of a key; keys may be names of people, which an artifact should not hold."""
    return hashlib.blake2b(key.encode(), digest_size=DIGEST_BYTES).hexdigest()


def hash_of(held_out: Any) -> str:
    """Return the hash that names held-out data: of its keys, and of a pandas object's content if pandas can hash it.

    >>> hash_of(["a", "b"]) == hash_of(["b", "a"])
    True
    """
    content = hashlib.sha256()
    for key in sorted(map(key_of, keys_in(held_out))):
        content.update(key.encode() + b"\n")
    if hasattr(held_out, "iloc"):
        from pandas.util import hash_pandas_object

        with contextlib.suppress(TypeError):  # cells that are lists or arrays
            content.update(repr(sorted(hash_pandas_object(held_out).tolist())).encode())
    return content.hexdigest()[:16]


def _order(key: str) -> tuple[str, Any]:
    """Return what sorts keys of one kind; the first part is the kind."""
    try:
        return "number", float(key)
    except ValueError:
        pass
    try:
        stamp = datetime.fromisoformat(key)
    except ValueError:
        return "text", key
    return ("time", stamp) if stamp.tzinfo is None else ("time of a zone", stamp)
