"""A step of the workshop, and what a look at it found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from workshop.teaching.checkpoints.evidence import Evidence
from workshop.teaching.checkpoints.store import BROUGHT_TAG, Run, Version


class State(StrEnum):
    """What a look at a step found."""

    DONE = "done"
    BROUGHT = "brought"  # it is there, but `workshop up --chapter` made it
    MISSING = "missing"
    UNKNOWN = "unknown"  # it could not be looked at, so it is not ticked


@dataclass(frozen=True)
class Verdict:
    """What a look found; ``reason`` is, for what is not there, the most likely one and what to do about it."""

    state: State
    reason: str = ""


DONE = Verdict(State.DONE)
BROUGHT = Verdict(State.BROUGHT)


def missing(reason: str) -> Verdict:
    """Return the verdict on what is not there."""
    return Verdict(State.MISSING, reason)


def unknown(reason: str) -> Verdict:
    """Return the verdict on what could not be looked at."""
    return Verdict(State.UNKNOWN, reason)


def needs_store(look: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """Give a look the tracking store as its last argument; without one the step is unknown."""

    @functools.wraps(look)
    def with_store(*arguments) -> Verdict:
        evidence: Evidence = arguments[-1]
        return unknown(evidence.trouble) if evidence.store is None else look(*arguments, evidence.store)

    return with_store


def seen(made: Sequence[Run | Version]) -> Verdict | None:
    """Return the verdict on runs or versions: brought, when all of them were; None when there is none of them."""
    if not made:
        return None
    return BROUGHT if all(BROUGHT_TAG in each.tags for each in made) else DONE


@dataclass(frozen=True)
class Step:
    """One thing to do: what, where (a path from the repository's top, and a heading in it), the look."""

    title: str
    where: str
    look: Callable[[Evidence], Verdict]
    heading: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A step that was looked at."""

    chapter: int
    title: str
    where: str
    state: State
    reason: str
    heading: str = ""

    @property
    def link(self) -> str:
        """The target of a link that JupyterLab follows to the heading, whose anchor is its text with dashes."""
        return f"{self.where}#{self.heading.replace(' ', '-')}" if self.heading else self.where

    @property
    def place(self) -> str:
        """Where it is done, in words."""
        return f"{self.where}, {self.heading}" if self.heading else self.where

    @property
    def there(self) -> bool:
        """Whether what the step makes is there, whoever made it."""
        return self.state in (State.DONE, State.BROUGHT)

    def as_dict(self) -> dict[str, object]:
        """Return the fields as JSON-able values."""
        return {
            "chapter": self.chapter,
            "step": self.title,
            "where": self.where,
            "heading": self.heading,
            "state": self.state.value,
            "reason": self.reason,
        }
