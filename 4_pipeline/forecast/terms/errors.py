"""The exceptions: each message has the failure, the value, the expectation and the next step."""

from __future__ import annotations

import difflib
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import click

INDENT = " " * 12  # of the lines below `found:`, `expected:` and `next:`


# A ClickException, so that every click program our code runs inside (our command line, but papermill's and MLflow's
# too) prints the message and exits with the code, instead of a traceback.
class PipelineError(click.ClickException):
    """A failure that was foreseen.

    ``what`` failed; ``value`` is what was found, ``expected`` what was allowed, ``next_step`` what to do about it. All
    but ``what`` may be left out; lines after the first of each are indented. The command line prints the message and
    exits with ``exit_code``.
    """

    exit_code = 1

    def __init__(self, what: str, *, value: object = None, expected: object = None, next_step: object = None) -> None:
        super().__init__(what)
        self.what, self.value, self.expected, self.next_step = what, value, expected, next_step

    def __str__(self) -> str:
        parts = {"found": self.value, "expected": self.expected, "next": self.next_step}
        lines = [f"  {name + ':':<9} {_indented(part)}" for name, part in parts.items() if part is not None]
        return "\n".join([self.what, *lines])

    def format_message(self) -> str:
        """Return the complete message, whose next step can be typed; click prints it behind `Error: `."""
        message, mark, step = str(self).partition("\n  next:")
        return message + mark + typeable(step)

    def _render_traceback_(self) -> list[str]:
        """Return the message without a traceback, for IPython: in a notebook, too, a foreseen failure needs none."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple[partial[PipelineError], tuple[()]]:
        # Exception's own reduce drops keyword arguments, and errors cross process borders on a Dask cluster.
        parts = {"value": self.value, "expected": self.expected, "next_step": self.next_step}
        return partial(type(self), self.what, **parts), ()


def typeable(text: str) -> str:
    """Return a text with the paths of this environment's programs, unless the shell finds them by their names."""
    folder = Path(sys.executable).parent
    if Path(shutil.which("dvc") or "").resolve() == (folder / "dvc").resolve():
        return text

    def path_of(name: re.Match[str]) -> str:
        return shlex.quote(str(folder / name[0])) if (folder / name[0]).is_file() else name[0]

    return re.sub(r"(?<![\w/.-])[a-z][a-z-]+(?= [a-z-])", path_of, text)


def _indented(part: object) -> str:
    """Return a text with the lines after its first indented; a list has one item on each line."""
    text = "\n".join(map(str, part)) if isinstance(part, (list, tuple)) else str(part)
    return f"\n{INDENT}".join(line.removeprefix(INDENT) for line in text.splitlines())


class SettingsError(PipelineError):
    """An address, port, path or credential cannot be used."""


class ParameterError(PipelineError):
    """A value in `params.yaml` is unknown, of the wrong type or out of range."""


class DataError(PipelineError):
    """A data file cannot be read, or breaks the schema."""


class ServiceError(PipelineError):
    """A server did not start, does not answer, or is in the way."""


class ModelError(PipelineError):
    """A model cannot be found, trusted or loaded."""


def require_columns(present: Iterable[str], columns: Sequence[str], name: str, next_step: str | None = None) -> None:
    """Raise DataError that names each absent one of ``columns``, with the nearest name present."""
    present = [str(column) for column in present]
    missing = [column for column in columns if column not in present]
    if not missing:
        return
    small = {column.casefold(): column for column in present}  # windspeed is meant by WINDSPEED
    nearest = {column: difflib.get_close_matches(column.casefold(), small, n=1, cutoff=0.5) for column in missing}
    hints = [f"{column} (nearest: {small[near[0]]!r})" if near else column for column, near in nearest.items()]
    raise DataError(
        f"{name} lacks {len(missing)} column{'s' if len(missing) > 1 else ''}: {', '.join(hints)}.",
        value=(", ".join(present[:12])[:300] or "no columns") + (", ..." if len(present) > 12 else ""),
        expected=", ".join(columns),
        next_step=next_step or "rename or add the column",
    )
