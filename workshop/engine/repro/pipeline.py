"""DVC's side of a run: what `dvc repro` does with a stage before and after its commands, safe beside other runs."""

from __future__ import annotations

import collections
import contextlib
import enum
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from workshop.engine.repro import recovery
from workshop.engine.repro.commands import Stopped
from workshop.settings import Settings

BIG_BYTES, BIG_FILES = 50_000_000, 500
BUSY_SECONDS = 0.5


class State(enum.StrEnum):
    """Where a stage stands."""

    WAITING = "waiting"
    RUNNING = "running"
    SAVING = "saving"
    UNCHANGED = "unchanged"
    RESTORED = "restored from cache"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "not run"
    INTERRUPTED = "interrupted"


def reproduce(settings: Settings, write: Callable[[str], object]) -> list[str]:
    """Bring the whole pipeline up to date, one notebook at a time for each worker; return the stages that ran.

    ``write`` gets a line a stage. Raises EngineError when stages fail.
    """
    from workshop.engine.repro.parallel import lines, reproduce_parallel

    states = reproduce_parallel(
        settings.pipeline,
        jobs=settings.dask_workers,
        log=settings.logs / "pipeline.log",
        progress=lines(write),
        notice=lambda text: write(f"  {text}\n"),
        environment=environment_of(settings),
    )
    return [stage for stage, state in states.items() if state is State.DONE]


def environment_of(settings: Settings, *, shell_first: bool = False) -> dict[str, str]:
    """Return what the commands of stages find on top of our own environment: servers, and this Python's programs.

    ``shell_first``: where the shell names a server or a cluster, it is that one, as for a `dvc repro` typed there.
    """
    servers = settings.exports()
    if shell_first and settings.given_tracking_uri:
        servers["MLFLOW_TRACKING_URI"] = settings.given_tracking_uri
    if shell_first and settings.given_scheduler_address:
        servers["DASK_SCHEDULER_ADDRESS"] = settings.given_scheduler_address
    scripts = str(Path(sys.executable).parent)
    settings.logs.mkdir(parents=True, exist_ok=True)
    path = scripts + os.pathsep + os.environ.get("PATH", os.defpath)
    return servers | {"PATH": path, "PYTHONUNBUFFERED": "1"}


def notebooks_at_once(settings: Settings) -> int:
    """Return how many notebooks the cluster runs at once; another cluster than our own has to be asked."""
    own = settings.model_copy(update={"dask_scheduler_address": None}).scheduler_address
    if settings.given_scheduler_address in (None, own):
        return settings.dask_workers
    from papermill_dask import connect, survey

    with connect() as client:
        return sum(worker.notebooks for worker in survey(client))


@contextlib.contextmanager
def open_pipeline(
    targets: Sequence[str], stop, notice: Callable[[str], None], all_pipelines: bool = False
) -> Iterator[Pipeline]:
    """Open the repository of the current folder for one run at a time, and plan it."""
    from dvc.dvcfile import PROJECT_FILE
    from dvc.lock import Lock
    from dvc.repo import Repo

    with Repo() as repo:
        # Another `workshop repro` would plan with what we are about to change.
        alone = Lock(str(Path(repo.tmp_dir, "workshop-repro.lock")))
        _acquire(alone, lambda: bool(stop), notice)
        try:
            yield Pipeline(repo, () if all_pipelines else targets or [PROJECT_FILE], stop, notice)
        finally:
            alone.unlock()


def _acquire(lock, gives_up: Callable[[], bool], notice: Callable[[str], None]) -> None:
    """Take one of DVC's locks however long it takes; say who holds it; raise Stopped when ``gives_up()``."""
    from dvc.lock import LockError

    told = False
    while True:
        try:
            lock.lock()  # tries for three seconds
        except LockError:
            if gives_up():
                raise Stopped from None
            if not told:
                notice(f"waiting for {_holder(Path(lock.lockfile))}")
            told = True
        else:
            return


def _holder(lock_file: Path) -> str:
    """Say which process holds a lock, from the number that DVC writes into it."""
    import psutil

    try:
        process = psutil.Process(int(lock_file.read_text()))
        return f"process {process.pid}: {' '.join(process.cmdline())}"
    except (OSError, ValueError, psutil.Error):
        return f"another DVC process, which holds {lock_file}"


