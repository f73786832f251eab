"""The stages of a run: what `dvc repro` does before and after a stage's commands."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from dvc_parallel import compat
from dvc_parallel.compat import Repo, Stage
from dvc_parallel.states import ReproError, State
from dvc_parallel.stop import Stopped, StopRequest

FOLDER = Path(".dvc", "tmp", "dvc-parallel")  # in the repository; ignored by git
BUSY_SECONDS = 0.2
HEAD = "schema: '2.0'\nstages:\n"  # the first lines of dvc.lock
MAX_NAME_BYTES = 200  # maximum for a log's file name; file systems allow 255
T = TypeVar("T")


@contextlib.contextmanager
def open_repository() -> Iterator[compat.Repo]:
    """Open the current folder's DVC repository; convert errors of DVC and the operating system to ReproError."""
    try:
        with compat.Repo() as repo:
            yield repo
    except (compat.DvcException, OSError, TypeError, ValueError) as error:  # e.g. DVC's error for a date in params.yaml
        next_step = "choose other stages, or correct the problem that DVC reports; then run the command again"
        raise ReproError("The pipeline cannot be run.", found=explain(error), next=next_step) from None


def explain(error: BaseException) -> str:
    """Return the messages of an error and its causes, as DVC's command line shows them."""
    text = str(error) or type(error).__name__
    return f"{text}: {explain(error.__cause__)}" if error.__cause__ else text


