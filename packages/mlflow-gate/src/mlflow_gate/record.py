"""The record of the alias: each move is kept in tags of the registered model, and so outlives the versions.

A record is written before the alias moves and marked as done afterwards: when a process is killed in between, the alias
still leads to a version, and the move that did not happen is ignored.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from mlflow_gate.errors import ModelError
from mlflow_gate.keys import declared
from mlflow_gate.server import find

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

MOVE_TAG = "mlflow_gate.move."  # number.part: the parts of a text are joined
PART_CHARACTERS = 5000  # of a tag; MLflow allows 100,000, and its database in PostgreSQL no more than this
LAST_TAG = "mlflow_gate.last_move."  # and the alias; of a version: the number of the last move to it
PROMOTED, FORCED, BY_HAND = "promoted", "forced", "by hand"
ROLLED_BACK, RESTORED = "rolled back", "restored"


@dataclass(frozen=True)
class Move:
    """One move of the alias; ``action`` is `promoted`, `forced`, `rolled back`, `restored` or `by hand`.

    ``number`` is its place among all moves, ``when`` ISO 8601 in UTC. ``run_id`` and ``model_uri`` name the model that
    the gate judged. ``scores`` are those of the version that came, ``replaced_scores`` those of the version that went,
    both on ``held_out`` (`hash`, `period`, `rows`, and `part`, the part of the period in words), and ``metric``
    decided. ``findings`` are those of the gate; ``run`` and ``judged`` hold tags of the version's run and of the judged
    one, in case these are purged. ``recorded`` is false for a move that is seen, but not yet written down.
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
        """The metric that decided; the first one where that was not recorded."""
        return self.metric or next(iter(self.scores), "score")

    @property
    def figure(self) -> float | None:
        """The score that decided; None where none was recorded."""
        value = self.scores.get(self.label)
        return float(value) if isinstance(value, int | float) else None

    @property
    def score(self) -> str:
        """The score that decided, with the period or the hash of the rows that it was computed on."""
        return "" if self.figure is None else " ".join(filter(None, [f"{self.figure:.4f}", self.rows_judged]))

    @property
    def rows_judged(self) -> str:
        """The held-out rows by their period or their hash, in brackets; empty where that was not recorded."""
        period, name = self.held_out.get("period"), self.held_out.get("hash")
        days = [str(end).removesuffix("T00:00:00")[:16].partition("T")[0] for end in period or ()]
        rows = " to ".join(days) or (f"rows {name}" if name else "")
        return f"({', '.join(filter(None, [self.held_out.get('part'), rows]))})" if rows else ""


@dataclass(frozen=True)
class EvaluatedModel:
    """A model that the gate evaluated, by its run and the address to load it from; ``tags`` are those of the run.

    ``source`` is its identity: the logged model (`models:/m-...`), or its place where a version was registered from
    files. ``run`` is None for a run that was purged.
    """

    run_id: str
    model_uri: str
    tags: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    run: Run | None = field(default=None, repr=False, compare=False)

    @property
    def declared(self) -> dict[str, Any]:
        """What the run declares of the training rows: `rows`, `first`, `last`, `source`, `population`."""
        return declared(self.tags)


