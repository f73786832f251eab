"""The moves of the alias `production`: what came into production when, by whom and why, and what it replaced."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


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
    raise NotImplementedError
