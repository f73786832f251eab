"""Bring the stages of a pipeline up to date; DVC, which takes a while, is imported when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dvc_parallel.states import Progress, State


def reproduce(
    targets: Sequence[str] = (),
    *,
    folder: Path | str = ".",
    jobs: int | None = None,
    limits: Mapping[str, float | str] = MappingProxyType({}),
    force: bool = False,
    run_cache: bool = True,
    progress: Progress = lambda *_: None,
    notice: Callable[[str], object] = lambda _: None,
    **selection: bool,
) -> dict[str, State]:
    """Bring ``targets`` up to date as `dvc repro` in ``folder`` would; return the state of each stage, in DVC's order.

    ``selection`` are the options of `dvc repro` of the same name: ``single_item``, ``pipeline``, ``all_pipelines``,
    ``recursive``, ``downstream``, ``glob``. At most ``jobs`` stages run in parallel, by default one per processor, and
    together they use at most ``limits``, for example ``{"gpu": 1}``, of what the stages say that they use.
    The output of a stage goes to its log in `.dvc/tmp/dvc-parallel`. ``progress`` is called with a stage and its new
    state, ``notice`` with a text if the run waits for another process.

    Raises ReproError if the pipeline cannot be run, StagesFailed at the end if stages failed, and SystemExit 130 or 143
    if the run is interrupted or terminated. The stages that have ended are recorded in any case.
    """
    from dvc_parallel.reproduction import run_stages

    options: dict[str, Any] = {"jobs": jobs, "limits": limits, "force": force, "run_cache": run_cache, **selection}
    return run_stages(targets, folder, progress=progress, notice=notice, **options)
