"""What can go wrong, told in words: what failed, what was found, what was expected, what to do next."""

from __future__ import annotations

import click


class ReproError(click.ClickException):
    """A pipeline that cannot be run, or did not run to its end; a click program shows the text and exits with 1."""

    def __init__(self, what: str, found: object = None, expected: str | None = None, next_step: str | None = None):
        super().__init__(what)
        self.args = (what, found, expected, next_step)  # by which it pickles
        self.what, self.found, self.expected, self.next_step = self.args

    def __str__(self) -> str:
        lines = {"found:   ": self.found, "expected:": self.expected, "next:    ": self.next_step}
        return "\n".join([self.what, *(f"  {name} {line}" for name, line in lines.items() if line is not None)])

    def format_message(self) -> str:
        """Return the whole text; click prints it behind `Error: `."""
        return str(self)


class StagesFailed(ReproError):
    """Stages failed; those that need none of them ran to their end and are recorded."""