@dataclass(frozen=True)
class Production(EvaluatedModel):
    """The version that the alias points at, with its own run; ``move`` is the last move that brought it there.

    ``refit_of`` is the model that was evaluated, fitted on a part of the rows, if the version is a refit of it on all.
    ``has_alias`` is false for a champion whose alias was removed.
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
        """The model that the gate evaluated."""
        return self.refit_of or self


_MOVES = TypeAdapter(Move)


class Record:
    """The version at an alias, None without one, and all ``moves`` that led there, oldest first."""

    def __init__(self, client: MlflowClient, name: str, alias: str) -> None:
        self.version = find(client.get_model_version_by_alias, name, alias)
        self.current = str(self.version.version) if self.version else None
        model, texts = find(client.get_registered_model, name), defaultdict[int, dict[int, str]](dict)
        for tag, text in model.tags.items() if model else ():
            with contextlib.suppress(ValueError):  # anybody who reaches the server can write tags, which are ignored
                number, part = map(int, tag.removeprefix(MOVE_TAG).split("."))
                texts[number][part] = text
        self.next_number = 1 + max(texts, default=0)
        self._all: list[Move] = []  # also moves that did not happen
        for number, parts in sorted(texts.items()):
            with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):
                content = json.loads("".join(parts[part] for part in sorted(parts)))
                state = {"number": number, "recorded": content.pop("done") == 1}
                move = _MOVES.validate_python(content | state)
                self._all += [move] if move.alias == alias else []
        last = [move for move in self._all[-1:] if not move.recorded and move.version == self.current]
        self.moves = [move for move in self._all if move.recorded] + last
        if self.current is not None and (not self.moves or self.moves[-1].version != self.current):
            known, before = self.of(self.current), self.moves[-1].version if self.moves else None
            run_id, uri = self.version.run_id or "", source_of(self.version, client)
            run_id, uri = (known.run_id, known.model_uri) if known else (run_id, uri)
            by_hand = Move(self.next_number, BY_HAND, self.current, replaced=before, run_id=run_id, model_uri=uri)
            self.moves.append(replace(by_hand, alias=alias, recorded=False))

    def is_as(self, other: Record) -> bool:
        """Return whether the alias has not moved since another reading, not even away and back."""
        return (self.current, self.next_number) == (other.current, other.next_number)

    def of(self, version: str) -> Move | None:
        """Return the last record of a version, also of a move that did not happen: it names the judged model."""
        return next((move for move in reversed(self._all) if move.version == version), None)

    def versions_of(self, model_uri: str) -> set[str]:
        """Return the versions for which a model was judged."""
        return {move.version for move in self._all if move.model_uri == model_uri}


def source_of(version: ModelVersion, client: MlflowClient) -> str:
    """Return what identifies the model of a version: its logged model, or else the place of its files."""
    source = version.source or ""
    if copied := re.fullmatch("models:/(.+)/([0-9]+)", source):
        original = find(client.get_model_version, *copied.groups())
        return source_of(original, client) if original else source
    model = re.search("m-[0-9a-f]{32}", source)
    return f"models:/{model[0]}" if model else source


def write(client: MlflowClient, name: str, move: Move, *, done: bool) -> None:
    """Write the record of a move, or mark one that was written as done."""
    content = asdict(move) | {"done": int(done)}  # a digit, so that the parts stay the same
    text = json.dumps({key: content[key] for key in content if key not in ("number", "recorded")}, ensure_ascii=False)
    parts = [text[start : start + PART_CHARACTERS] for start in range(0, len(text), PART_CHARACTERS)]
    for part, words in enumerate(parts):
        if not (done and move.recorded) or part == len(parts) - 1:
            client.set_registered_model_tag(name, f"{MOVE_TAG}{move.number:06d}.{part}", words)
    if done:
        client.set_model_version_tag(name, move.version, LAST_TAG + move.alias, str(move.number))


def line_of(moves: list[Move]) -> list[str]:
    """Return the versions that led to the one in production, which is the last, without those rolled back from."""
    line: list[str] = []
    for move in moves:
        if move.action == ROLLED_BACK and move.version in line:
            while line[-1] != move.version:
                line.pop()
        elif line[-1:] != [move.version]:
            line.append(move.version)
    return line


def target_of(to: str | None, moves: list[Move], current: str | None, exists: Callable[[str], Any]) -> str:
    """Return the version to go back to; raise ModelError, which names those that are possible."""
    if not moves:
        raise ModelError("Nothing was ever in production.", next_step="promote a model")
    possible = [each for each in sorted({move.version for move in moves} - {current or ""}, key=int) if exists(each)]
    before = [each for each in line_of(moves) if each in possible]
    version = str(to) if to is not None else before[-1] if before else None
    if version in possible:
        return version
    if version is None:
        what = f"Nothing was in production before version {current}."
    elif version == current:
        what = f"Version {version} is in production already."
    else:
        what = f"Version {version} was never in production, or was deleted: it has to pass the gate."
    raise ModelError(
        what,
        expected=f"one of the versions {', '.join(possible)}" if possible else "a version in production before it",
        next_step=f"mlflow-gate rollback --to {possible[-1]}" if possible else "promote a model",
    )


def blocking_rollback(source: str, moves: list[Move]) -> Move | None:
    """Return the rollback that blocks a model; None when there is none.

    It blocks until a person forces a version of the model, or restores it, or another candidate is promoted.
    """
    models, blocking = {move.version: move.model_uri for move in moves}, None
    for move in moves:
        if move.action == ROLLED_BACK and models.get(move.replaced or "") == source:
            blocking = move
        elif move.action in (PROMOTED, FORCED) or move.model_uri == source:
            blocking = None
    return blocking


def provenance(why: str) -> dict[str, Any]:
    """Return when, by whom and why."""
    why = why.encode(errors="replace").decode()  # bytes of the command line that are no text cannot be sent
    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in a container
        who = f"uid {os.getuid()}"
    return {"when": datetime.now(UTC).isoformat(timespec="seconds"), "who": who, "why": why}
