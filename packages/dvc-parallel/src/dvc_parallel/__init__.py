"""Run independent stages of `dvc.yaml` side by side and leave what `dvc repro` leaves."""

from typing import TYPE_CHECKING

from dvc_parallel.cli import lines
from dvc_parallel.states import ReproError, StagesFailed, State

if TYPE_CHECKING:
    from dvc_parallel.reproduction import reproduce

__all__ = ["ReproError", "StagesFailed", "State", "lines", "reproduce"]


def __getattr__(name: str) -> object:
    """Import `reproduce` when it is used: DVC takes a second to import."""
    if name != "reproduce":
        raise AttributeError(name)
    from dvc_parallel.reproduction import reproduce

    return reproduce
