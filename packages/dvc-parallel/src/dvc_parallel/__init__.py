"""Run independent stages of `dvc.yaml` side by side and leave what `dvc repro` leaves."""

from dvc_parallel.cli import lines
from dvc_parallel.repro import reproduce
from dvc_parallel.states import ReproError, StagesFailed, State

__all__ = ["ReproError", "StagesFailed", "State", "lines", "reproduce"]