class Pipeline:
    """The stages of a run; until this object is closed, other DVC processes cannot use the stages' files.

    ``selection`` holds the options of `dvc repro` that select stages. ``graph`` maps each stage to its dependencies.
    """

    def __init__(
        self, repo: Repo, targets: Sequence[str], stop: StopRequest, notice: Callable[[str], object], **selection: bool
    ) -> None:
        self._repo, self._stop, self._notice = repo, stop, notice
        self._files_in_use, self.kept_lock = contextlib.ExitStack(), contextlib.ExitStack()
        self._new: set[Stage] = set()  # stages that had no lock file entry before this run
        self._texts: dict[
            Path, tuple[bytes, dict[str, str]]
        ] = {}  # content and entries of the lock files that this run wrote
        self.outdated: set[Stage] = set()  # changed stages that wait until the limits allow them to run
        self.folder = Path(repo.root_dir, FOLDER)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.graph, self.steps = self._locked(lambda: self._plan(targets, **selection))

    def close(self) -> None:
        """Let other processes use the stages' files again."""
        self.kept_lock.close()
        self._files_in_use.close()

    def log_of(self, stage: Stage) -> Path:
        """Return the path of a stage's log, which is locked while the stage runs."""
        parts = (stage.path_in_repo, getattr(stage, "name", ""))
        name = ":".join(re.sub("[\0-\x7f]+", lambda part: quote(part[0], safe=""), part) for part in parts)
        if len(encoded := os.fsencode(name)) > MAX_NAME_BYTES:
            name = f"{encoded[:MAX_NAME_BYTES].decode(errors='ignore')}~{hashlib.sha256(encoded).hexdigest()[:16]}"
        return self.folder / f"{name}.log"

    def is_outdated(self) -> bool:
        """Return whether any stage is out of date, apart from stages that always run."""
        return self._locked(lambda: any(stage.changed() for stage in self.steps if not stage.always_changed))

    def prepare(self, stage: Stage, *, may_run: bool, force: bool, run_cache: bool) -> State:
        """Do what `Stage.reproduce` and `Stage.run` do before the commands; return RUNNING if the commands must run.

        A changed stage that may not run yet stays WAITING and is added to `outdated`. DVC's lock stays
        held in `kept_lock`: acquiring it again would make DVC reread its settings and reopen its databases.
        """
        return self._locked(lambda: self._prepare(stage, may_run, force, run_cache), keep=True)

    def record(self, stage: Stage) -> None:
        """Record a stage's outputs in the cache and the lock file; wait for DVC's lock as long as necessary."""
        self._locked(lambda: self._record(stage), give_up=False)

    def _plan(
        self, targets: Sequence[str], *, single_item: bool = False, pipeline: bool = False, all_pipelines: bool = False,
        recursive: bool = False, downstream: bool = False, glob: bool = False,
    ) -> tuple[Mapping[Stage, Iterable[Stage]], list[Stage]]:  # fmt: skip
        """Return the graph and the stages in DVC's order; lock the stages' files in DVC's rwlock file."""
        names = () if all_pipelines else targets or [compat.PROJECT_FILE]
        steps = compat.collect_stages(self._repo, names, recursive=recursive, glob=glob)
        graph = compat.get_active_graph(self._repo.index.graph)
        if all_pipelines or not single_item:
            steps = compat.plan_repro(graph, steps, pipeline=pipeline, downstream=downstream)
        foreign = compat.RepoDependency | compat.AbstractDependency
        inputs = [dep.fs_path for stage in steps for dep in stage.deps if not isinstance(dep, foreign)]
        outputs = [out.fs_path for stage in steps for out in stage.outs]
        # Pass the same command text as DVC: rwlock entries with equal process id and command do not block each other.
        table = (self._repo.tmp_dir, self._repo.fs, " ".join(sys.argv), inputs, outputs)
        hardlink = self._repo.config["core"].get("hardlink_lock", False)
        try:
            self._files_in_use.enter_context(compat.rwlock(*table, hardlink))
        except (compat.RWLockFileCorruptedError, compat.RWLockFileFormatError):  # truncated when the disk was full
            Path(self._repo.tmp_dir, compat.RWLOCK_FILE).unlink()
            self._files_in_use.enter_context(compat.rwlock(*table, hardlink))
        # DVC rewrites the whole rwlock file several times per stage: to save time, switch to an empty one for the run.
        self._repo.tmp_dir = str(self.folder)
        Path(self.folder, compat.RWLOCK_FILE).unlink(missing_ok=True)  # left by a killed run
        return graph, steps

    def _locked(self, work: Callable[[], T], *, give_up: bool = True, keep: bool = False) -> T:
        """Call ``work`` while holding DVC's lock; retry while another DVC process holds it or uses the stages' files.

        Raises Stopped if the user stops the run; without ``give_up``, only after a second signal.
        """
        is_waiting = False
        while True:
            try:
                with contextlib.ExitStack() as lock:
                    lock.enter_context(compat.lock_repo(self._repo))  # raises LockError after waiting three seconds
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
        """Describe the process that holds DVC's lock or, according to DVC's message, uses files of a stage."""
        if match := re.search(r"PID (\d+)", message):
            return f"process {match[1]}, which is using files of a stage"
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
        """Do what `Stage.run` and `dvc repro` do after running commands; idempotent."""
        outputs = [out for out in stage.outs if not (out.is_metric or out.is_plot)]
        with self._repo.scm_context(quiet=True):
            stage.save(run_cache=all(out.use_cache for out in outputs))
            stage.commit()
            self._dump(stage)

    def _dump(self, stage: Stage) -> None:
        """Write a stage's entry to the lock file atomically; sort new entries in the order of `dvc repro`."""
        if not isinstance(stage.dvcfile, compat.ProjectFile):
            stage.dump(update_pipeline=False)
            return
        lock_file, copy, data = (
            compat.lock_file(stage),
            self.folder / "dvc.lock",
            compat.to_lockfile(stage)[stage.name],
        )
        path = Path(lock_file.path)
        written, texts = self._texts.get(path, (b"", {}))
        is_ours = path.exists() and path.read_bytes() == written
        entries = texts if is_ours else stage.dvcfile.lockfile_contents.get("stages", {})
        entry = _text_of(stage.name, data) if is_ours else data
        if entry == entries.get(stage.name):
            return  # unchanged: skip the slow reading and writing
        if stage.name not in entries:
            self._new.add(stage)
        copy.unlink(missing_ok=True)
        if path.exists():
            shutil.copy2(path, copy)
        if is_ours:  # DVC itself would parse and rewrite all entries for each stage
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
        """Add a stage's entry, and keep new entries in DVC's order."""
        entries[stage.name] = entry
        for other in self.steps:
            if other in self._new and compat.lock_file(other).path == lock_file.path:
                entries[other.name] = entries.pop(other.name)


def _text_of(name: str, entry: object) -> str:
    """Return a stage's lock file entry as the YAML text that DVC writes."""
    return compat.dumps_yaml({"stages": {name: entry}}).partition("\n")[2]


def _put_in_place(new: Path, file: Path) -> None:
    """Replace ``file``, atomically if possible; keep an existing file's links and owner, as DVC does."""
    old, fresh = file.lstat() if os.path.lexists(file) else None, new.stat()
    is_alone = not old or (stat.S_ISREG(old.st_mode) and old.st_nlink == 1)
    if is_alone and (not old or (old.st_uid, old.st_gid) == (fresh.st_uid, fresh.st_gid)):
        with contextlib.suppress(OSError):  # fails if the file is a mount point or on another file system
            new.replace(file)
            return
    content = new.read_bytes()
    with file.open("r+b" if file.exists() else "wb") as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            if hasattr(os, "posix_fallocate"):  # fail on a full disk before changing the content
                os.posix_fallocate(stream.fileno(), 0, len(content))
        except OSError:
            stream.truncate(size)
            raise
        stream.write(content)
        stream.truncate()
