"""Run independent stages of `dvc.yaml` in parallel, with the same results as `dvc repro`."""

from dvc_parallel.cli import lines
from dvc_parallel.repro import reproduce
from dvc_parallel.states import ReproError, StagesFailed, State

__all__ = ["ReproError", "StagesFailed", "State", "lines", "reproduce"]
