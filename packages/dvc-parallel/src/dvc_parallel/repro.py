"""The function `reproduce`; it imports DVC, which is slow, only when called."""

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
    """Bring stages up to date like `dvc repro`, but independent ones in parallel.

    The output of each stage goes to a log in `.dvc/tmp/dvc-parallel`. Finished stages are always recorded.

    Parameters
    ----------
    targets : sequence of str
        The stages; by default all stages of the dvc.yaml in ``folder``.
    folder : path
        The folder to run in.
    jobs : int, optional
        Maximum number of parallel stages; by default one per processor.
    limits : mapping
        Total of each resource for all running stages, such as ``{"gpu": 1}``.
    force : bool
        Also run unchanged stages.
    run_cache : bool
        Restore results of earlier runs.
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
        At the end, if stages failed.
    SystemExit
        130 or 143, if the run is interrupted or terminated.
    """
    from dvc_parallel.reproduction import run_stages

    options: dict[str, Any] = {"jobs": jobs, "limits": limits, "force": force, "run_cache": run_cache, **selection}
    return run_stages(targets, folder, progress=progress, notice=notice, **options)
