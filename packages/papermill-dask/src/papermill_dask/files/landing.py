"""Puts files that arrive in the place of older ones: all of them, or none."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Self

from filelock import FileLock, Timeout

from papermill_dask.files.manifest import Entry, digest, no_space
from workshop.errors import EngineError

NAME = ".workshop-{}"
# A folder this young may belong to a client that is about to lock it.
YOUNG_SECONDS = 60


class Landing:
    """New contents for ``outs`` in ``folder``: staged in hidden folders beside them, then put in place by renaming.

    Beside them, because a rename works within a file system only, and outs may lie on several. A context: what has not
    been put in place when it ends is gone, and what was there before is there still. The folders are locked, so that
    what a killed client left is told from what another one is at, and is cleared by the next landing.
    """

    def __init__(self, folder: Path, outs: Iterable[str]) -> None:
        self._folder = folder
        self._outs = [PurePosixPath(out) for out in outs]
        self._name = NAME.format(secrets.token_hex(8))
        self._locks: dict[Path, FileLock] = {}
        self._made: list[Path] = []
        self._done = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        for place, lock in self._locks.items():
            shutil.rmtree(place, ignore_errors=True)
            lock.release()
        if not self._done:
            for parent in reversed(self._made):
                with contextlib.suppress(OSError):
                    parent.rmdir()

    def prepare(self, entries: Iterable[Entry], here: Iterable[str]) -> None:
        """Make room for ``entries``; those at the paths ``here`` are taken from where they lie now.

        Raises EngineError when what is to come does not fit on the disk, OSError when a folder cannot be written to.
        """
        here = set(here)
        self._check_space(entry for entry in entries if entry.path not in here)
        for out in self._outs:
            self._make_place(self._folder / out.parent)
        for entry in entries:
            staged = self.staged(entry.path)
            staged.parent.mkdir(parents=True, exist_ok=True)
            if not entry.md5:
                staged.mkdir(exist_ok=True)
            elif entry.path in here:
                _take(self._folder / entry.path, staged, entry.mode)

    def staged(self, path: str) -> Path:
        """Return where the content for ``path`` is to be written."""
        out = next(out for out in self._outs if PurePosixPath(path).is_relative_to(out))
        return self._place(out) / "new" / out.name / PurePosixPath(path).relative_to(out)

    def finish(self, entries: Iterable[Entry], arrived: set[str]) -> None:
        """Check what has ``arrived`` and put all outs in place; on any failure put back what was there.

        Raises EngineError when a content is not what was announced, OSError when an out cannot be replaced.
        """
        for entry in entries:
            staged = self.staged(entry.path)
            if entry.path in arrived and digest(staged) != entry.md5:
                raise EngineError(
                    "A file changed while it was fetched from the worker.",
                    value=entry.path,
                    expected=f"the MD5 {entry.md5}",
                    next_step="see that nothing the notebook started still writes to it, then run again",
                )
            if not entry.md5 or entry.path in arrived:
                staged.chmod(entry.mode)
        undo: list[tuple[Path, Path]] = []
        try:
            for out in self._outs:
                target, place = self._folder / out, self._place(out)
                if os.path.lexists(target):
                    _move(target, place / "old" / out.name, undo)
                _move(place / "new" / out.name, target, undo)
        except BaseException:
            for source, target in reversed(undo):
                with contextlib.suppress(FileNotFoundError):
                    target.rename(source)
            raise
        self._done = True

    def _place(self, out: PurePosixPath) -> Path:
        return self._folder / out.parent / self._name

    def _make_place(self, parent: Path) -> None:
        place = parent / self._name
        if place in self._locks:
            return
        missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            self._made.append(folder)
        _clear(parent)
        place.mkdir(mode=0o700)
        self._locks[place] = FileLock(place / "lock")
        self._locks[place].acquire()
        for inner in ("new", "old"):
            (place / inner).mkdir()

    def _check_space(self, coming: Iterable[Entry]) -> None:
        needed: dict[int, tuple[Path, int]] = {}
        for entry in coming:
            path = self._folder / entry.path
            around = next(parent for parent in path.parents if parent.is_dir())
            disk = around.stat().st_dev
            needed[disk] = around, needed.get(disk, (around, 0))[1] + entry.size
        for around, size in needed.values():
            if (free := shutil.disk_usage(around).free) < size:
                raise no_space(around, size, free)


def _move(source: Path, target: Path, undo: list[tuple[Path, Path]]) -> None:
    # Noted first: undoing a move that was not made does no harm, but Ctrl-C could lose one that is noted after it.
    undo.append((source, target))
    source.rename(target)


def _take(file: Path, staged: Path, mode: int) -> None:
    """Link a file that is to stay as it is; copy one that is not, for its other links (DVC's cache) must not change."""
    if not file.is_symlink() and file.stat().st_mode & 0o777 == mode:
        with contextlib.suppress(OSError):
            os.link(file, staged)
            return
    shutil.copyfile(file, staged)
    staged.chmod(mode)


def _clear(parent: Path) -> None:
    """Remove what killed clients left in ``parent``, after putting back what they had only half replaced."""
    for place in parent.glob(NAME.format("*")):
        with contextlib.suppress(OSError, Timeout):
            if time.time() - place.stat().st_mtime < YOUNG_SECONDS:
                continue
            with FileLock(place / "lock").acquire(blocking=False):
                for old in (place / "old").iterdir():
                    if not os.path.lexists(parent / old.name):
                        old.rename(parent / old.name)
                shutil.rmtree(place, ignore_errors=True)