class Pipeline:
    """The stages as DVC knows them, without ``targets`` all of the repository; what DVC does with one is done in one
    thread, and one process, at a time.
    """

    def __init__(self, repo, targets: Sequence[str], stop, notice: Callable[[str], None]) -> None:
        self._repo, self._stop, self._notice = repo, stop, notice
        self._turn = threading.Lock()
        self._held: dict = {}
        with self._locked(lambda: bool(stop)):
            self._graph, self.steps = self._plan(targets)
        self._planned = frozenset(self.steps)
        # The entries that this run has added to each lock file, in the order of their coming.
        self._new: dict[Path, list] = collections.defaultdict(list)

    def needs(self, stage) -> list:
        """Return the stages of this run that must be up to date before ``stage``."""
        return [other for other in self._graph.successors(stage) if other in self._planned]

    def needing(self, stage) -> list:
        """Return the stages of this run that need ``stage``, directly or not."""
        import networkx

        return [other for other in networkx.ancestors(self._graph, stage) if other in self._planned]

    def prepare(self, stage, *, force: bool) -> tuple:
        """Return the stage as its file now has it, and where it stands: up to date, or RUNNING for what must run.

        A stage without commands, or that is frozen, is brought up to date here.
        """
        attempts = 0

        def work() -> tuple:
            nonlocal stage, attempts
            attempts += 1
            if attempts > 1:  # another process was at its files, and may have brought it up to date
                stage = stage.reload()
            return stage, self._prepare(stage, force)

        return self._patiently(work, lambda: bool(self._stop))

    def finish(self, stage) -> None:
        """Record what a stage has made, in cache and lock file, however long others are in the way."""
        self._store_big_outs(stage)

        def work() -> None:
            self._record(stage)
            self._release(stage)

        self._patiently(work, lambda: self._stop.urgent)

    def abandon(self, stage) -> None:
        """Let go of the files of a stage that failed."""
        if stage in self._held:
            with self._locked(lambda: self._stop.urgent):
                self._release(stage)

    def order_lock_files(self) -> None:
        """Put the new entries of each `dvc.lock` in the order in which `dvc repro` would have written them."""
        from dvc.utils.serialize import modify_yaml

        place = {stage: number for number, stage in enumerate(self.steps)}
        for path, new in self._new.items():
            ordered = sorted(new, key=place.__getitem__)
            if ordered != new:
                with self._locked(lambda: self._stop.urgent), _replaced(path) as copy, modify_yaml(copy) as content:
                    for stage in ordered:
                        content["stages"].move_to_end(stage.name)

    def _plan(self, targets: Sequence[str]) -> tuple:
        from dvc.exceptions import DvcException
        from dvc.lock import make_lock
        from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
        from dvc.rwlock import RWLOCK_LOCK

        def plan() -> tuple:
            stages = collect_stages(self._repo, targets)
            graph = get_active_graph(self._repo.index.graph)
            return graph, plan_repro(graph, stages)

        root, tmp_dir = Path(self._repo.root_dir), Path(self._repo.tmp_dir)
        hard = self._repo.config["core"].get("hardlink_lock", False)
        with make_lock(str(tmp_dir / RWLOCK_LOCK), tmp_dir=str(tmp_dir), hardlink_lock=hard):
            recovery.mend_table(tmp_dir)
        try:
            graph, steps = plan()
        except DvcException:
            if not recovery.restore_lock_files(root, self._notice):
                raise
            self._repo._reset()
            graph, steps = plan()
        lock_files = {Path(step.dvcfile._lockfile.path) for step in steps if hasattr(step.dvcfile, "_lockfile")}
        recovery.remove_leftovers(lock_files)
        for file in lock_files:
            recovery.keep(file, root)
        recovery.require_space(root, 2 * max(map(_recorded_bytes, steps), default=0))
        return graph, steps

    @contextlib.contextmanager
    def _locked(self, gives_up: Callable[[], bool]) -> Iterator[None]:
        """Hold DVC's lock of the repository, as its own `lock_repo`, but wait for it however long it takes."""
        with self._turn:
            _acquire(self._repo.lock, gives_up, self._notice)
            try:
                self._repo._reset()
                self._repo._lock_depth += 1
                yield
            finally:
                self._repo._lock_depth -= 1
                self._repo._reset()
                self._repo.lock.unlock()

    def _patiently(self, work: Callable[[], object], gives_up: Callable[[], bool]):
        """Do ``work`` under the lock; again later, while another DVC process is at files that it needs."""
        from dvc.lock import LockError

        told = False
        while True:
            with self._locked(gives_up):
                try:
                    return work()
                except LockError as error:
                    busy = error
            if gives_up():
                raise Stopped
            if not told:
                self._notice(f"waiting: {busy}")
            told = True
            time.sleep(BUSY_SECONDS)

    def _prepare(self, stage, force: bool) -> State:
        """Do what `Stage.reproduce` and `Stage.run` do before a stage's commands; return its state."""
        from dvc.stage.cache import RunCacheNotFoundError

        if not force and not stage.changed():
            return State.UNCHANGED
        if stage.frozen or not stage.cmd:
            with self._repo.scm_context(quiet=True):
                stage.reproduce(force=force)
                self._dump(stage)
            return State.DONE
        self._hold(stage)
        try:
            stage.remove_outs(ignore_remove=False, force=False)
            if force:
                return State.RUNNING
            try:
                self._repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                stage.save_deps()
                return State.RUNNING
            self._record(stage)
        except BaseException:
            self._release(stage)
            raise
        self._release(stage)
        return State.RESTORED

    def _record(self, stage) -> None:
        """Do what `Stage.run` and `dvc repro` do after a stage's commands; a second time does no harm."""
        kept = [out for out in stage.outs if not (out.is_metric or out.is_plot)]
        with self._repo.scm_context(quiet=True):
            stage.save(run_cache=all(out.use_cache for out in kept))
            stage.commit()
            self._dump(stage)

    def _dump(self, stage) -> None:
        """Write the stage's entry of the lock file, the file whole or not at all; a full disk leaves the old one."""
        from dvc.dvcfile import Lockfile, ProjectFile

        if not isinstance(stage.dvcfile, ProjectFile):
            stage.dump(update_pipeline=False)
            return
        lock_file = stage.dvcfile._lockfile
        if stage.name not in stage.dvcfile.lockfile_contents.get("stages", {}):
            new = self._new[Path(lock_file.path)]
            if stage not in new:
                new.append(stage)
        tracked = self._repo.scm_context.files_to_track
        with _replaced(Path(lock_file.path)) as copy:
            copied = Lockfile(self._repo, str(copy))
            copied.dump_stages([stage])
        if copied.relpath in tracked:
            tracked.remove(copied.relpath)
            tracked.add(lock_file.relpath)

    def _hold(self, stage) -> None:
        """Enter the stage's files in DVC's table of files in use, so that no other DVC process touches them."""
        self._held[stage] = contextlib.ExitStack()
        try:
            self._enter(stage)
        except BaseException:
            del self._held[stage]
            raise

    def _enter(self, stage) -> None:
        from dvc.dependency import RepoDependency
        from dvc.dependency.db import AbstractDependency
        from dvc.rwlock import rwlock

        read = [dep.fs_path for dep in stage.deps if not isinstance(dep, RepoDependency | AbstractDependency)]
        write = [out.fs_path for out in stage.outs]
        hard = self._repo.config["core"].get("hardlink_lock", False)
        # The same words as DVC's own functions use: entries of one process and command do not block one another.
        entries = rwlock(self._repo.tmp_dir, self._repo.fs, " ".join(sys.argv), read, write, hard)
        self._held[stage].enter_context(entries)

    def _release(self, stage) -> None:
        self._held.pop(stage).close()
        for other in self._held:  # a file that both read went with the first: enter it again
            self._enter(other)

    def _store_big_outs(self, stage) -> None:
        """Hash outputs that take long, and copy them to the cache, before the lock is taken.

        Objects are named by their content, so this disturbs nobody; under the lock DVC then finds them. With a Repo
        of its own, for DVC's is made for one thread. What goes wrong here goes wrong again, and is told, there.
        """
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from dvc_data.hashfile.build import build
        from dvc_data.hashfile.transfer import transfer

        big = [out for out in stage.outs if out.use_cache and out.is_in_repo and _is_big(Path(out.fs_path))]
        if not big:
            return
        with Repo(self._repo.root_dir) as repo, contextlib.suppress(DvcException, OSError):
            cache = repo.cache.local
            for out in big:
                staging, _, made = build(cache, out.fs_path, out.fs, cache.hash_name, ignore=repo.dvcignore)
                linked = next(iter(cache.cache_types), None) == "hardlink"
                transfer(staging, cache, {made.hash_info}, shallow=False, hardlink=linked)


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Yield a copy to change; it takes the file's place when all went well."""
    copy = recovery.copy_in_work(path)
    try:
        if path.exists():
            shutil.copy2(path, copy)
        yield copy
        copy.replace(path)
    finally:
        copy.unlink(missing_ok=True)


def _recorded_bytes(stage) -> int:
    """Return how much a stage made when it last ran, as its lock file has it."""
    return sum((out.meta.size or 0) for out in stage.outs if out.meta is not None)


def _is_big(path: Path) -> bool:
    """Tell whether a file or folder takes noticeable time to hash."""
    if not path.is_dir():
        return path.is_file() and path.stat().st_size > BIG_BYTES
    size = 0
    for count, file in enumerate(path.rglob("*")):
        size += file.lstat().st_size
        if size > BIG_BYTES or count > BIG_FILES:
            return True
    return False
