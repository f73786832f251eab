"""The exercises: what an answer is checked against, and which ones were solved."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from workshop.data.files import write_whole
from workshop.errors import WorkshopError
from workshop.settings import Settings, get_settings

CHAPTERS = {1: "starting_point", 2: "tracking", 3: "projects", 4: "pipeline"}  # a module here for each
Test = Callable[[Any], str | None]  # the attendee's answer in; None when it is right, else what is not, as a sentence


@dataclass(frozen=True)
class Exercise:
    """One exercise: its number, such as 2.1, what it asks for in a few words, and the test of an answer."""

    number: str
    title: str
    test: Test


EXERCISES: dict[str, Exercise] = {}


def exercise(number: str, title: str) -> Callable[[Test], Test]:
    """Make a function the test of the exercise ``number``."""

    def register(test: Test) -> Test:
        EXERCISES[number] = Exercise(number, title, test)
        return test

    return register


def of_chapter(chapter: int) -> list[Exercise]:
    """Return the exercises of a chapter in the order of their numbers."""
    import_module(f"{__name__}.{CHAPTERS[chapter]}")
    return [EXERCISES[number] for number in sorted(EXERCISES) if number.startswith(f"{chapter}.")]


def check(number: str, answer: Any = ...) -> None:
    """Say whether an answer is right, and why not; a right one is kept as solved.

    A wrong answer raises nothing, so that the exercises below it can be run. Raises WorkshopError when there is no
    exercise of this number.
    """
    found = _find(number)
    problem = "put your answer where the cell above says `# Your code here`." if answer is ... else _test(found, answer)
    if problem:
        print(f"Exercise {number}, not yet: {problem}")
        return
    _keep(number)
    print(f"Exercise {number}, solved: {found.title}.")


def solved(settings: Settings | None = None) -> dict[str, str]:
    """Return the numbers of the exercises that were solved here, each with when (ISO 8601, UTC)."""
    try:
        return json.loads(_file(settings or get_settings()).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _find(number: str) -> Exercise:
    known = [each.number for chapter in CHAPTERS for each in of_chapter(chapter)]
    if number not in known:
        raise WorkshopError(
            "There is no such exercise.",
            value=number,
            expected=f"one of {', '.join(known)}",
            next_step="put the number of the exercise back into the cell of the check",
        )
    return EXERCISES[number]


def _test(found: Exercise, answer: object) -> str | None:
    try:
        return found.test(answer)
    except WorkshopError as error:  # such as a server that does not run
        return str(error)
    except Exception as error:  # noqa: BLE001 -- an answer can be anything, and no mistake in it ends the notebook
        return f"an answer of type {type(answer).__name__} cannot be checked ({type(error).__name__}: {error})."


def forget(numbers: Iterable[str], settings: Settings) -> None:
    """Let these exercises count as not solved."""
    gone = set(numbers)
    if gone:
        _write({number: when for number, when in solved(settings).items() if number not in gone}, settings)


def _keep(number: str) -> None:
    settings = get_settings()
    _write(solved(settings) | {number: datetime.now(UTC).isoformat(timespec="seconds")}, settings)


def _write(numbers: dict[str, str], settings: Settings) -> None:
    write_whole(_file(settings), (json.dumps(dict(sorted(numbers.items())), indent=2) + "\n").encode())


def _file(settings: Settings) -> Path:
    return settings.state / "exercises.json"
