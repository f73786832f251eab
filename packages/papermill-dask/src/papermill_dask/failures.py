"""Errors: what failed, the value, what was expected, and the next step."""

from __future__ import annotations

import functools

import click

LOST = {
    "expected": "a worker that lives, and is in reach, until the notebook ends",
    "next_step": "run the notebook again; it was not repeated (option `retries`)",
}


class EngineError(click.ClickException):
    """A notebook could not be run on the cluster; papermill's command line prints the text without a traceback.

    ``what`` failed; ``value`` caused it, ``expected`` was allowed, ``next_step`` mends it.
    """

    def __init__(
        self, what: str, *, value: object = None, expected: str | None = None, next_step: str | None = None
    ) -> None:
        super().__init__(what)
        self.what, self.value, self.expected, self.next_step = what, value, expected, next_step

    def __str__(self) -> str:
        lines = {"found:   ": self.value, "expected:": self.expected, "next:    ": self.next_step}
        return "\n".join([self.what, *(f"  {name} {line}" for name, line in lines.items() if line is not None)])

    format_message = __str__  # what click prints behind `Error: `

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows: the words alone."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own reduce drops keyword arguments, and errors come from workers.
        make = functools.partial(type(self), value=self.value, expected=self.expected, next_step=self.next_step)
        return make, (self.what,)


class WorkerLost(EngineError):
    """The worker that ran the notebook is gone, or out of reach."""
