"""The DVC stage that papermill runs in, if any: find its deps and outs, and terminate if the DVC process dies."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from papermill_dask.config import NotebookOptions
from papermill_dask.errors import EngineError

STAGE = "DVC_STAGE"  # set by DVC for the commands of a stage
WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Declaration:
    """Files to send to a worker without a shared disk (``deps``) and to fetch from it (``outs``), as relative paths.

    ``partial`` allows missing outs, because other commands of the stage may write them, and DVC checks them at the end.
    Symbolic links may point into the folder or into ``links_to``.
    """

    deps: tuple[str, ...] = ()
    outs: tuple[str, ...] = ()
    partial: bool = False
    links_to: tuple[Path, ...] = ()


def find_declaration(options: NotebookOptions, output_path: str | None) -> Declaration:
    """Return the deps and outs in the options or, if the options have neither, in the DVC stage."""
    stage = os.environ.get(STAGE)
    if options.deps is not None or options.outs is not None or not stage:
        return Declaration(deps=tuple(options.deps or ()), outs=tuple(options.outs or ()))
    return read_declaration(Path.cwd(), stage, client_outs=[Path(output_path)] if output_path else [])


# -- the DVC process -----------------------------------------------------------------------------------------------
@contextlib.contextmanager
def terminate_with_dvc() -> Iterator[None]:
    """Send SIGTERM to this process if the DVC process that runs the stage dies before the block ends.

    Otherwise the stage would survive a killed DVC process, and the next `dvc repro` would start it a second time.
    """
    dvc = _dvc_process() if STAGE in os.environ else None
    finished = threading.Event()

    def watch(dvc: psutil.Process) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
                if finished.wait(WATCH_SECONDS):
                    return
        os.kill(os.getpid(), signal.SIGTERM)

    if dvc is not None and threading.current_thread() is threading.main_thread():
        threading.Thread(target=watch, args=(dvc,), name="watch-dvc", daemon=True).start()
    try:
        yield
    finally:
        finished.set()


def _dvc_process() -> psutil.Process | None:
    """Return the DVC process: the nearest ancestor without DVC_STAGE in its environment. Exit if it has died."""
    dvc = next((process for process in psutil.Process().parents() if not _is_in_stage(process)), None)
    if dvc is not None and dvc.pid == 1 and "dvc" not in " ".join(dvc.cmdline()):
        sys.stderr.write(f"The DVC process of the stage {os.environ[STAGE]} has died, so the stage is not run.\n")
        sys.exit(128 + signal.SIGTERM)
    return dvc


def _is_in_stage(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # the process has exited or belongs to another user
        return STAGE in process.environ()
    return False


# -- the stage's declaration ---------------------------------------------------------------------------------------
def read_declaration(folder: Path, stage: str, *, client_outs: Iterable[Path] = ()) -> Declaration:
    """Return the files of the DVC stage ``stage`` (the value of `DVC_STAGE`) that runs in ``folder``.

    DVC itself parses `dvc.yaml`, with templates, `foreach`, `matrix`, `wdir` and `vars`, without taking its lock.
    Deps include `dvc.yaml`, the stage's parameter files, and outs that already exist: kept by `persist`, or written
    by an earlier command. ``client_outs``, such as the executed notebook, are not fetched: the client writes them.
    Raises EngineError if the stage does not exist.
    """
    folder = folder.resolve()
    try:
        from dvc.repo import Repo

        # Pass the folder: in `dvc exp run --temp`, DVC_ROOT points to the parent repository, not to this one.
        with contextlib.closing(Repo(str(folder))) as repo:
            outs = {Path(path).resolve() for path in client_outs}
            return _to_declaration(repo, _find_stage(repo, folder, stage), folder, outs)
    except Exception as error:  # noqa: BLE001 - no DVC, no such stage, or any other error from DVC
        raise EngineError(
            f"DVC cannot read the stage `{stage}`, whose files a worker without a shared disk needs.",
            value=f"{type(error).__name__}: {error}",
            expected=f"DVC installed with papermill ('papermill-dask[dvc]'), and the stage in a dvc.yaml in {folder}",
            next_step="run `dvc stage list` to find the problem; if you are not running a stage, unset DVC_STAGE",
        ) from None


def _find_stage(repo: Any, folder: Path, stage: str) -> Any:
    """Find the stage by name and ``folder``: the path in DVC_STAGE is relative to the folder where `dvc` was called."""
    from dvc.utils import parse_target

    _, name = parse_target(stage)
    candidates = (each for each in repo.index.stages if getattr(each, "name", None) == name)
    match = next((each for each in candidates if Path(each.wdir) == folder), None)
    # If the stage is missing, this call raises DVC's clear error.
    return match or repo.stage.load_one(path=str(folder / "dvc.yaml"), name=name)


def _to_declaration(repo: Any, stage: Any, folder: Path, client_outs: set[Path]) -> Declaration:
    from dvc.dependency import ParamsDependency

    def local(entries: Iterable[Any]) -> list[Any]:  # skip URLs (s3://...): the notebook opens them itself
        return [entry for entry in entries if entry.protocol == "local"]

    deps = [dep.fs_path for dep in local(stage.deps) if not isinstance(dep, ParamsDependency)]
    settings = {str(stage.path), *(dep.fs_path for dep in local(stage.params))}
    deps += [file for file in settings if Path(file).is_relative_to(folder)]  # papermill reads those outside the folder
    outs = [out.fs_path for out in local(stage.outs) if Path(out.fs_path) not in client_outs]
    deps += [out for out in outs if Path(out).exists()]
    return Declaration(
        deps=tuple(dict.fromkeys(os.path.relpath(path, folder) for path in deps)),
        outs=tuple(os.path.relpath(path, folder) for path in outs),
        partial=True,
        links_to=tuple(Path(cache.path) for cache in (repo.cache.local, repo.cache.legacy) if cache is not None),
    )
