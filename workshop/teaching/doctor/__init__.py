"""What is the matter with a machine, and what to type about it."""

from __future__ import annotations

from workshop.settings import Settings
from workshop.teaching.doctor import kernels, machine, servers, shell
from workshop.teaching.doctor.findings import LOOK, OK, WRONG, Finding

__all__ = ["LOOK", "OK", "WRONG", "Finding", "examine"]


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; findings that are not `ok` come with the next step."""
    return [
        *machine.examine(settings),
        *shell.examine(settings),
        *kernels.examine(),
        *servers.examine(settings),
    ]
