"""DVC's side of a run: what `dvc repro` does with a stage before and after its commands, safe beside other runs."""

from __future__ import annotations

import collections
import contextlib
import enum
import itertools
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from dvc_parallel import compat, recovery

if TYPE_CHECKING:
    from dvc.stage import Stage

LOCKS = Path(".dvc", "tmp", "dvc-parallel")  # of a repository; git ignores it
BIG_FILES, BIG_FILE_BYTES = 500, 100_000  # a file of 50 MB takes as long as 500 small ones
BUSY_SECONDS = 0.2


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


class Stopped(Exception):
    """The user wants to stop, and the work at hand is not at its end."""


class Pipeline:
    """The stages as DVC knows them; what DVC does with one is done in one thread, and one process, at a time.

    ``stop`` is true once the user wants to stop, and ``stop.urgent`` at the second time; ``selection`` are `dvc
    repro`'s own options of which stages are meant. Raises ReproError and DVC's errors when there is no such thing.
    """

    def __init__(self, repo, targets: Sequence[str], stop, notice: Callable[[str], None], **selection: bool) -> None:
        self._repo, self._stop, self._notice = repo, stop, notice
        self._turn = threading.Lock()
        self._in_use = contextlib.ExitStack()  # of the files of the stages that run
        self._running: list[Stage] = []
        self._waited = False  # for another DVC process, so that lock files may have changed since
        # The entries that this run has added to each lock file, in the order of their coming.
        self._new: dict[Path, list[Stage]] = collections.defaultdict(list)
        self.root, self._tmp_dir = Path(repo.root_dir), Path(repo.tmp_dir)
        (self.root / LOCKS).mkdir(parents=True, exist_ok=True)
        self._graph, self.steps = self._locked(lambda: self._plan(targets, **selection))

    def needs(self, stage: Stage) -> list[Stage]:
        """Return the stages of this run that must be up to date before ``stage``."""
        return [other for other in self.steps if self._graph.has_edge(stage, other)]

    def lock_of(self, stage: Stage) -> Path:
        """Return what a copy of the stage locks while it runs."""
        return self.root / LOCKS / f"{quote(stage.path_in_repo, safe='')}:{quote(getattr(stage, 'name', ''), safe='')}"

    def prepare(self, stage: Stage, *, force: bool, run_cache: bool) -> tuple[Stage, State]:
        """Return the stage as its file now has it, and where it stands: up to date, or RUNNING for what must run.

        A stage without commands, or that is frozen, is brought up to date here.
        """

        def work() -> tuple[Stage, State]:
            current = stage.reload() if self._waited else stage  # another process may have brought it up to date
            return current, self._prepare(current, force, run_cache)

        return self._locked(work)

    def finish(self, stage: Stage) -> None:
        """Record what a stage has made, in cache and lock file, however long others are in the way."""
        self._store_big_outs(stage)

        def work() -> None:
            self._record(stage)
            self._let_go(stage)

        self._locked(work, give_up=False)

    def abandon(self, stage: Stage) -> None:
        """Let go of the files of a stage that failed."""
        self._locked(lambda: self._let_go(stage), give_up=False)

    def close(self) -> None:
        """Let go of what a run that broke off still holds."""
        self._in_use.close()

    def order_lock_files(self) -> None:
        """Put the new entries of each `dvc.lock` in the order in which `dvc repro` would have written them."""

        def work() -> None:
            for path, new in self._new.items():
                ordered = [stage for stage in self.steps if stage in new]
                if ordered != new:
                    with self._replaced(path) as copy, compat.modify_yaml(copy) as content:
                        for stage in ordered:
                            content["stages"].move_to_end(stage.name)

        self._locked(work, give_up=False)

    def _plan(self, targets: Sequence[str], *, single_item=False, pipeline=False, all_pipelines=False,
              recursive=False, downstream=False, glob=False) -> tuple:  # fmt: skip
        def plan() -> tuple:
            names = () if all_pipelines else targets or [compat.PROJECT_FILE]
            stages = compat.collect_stages(self._repo, names, recursive=recursive, glob=glob)
            graph = compat.get_active_graph(self._repo.index.graph)
            if single_item and not all_pipelines:
                return graph, stages
            return graph, compat.plan_repro(graph, stages, pipeline=pipeline, downstream=downstream)

        with compat.make_lock(
            str(self._tmp_dir / compat.RWLOCK_LOCK), tmp_dir=str(self._tmp_dir), hardlink_lock=self._hardlink
        ):
            recovery.mend_table(self._tmp_dir)
        try:
            graph, steps = plan()
        except compat.DvcException:
            if not recovery.set_damaged_aside(self.root, self._notice):
                raise
            self._repo._reset()
            graph, steps = plan()
        return graph, steps

    @property
    def _hardlink(self) -> bool:
        return self._repo.config["core"].get("hardlink_lock", False)

    def _locked(self, work: Callable[[], object], *, give_up: bool = True):
        """Do ``work`` under DVC's lock; again later, while another DVC process holds the lock or files of the stage.

        Raises Stopped instead when the user wants to stop; without ``give_up`` the user has to ask twice.
        """
        told = False
        while True:
            with self._turn:
                try:
                    with self._repo.lock:  # tries for three seconds
                        self._repo._reset()
                        self._repo._lock_depth += 1
                        try:
                            return work()
                        finally:
                            self._repo._lock_depth -= 1
                            self._repo._reset()
                except compat.LockError as error:
                    busy, self._waited = str(error), True
            if self._stop.urgent or (give_up and self._stop):
                raise Stopped
            if not told:
                self._notice(f"waiting for {self._blocker(busy)}")
            told = True
            time.sleep(BUSY_SECONDS)

    def _blocker(self, busy: str) -> str:
        """Return which process is in the way, from DVC's words on files in use, or from its lock's file."""
        if found := re.search(r"PID (\d+)", busy):
            return f"process {found[1]}, which uses files of a stage"
        file = Path(self._repo.lock.lockfile)
        with contextlib.suppress(OSError, ValueError):
            return f"process {int(file.read_text())}, which holds DVC's lock"
        return f"another DVC process, which holds {file}"

    def _prepare(self, stage: Stage, force: bool, run_cache: bool) -> State:
        """Do what `Stage.reproduce` and `Stage.run` do before a stage's commands; return its state."""
        if not force and not stage.changed():
            return State.UNCHANGED
        if stage.frozen or not stage.cmd:
            with self._repo.scm_context(quiet=True):
                stage.reproduce(force=force)
                self._dump(stage)
            return State.DONE
        self._use([*self._running, stage])
        try:
            stage.remove_outs(ignore_remove=False, force=False)
            if force:
                return State.RUNNING
            try:
                self._repo.stage_cache.restore(stage, run_cache=run_cache)
            except compat.RunCacheNotFoundError:
                stage.save_deps()
                return State.RUNNING
            self._record(stage)
        except BaseException:
            self._let_go(stage)
            raise
        self._let_go(stage)
        return State.RESTORED

    def _record(self, stage: Stage) -> None:
        """Do what `Stage.run` and `dvc repro` do after a stage's commands; a second time does no harm."""
        kept = [out for out in stage.outs if not (out.is_metric or out.is_plot)]
        with self._repo.scm_context(quiet=True):
            stage.save(run_cache=all(out.use_cache for out in kept))
            stage.commit()
            self._dump(stage)

    def _dump(self, stage: Stage) -> None:
        """Write the stage's entry of the lock file, the file whole or not at all; a full disk leaves the old one."""
        if not isinstance(stage.dvcfile, compat.ProjectFile):
            stage.dump(update_pipeline=False)
            return
        lock_file = stage.dvcfile._lockfile
        if stage.name not in stage.dvcfile.lockfile_contents.get("stages", {}):
            new = self._new[Path(lock_file.path)]
            if stage not in new:
                new.append(stage)
        tracked = self._repo.scm_context.files_to_track
        with self._replaced(Path(lock_file.path)) as copy:
            copied = compat.Lockfile(self._repo, str(copy))
            copied.dump_stages([stage])
        if copied.relpath in tracked:
            tracked.remove(copied.relpath)
            tracked.add(lock_file.relpath)

    @contextlib.contextmanager
    def _replaced(self, path: Path) -> Iterator[Path]:
        """Yield a copy to change, always the same, under DVC's lock; it takes the file's place when all went well."""
        copy = self.root / LOCKS / "dvc.lock"
        copy.unlink(missing_ok=True)
        if path.exists():
            shutil.copy2(path, copy)
        yield copy
        copy.replace(path)

    def _use(self, stages: Iterable[Stage]) -> None:
        """Enter the files of these stages, and of no others, in DVC's table of files in use.

        So no other DVC process touches them. All of them at once, for the table knows our process and not its stages:
        a file that two of them read would go with the first.
        """
        before, wanted = self._running, list(stages)
        self._in_use.close()
        try:
            self._enter(wanted)
            self._running = wanted
        except compat.LockError:
            self._enter(before)
            raise

    def _let_go(self, stage: Stage) -> None:
        self._use([other for other in self._running if other != stage])

    def _enter(self, stages: list[Stage]) -> None:
        foreign = compat.RepoDependency | compat.AbstractDependency
        read = [dep.fs_path for stage in stages for dep in stage.deps if not isinstance(dep, foreign)]
        write = [out.fs_path for stage in stages for out in stage.outs]
        # The same words as DVC's own functions use: entries of one process and command do not block one another.
        words = " ".join(sys.argv)
        if stages:
            entries = compat.rwlock(self._repo.tmp_dir, self._repo.fs, words, read, write, self._hardlink)
            self._in_use.enter_context(entries)

    def _store_big_outs(self, stage: Stage) -> None:
        """Hash outputs that take long, and copy them to the cache, before the lock is taken.

        Objects are named by their content, so this disturbs nobody; under the lock DVC then finds them. With a Repo
        of its own, for DVC's is made for one thread. What goes wrong here goes wrong again, and is told, there.
        """
        big = [out for out in stage.outs if out.use_cache and out.is_in_repo and _is_big(Path(out.fs_path))]
        if not big:
            return
        with compat.Repo(self._repo.root_dir) as repo, contextlib.suppress(compat.DvcException, OSError):
            cache = repo.cache.local
            for out in big:
                staging, _, made = compat.build(cache, out.fs_path, out.fs, cache.hash_name, ignore=repo.dvcignore)
                linked = next(iter(cache.cache_types), None) == "hardlink"
                compat.transfer(staging, cache, {made.hash_info}, shallow=False, hardlink=linked)


def _is_big(path: Path) -> bool:
    """Tell whether a file or folder takes noticeable time to hash."""
    files = itertools.islice(path.rglob("*") if path.is_dir() else [path], BIG_FILES)
    return path.exists() and sum(1 + file.lstat().st_size // BIG_FILE_BYTES for file in files) >= BIG_FILES
