"""The history of the alias, kept in tags of the registered model, so that it outlives the versions.

A move is recorded before the alias moves and marked as done afterwards. If the process is killed in between, the
unfinished move counts only if the alias already points to its version.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from mlflow_gate.errors import ModelError
from mlflow_gate.keys import declared
from mlflow_gate.server import find

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

MOVE_TAG = "mlflow_gate.move."  # followed by <number>.<part>; a long record is split into parts
PART_CHARACTERS = 5000  # per tag; MLflow allows 100,000, but its PostgreSQL column only 5,000
LAST_TAG = "mlflow_gate.last_move."  # version tag, followed by the alias: number of the last move to the version
PROMOTED, FORCED, BY_HAND = "promoted", "forced", "by hand"
ROLLED_BACK, RESTORED = "rolled back", "restored"
MAX_LISTED = 10  # maximum number of versions listed in an error message


@dataclass(frozen=True)
class Move:
    """One move of the alias.

    Parameters
    ----------
    number : int
        Position in the history.
    action : str
        `promoted`, `forced`, `rolled back`, `restored` or `by hand`.
    version : str
        The version that the alias moved to.
    when, who, why, reason : str, optional
        Time (ISO 8601, UTC), user, the user's reason and the gate's decision.
    replaced : str, optional
        The version that the alias pointed to before.
    run_id, model_uri : str
        The evaluated model; the version may be a refit of it.
    scores, replaced_scores : dict
        Metrics of the new and of the replaced version, both on ``held_out``.
    held_out : dict
        The held-out rows: `hash`, `period`, `rows`, and `part`, a description such as `test weeks`.
    metric : str
        The compared metric.
    findings : list of dict
        The findings of the gate.
    run, judged : dict
        Tags of the version's run and of the evaluated run, in case these runs are purged.
    alias : str
        The alias that moved.
    recorded : bool
        False for a move made by hand that is not recorded yet.
    """

    number: int
    action: str
    version: str
    when: str | None = None
    who: str | None = None
    why: str | None = None
    reason: str | None = None
    replaced: str | None = None
    run_id: str = ""
    model_uri: str = ""
    scores: dict[str, Any] = field(default_factory=dict)
    replaced_scores: dict[str, Any] = field(default_factory=dict)
    held_out: dict[str, Any] = field(default_factory=dict)
    metric: str = ""
    findings: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, str] = field(default_factory=dict)
    judged: dict[str, str] = field(default_factory=dict)
    alias: str = "production"
    recorded: bool = True

    @property
    def label(self) -> str:
        """Name of the compared metric or, if none was recorded, of the first metric."""
        return self.metric or next(iter(self.scores), "score")

    @property
    def value(self) -> float | None:
        """The value of the compared metric; None if it was not recorded."""
        value = self.scores.get(self.label)
        return float(value) if isinstance(value, int | float) else None

    @property
    def score(self) -> str:
        """The value of the compared metric and the held-out rows, as text."""
        return "" if self.value is None else " ".join(filter(None, [f"{self.value:.4f}", self.held_out_rows]))

    @property
    def held_out_rows(self) -> str:
        """Part and period (or hash) of the held-out rows, in parentheses; empty if not recorded."""
        period, name = self.held_out.get("period"), self.held_out.get("hash")
        days = [str(end).removesuffix("T00:00:00")[:16].partition("T")[0] for end in period or ()]
        rows = " to ".join(days) or (f"rows {name}" if name else "")
        return f"({', '.join(filter(None, [self.held_out.get('part'), rows]))})" if rows else ""


@dataclass(frozen=True)
class EvaluatedModel:
    """A model that the gate evaluated.

    Parameters
    ----------
    run_id : str
        The run that logged the model.
    model_uri : str
        The URI to load the model from.
    tags : mapping
        The run's tags.
    source : str
        The model's identity: the logged model (`models:/m-...`) or, without one, the location of its files.
    run : mlflow.entities.Run, optional
        None if the run was purged.
    """

    run_id: str
    model_uri: str
    tags: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    run: Run | None = field(default=None, repr=False, compare=False)

    @property
    def declared(self) -> dict[str, Any]:
        """The run's declaration of training rows: `rows`, `first`, `last`, `source`, `population`."""
        return declared(self.tags)


@dataclass(frozen=True)
class Production(EvaluatedModel):
    """The version in production: an `EvaluatedModel` with these additional fields.

    Parameters
    ----------
    name, version : str
        The registered model and the version's number.
    run_url : str
        URL of the run's page in MLflow's UI; empty without a server or a run.
    move : Move
        The last move to this version.
    refit_of : EvaluatedModel, optional
        The evaluated model, if this version is its refit on all rows.
    has_alias : bool
        False if the alias was removed.
    """

    name: str = ""
    version: str = ""
    run_url: str = ""
    move: Move = field(default_factory=lambda: Move(0, BY_HAND, ""))
    refit_of: EvaluatedModel | None = None
    has_alias: bool = True

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"

    @property
    def evaluated(self) -> EvaluatedModel:
        """The model that the gate evaluated: this model or, if this one is a refit, the original."""
        return self.refit_of or self


_MOVES = TypeAdapter(Move)


