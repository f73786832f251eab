"""The stages of a run: the work of `dvc repro` before and after the commands of a stage."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from dvc_parallel import compat
from dvc_parallel.compat import Repo, Stage
from dvc_parallel.states import State
from dvc_parallel.stop import Stopped, StopRequest

FOLDER = Path(".dvc", "tmp", "dvc-parallel")  # of a repository; git ignores it
BUSY_SECONDS = 0.2
HEAD = "schema: '2.0'\nstages:\n"  # of a lock file
MAX_NAME_BYTES = 200  # of a log's name, of which file systems take 255
T = TypeVar("T")


class Pipeline:
    """The stages of a run; other DVC processes do not touch their files until the pipeline is closed.

    ``selection`` are the options of `dvc repro` that select stages; DVC raises its errors if there are none. ``graph``
    maps each stage to the stages that it needs.
    """

    def __init__(
        self, repo: Repo, targets: Sequence[str], stop: StopRequest, notice: Callable[[str], object], **selection: bool
    ) -> None:
        self._repo, self._stop, self._notice = repo, stop, notice
        self._files_in_use, self.kept_lock = contextlib.ExitStack(), contextlib.ExitStack()
        self._new: set[Stage] = set()  # stages whose first entry in a lock file this run has written
        self._texts: dict[Path, tuple[bytes, dict[str, str]]] = {}  # of lock files: what was written, and each entry
        self.outdated: set[Stage] = set()  # stages that have changed, but could not start
        self._folder = Path(repo.root_dir, FOLDER)
        self._folder.mkdir(parents=True, exist_ok=True)
        self.graph, self.steps = self._locked(lambda: self._plan(targets, **selection))

    def close(self) -> None:
        """Release the files of the stages."""
        self.kept_lock.close()
        self._files_in_use.close()

    def log_of(self, stage: Stage) -> Path:
        """Return the log of a stage; a running copy of the stage locks it."""
        parts = (stage.path_in_repo, getattr(stage, "name", ""))
        name = ":".join(re.sub("[\0-\x7f]+", lambda part: quote(part[0], safe=""), part) for part in parts)
        if len(encoded := os.fsencode(name)) > MAX_NAME_BYTES:
            name = f"{encoded[:MAX_NAME_BYTES].decode(errors='ignore')}~{hashlib.sha256(encoded).hexdigest()[:16]}"
        return self._folder / f"{name}.log"

    def is_outdated(self) -> bool:
        """Return whether a stage is out of date, not counting those that always run, which may change others."""
        return self._locked(lambda: any(stage.changed() for stage in self.steps if not stage.always_changed))

    def prepare(self, stage: Stage, *, may_run: bool, force: bool, run_cache: bool) -> State:
        """Do what `Stage.reproduce` and `Stage.run` do before commands; return RUNNING if there are any to run.

        A stage that has changed but may not run yet stays WAITING, and is in `outdated`.

        DVC's lock stays in `kept_lock`: whenever DVC takes it, DVC reads its settings and opens its databases again.
        """
        return self._locked(lambda: self._prepare(stage, may_run, force, run_cache), keep=True)

    def record(self, stage: Stage) -> None:
        """Record the outputs of a stage in cache and lock file, however long other processes hold DVC's lock."""
        self._locked(lambda: self._record(stage), give_up=False)

    def _plan(
        self, targets: Sequence[str], *, single_item: bool = False, pipeline: bool = False, all_pipelines: bool = False,
        recursive: bool = False, downstream: bool = False, glob: bool = False,
    ) -> tuple[Mapping[Stage, Iterable[Stage]], list[Stage]]:  # fmt: skip
        """Return the graph and the stages in DVC's order; enter their files in DVC's table of files in use."""
        names = () if all_pipelines else targets or [compat.PROJECT_FILE]
        steps = compat.collect_stages(self._repo, names, recursive=recursive, glob=glob)
        graph = compat.get_active_graph(self._repo.index.graph)
        if all_pipelines or not single_item:
            steps = compat.plan_repro(graph, steps, pipeline=pipeline, downstream=downstream)
        foreign = compat.RepoDependency | compat.AbstractDependency
        inputs = [dep.fs_path for stage in steps for dep in stage.deps if not isinstance(dep, foreign)]
        outputs = [out.fs_path for stage in steps for out in stage.outs]
        # The same words as DVC uses: entries of one process with the same words do not block one another.
        table = (self._repo.tmp_dir, self._repo.fs, " ".join(sys.argv), inputs, outputs)
        hardlink = self._repo.config["core"].get("hardlink_lock", False)
        try:
            self._files_in_use.enter_context(compat.rwlock(*table, hardlink))
        except (compat.RWLockFileCorruptedError, compat.RWLockFileFormatError):  # a full disk has cut the table
            Path(self._repo.tmp_dir, compat.RWLOCK_FILE).unlink()
            self._files_in_use.enter_context(compat.rwlock(*table, hardlink))
        # DVC reads and writes the whole table several times for each stage: from now on use one without these files.
        self._repo.tmp_dir = str(self._folder)
        Path(self._folder, compat.RWLOCK_FILE).unlink(missing_ok=True)  # a killed run's
        return graph, steps

    def _locked(self, work: Callable[[], T], *, give_up: bool = True, keep: bool = False) -> T:
        """Do ``work`` under DVC's lock; try again while another DVC process holds the lock or files of the stages.

        Raises Stopped instead when the user wants to stop; without ``give_up`` the user has to ask twice.
        """
        is_waiting = False
        while True:
            try:
                with contextlib.ExitStack() as lock:
                    lock.enter_context(compat.lock_repo(self._repo))  # tries for three seconds
                    result = work()
                    if keep:
                        self.kept_lock.push(lock.pop_all())
                    return result
            except compat.LockError as error:
                holder = self._holder(str(error))
            if self._stop.urgent or (give_up and self._stop):
                raise Stopped
            if not is_waiting:
                self._notice(f"waiting for {holder}")
            is_waiting = True
            time.sleep(BUSY_SECONDS)

    def _holder(self, message: str) -> str:
        """Return which process holds files of a stage, as DVC's message says, or holds DVC's lock."""
        if match := re.search(r"PID (\d+)", message):
            return f"process {match[1]}, which uses files of a stage"
        file = Path(self._repo.lock.lockfile)
        with contextlib.suppress(OSError, ValueError):
            return f"process {int(file.read_text())}, which holds DVC's lock"
        return f"another DVC process, which holds {file}"

    def _prepare(self, stage: Stage, may_run: bool, force: bool, run_cache: bool) -> State:
        if not force and stage not in self.outdated and not stage.changed():
            return State.UNCHANGED
        if stage.frozen or not stage.cmd:
            with self._repo.scm_context(quiet=True):
                stage.reproduce(force=force)
                self._dump(stage)
            return State.DONE
        if not may_run:
            self.outdated.add(stage)
            return State.WAITING
        stage.remove_outs(ignore_remove=False, force=False)
        if force:
            return State.RUNNING
        try:
            self._repo.stage_cache.restore(stage, run_cache=run_cache)
        except compat.RunCacheNotFoundError:
            stage.save_deps()
            return State.RUNNING
        self._record(stage)
        return State.RESTORED

    def _record(self, stage: Stage) -> None:
        """Do what `Stage.run` and `dvc repro` do after commands; a second time does no harm."""
        outputs = [out for out in stage.outs if not (out.is_metric or out.is_plot)]
        with self._repo.scm_context(quiet=True):
            stage.save(run_cache=all(out.use_cache for out in outputs))
            stage.commit()
            self._dump(stage)

    def _dump(self, stage: Stage) -> None:
        """Write the entry of a stage in the lock file whole or not at all, new entries in the order of `dvc repro`."""
        if not isinstance(stage.dvcfile, compat.ProjectFile):
            stage.dump(update_pipeline=False)
            return
        lock_file, copy, data = (
            compat.lock_file(stage),
            self._folder / "dvc.lock",
            compat.to_lockfile(stage)[stage.name],
        )
        path = Path(lock_file.path)
        written, texts = self._texts.get(path, (b"", {}))
        is_ours = path.exists() and path.read_bytes() == written
        entries = texts if is_ours else stage.dvcfile.lockfile_contents.get("stages", {})
        entry = _text_of(stage.name, data) if is_ours else data
        if entry == entries.get(stage.name):
            return  # reading and writing the file takes the longest
        if stage.name not in entries:
            self._new.add(stage)
        copy.unlink(missing_ok=True)
        if path.exists():
            shutil.copy2(path, copy)
        if is_ours:  # DVC would read and write the entries of all stages, for each of them
            self._enter(texts := dict(texts), stage, entry, lock_file)
            copy.write_text(HEAD + "".join(texts.values()), "utf-8")
        else:
            with compat.modify_yaml(copy) as content:
                content.setdefault("schema", "2.0")
                self._enter(content.setdefault("stages", {}), stage, entry, lock_file)
            texts = {name: _text_of(name, data) for name, data in content["stages"].items()}
        if (written := copy.read_bytes()) == (HEAD + "".join(texts.values())).encode():
            self._texts[path] = written, texts
        _put_in_place(copy, path)
        self._repo.scm_context.track_file(lock_file.relpath)

    def _enter(self, entries: dict[str, T], stage: Stage, entry: T, lock_file: compat.Lockfile) -> None:
        """Enter a stage among the entries of its lock file, and the new ones in order."""
        entries[stage.name] = entry
        for other in self.steps:
            if other in self._new and compat.lock_file(other).path == lock_file.path:
                entries[other.name] = entries.pop(other.name)


def _text_of(name: str, entry: object) -> str:
    """Return how DVC writes the entry of a stage."""
    return compat.dumps_yaml({"stages": {name: entry}}).partition("\n")[2]


def _put_in_place(new: Path, file: Path) -> None:
    """Move a new file to ``file``, whole or not at all; one that exists keeps its links and its owner, as with DVC."""
    old, fresh = file.lstat() if os.path.lexists(file) else None, new.stat()
    is_alone = not old or (stat.S_ISREG(old.st_mode) and old.st_nlink == 1)
    if is_alone and (not old or (old.st_uid, old.st_gid) == (fresh.st_uid, fresh.st_gid)):
        with contextlib.suppress(OSError):  # the file is on another file system, or a mount point
            new.replace(file)
            return
    content = new.read_bytes()
    with file.open("r+b" if file.exists() else "wb") as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error before the content changes
                os.posix_fallocate(stream.fileno(), 0, len(content))
        except OSError:
            stream.truncate(size)
            raise
        stream.write(content)
        stream.truncate()
