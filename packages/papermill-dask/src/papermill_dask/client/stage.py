"""The DVC stage that papermill runs in, if any: the files for a worker without shared disk, and when to end."""

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
from papermill_dask.failures import EngineError

STAGE = "DVC_STAGE"  # DVC sets it for a stage's commands
WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Declaration:
    """Paths relative to the working folder: ``deps`` travel to the worker, ``outs`` come back.

    ``partial`` allows outs to be missing: other commands of a stage may make them, and DVC names those that are missing
    in the end. Symbolic links may lead to ``links_to`` besides the folder itself.
    """

    deps: tuple[str, ...] = ()
    outs: tuple[str, ...] = ()
    partial: bool = False
    links_to: tuple[Path, ...] = ()


def declaration(options: NotebookOptions, output_path: str | None) -> Declaration:
    """Return the files for a worker without shared disk: those of the options, else those of the DVC stage."""
    stage = os.environ.get(STAGE)
    if options.deps is not None or options.outs is not None or not stage:
        return Declaration(deps=tuple(options.deps or ()), outs=tuple(options.outs or ()))
    return declared(Path.cwd(), stage, written_here=[Path(output_path)] if output_path else [])


# -- the end of DVC ------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def ends_with_dvc() -> Iterator[None]:
    """End this process, as SIGTERM does, once the DVC that runs it as a stage is gone.

    A killed DVC does not end its stage, and the next `dvc repro` would run the stage a second time beside it.
    """
    owner = _owner() if STAGE in os.environ else None
    over = threading.Event()

    def watch(owner: psutil.Process) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while owner.is_running() and owner.status() != psutil.STATUS_ZOMBIE:
                if over.wait(WATCH_SECONDS):
                    return
        os.kill(os.getpid(), signal.SIGTERM)

    if owner is not None and threading.current_thread() is threading.main_thread():
        threading.Thread(target=watch, args=(owner,), name="watch-dvc", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _owner() -> psutil.Process | None:
    """Return the process that runs the stage: the next ancestor outside of a stage; exit if it is gone."""
    owner = next((process for process in psutil.Process().parents() if not _is_in_stage(process)), None)
    if owner is not None and owner.pid == 1 and "dvc" not in " ".join(owner.cmdline()):
        sys.stderr.write(f"The DVC that started the stage {os.environ[STAGE]} is gone; it does not run.\n")
        sys.exit(128 + signal.SIGTERM)
    return owner


def _is_in_stage(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # it is ending, or is another user's
        return STAGE in process.environ()
    return False


# -- the stage's declaration ---------------------------------------------------------------------------------------
def declared(folder: Path, stage: str, *, written_here: Iterable[Path] = ()) -> Declaration:
    """Return the declaration of ``stage``, the value of `DVC_STAGE`, in the `dvc.yaml` that DVC runs in ``folder``.

    DVC itself reads it, with templates, `foreach`, `matrix`, `wdir` and `vars`, and without its lock. `dvc.yaml` and
    the stage's parameter files count as deps. So do outs that exist already: in a stage these are outs with `persist`,
    or outs of an earlier command. The client itself writes the outs ``written_here``, such as the executed notebook.
    Raises EngineError when there is no such stage.
    """
    folder = folder.resolve()
    try:
        from dvc.repo import Repo

        # In `exp run --temp` the variable DVC_ROOT names the parent repository, not this one.
        with contextlib.closing(Repo(str(folder))) as repo:
            return _read(repo, _find(repo, folder, stage), folder, {Path(path).resolve() for path in written_here})
    except Exception as error:  # noqa: BLE001 - no DVC, no such stage, or any other error of DVC's
        raise EngineError(
            f"DVC cannot read the stage `{stage}`, which declares the files for a worker without shared disk.",
            value=f"{type(error).__name__}: {error}",
            expected=f"DVC beside papermill ('papermill-dask[dvc]'), and a dvc.yaml in {folder} that declares it",
            next_step="`dvc stage list` says what is wrong; outside of a stage, unset DVC_STAGE",
        ) from None


def _find(repo: Any, folder: Path, stage: str) -> Any:
    """Return the stage of that name that runs in ``folder``.

    Its `dvc.yaml` is there, unless it has a `wdir`. DVC_STAGE names the file relative to the folder of the `dvc` call.
    """
    from dvc.utils import parse_target

    _, name = parse_target(stage)
    here = (each for each in repo.index.stages if getattr(each, "name", None) == name and Path(each.wdir) == folder)
    # DVC raises a clear error for a missing stage.
    return next(here, None) or repo.stage.load_one(path=str(folder / "dvc.yaml"), name=name)


def _read(repo: Any, stage: Any, folder: Path, written_here: set[Path]) -> Declaration:
    from dvc.dependency import ParamsDependency

    def local(entries: Iterable[Any]) -> list[Any]:  # a notebook opens URLs (s3://...) by itself
        return [entry for entry in entries if entry.protocol == "local"]

    deps = [dep.fs_path for dep in local(stage.deps) if not isinstance(dep, ParamsDependency)]
    settings = {str(stage.path), *(dep.fs_path for dep in local(stage.params))}
    deps += [file for file in settings if Path(file).is_relative_to(folder)]  # papermill has read the others
    outs = [out.fs_path for out in local(stage.outs) if Path(out.fs_path) not in written_here]
    deps += [out for out in outs if Path(out).exists()]
    return Declaration(
        deps=tuple(dict.fromkeys(os.path.relpath(path, folder) for path in deps)),
        outs=tuple(os.path.relpath(path, folder) for path in outs),
        partial=True,
        links_to=tuple(Path(cache.path) for cache in (repo.cache.local, repo.cache.legacy) if cache is not None),
    )
