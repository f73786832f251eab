"""Sessions of console scripts: what a package starts before the script's first command and ends with the run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dvc_parallel.commands import console_script, entries


class Sessions(contextlib.ExitStack):
    """Enters a script's session, its entry point in the group ``dvc_parallel.session``, before its first command.

    A session is a context manager that yields environment variables for the script's commands. It is called with these
    commands, a function that returns the installed modules that at least two of them import, and ``options``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = options
        self._variables: dict[str, Mapping[str, str]] = {}  # by script

    def variables(
        self, line: str, environment: Mapping[str, str], remaining: Callable[[], Iterable[tuple[str, str]]]
    ) -> Mapping[str, str]:
        """Return the variables for a command; if needed, first enter the session for the ``remaining`` commands.

        The latter are pairs of a command and its folder.
        """
        script = console_script(line, environment)
        if script and script.name not in self._variables:
            self._variables[script.name] = {}
            if session := entries("dvc_parallel.session").get(script.name):
                from dvc_parallel.imports import shared_imports

                pairs = [(line, folder) for line, folder in remaining() if console_script(line, environment) is script]
                imports = functools.partial(shared_imports, pairs)
                entered = session.load()([line for line, _ in pairs], imports, **self._options)
                self._variables[script.name] = self.enter_context(entered)
        return self._variables[script.name] if script else {}
