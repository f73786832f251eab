"""The moves of the alias `production`: what came into production when, by whom and why, and what it replaced.

Each move is a tag of the registered model, so that the history outlives its versions. It is written before the alias
moves and marked as done afterwards: a process that is killed in between leaves a move that did not happen, and that
nobody sees.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from workshop.models.promotion import METRICS
from workshop.models.tracking import connect, find_run
from workshop.settings import PRODUCTION, REGISTERED_MODEL

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import RegisteredModel

TAG = "workshop.move."
PROMOTED, FORCED, ROLLED_BACK, BY_HAND = "promoted", "forced", "rolled back", "by hand"
MOST_CHARACTERS = 5000  # of a registered model's tag, in MLflow's database


@dataclass(frozen=True)
class Move:
    """One move of the alias; ``action`` is `promoted`, `forced`, `rolled back`, or `by hand` for one without a record.

    Times are ISO 8601 in UTC. ``scores`` are those of the version that came, ``replaced_scores`` those of the one that
    went, on the same held-out hours (see `promotion.Scores`); ``rules`` the gate's, each with name, value, limit and
    whether it passed. ``deleted`` tells that the version exists no more.
    """

    number: int
    action: str
    version: str
    when: str | None = None
    who: str | None = None
    why: str | None = None
    reason: str | None = None
    replaced: str | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    replaced_scores: dict[str, Any] = field(default_factory=dict)
    rules: list[dict[str, Any]] = field(default_factory=list)
    data: str | None = None
    commit: str | None = None
    deleted: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)


def read() -> list[Move]:
    """Return all moves, the first one first; empty when nothing was ever in production."""
    client = connect()
    model = find_model(client)
    if model is None:
        return []
    runs = {str(each.version): each.run_id for each in client.search_model_versions(f"name='{REGISTERED_MODEL}'")}
    return [
        replace(
            move,
            deleted=move.version not in runs,
            scores=move.scores or metrics_of(find_run(client, runs.get(move.version))),
        )
        for move in moves_of(model)
    ]


def metrics_of(run: Run | None) -> dict[str, float]:
    """Return what a run says of its model's scores: a move that was made by hand has none of its own."""
    logged = run.data.metrics if run else {}
    return {name: round(logged[name], 6) for name in METRICS if math.isfinite(logged.get(name, math.nan))}


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


def find_model(client: MlflowClient) -> RegisteredModel | None:
    """Return the registered model, with its tags and aliases; None when there is none yet."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(REGISTERED_MODEL)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def moves_of(model: RegisteredModel) -> list[Move]:
    """Return the moves that happened, the first one first, as the model's tags and its alias tell them."""
    current = version_of(model)
    written = list(filter(None, (_parse(name, model.tags[name]) for name in sorted(model.tags))))
    moves = [move for move, done in written[:-1] if done]
    moves += [move for move, done in written[-1:] if done or move.version == current]
    last = moves[-1] if moves else None
    if current is not None and (last is None or last.version != current):
        moves.append(Move(_next(moves), BY_HAND, current, replaced=last.version if last else None))
    return moves


def _next(moves: list[Move]) -> int:
    return moves[-1].number + 1 if moves else 1


def _parse(name: str, text: str) -> tuple[Move, bool] | None:
    """Return the move that a tag tells of, and whether it is done; None for one that tells of none.

    Whoever reaches the tracking server writes what they like into a tag, and that must not stop what serves.
    """
    numbered = re.fullmatch(rf"{re.escape(TAG)}(\d{{6}})", name)
    if numbered is None:
        return None
    from pydantic import TypeAdapter

    try:
        told = json.loads(text)
        done = told.pop("done")
        move = TypeAdapter(Move).validate_json(json.dumps(told | {"number": int(numbered[1])}), strict=True)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return (move, done is True) if re.fullmatch(r"[1-9]\d*", move.version) else None


def version_of(model: RegisteredModel) -> str | None:
    """Return the version that the alias `production` points at."""
    version = model.aliases.get(PRODUCTION)
    return None if version is None else str(version)


def move_alias(client: MlflowClient, move: Move) -> None:
    """Record a move and make it; the caller holds the lock of `registry`. Its number is the next one."""
    before = moves_of(find_model(client))
    if before:  # made by hand, which nobody wrote down, or by a process that was killed before it could say so
        _write(client, before[-1], done=True)
    move = replace(move, number=_next(before))
    _write(client, move, done=False)
    client.set_registered_model_alias(REGISTERED_MODEL, PRODUCTION, move.version)
    _write(client, move, done=True)


def note(client: MlflowClient) -> Move | None:
    """Write down the last move if it was made by hand and nobody did so yet, and return it; None otherwise.

    The caller holds the lock of `registry`. Of two such moves in a row, none of them noted, the first is forgotten.
    """
    model = find_model(client)
    moves = moves_of(model) if model else []
    if not moves or moves[-1].action != BY_HAND:
        return None
    if _parse(name := f"{TAG}{moves[-1].number:06d}", model.tags.get(name, "")) == (moves[-1], True):
        return None
    _write(client, moves[-1], done=True)
    return moves[-1]


def _write(client: MlflowClient, move: Move, *, done: bool) -> None:
    told = move.as_dict() | {"done": done}
    del told["deleted"]
    text = json.dumps(told, ensure_ascii=False)
    if len(text) > MOST_CHARACTERS:  # a reason that people gave at length; that of a promotion the version has in full
        over = len(text) - MOST_CHARACTERS
        shortened = {name: told[name][: max(len(told[name]) - over, 200)] for name in ("why", "reason") if told[name]}
        text = json.dumps(told | shortened, ensure_ascii=False)
        if len(text) > MOST_CHARACTERS:
            text = json.dumps(told | shortened | {"rules": []}, ensure_ascii=False)
    client.set_registered_model_tag(REGISTERED_MODEL, f"{TAG}{move.number:06d}", text)
