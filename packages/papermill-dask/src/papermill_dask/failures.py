"""Errors: what failed, the value, what was expected, and the next step."""

from __future__ import annotations

import errno
import functools

import click

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)  # numbers of errors
LOST = {
    "expected": "a worker that runs, and can be reached, until the notebook ends",
    "next_step": "run the notebook again; it was not repeated (option `retries`)",
}


class EngineError(click.ClickException):
    """A notebook could not be run on the cluster; papermill's command line prints the text without a traceback.

    ``what`` failed, ``value`` caused the error, ``expected`` was allowed, ``next_step`` helps.

    >>> print(EngineError("The engine cannot use an option.", value="depth=x", expected="a number"))
    The engine cannot use an option.
      found:    depth=x
      expected: a number
    """

    def __init__(
        self, what: str, *, value: object = None, expected: str | None = None, next_step: str | None = None
    ) -> None:
        super().__init__(what)
        self.what, self.value, self.expected, self.next_step = what, value, expected, next_step

    def __str__(self) -> str:
        lines = {"found:   ": self.value, "expected:": self.expected, "next:    ": self.next_step}
        return "\n".join([self.what, *(f"  {name} {line}" for name, line in lines.items() if line is not None)])

    format_message = __str__  # click prints this after `Error: `

    def _render_traceback_(self) -> list[str]:
        """Return the text that IPython shows: no traceback."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple[object, ...]:
        # Workers send pickled errors, and Exception's own method drops keyword arguments.
        make = functools.partial(type(self), value=self.value, expected=self.expected, next_step=self.next_step)
        return make, (self.what,)


class WorkerLost(EngineError):
    """The worker that ran the notebook is gone, or cannot be reached."""
