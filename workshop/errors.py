"""The exception tree: each error says what failed, the value, what was expected and the next step."""

from __future__ import annotations

import click


# A ClickException, so that every click program our code runs inside (our own command line, but papermill's and
# MLflow's too) prints the words and exits with the code, instead of a traceback.
class WorkshopError(click.ClickException):
    """A foreseeable failure, told in words.

    ``what`` failed; ``value`` is what was found, ``expected`` what was allowed, ``next_step`` what to do about
    it. All but ``what`` may be left out. The command line prints the text and exits with ``exit_code``.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        value: object = None,
        expected: str | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.value = value
        self.expected = expected
        self.next_step = next_step

    def __str__(self) -> str:
        lines = [self.what]
        if self.value is not None:
            lines.append(f"  found:    {self.value}")
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.next_step is not None:
            lines.append(f"  next:     {self.next_step}")
        return "\n".join(lines)

    def format_message(self) -> str:
        """Return the whole text; click prints it behind `Error: `."""
        return str(self)

    def _render_traceback_(self) -> list[str]:
        """Tell IPython to show the words alone: in a notebook, too, a foreseeable mistake needs no traceback."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self):
        # Exception's own reduce drops keyword arguments, and errors cross process borders on a Dask cluster.
        return _rebuild, (type(self), self.what, self.value, self.expected, self.next_step)


def _rebuild(kind: type[WorkshopError], what, value, expected, next_step) -> WorkshopError:
    return kind(what, value=value, expected=expected, next_step=next_step)


class SettingsError(WorkshopError):
    """An address, port, path or credential cannot be used."""


class ParameterError(WorkshopError):
    """A value in `params.yaml` is unknown, of the wrong type or out of range."""


class DataError(WorkshopError):
    """A data file cannot be read, or breaks the schema."""


class ServiceError(WorkshopError):
    """A server did not start, does not answer, or is in the way."""


class BackupError(WorkshopError):
    """A backup could not be made, or cannot be restored."""


class EngineError(WorkshopError):
    """A notebook could not be run on the cluster."""


class ModelError(WorkshopError):
    """A model cannot be found, trusted or loaded."""


class PromotionRefused(WorkshopError):
    """The gate refused a candidate; the champion stays."""

    exit_code = 3


class PromotionConflict(WorkshopError):
    """Somebody else moved the alias in the meantime."""
