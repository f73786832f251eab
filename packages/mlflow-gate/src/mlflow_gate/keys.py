"""Keys of rows, and the training rows that a run declares: by these the gate knows that held-out rows are new."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_gate.errors import ConfigError
from mlflow_gate.server import is_absent, outage

if TYPE_CHECKING:
    from mlflow import MlflowClient

LEARNED_TAG = "mlflow_gate.learned"
KEYS_FILE = "mlflow_gate/training_rows.gz"  # the digests of the keys
DIGEST_BYTES = 8
NUMBER, TEXT, ZONED, NAIVE = "numbers", "texts", "times of a time zone", "times without a time zone"
DATE = re.compile(r"(?!.*[.,]\d{7})\d{4}-\d\d-\d\d([T ]\d\d.*)?")  # Python cuts nanoseconds off


@dataclass(frozen=True)
class Keys:
    """The keys of rows: the kind of each part in words, and each key as texts, the same for equal keys.

    A key is a number, a time or a text, or a tuple of these, such as a site and a time. Texts that are all dates, as
    ISO 8601 has them, are times; other texts are never numbers: "007" is not 7.

    >>> Keys.of(["2016-01-01 01:00+01:00"])
    Keys(kinds=('times of a time zone',), texts=[('2016-01-01T00:00:00Z',)])
    """

    kinds: tuple[str, ...]
    texts: list[tuple[str, ...]]

    @classmethod
    def of(cls, rows: Any) -> Keys:
        """Read the keys of a pandas object's index, or keys themselves; raise ConfigError for keys of several kinds."""
        keys: Any = rows.index if hasattr(rows, "iloc") else rows
        if isinstance(keys, str | bytes) or not hasattr(keys, "__iter__"):
            raise _without_keys(keys)
        if hasattr(keys, "nlevels"):  # an index: its levels keep their dtypes
            columns = [keys.get_level_values(level) for level in range(keys.nlevels)]
        else:
            tuples = [key if isinstance(key, tuple) else (key,) for key in keys]
            if len({len(key) for key in tuples}) > 1:
                raise _not_comparable("tuples of several lengths")
            columns = list(zip(*tuples, strict=True))
        if not columns or not len(columns[0]):
            return cls((TEXT,), [])
        kinds, texts = zip(*map(_column, columns), strict=True)
        return cls(kinds, list(zip(*texts, strict=True)))

    @property
    def ends(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The lowest and the highest text of each part."""
        columns = [
            (texts, _order_of(kind)) for kind, texts in zip(self.kinds, zip(*self.texts, strict=True), strict=True)
        ]
        low, high = ([end(texts, key=order) for texts, order in columns] for end in (min, max))
        return tuple(low), tuple(high)

    @property
    def period(self) -> tuple[str, str] | None:
        """The first and the last time; None for other keys."""
        if not self.texts or self.kinds not in ((ZONED,), (NAIVE,)):
            return None
        (first, *_), (last, *_) = self.ends
        return first, last

    @property
    def are_renumbered(self) -> bool:
        """Whether the keys count from 0, as after `reset_index(drop=True)`."""
        return self.kinds == (NUMBER,) and [text for (text,) in self.texts] == list(map(str, range(len(self.texts))))

    def digests(self) -> list[bytes]:
        """Return the digest of each key; keys may be names of people, which an artifact should not hold."""
        joined = ("\0".join(texts).encode() for texts in self.texts)
        return [hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest() for text in joined]


@dataclass(frozen=True)
class TrainingRows:
    """What a run declares of the rows that its model was trained on (`log_learned`).

    ``ends`` are the lowest and the highest key of a span, without which ``digests`` are those of the single keys.
    ``trouble`` says why the declaration cannot be used.
    """

    kinds: tuple[str, ...] = ()
    ends: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    digests: frozenset[bytes] = field(default=frozenset(), repr=False)
    source: str = ""
    population: str = ""
    trouble: str = ""

    def find(self, keys: Keys) -> tuple[list[bool], str]:
        """Return for each key whether the model was trained on its row; and why that cannot be known, or no words."""
        if self.trouble or self.kinds != keys.kinds:
            own, other = (" and ".join(kinds) for kinds in (self.kinds, keys.kinds))
            words = f"the keys of its training rows are {own}, and those of the held-out rows {other}"
            return [False] * len(keys.texts), self.trouble or words
        if self.ends is None:
            return [digest in self.digests for digest in keys.digests()], ""
        parts = [(_order_of(kind), low, high) for kind, low, high in zip(self.kinds, *self.ends, strict=True)]
        return [
            all(order(low) <= order(text) <= order(high) for (order, low, high), text in zip(parts, texts, strict=True))
            for texts in keys.texts
        ], ""


def log_learned(keys: Iterable[Any], *, span: bool = False, source: str = "", population: str = "") -> None:
    """Declare in the active run what its model learns from: the key of each row, such as a frame's index.

    With ``span`` all that lies between the first and the last key counts as learned, which suits time series; else the
    digest of each key is logged as an artifact. ``source`` names the data for people. Rows of two different
    ``population``s (modelled and measured hours, say) are never the same rows, whatever their keys. Raises ConfigError
    without keys, or for keys of several kinds.

    >>> import mlflow
    >>> with mlflow.start_run():
    ...     log_learned(range(400))
    """
    import mlflow

    read = Keys.of(keys)
    if (run := mlflow.active_run()) is None:
        step = "call it between `with mlflow.start_run():` and its end"
        raise ConfigError("There is no active run to declare this in.", next_step=step)
    if not read.texts:
        raise ConfigError("A model that learned from nothing cannot be declared.", expected="the key of each row")
    first, last = read.ends
    facts = {"rows": len(read.texts), "kinds": read.kinds, "first": first, "last": last, "span": span}
    if not span:
        folder, _, name = KEYS_FILE.partition("/")
        with tempfile.TemporaryDirectory() as local:
            file = Path(local, name)
            file.write_bytes(gzip.compress(b"".join(sorted(set(read.digests()))), mtime=0))
            mlflow.MlflowClient().log_artifact(run.info.run_id, str(file), folder)
    mlflow.set_tag(LEARNED_TAG, json.dumps(facts | {"source": source, "population": population}))


def declared(tags: Mapping[str, str]) -> dict[str, Any]:
    """Return what the tags of a run declare: `rows`, `first`, `last`, `source`, `population`; empty if nothing."""
    try:
        facts = dict(json.loads(tags[LEARNED_TAG]))
        ends = {name: ", ".join(facts[name]) for name in ("first", "last") if isinstance(facts.get(name), list)}
    except (KeyError, TypeError, ValueError):
        return {}
    return facts | ends


def training_rows(run_id: str, tags: Mapping[str, str], client: MlflowClient) -> TrainingRows | None:
    """Return the training rows that a run declares, None without a declaration; raise ServerError.

    A declaration that is there and cannot be read has a `trouble`.
    """
    if LEARNED_TAG not in tags:
        return None
    try:
        facts = json.loads(tags[LEARNED_TAG])
        words: dict[str, Any] = {name: str(facts[name]) for name in ("source", "population")}
        kinds, ends = tuple(facts["kinds"]), (tuple(facts["first"]), tuple(facts["last"]))
        if facts["span"]:
            return TrainingRows(kinds, ends, **words)
        with tempfile.TemporaryDirectory() as folder:
            joined = gzip.decompress(Path(client.download_artifacts(run_id, KEYS_FILE, folder)).read_bytes())
    except (KeyError, TypeError, ValueError, EOFError, gzip.BadGzipFile) as error:
        return TrainingRows(trouble=f"its run's declaration of training rows is damaged: {error!r:.100}")
    except Exception as error:
        if not is_absent(error):
            raise outage(f"The training rows of run {run_id} cannot be read: nothing is decided", error) from error
        return TrainingRows(trouble="the list of its training rows is gone from its run's artifacts")
    starts = range(0, len(joined), DIGEST_BYTES)
    return TrainingRows(kinds, None, frozenset(joined[start : start + DIGEST_BYTES] for start in starts), **words)


def hash_of(held_out: Any, keys: Keys) -> str:
    """Return the hash that names held-out data: of its keys, and of a pandas object's content if pandas can hash it."""
    content = hashlib.sha256()
    for texts in sorted(keys.texts):
        content.update("\0".join(texts).encode() + b"\n")
    if hasattr(held_out, "iloc"):
        from pandas.util import hash_pandas_object

        with contextlib.suppress(TypeError):  # cells that are lists or arrays
            content.update(repr(sorted(hash_pandas_object(held_out).tolist())).encode())
    return content.hexdigest()[:16]


def _column(column: Any) -> tuple[str, list[str]]:
    """Return the kind of one part of keys, and each as text."""
    import numpy as np
    from pandas import Timestamp, isna
    from pandas.api.types import infer_dtype

    keys = list(column)
    if nested := [key for key in keys if isinstance(key, list | dict | set) or getattr(key, "ndim", None)]:
        raise _without_keys(nested[0])
    if missing := [key for key in keys if isna(key)]:
        raise ConfigError("The key of a row is missing.", value=repr(missing[0]), expected="a number, a time or a text")
    kind = infer_dtype(keys, skipna=False)
    if kind == "string" and all(map(DATE.fullmatch, keys)):
        with contextlib.suppress(ValueError):
            times = list(map(datetime.fromisoformat, keys))
            keys, kind = (times, "datetime") if len({time.tzinfo is None for time in times}) == 1 else (keys, kind)
    if kind in ("datetime", "datetime64"):
        times = list(map(Timestamp, keys)) if kind == "datetime64" else keys
        if len(naive := {time.tzinfo is None for time in times}) > 1:
            raise _not_comparable(f"{ZONED}, {NAIVE}")
        if naive == {True}:
            return NAIVE, [time.isoformat() for time in times]
        return ZONED, [time.astimezone(UTC).isoformat().replace("+00:00", "Z") for time in times]
    if kind == "date" and not any(isinstance(key, datetime) for key in keys):
        return NAIVE, [f"{key.isoformat()}T00:00:00" for key in keys]
    if kind == "integer":
        return NUMBER, [str(int(key)) for key in keys]
    if kind in ("floating", "mixed-integer-float"):
        numbers = np.asarray(column)
        dtypes = [numbers.dtype] if numbers.dtype.kind == "f" else [np.dtype(float)]
        dtypes += [key.dtype for key in keys if isinstance(key, np.floating)]
        return _floats(numbers.astype(float), min(dtypes, key=lambda dtype: dtype.itemsize))
    if kind not in ("string", "bytes", "boolean"):
        raise _not_comparable(", ".join(sorted({type(key).__name__ for key in keys})))
    return (TEXT if kind == "string" else kind), list(map(str, keys))


def _floats(numbers: Any, dtype: Any) -> tuple[str, list[str]]:
    """Return floats as texts; where their dtype rounds keys, such as ids above 2**53, they are of another kind."""
    import numpy as np

    is_whole, end = np.isfinite(numbers) & (numbers == np.round(numbers)), 2 ** (np.finfo(dtype).nmant + 1)
    is_exact = (abs(numbers[is_whole]) < end).all() and (is_whole.all() or dtype.itemsize >= 8)
    texts = [str(int(number)) if number.is_integer() else repr(number) for number in numbers.tolist()]
    return (NUMBER if is_exact else f"{NUMBER} rounded to {dtype}"), texts


def _order_of(kind: str) -> Callable[[str], Any]:
    """Return what sorts the texts of keys of one kind."""
    if NUMBER in kind:
        return lambda text: int(text) if text.lstrip("-").isdecimal() else float(text)
    return datetime.fromisoformat if kind in (ZONED, NAIVE) else str


def _without_keys(value: object) -> ConfigError:
    expected = "a pandas object with the key of each row as its index, or a sequence of keys"
    return ConfigError("Rows have no keys.", value=f"{type(value).__name__}: {value!r:.60}", expected=expected)


def _not_comparable(value: str) -> ConfigError:
    expected = f"keys of one kind: {NUMBER}, {ZONED}, {NAIVE}, {TEXT}; or tuples of these"
    return ConfigError("The keys of rows cannot be compared.", value=value, expected=expected)
