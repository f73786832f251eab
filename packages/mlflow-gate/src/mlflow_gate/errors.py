"""Exceptions; each message states the failure, the value found, the expected value and the next step."""

from __future__ import annotations

import click


class GateError(click.ClickException):
    """Base class of all errors; click prints it without a traceback and exits with ``exit_code``.

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
        """Return the message without a traceback; IPython calls this."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(GateError):
    """Invalid rule, comparison, argument or settings file."""


class ServerError(GateError):
    """The tracking server or store cannot be used."""


class ModelError(GateError):
    """A run, version or model does not exist or cannot be loaded."""


class Conflict(GateError):
    """Another process has moved, or is moving, the alias."""
