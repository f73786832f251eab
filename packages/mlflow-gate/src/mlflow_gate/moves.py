"""The record: a move of the alias is a tag of the version that came into production.

A record is written before the alias moves and marked as done afterwards: when a process is killed in between, the alias
still leads to a version, and the move that did not happen is ignored.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from mlflow_gate.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

MOVE_TAG = "mlflow_gate.move."
OLD_MOVE_TAG = "workshop.move."  # before there was this package
PROMOTED, FORCED, BY_HAND = "promoted", "forced", "by hand"
ROLLED_BACK, RESTORED = "rolled back", "restored"
REASON_CHARACTERS = 10_000


@dataclass(frozen=True)
class Move:
    """One move of the alias; ``action`` is `promoted`, `forced`, `rolled back`, `restored` or `by hand`.

    ``number`` is its place in the history, ``when`` ISO 8601 in UTC. ``scores`` are those of the version that came,
    ``replaced_scores`` those of the version that went, both on ``held_out`` (`hash`, `period`, `rows`, and `part`, the
    part of the period in words), and ``metric`` decided. ``rules`` are the gate's findings; ``run`` holds tags that say
    where the model comes from, in case its run is purged. ``recorded`` is false for a move that is seen, but not yet
    written down.

    >>> Move(1, "promoted", "3", scores={"r2": 0.953}, metric="r2").score
    '0.9530'
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
    held_out: dict[str, Any] = field(default_factory=dict)
    metric: str = ""
    rules: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, str] = field(default_factory=dict)
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


_MOVES = TypeAdapter(Move)


def records_in(versions: Iterable[ModelVersion], alias: str) -> list[tuple[int, Move, bool]]:
    """Return the records on an alias in the tags of versions, in order: number, move, and whether it is done."""
    records = []
    for version in versions:
        for name, text in version.tags.items():
            # Anybody who reaches the tracking server can write tags: others than ours are ignored.
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
                content = json.loads(text) if number_in(name) else {}
                done = content.pop("done") is True
                identity = {"number": number_in(name), "version": str(version.version)}
                records.append((number_in(name), _MOVES.validate_python(_present(content) | identity), done))
    return sorted((each for each in records if each[1].alias == alias), key=lambda record: record[0])


def moves_in(versions: Iterable[ModelVersion], current: str | None, alias: str) -> list[Move]:
    """Return the moves that happened, as the tags of all versions and the one at the alias, ``current``, show."""
    records = records_in(versions, alias)
    moves = [
        replace(move, recorded=done)
        for place, (_, move, done) in enumerate(records, start=1)
        if done or (place == len(records) and move.version == current)
    ]
    if current is not None and (not moves or moves[-1].version != current):
        replaced = moves[-1].version if moves else None
        moves.append(Move(0, BY_HAND, current, replaced=replaced, alias=alias, recorded=False))
    for place, move in enumerate(moves):
        if move.action == ROLLED_BACK and move.version not in line_of(moves[:place]):
            move = replace(move, action=RESTORED)  # which earlier records do not tell apart
        moves[place] = replace(move, number=place + 1)
    return moves


def next_number(versions: Iterable[ModelVersion]) -> int:
    """Return the number of the next record."""
    return 1 + max((number_in(tag) for version in versions for tag in version.tags), default=0)


def number_in(tag: str) -> int:
    """Return the number in the name of a move's tag; 0 for other tags."""
    numbered = re.fullmatch(rf"(?:{re.escape(MOVE_TAG)}|{re.escape(OLD_MOVE_TAG)})(\d{{6}})", tag)
    return int(numbered[1]) if numbered else 0


def text_of(move: Move, *, done: bool) -> str:
    """Return a move as the text of its tag."""
    content = asdict(move) | {"done": done}
    for name in ("number", "version", "recorded"):
        del content[name]
    return json.dumps(content, ensure_ascii=False)


def line_of(moves: list[Move]) -> list[str]:
    """Return the versions that led to the one in production, which is the last, without those rolled back from.

    >>> line_of([Move(1, "promoted", "1"), Move(2, "promoted", "2"), Move(3, "rolled back", "1")])
    ['1']
    """
    line: list[str] = []
    for move in moves:
        if move.action == ROLLED_BACK and move.version in line:
            while line[-1] != move.version:
                line.pop()
        elif line[-1:] != [move.version]:
            line.append(move.version)
    return line


def target_of(to: str | None, moves: list[Move], current: str | None) -> str:
    """Return the version to go back to; raise ModelError, which names those that are possible."""
    possible = sorted({move.version for move in moves} - {current or ""}, key=int)
    if not moves:
        raise ModelError("Nothing was ever in production.", next_step="promote a model")
    line = line_of(moves)
    version = str(to) if to is not None else line[-1] if current is None else ([None, *line])[-2]
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


def veto_on(versions: set[str], moves: list[Move]) -> Move | None:
    """Return the rollback that vetoes a run, by the versions that were made of it; None when there is none.

    It holds until a person forces one of the versions, or restores it, or another candidate is promoted.
    """
    veto = None
    for move in moves:
        if move.action == ROLLED_BACK and move.replaced in versions:
            veto = move
        elif move.action in (PROMOTED, FORCED) or move.version in versions:
            veto = None
    return veto


def provenance(why: str) -> dict[str, Any]:
    """Return when, by whom and why; raise ConfigError for a reason that is too long."""
    if len(why) > REASON_CHARACTERS:
        value, expected = f"{len(why)} characters", f"at most {REASON_CHARACTERS}"
        raise ConfigError("The reason is too long.", value=value, expected=expected)
    why = why.encode(errors="replace").decode()  # bytes of the command line that are no text cannot be sent
    return {"when": datetime.now(UTC).isoformat(timespec="seconds"), "who": getpass.getuser(), "why": why}


def _present(content: dict[str, Any]) -> dict[str, Any]:
    """Return a record as it is written today: earlier ones kept period and hours among the scores."""
    scores = dict(content.get("scores") or {})
    earlier = {"period": scores.pop("period", None), "rows": scores.pop("hours", None)}
    replaced = {
        name: value for name, value in (content.get("replaced_scores") or {}).items() if name not in ("period", "hours")
    }
    held_out = content.get("held_out") or {name: value for name, value in earlier.items() if value}
    return content | {"scores": scores, "replaced_scores": replaced, "held_out": held_out}
