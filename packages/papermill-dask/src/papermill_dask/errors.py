"""The engine's exceptions."""

from __future__ import annotations

import errno
import functools

import click

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
LOST = {
    "expected": "a worker that stays up and reachable until the notebook ends",
    "next_step": "run the notebook again, or set the option `retries` to repeat it automatically",
}


class EngineError(click.ClickException):
    """A notebook could not be run on the cluster; papermill's command line prints the message without a traceback.

    Parameters
    ----------
    what : str
        What failed, as a sentence.
    value : object, optional
        The value that was found.
    expected : str, optional
        What is allowed.
    next_step : str, optional
        What the user can do.

    Examples
    --------
    >>> print(EngineError("Invalid option.", value="depth=x", expected="a number"))
    Invalid option.
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
        """Return the lines that IPython shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple[object, ...]:
        # Workers send pickled errors, and Exception.__reduce__ would drop the keyword arguments.
        make = functools.partial(type(self), value=self.value, expected=self.expected, next_step=self.next_step)
        return make, (self.what,)


class WorkerLost(EngineError):
    """The worker that ran the notebook died or is unreachable; takes the same parameters as `EngineError`."""
