"""The exceptions: each message has the failure, the value, the expectation and the next step."""

from __future__ import annotations

import click


class GateError(click.ClickException):
    """A failure that was foreseen; a click program prints it without a traceback and exits with ``exit_code``.

    >>> print(GateError("There is no version 7.", value="7", expected="1 to 3", next_step="mlflow-gate history NAME"))
    There is no version 7.
      found:    7
      expected: 1 to 3
      next:     mlflow-gate history NAME
    """

    exit_code = 1

    def __init__(self, what: str, *, value: object = None, expected: object = None, next_step: object = None) -> None:
        self.what, self.value, self.expected, self.next_step = what, value, expected, next_step
        parts = {"found": value, "expected": expected, "next": next_step}
        lines = [f"  {name + ':':<9} {part}" for name, part in parts.items() if part is not None]
        super().__init__("\n".join([what, *lines]))

    def _render_traceback_(self) -> list[str]:
        """Return the message without a traceback, for IPython."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(GateError):
    """A rule, a contest, an argument or the file of settings cannot be used."""


class ServerError(GateError):
    """The tracking server does not answer."""


class ModelError(GateError):
    """A run, a version or a model cannot be found or loaded."""


class Conflict(GateError):
    """Another process moved the alias meanwhile, or is about to."""
