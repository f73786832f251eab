"""What a killed run or a full disk leaves of DVC's own files, put right before the next run."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

from workshop.errors import EngineError

KEPT = "kept"  # below .dvc/tmp/workshop: the lock files as they were when they were last read
CONFLICT = "<<<<<<<"
LEAST_FREE_BYTES = 100_000_000


def keep(lock_file: Path, root: Path) -> None:
    """Keep a copy of a `dvc.lock` that can be read."""
    if _is_whole(lock_file):
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
    for file in root.rglob("dvc.lock"):
        if ".dvc" in file.relative_to(root).parts or _dvc_reads(file) or CONFLICT in file.read_text(errors="replace"):
            continue
        copy = _copy_of(file, root)
        if copy.exists():
            notice(f"{file} is damaged, as after a full disk: brought back as it was at the last run")
            shutil.copyfile(copy, file.with_name(f"{file.name}.0"))
            file.with_name(f"{file.name}.0").replace(file)
        elif not file.stat().st_size:
            notice(f"{file} is empty, as after a full disk: removed")
            file.unlink()
        else:
            continue
        mended = True
    return mended


def remove_leftovers(lock_files: Iterable[Path]) -> None:
    """Remove what runs that were killed while they wrote a lock file have left beside it."""
    import psutil

    for lock_file in lock_files:
        for file in lock_file.parent.glob(f"{lock_file.name}.*"):
            writer = file.suffix[1:]
            if writer.isdigit() and not psutil.pid_exists(int(writer)):
                file.unlink(missing_ok=True)


def mend_table(tmp_dir: Path) -> None:
    """Strike from DVC's table of files in use those who use none any more; call it under the table's own lock.

    DVC itself asks only whether a process with that number lives. After a restart of the machine another one may
    have it: one that began after the table was written.
    """
    import psutil

    file = tmp_dir / "rwlock"

    def is_there(entry: dict) -> bool:
        with contextlib.suppress(psutil.Error):
            return psutil.Process(entry["pid"]).create_time() <= written
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
    return root / ".dvc" / "tmp" / "workshop" / KEPT / lock_file.resolve().relative_to(root.resolve())
