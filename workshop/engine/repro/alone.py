"""A stage runs once at a time, also when the DVC that started it was killed and another one starts it again.

DVC does not end what it runs when it dies. So each command of ours that runs as a stage holds the stage's lock, ends
when its DVC is gone, and does not begin when it is gone already.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    import psutil

ROOT, STAGE = "DVC_ROOT", "DVC_STAGE"  # set by DVC for what it runs
HELD = "WORKSHOP_STAGE_HELD"  # what a stage's notebook calls in its turn is part of the same copy
WATCH_SECONDS = 0.5
TABLE_TRIES = 5


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the lock of the stage that this process runs for; outside of one, do nothing.

    Waits for an earlier copy. Exits with 143 where DVC is gone, and raises SIGTERM in this process when it goes.
    """
    root, stage = os.environ.get(ROOT), os.environ.get(STAGE)
    if not root or not stage or os.environ.get(HELD) == stage:
        yield
        return
    import filelock

    folder = Path(root, ".dvc", "tmp", "workshop")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{quote(stage, safe='')}.lock"
    _end_with(_owner(root))
    lock = filelock.FileLock(file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        sys.stderr.write(f"waiting for another copy of the stage {stage} to end: process {file.read_text()}\n")
        lock.acquire()
    try:
        _owner(root)  # it may have gone while we waited
        file.write_text(str(os.getpid()))
        os.environ[HELD] = stage
        yield
    finally:
        os.environ.pop(HELD, None)
        lock.release()


def _owner(root: str) -> psutil.Process | None:
    """Return the DVC process that runs this one; exit when it is gone, return None when there is no telling.

    It is the ancestor that stands in DVC's table of files in use, as long as anything stands there.
    """
    import psutil

    in_use = _pids_in_table(Path(root, ".dvc", "tmp", "rwlock"))
    ancestors = psutil.Process().parents()
    if not in_use:  # a stage without files
        return None
    owner = next((process for process in ancestors if process.pid in in_use), None)
    if owner is None:
        sys.exit(128 + signal.SIGTERM)
    return owner


def _pids_in_table(file: Path) -> set[int]:
    for _ in range(TABLE_TRIES):
        try:
            table = json.loads(file.read_text())
        except FileNotFoundError:
            break
        except ValueError:  # another DVC process is writing it
            time.sleep(WATCH_SECONDS / TABLE_TRIES)
            continue
        readers = [entry for entries in table.get("read", {}).values() for entry in entries]
        return {entry["pid"] for entry in (*table.get("write", {}).values(), *readers)}
    return set()


def _end_with(owner: psutil.Process | None) -> None:
    """End this process as SIGTERM does once its DVC is gone."""
    if owner is None:
        return

    def watch() -> None:
        while owner.is_running():
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch-dvc", daemon=True).start()
