"""Carries a notebook's files to a worker that shares no disk with the client, and back, through the scheduler alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Self

import psutil

from papermill_dask import compat
from papermill_dask.errors import EngineError
from papermill_dask.stage import Declaration
from papermill_dask.store import (
    DISK_FULL,
    HOST,
    LIMIT_BYTES,
    Entry,
    digest,
    entries,
    inside,
    no_space,
    read_piece,
    refused,
    serve,
    write_piece,
)

# What is under way at a time bounds the memory on all three sides.
PIECE_BYTES = 8 * 2**20
PIECES_IN_A_MESSAGE = 500
WATCH_SECONDS = 1
ANSWER_SECONDS = 10
STAGING = f".papermill-dask-{HOST}-"  # and a process id: hidden folders beside outs

Piece = tuple[str, int, int]  # a path or a hash, then offset and length in bytes


def send(client, worker: str, folder: Path, declaration: Declaration, *, limit: int = LIMIT_BYTES) -> str:
    """Bring the deps in ``folder`` to ``worker`` and return the path there of a scratch folder with them.

    What the worker holds already, by its hash, is not sent; it keeps up to ``limit`` bytes. The caller removes the
    folder with `remove`. Raises EngineError for a dep that is missing or leaves ``folder``, for a full disk, and when
    the worker or the scheduler is lost; then no folder is left.
    """
    for path in declaration.outs:
        inside(folder, path, follow=False)
    deps = {path: inside(folder, path, declaration.links_to) for path in declaration.deps}
    if missing := [path for path, file in deps.items() if not os.path.lexists(file)]:
        raise EngineError(
            "The notebook's dependencies are not all there.",
            value=f"missing in {folder}: {', '.join(missing)}",
            next_step="make them first (`dvc repro` makes what other stages write), or mend the list",
        )
    wanted = entries(folder, declaration.deps, links_to=declaration.links_to)
    parents = {str(PurePosixPath(path).parent) for path in declaration.outs} - {"."}
    folders = sorted(parent for parent in parents if (folder / parent).is_dir())
    scratch, lacking = _ask(client, worker, "open", wanted, limit)
    try:
        by_hash = {entry.md5: entry for entry in wanted}
        for message in _messages((md5, by_hash[md5].size) for md5 in lacking):
            contents = [(md5, offset, read_piece(folder / by_hash[md5].path, offset, n)) for md5, offset, n in message]
            _ask(client, worker, "receive", scratch, contents)
        _ask(client, worker, "fill", scratch, wanted, folders)
    except BaseException as error:
        with contextlib.suppress(EngineError):
            remove(client, worker, scratch)
        if isinstance(error, OSError):
            raise EngineError("A dependency of the notebook cannot be read.", value=str(error)) from None
        raise
    return scratch


def fetch(client, worker: str, scratch: str, folder: Path, declaration: Declaration) -> list[str]:
    """Bring the outs from a scratch folder into ``folder``: all of them or none; return the outs that came.

    Raises EngineError for an out that the notebook did not write, for one that leaves its folder, for a full disk, and
    when the worker is lost.
    """
    outs = list(dict.fromkeys(map(PurePosixPath, declaration.outs)))
    outs = [out for out in outs if not any(parent in outs for parent in out.parents)]
    for path in outs:
        inside(folder, path, follow=False)
    wanted = _ask(client, worker, "list_outs", scratch, list(map(str, outs)), declaration.partial)
    for entry in wanted:
        inside(folder, entry.path, declaration.links_to, follow=False)
        if not any(PurePosixPath(entry.path).is_relative_to(out) for out in outs):
            raise refused(folder, entry.path, "the worker was not asked for it")
    arriving = [out for out in outs if any(PurePosixPath(entry.path).is_relative_to(out) for entry in wanted)]
    try:
        with Replacement(folder, arriving) as replacement:
            replacement.prepare(wanted)
            for message in _messages((entry.path, entry.size) for entry in wanted if entry.md5):
                contents = _ask(client, worker, "read", scratch, message)
                for (path, offset, _), data in zip(message, contents, strict=True):
                    write_piece(replacement.staged(path), offset, data)
            replacement.finish(wanted)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise no_space(folder, sum(entry.size for entry in wanted), shutil.disk_usage(folder).free) from None
        raise EngineError(
            "What the notebook made cannot be put in place.",
            value=str(error),
            expected=f"outs that can be written, or replaced, in {folder}",
            next_step="see to that file; nothing was changed here",
        ) from None
    return list(map(str, arriving))


def remove(client, worker: str, scratch: str) -> None:
    """Remove a scratch folder on ``worker``; raise EngineError when the worker is lost."""
    _ask(client, worker, "remove", scratch)


# -- asking the worker ---------------------------------------------------------------------------------------------
def _ask(client, worker: str, operation: str, *arguments) -> Any:
    return client.sync(_call, client, worker, operation, *arguments)


async def _call(client, worker: str, operation: str, *arguments) -> Any:
    """Have the worker do something for its `Store`: relayed by the scheduler, with no need for a free thread.

    Raises EngineError when the worker or the scheduler goes meanwhile: Dask itself would wait longer.
    """
    asked = asyncio.ensure_future(compat.ask_worker(client, worker, serve, operation, *arguments))
    try:
        while not (await asyncio.wait({asked}, timeout=WATCH_SECONDS))[0]:
            known = await asyncio.wait_for(client.scheduler.identity(n_workers=-1), ANSWER_SECONDS)
            if worker not in known["workers"]:
                raise OSError("it has left the cluster")
        answer = asked.result()
        if isinstance(answer, OSError):
            raise answer
    except (OSError, KeyError) as error:
        raise EngineError(
            "The worker was lost while files were on their way.",
            value=f"{worker} ({error!r})",
            expected="a scheduler and a worker that live until the notebook's files are carried",
            next_step="see the worker's log, then run again; nothing half-carried was put in place",
        ) from None
    finally:
        asked.cancel()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _messages(sizes: Iterable[tuple[str, int]]) -> Iterator[list[Piece]]:
    """Cut contents into pieces and gather them into messages of at most `PIECE_BYTES`."""
    message: list[Piece] = []
    space = PIECE_BYTES
    for name, size in sizes:
        # An empty file has a piece, too.
        for offset in range(0, size or 1, PIECE_BYTES):
            length = min(PIECE_BYTES, size - offset)
            if message and (length > space or len(message) == PIECES_IN_A_MESSAGE):
                yield message
                message, space = [], PIECE_BYTES
            message.append((name, offset, length))
            space -= length
    if message:
        yield message


# -- putting it in place -------------------------------------------------------------------------------------------
class Replacement:
    """New contents for ``outs`` in ``folder``: staged in hidden folders beside them, then put in place by renaming.

    Beside them, because a rename works within a file system only, and outs may lie on several. A context: what has not
    been put in place when it ends is gone, and what was there before is there still. The folders bear the name of this
    process; what a killed one left is cleared by the next.
    """

    def __init__(self, folder: Path, outs: Iterable[PurePosixPath]) -> None:
        self._folder, self._outs = folder, list(outs)
        self._undo = contextlib.ExitStack()
        self._places: set[Path] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._undo.close()
        for place in self._places:
            shutil.rmtree(place, ignore_errors=True)

    def prepare(self, entries: Iterable[Entry]) -> None:
        """Make the folders that are needed."""
        for place in dict.fromkeys(map(self._place, self._outs)):
            for folder in reversed([folder for folder in place.parents if not folder.exists()]):
                folder.mkdir()
                self._undo.callback(_remove_empty, folder)
            _clear(place.parent)
            self._places.add(place)
            self._undo.callback(shutil.rmtree, place, ignore_errors=True)
            for inner in (place, place / "new", place / "old"):
                inner.mkdir(mode=0o700)
        for entry in entries:
            staged = self.staged(entry.path)
            (staged.parent if entry.md5 else staged).mkdir(parents=True, exist_ok=True)

    def staged(self, path: str) -> Path:
        """Return where the content for ``path`` is to be written."""
        out = next(out for out in self._outs if PurePosixPath(path).is_relative_to(out))
        return self._place(out) / "new" / out.name / PurePosixPath(path).relative_to(out)

    def finish(self, entries: Iterable[Entry]) -> None:
        """Check the contents and put all outs in place; on any failure put back what was there.

        Raises EngineError when a content is not what was announced, OSError when an out cannot be replaced.
        """
        for entry in entries:
            staged = self.staged(entry.path)
            if entry.md5 and digest(staged) != entry.md5:
                raise EngineError(
                    "A file changed while it was fetched from the worker.",
                    value=entry.path,
                    expected=f"the MD5 {entry.md5}",
                    next_step="see that nothing the notebook started still writes to it, then run again",
                )
            staged.chmod(entry.mode)
        for out in self._outs:
            target, place = self._folder / out, self._place(out)
            if os.path.lexists(target):
                self._move(target, place / "old" / out.name)
            self._move(place / "new" / out.name, target)
        self._undo.pop_all()

    def _move(self, source: Path, target: Path) -> None:
        # Noted first: undoing a move that was not made does no harm, but Ctrl-C could lose one that is noted after it.
        self._undo.callback(_move_back, source, target)
        source.rename(target)

    def _place(self, out: PurePosixPath) -> Path:
        return self._folder / out.parent / f"{STAGING}{os.getpid()}-{id(self)}"


def _move_back(source: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        target.rename(source)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _clear(parent: Path) -> None:
    """Remove what killed clients left in ``parent``, after putting back what they had only half replaced."""
    for place in parent.glob(f"{STAGING}*"):
        if psutil.pid_exists(int(place.name.removeprefix(STAGING).partition("-")[0])):
            continue
        with contextlib.suppress(OSError):
            for old in (place / "old").iterdir():
                if not os.path.lexists(parent / old.name):
                    old.rename(parent / old.name)
            shutil.rmtree(place, ignore_errors=True)
