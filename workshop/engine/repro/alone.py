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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    import psutil

STAGE = "DVC_STAGE"  # set by DVC for what it runs
HELD = "WORKSHOP_STAGE_HELD"  # what a stage's notebook calls in its turn is part of the same copy
OWN_FOLDER = Path(".dvc", "tmp", "workshop")  # of a repository; git ignores it
WATCH_SECONDS = 0.5
TABLE_TRIES = 5


@dataclass(frozen=True)
class RunningStage:
    """The stage that this process runs for: its repository, its folder there, and its name in that `dvc.yaml`."""

    root: Path
    name: str

    @classmethod
    def of_environment(cls) -> RunningStage | None:
        """Return the stage; None outside of one.

        DVC tells names as seen from where it was typed, and to an experiment in a temporary folder the repository that
        it was copied from; so both go by the current folder, which is the stage's own.
        """
        if not (addressed := os.environ.get(STAGE)):
            return None
        here = Path.cwd()
        root = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
        if root is None:
            return None
        return cls(root, f"{here.relative_to(root)}:{addressed.rpartition(':')[2]}")

    def __str__(self) -> str:
        return f"{self.root}:{self.name}"


@contextlib.contextmanager
def alone() -> Iterator[bool]:
    """Hold the lock of the stage that this process runs for; yield whether it was taken here.

    It is not outside of a stage, nor in what a stage's command has started. Waits for an earlier copy. Exits with 143
    where DVC is gone, and raises SIGTERM in this process when it goes.
    """
    stage = RunningStage.of_environment()
    if stage is None or os.environ.get(HELD) == os.environ[STAGE]:
        yield False
        return
    import filelock

    folder = stage.root / OWN_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{quote(stage.name, safe='')}.lock"
    lock = filelock.FileLock(file)
    with _ends_with(_owner(stage)):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            sys.stderr.write(f"waiting for another copy of the stage {stage.name} to end: process {file.read_text()}\n")
            lock.acquire()
        try:
            _owner(stage)  # it may have gone while we waited
            file.write_text(str(os.getpid()))
            os.environ[HELD] = os.environ[STAGE]
            yield True
        finally:
            os.environ.pop(HELD, None)
            lock.release()


def _owner(stage: RunningStage) -> psutil.Process | None:
    """Return the DVC process that runs this one; exit when it is gone, return None when there is no telling.

    It is the ancestor that stands in DVC's table of files in use, as long as anything stands there.
    """
    import psutil

    in_use = _pids_in_table(stage.root / ".dvc" / "tmp" / "rwlock")
    if not in_use:  # a stage without files
        return None
    try:
        owner = next((process for process in psutil.Process().parents() if process.pid in in_use), None)
    except psutil.NoSuchProcess:  # an ancestor that ends just now
        owner = None
    if owner is None:
        sys.stderr.write(
            f"The DVC that started the stage {stage.name} of {stage.root} is gone, so the stage does not run.\n"
            f"  next:     dvc repro; where another program starts stages (srun, ssh), set {HELD}={os.environ[STAGE]}\n"
        )
        sys.exit(128 + signal.SIGTERM)
    return owner


def _pids_in_table(file: Path) -> set[int]:
    for _ in range(TABLE_TRIES):
        try:
            table = json.loads(file.read_text())
            readers = [entry for entries in table.get("read", {}).values() for entry in entries]
            return {entry["pid"] for entry in (*table.get("write", {}).values(), *readers)}
        except FileNotFoundError:
            break
        except (ValueError, KeyError, TypeError, AttributeError):  # another DVC process is writing it
            time.sleep(WATCH_SECONDS / TABLE_TRIES)
    return set()


@contextlib.contextmanager
def _ends_with(owner: psutil.Process | None) -> Iterator[None]:
    """End this process as SIGTERM does once its DVC is gone."""
    over = threading.Event()

    def watch() -> None:
        while _lives(owner):
            if over.wait(WATCH_SECONDS):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    if owner is not None:
        threading.Thread(target=watch, name="watch-dvc", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _lives(process: psutil.Process) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
