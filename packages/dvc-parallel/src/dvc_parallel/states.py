"""States of a stage, and errors of a run."""

import enum
from collections.abc import Callable

import click


class State(enum.StrEnum):
    """The state of a stage in a run."""

    WAITING = "waiting"
    RUNNING = "running"
    UNCHANGED = "unchanged"
    RESTORED = "restored from cache"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "not run"
    INTERRUPTED = "interrupted"


Progress = Callable[[str, State], object]  # called with a stage and its new state


class ReproError(click.ClickException):
    """The pipeline failed or cannot be run; click prints the message and exits with code 1.

    Parameters
    ----------
    what : str
        What failed, as a sentence.
    **lines : object
        Details such as ``found``, ``expected`` and ``next``.

    Examples
    --------
    >>> print(ReproError("No stage uses the limited resource.", found="gpu", next="correct its name"))
    No stage uses the limited resource.
      found:    gpu
      next:     correct its name
    """

    def __init__(self, what: str, **lines: object) -> None:
        super().__init__("\n".join([what, *(f"  {f'{name}:':9} {line}" for name, line in lines.items())]))


class StagesFailed(ReproError):
    """Some stages failed; all stages that do not depend on them have run and are recorded."""
