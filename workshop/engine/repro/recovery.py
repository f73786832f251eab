"""What a killed run or a full disk leaves of DVC's own files, put right before the next run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml

from workshop.engine.repro.alone import OWN_FOLDER
from workshop.errors import EngineError

KEPT = "kept"  # below .dvc/tmp/workshop: the lock files as they were when they were last read
CONFLICT = b"<<<<<<<"
LEAST_FREE_BYTES = 100_000_000


def keep(lock_file: Path, root: Path) -> None:
    """Keep a copy of a `dvc.lock` that can be read."""
    if lock_file.resolve().is_relative_to(root.resolve()) and _is_whole(lock_file):
        copy = _copy_of(lock_file, root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary = copy.with_name(f"{copy.name}.new")
        shutil.copyfile(lock_file, temporary)
        temporary.replace(copy)


def restore_lock_files(root: Path, notice: Callable[[str], None]) -> bool:
    """Put the kept copy, if there is one, in the place of each `dvc.lock` that was cut; tell whether any was.

    An empty one of which there is no copy goes: it says nothing, and DVC refuses it. What people have to settle, such
    as the marks of a merge, is left alone.
    """
    mended = False
    for file in _lock_files(root):
        content = file.read_bytes()
        if _dvc_reads(file) or CONFLICT in content:
            continue
        copy = _copy_of(file, root)
        if copy.exists():
            damaged = file.with_name(f"{file.name}.damaged")
            notice(f"{file} is damaged, as after a full disk: brought back as it was at the last run ({damaged.name})")
            file.replace(damaged)
            shutil.copyfile(copy, copy_in_work(file))
            copy_in_work(file).replace(file)
        elif not content:
            notice(f"{file} is empty, as after a full disk: removed")
            file.unlink()
        else:
            continue
        mended = True
    return mended


def _lock_files(root: Path) -> Iterator[Path]:
    """Yield the lock files of a repository, but not those of others that lie in its folder."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name[0] != "." and not Path(folder, name, ".dvc").exists()]
        if "dvc.lock" in files and "dvc.yaml" in files:
            yield Path(folder, "dvc.lock")


def copy_in_work(lock_file: Path) -> Path:
    """Return the name of the copy that this process writes before it takes the lock file's place."""
    return lock_file.with_name(f"{lock_file.name}.{os.getpid()}.workshop")


def remove_leftovers(lock_files: Iterable[Path]) -> None:
    """Remove the copies that runs which were killed at it have left."""
    import psutil

    for lock_file in lock_files:
        for file in lock_file.parent.glob(f"{lock_file.name}.*.workshop"):
            writer = file.suffixes[-2][1:]
            if not (writer.isdigit() and psutil.pid_exists(int(writer))):
                file.unlink(missing_ok=True)


def mend_table(tmp_dir: Path) -> None:
    """Strike from DVC's table of files in use those who use none any more; call it under the table's own lock.

    DVC itself asks only whether a process with that number lives. After a restart of the machine another one may
    have it: one with another command line, that began after the table was written.
    """
    import psutil

    file = tmp_dir / "rwlock"

    def is_there(entry: dict) -> bool:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(entry["pid"])
            return process.create_time() <= written or " ".join(process.cmdline()).endswith(entry["cmd"])
        return False

    try:
        written = file.stat().st_mtime
        table = json.loads(file.read_text())
        mended = {
            "write": {path: entry for path, entry in table.get("write", {}).items() if is_there(entry)},
            "read": {path: list(filter(is_there, entries)) for path, entries in table.get("read", {}).items()},
        }
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, AttributeError):  # cut, as after a full disk; nobody is writing it now
        file.unlink()
        return
    if mended != table:
        temporary = file.with_name("rwlock.new")
        temporary.write_text(json.dumps(mended))
        temporary.replace(file)


def require_space(folder: Path, needed_bytes: int = 0) -> None:
    """Raise EngineError when the disk has less room than a run is known to need, and some to spare."""
    needed = LEAST_FREE_BYTES + needed_bytes
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EngineError(
            "There is too little room on the disk for this run.",
            value=f"{free / 1e6:,.0f} MB free at {folder}",
            expected=f"{needed / 1e6:,.0f} MB: twice what the largest stage made last time, and some to spare",
            next_step="make room; `dvc gc --workspace` removes what earlier versions of the pipeline made",
        )


def _is_whole(lock_file: Path) -> bool:
    try:
        content = yaml.load(lock_file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (OSError, ValueError, yaml.YAMLError):
        return False
    stages = content.get("stages") if isinstance(content, dict) else None
    return isinstance(stages, dict) and all(isinstance(stage, dict) for stage in stages.values())


def _dvc_reads(lock_file: Path) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    if not _is_whole(lock_file):
        return False
    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(lock_file.read_text()))
    except Invalid:
        return False
    return True


def _copy_of(lock_file: Path, root: Path) -> Path:
    return root / OWN_FOLDER / KEPT / lock_file.resolve().relative_to(root.resolve())
