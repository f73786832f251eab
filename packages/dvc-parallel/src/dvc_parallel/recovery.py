"""What a killed run or a full disk leaves of DVC's own files, put right before the next run."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import psutil

from dvc_parallel.compat import COMPILED_LOCKFILE_SCHEMA, RWLOCK_FILE, DvcException, Invalid, load_yaml

CONFLICT = b"<<<<<<<"


def set_damaged_aside(root: Path, notice: Callable[[str], None]) -> bool:
    """Rename each `dvc.lock` of the repository that was cut; return whether any was.

    What it recorded, DVC's run cache has as well: stages are restored from there. What people have to settle, such as
    the marks of a merge, is left alone, and so are other repositories below this one.
    """
    damaged = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name[0] != "." and not Path(folder, name, ".dvc").exists()]
        file = Path(folder, "dvc.lock")
        if {"dvc.lock", "dvc.yaml"} <= set(files) and CONFLICT not in file.read_bytes() and not _is_readable(file):
            damaged.append(file.replace(file.with_name("dvc.lock.damaged")))
            notice(f"{file} is damaged, as after a full disk, and was renamed to dvc.lock.damaged")
    return bool(damaged)


def _is_readable(lock_file: Path) -> bool:
    try:
        COMPILED_LOCKFILE_SCHEMA(load_yaml(str(lock_file)) or None)
    except (DvcException, Invalid, ValueError):
        return False
    return True


def mend_table(tmp_dir: Path) -> None:
    """Remove dead processes from DVC's table of files in use; call it under the table's own lock.

    DVC asks only whether a process with that number lives. After a restart of the machine another one may have it:
    one that began after the table was written.
    """
    file = tmp_dir / RWLOCK_FILE

    def lives(entry: dict) -> bool:
        with contextlib.suppress(psutil.Error):
            return psutil.Process(entry["pid"]).create_time() <= written
        return False

    try:
        written = file.stat().st_mtime
        table = json.loads(file.read_text())
        writers = {path: entry for path, entry in table.get("write", {}).items() if lives(entry)}
        readers = {path: list(filter(lives, entries)) for path, entries in table.get("read", {}).items()}
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, AttributeError):  # cut, as after a full disk; no process is writing it now
        file.unlink()
        return
    temporary = file.with_name(f"{file.name}.new")
    temporary.write_text(json.dumps({"write": writers, "read": readers}))
    os.utime(temporary, (written, written))
    temporary.replace(file)
