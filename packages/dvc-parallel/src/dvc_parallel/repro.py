"""The function `reproduce`, which imports DVC only when called, because that import is slow."""

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
    """Reproduce stages as `dvc repro` does, but run independent stages in parallel.

    Each stage's output is logged in `.dvc/tmp/dvc-parallel`. Finished stages are recorded even if the run fails.

    Parameters
    ----------
    targets : sequence of str
        The stages; by default all stages of the dvc.yaml in ``folder``.
    folder : path
        The folder to run in.
    jobs : int, optional
        Maximum number of parallel stages; by default one per processor.
    limits : mapping
        Total of each resource that the running stages may use, such as ``{"gpu": 1}``.
    force : bool
        Also run unchanged stages.
    run_cache : bool
        Restore results from DVC's run cache.
    progress : callable
        Called with a stage and its new `State`.
    notice : callable
        Called with a message when the run waits for another process.
    **selection : bool
        As in `dvc repro`: ``single_item``, ``pipeline``, ``all_pipelines``, ``recursive``, ``downstream``, ``glob``.

    Returns
    -------
    dict of str to State
        The state of each stage, in DVC's order.

    Raises
    ------
    ReproError
        If the pipeline cannot be run.
    StagesFailed
        If stages failed; raised once all stages that do not depend on them have run.
    SystemExit
        With code 130 if the run is interrupted, 143 if it is terminated.
    """
    from dvc_parallel.reproduction import run_stages

    options: dict[str, Any] = {"jobs": jobs, "limits": limits, "force": force, "run_cache": run_cache, **selection}
    return run_stages(targets, folder, progress=progress, notice=notice, **options)
