"""Exceptions whose messages give the failure, the value found, the expected value and the next step."""

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

INDENT = " " * 12  # continuation lines of `found:`, `expected:` and `next:`


# A ClickException, so that each click program (ours, papermill's and MLflow's) prints the message without a traceback.
class PipelineError(click.ClickException):
    """Base class of all errors: what failed, the value found, the expected value and the next step.

    All fields but ``what`` are optional; each may have several lines. The command line prints the message and exits
    with ``exit_code``.
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
        """Return the message for click to print, with full paths for programs in its next step that are not on PATH."""
        message, mark, step = str(self).partition("\n  next:")
        return message + mark + typeable(step)

    def _render_traceback_(self) -> list[str]:
        """Return the message without a traceback; IPython calls this in notebooks."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple[partial[PipelineError], tuple[()]]:
        # Dask pickles exceptions, and Exception's own reduce drops keyword arguments.
        parts = {"value": self.value, "expected": self.expected, "next_step": self.next_step}
        return partial(type(self), self.what, **parts), ()


def typeable(text: str) -> str:
    """Replace the names of this environment's programs in ``text`` with their paths, unless they are on PATH."""
    folder = Path(sys.executable).parent
    if Path(shutil.which("dvc") or "").resolve() == (folder / "dvc").resolve():
        return text

    def path_of(name: re.Match[str]) -> str:
        return shlex.quote(str(folder / name[0])) if (folder / name[0]).is_file() else name[0]

    return re.sub(r"(?<![\w/.-])[a-z][a-z-]+(?= [a-z-])", path_of, text)


def _indented(part: object) -> str:
    """Return the part as a string with its continuation lines indented; a list has one item per line."""
    text = "\n".join(map(str, part)) if isinstance(part, (list, tuple)) else str(part)
    return f"\n{INDENT}".join(line.removeprefix(INDENT) for line in text.splitlines())


class SettingsError(PipelineError):
    """Invalid address, port, path or credential."""


class ParameterError(PipelineError):
    """Unknown key, wrong type or value out of range in `params.yaml`."""


class DataError(PipelineError):
    """Unreadable data file, or data that violate the schema."""


class ServiceError(PipelineError):
    """A server does not start or respond, or occupies a port."""


class ModelError(PipelineError):
    """A model does not exist, is not trusted or cannot be loaded."""


def require_columns(present: Iterable[str], columns: Sequence[str], name: str, next_step: str | None = None) -> None:
    """Raise DataError for missing columns, with the most similar existing name for each."""
    present = [str(column) for column in present]
    missing = [column for column in columns if column not in present]
    if not missing:
        return
    folded = {column.casefold(): column for column in present}
    nearest = {column: difflib.get_close_matches(column.casefold(), folded, n=1, cutoff=0.5) for column in missing}
    hints = [f"{column} (nearest: {folded[near[0]]!r})" if near else column for column, near in nearest.items()]
    raise DataError(
        f"{name} lacks {len(missing)} column{'s' if len(missing) > 1 else ''}: {', '.join(hints)}.",
        value=(", ".join(present[:12])[:300] or "no columns") + (", ..." if len(present) > 12 else ""),
        expected=", ".join(columns),
        next_step=next_step or "rename or add the column",
    )
