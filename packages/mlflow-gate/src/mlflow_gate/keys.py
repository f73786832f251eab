"""Row keys and declared training rows, which show the gate whether a model was trained on held-out rows."""

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
from mlflow_gate.server import is_not_found, outage

if TYPE_CHECKING:
    from mlflow import MlflowClient

LEARNED_TAG = "mlflow_gate.learned"
KEYS_FILE = "mlflow_gate/training_rows.gz"  # digests of the keys
DIGEST_BYTES = 8
NUMBER, TEXT, AWARE, NAIVE = "numbers", "texts", "timezone-aware times", "naive times"
DATE = re.compile(r"(?!.*[.,]\d{7})\d{4}-\d\d-\d\d([T ]\d\d.*)?")  # no nanoseconds: Python would truncate them


@dataclass(frozen=True)
class Keys:
    """Row keys, normalized to strings, and the kind of each part of a key.

    A key is a number, a time, a string or a tuple of these, such as a site and a time. Strings are times if all of them
    are ISO 8601 dates; they are never numbers: "007" is not 7.

    >>> Keys.of(["2016-01-01 01:00+01:00"])
    Keys(kinds=('timezone-aware times',), texts=[('2016-01-01T00:00:00Z',)])
    """

    kinds: tuple[str, ...]
    texts: list[tuple[str, ...]]

    @classmethod
    def of(cls, rows: Any) -> Keys:
        """Read the index of a pandas object, or a sequence of keys; raise ConfigError for keys of mixed kinds."""
        keys: Any = rows.index if hasattr(rows, "iloc") else rows
        if isinstance(keys, str | bytes) or not hasattr(keys, "__iter__"):
            raise _without_keys(keys)
        if hasattr(keys, "nlevels"):  # an index: its levels keep their dtypes
            columns = [keys.get_level_values(level) for level in range(keys.nlevels)]
        else:
            tuples = [key if isinstance(key, tuple) else (key,) for key in keys]
            if len({len(key) for key in tuples}) > 1:
                raise _not_comparable("tuples of different lengths")
            columns = list(zip(*tuples, strict=True))
        if not columns or not len(columns[0]):
            return cls((TEXT,), [])
        kinds, texts = zip(*map(_column, columns), strict=True)
        return cls(kinds, list(zip(*texts, strict=True)))

    @property
    def ends(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The lowest and the highest value of each part of the keys."""
        low, high = list[str](), list[str]()
        for part, kind in enumerate(self.kinds):
            texts = [key[part] for key in self.texts]
            # Time strings of equal length sort chronologically without parsing, which is much faster.
            order = str if kind in (AWARE, NAIVE) and len(set(map(len, texts))) == 1 else _order_of(kind)
            low, high = [*low, min(texts, key=order)], [*high, max(texts, key=order)]
        return tuple(low), tuple(high)

    @property
    def period(self) -> tuple[str, str] | None:
        """The first and the last time; None if the keys are not times."""
        if not self.texts or self.kinds not in ((AWARE,), (NAIVE,)):
            return None
        (first, *_), (last, *_) = self.ends
        return first, last

    @property
    def are_renumbered(self) -> bool:
        """Whether the keys are 0, 1, 2, ..., as after `reset_index(drop=True)`."""
        return self.kinds == (NUMBER,) and [text for (text,) in self.texts] == list(map(str, range(len(self.texts))))

    def digests(self) -> list[bytes]:
        """Return the digest of each key, to log instead of the keys themselves, which may be personal data."""
        joined = ("\0".join(texts).encode() for texts in self.texts)
        return [hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest() for text in joined]


@dataclass(frozen=True)
class TrainingRows:
    """The training rows that a run declares with `log_learned`: either a span of keys or the digest of each key.

    ``ends`` are the lowest and highest keys of a span; ``problem`` says why the declaration is unusable, or is empty.
    """

    kinds: tuple[str, ...] = ()
    ends: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    digests: frozenset[bytes] = field(default=frozenset(), repr=False)
    source: str = ""
    population: str = ""
    problem: str = ""

    def find(self, keys: Keys) -> tuple[list[bool], str]:
        """Return, for each key, whether the model was trained on its row; and why this is unknown, or ""."""
        if self.problem or self.kinds != keys.kinds:
            trained, held_out = (" and ".join(kinds) for kinds in (self.kinds, keys.kinds))
            mismatch = f"the keys of its training rows are {trained}, but those of the held-out rows are {held_out}"
            return [False] * len(keys.texts), self.problem or mismatch
        if self.ends is None:
            return [digest in self.digests for digest in keys.digests()], ""
        is_inside = [True] * len(keys.texts)
        for part, (kind, *ends) in enumerate(zip(keys.kinds, *self.ends, strict=True)):
            order = _order_of(kind)
            low, high = map(order, ends)
            is_inside = [
                low <= order(key[part]) <= high and is_in for key, is_in in zip(keys.texts, is_inside, strict=True)
            ]
        return is_inside, ""


def log_learned(keys: Iterable[Any], *, span: bool = False, source: str = "", population: str = "") -> None:
    """Declare the training rows of the active run's model.

    Parameters
    ----------
    keys : iterable
        The key of each training row, such as the index of a DataFrame.
    span : bool
        Treat every row between the first and the last key as a training row, which suits time series. Otherwise the
        digest of each key is logged as an artifact.
    source : str
        A readable name of the data.
    population : str
        What the rows are, such as modelled or measured hours: equal keys in two populations are different rows.

    Raises
    ------
    ConfigError
        If there are no keys, the keys are of mixed kinds, or no run is active.

    Examples
    --------
    >>> import mlflow
    >>> with mlflow.start_run():
    ...     log_learned(range(400))
    """
    import mlflow

    training_keys = Keys.of(keys)
    if (run := mlflow.active_run()) is None:
        step = "call log_learned inside `with mlflow.start_run():`"
        raise ConfigError("There is no active run.", next_step=step)
    if not training_keys.texts:
        raise ConfigError("There are no training rows to declare.", expected="the key of each row")
    first, last = training_keys.ends
    facts = {"rows": len(training_keys.texts), "kinds": training_keys.kinds, "first": first, "last": last, "span": span}
    if not span:
        folder, _, name = KEYS_FILE.partition("/")
        with tempfile.TemporaryDirectory() as local:
            file = Path(local, name)
            file.write_bytes(gzip.compress(b"".join(sorted(set(training_keys.digests()))), mtime=0))
            mlflow.MlflowClient().log_artifact(run.info.run_id, str(file), folder)
    mlflow.set_tag(LEARNED_TAG, json.dumps(facts | {"source": source, "population": population}))


def declared(tags: Mapping[str, str]) -> dict[str, Any]:
    """Return a run's declaration (`rows`, `first`, `last`, `source`, `population`) from its tags, or an empty dict."""
    try:
        facts = dict(json.loads(tags[LEARNED_TAG]))
        ends = {name: ", ".join(facts[name]) for name in ("first", "last") if isinstance(facts.get(name), list)}
    except (KeyError, TypeError, ValueError):
        return {}
    return facts | ends


def training_rows(run_id: str, tags: Mapping[str, str], client: MlflowClient) -> TrainingRows | None:
    """Return a run's declared training rows, None if it declares none; raise ServerError if they cannot be read now.

    For an invalid declaration, the `problem` of the returned rows says what is wrong.
    """
    if LEARNED_TAG not in tags:
        return None
    try:
        facts = json.loads(tags[LEARNED_TAG])
        names: dict[str, Any] = {name: str(facts[name]) for name in ("source", "population")}
        kinds = tuple(facts["kinds"])
        ends = (tuple(facts["first"]), tuple(facts["last"]))
        if facts["span"]:
            return TrainingRows(kinds, ends, **names)
        with tempfile.TemporaryDirectory() as folder:
            joined = gzip.decompress(Path(client.download_artifacts(run_id, KEYS_FILE, folder)).read_bytes())
    except (KeyError, TypeError, ValueError, EOFError, gzip.BadGzipFile) as error:
        return TrainingRows(problem=f"its run's declaration of training rows is damaged: {error!r:.100}")
    except Exception as error:
        if not is_not_found(error):
            raise outage(f"The training rows of run {run_id} cannot be read: no decision was made", error) from error
        return TrainingRows(problem="the list of its training rows was deleted from its run's artifacts")
    starts = range(0, len(joined), DIGEST_BYTES)
    return TrainingRows(kinds, None, frozenset(joined[start : start + DIGEST_BYTES] for start in starts), **names)


def hash_rows(held_out: Any, keys: Keys) -> str:
    """Return a hash of the keys of held-out rows and, for a pandas object, of its values if they are hashable."""
    content = hashlib.sha256("".join(f"{key}\n" for key in map("\0".join, sorted(keys.texts))).encode())
    if hasattr(held_out, "iloc"):
        from pandas.util import hash_pandas_object

        with contextlib.suppress(TypeError):  # lists and arrays in cells cannot be hashed
            content.update(repr(sorted(hash_pandas_object(held_out).tolist())).encode())
    return content.hexdigest()[:16]


def _column(column: Any) -> tuple[str, list[str]]:
    """Return the kind of one part of the keys, and its values as strings."""
    import numpy as np
    from pandas import DatetimeIndex, Timestamp, isna
    from pandas.api.types import infer_dtype

    if isinstance(column, DatetimeIndex) and not column.hasnans:  # fast path: there may be a million keys
        times = (column.tz_convert(None) if column.tz else column).to_numpy()
        if (times == (seconds := times.astype("datetime64[s]"))).all():
            zone, kind = ("", NAIVE) if column.tz is None else ("Z", AWARE)
            return kind, [text + zone for text in np.datetime_as_string(seconds).tolist()]
    keys = list(column)
    if nested := [key for key in keys if isinstance(key, list | dict | set) or getattr(key, "ndim", None)]:
        raise _without_keys(nested[0])
    if missing := [key for key in keys if isna(key)]:
        raise ConfigError("The key of a row is missing.", value=repr(missing[0]), expected="a number, time or string")
    kind = infer_dtype(keys, skipna=False)
    if kind == "string" and all(map(DATE.fullmatch, keys)):
        with contextlib.suppress(ValueError):
            times = list(map(datetime.fromisoformat, keys))
            keys, kind = (times, "datetime") if len({time.tzinfo is None for time in times}) == 1 else (keys, kind)
    if kind in ("datetime", "datetime64"):
        times = list(map(Timestamp, keys)) if kind == "datetime64" else keys
        if len(naive := {time.tzinfo is None for time in times}) > 1:
            raise _not_comparable(f"{AWARE}, {NAIVE}")
        if naive == {True}:
            return NAIVE, [time.isoformat() for time in times]
        return AWARE, [time.astimezone(UTC).isoformat().replace("+00:00", "Z") for time in times]
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
    """Return the kind of floats and their texts; the kind says if the dtype may have rounded some (ids above 2**53)."""
    import numpy as np

    is_whole, end = np.isfinite(numbers) & (numbers == np.round(numbers)), 2 ** (np.finfo(dtype).nmant + 1)
    is_exact = (abs(numbers[is_whole]) < end).all() and (is_whole.all() or dtype.itemsize >= 8)
    texts = [str(int(number)) if number.is_integer() else repr(number) for number in numbers.tolist()]
    return (NUMBER if is_exact else f"{NUMBER} rounded to {dtype}"), texts


def _order_of(kind: str) -> Callable[[str], Any]:
    """Return the function that converts key strings of one kind to values that can be sorted."""
    if NUMBER in kind:
        return lambda text: int(text) if text.lstrip("-").isdecimal() else float(text)
    return datetime.fromisoformat if kind in (AWARE, NAIVE) else str


def _without_keys(value: object) -> ConfigError:
    expected = "a pandas object with the key of each row as its index, or a sequence of keys"
    return ConfigError("The rows have no keys.", value=f"{type(value).__name__}: {value!r:.60}", expected=expected)


def _not_comparable(value: str) -> ConfigError:
    expected = f"keys of one kind: {NUMBER}, {AWARE}, {NAIVE}, {TEXT}; or tuples of these"
    return ConfigError("The row keys are of mixed or unsupported kinds.", value=value, expected=expected)