class Record:
    """The version at an alias (None if the alias is unset) and all ``moves`` of the alias, oldest first."""

    def __init__(self, client: MlflowClient, name: str, alias: str) -> None:
        self.version = find(client.get_model_version_by_alias, name, alias)
        self.current = str(self.version.version) if self.version else None
        model, texts = find(client.get_registered_model, name), defaultdict[int, dict[int, str]](dict)
        for tag, text in model.tags.items() if model else ():
            with contextlib.suppress(ValueError):  # ignore all other tags
                number, part = map(int, tag.removeprefix(MOVE_TAG).split("."))
                texts[number][part] = text
        self.next_number = 1 + max(texts, default=0)
        self._all: list[Move] = []  # including unfinished moves
        for number, parts in sorted(texts.items()):
            with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):
                content = json.loads("".join(parts[part] for part in sorted(parts)))
                state = {"number": number, "recorded": content.pop("done") == 1}
                move = _MOVES.validate_python(content | state)
                self._all += [move] if move.alias == alias else []
        last = [move for move in self._all[-1:] if not move.recorded and move.version == self.current]
        self.moves = [move for move in self._all if move.recorded] + last
        if self.current is not None and (not self.moves or self.moves[-1].version != self.current):
            previous, before = self.last_move_to(self.current), self.moves[-1].version if self.moves else None
            run_id, uri = self.version.run_id or "", model_source(self.version, client)
            run_id, uri = (previous.run_id, previous.model_uri) if previous else (run_id, uri)
            by_hand = Move(self.next_number, BY_HAND, self.current, replaced=before, run_id=run_id, model_uri=uri)
            self.moves.append(replace(by_hand, alias=alias, recorded=False))

    def after(self, move: Move, version: ModelVersion) -> Record:
        """Return a copy of this record with one more move, to ``version``."""
        read = copy(self)
        read.version, read.current, read.next_number = version, move.version, move.number + 1
        read._all, read.moves = [*self._all, move], [*self.moves, move]
        return read

    def is_unchanged_since(self, other: Record) -> bool:
        """Return whether the alias has not moved since ``other`` was read, not even away and back."""
        return (self.current, self.next_number) == (other.current, other.next_number)

    def last_move_to(self, version: str) -> Move | None:
        """Return the last move to a version, even if unfinished: it still identifies the evaluated model."""
        return next((move for move in reversed(self._all) if move.version == version), None)

    def versions_of(self, model_uri: str) -> set[str]:
        """Return the numbers of all versions that hold this evaluated model or its refit."""
        return {move.version for move in self._all if move.model_uri == model_uri}


def model_source(version: ModelVersion, client: MlflowClient) -> str:
    """Return a version's identity: its logged model, or else the location of its files."""
    source = version.source or ""
    if copied := re.fullmatch("models:/(.+)/([0-9]+)", source):
        original = find(client.get_model_version, *copied.groups())
        return model_source(original, client) if original else source
    model = re.search("m-[0-9a-f]{32}", source)
    return f"models:/{model[0]}" if model else source


def write(client: MlflowClient, name: str, move: Move, *, done: bool) -> None:
    """Record a move, or mark a recorded move as done."""
    content = asdict(move) | {"done": int(done)}  # 0 or 1 (same length): marking as done changes only the last part
    text = json.dumps({key: content[key] for key in content if key not in ("number", "recorded")}, ensure_ascii=False)
    parts = [text[start : start + PART_CHARACTERS] for start in range(0, len(text), PART_CHARACTERS)]
    for part, content_part in enumerate(parts):
        if not (done and move.recorded) or part == len(parts) - 1:
            client.set_registered_model_tag(name, f"{MOVE_TAG}{move.number:06d}.{part}", content_part)
    if done:
        client.set_model_version_tag(name, move.version, LAST_TAG + move.alias, str(move.number))


def promotion_path(moves: list[Move]) -> list[str]:
    """Return the successive versions in production, without those rolled back; the current one is last."""
    path: list[str] = []
    for move in moves:
        if move.action == ROLLED_BACK and move.version in path:
            while path[-1] != move.version:
                path.pop()
        elif path[-1:] != [move.version]:
            path.append(move.version)
    return path


def rollback_target(to: str | None, moves: list[Move], current: str | None, exists: Callable[[str], Any]) -> str:
    """Return the version to roll back to; without a valid one, raise ModelError, which lists possible versions."""
    if not moves:
        raise ModelError("No version was ever in production.", next_step="promote a model")
    others = sorted({move.version for move in moves} - {current or ""}, key=int, reverse=True)
    before = (each for each in reversed(promotion_path(moves)) if each != current and exists(each))
    version = str(to) if to is not None else next(before, None)
    if version in others and exists(version):
        return version
    possible = list(islice(filter(exists, others), MAX_LISTED))[::-1]
    if version is None:
        what = f"No version was in production before version {current}."
    elif version == current:
        what = f"Version {version} is already in production."
    else:
        what = f"Version {version} was never in production, or was deleted: it must pass the gate first."
    raise ModelError(
        what,
        expected=f"a version from the history, such as {', '.join(possible)}"
        if possible
        else "a version in production before it",
        next_step=f"mlflow-gate rollback --to {possible[-1]}" if possible else "promote a model",
    )


def blocking_rollback(source: str, moves: list[Move]) -> Move | None:
    """Return the rollback that blocks a model from promotion, or None.

    The block ends when a version of the model is force-promoted or restored, or another candidate is promoted.
    """
    models, blocking = {move.version: move.model_uri for move in moves}, None
    for move in moves:
        if move.action == ROLLED_BACK and models.get(move.replaced or "") == source:
            blocking = move
        elif move.action in (PROMOTED, FORCED) or move.model_uri == source:
            blocking = None
    return blocking


def provenance(why: str) -> dict[str, Any]:
    """Return the time, the user and the reason of a move."""
    why = why.encode(errors="replace").decode()  # command-line arguments may not be valid UTF-8
    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        who = f"uid {os.getuid()}"
    return {"when": datetime.now(UTC).isoformat(timespec="seconds"), "who": who, "why": why}
