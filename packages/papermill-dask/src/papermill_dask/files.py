"""Carries a notebook's files to a worker that shares no disk with the client, and back, through the scheduler alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable, Iterator
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

# What is under way at a time bounds the memory on all three sides; more or larger pieces are no faster.
PIECE_BYTES = 4 * 2**20
PIECES_AT_ONCE = 3
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

        def load(message: list[Piece]) -> list[tuple[str, int, bytes]]:
            return [(md5, offset, read_piece(folder / by_hash[md5].path, offset, n)) for md5, offset, n in message]

        async def carry(message: list[Piece]) -> None:
            await _call(client, worker, "receive", scratch, await asyncio.to_thread(load, message))

        client.sync(_few_at_once, carry, _messages((md5, by_hash[md5].size) for md5 in lacking))
        _ask(client, worker, "fill", scratch, wanted, folders)
    except BaseException as error:
        with contextlib.suppress(EngineError):
            remove(client, worker, scratch)
        if isinstance(error, OSError):
            raise EngineError("A dependency of the notebook cannot be read.", value=str(error)) from None
        raise
    return scratch


def fetch(client, worker: str, scratch: str, folder: Path, declaration: Declaration) -> list[str]:
    """Bring the outs from a scratch folder into ``folder``: all of them or none; return what has come.

    Files that lie in their place already, with the same content, are not fetched. Raises EngineError for an out that
    the notebook did not write, for one that leaves its folder, for a full disk, and when the worker is lost.
    """
    outs = list(dict.fromkeys(str(PurePosixPath(out)) for out in declaration.outs))
    outs = [out for out in outs if not any(str(parent) in outs for parent in PurePosixPath(out).parents)]
    for path in outs:
        inside(folder, path, follow=False)
    found = _ask(client, worker, "list_outs", scratch, outs, declaration.partial)
    for entry in found:
        inside(folder, entry.path, declaration.links_to, follow=False)
        if not any(PurePosixPath(entry.path).is_relative_to(out) for out in outs):
            raise refused(folder, entry.path, "the worker was not asked for it")
    arrived = [out for out in outs if any(PurePosixPath(entry.path).is_relative_to(out) for entry in found)]
    here = {entry.path for entry in found if _is_same(folder / entry.path, entry)}
    coming = {entry.path: entry.size for entry in found if entry.md5 and entry.path not in here}
    try:
        with Replacement(folder, arrived) as new:
            new.prepare(found, here)

            def store(message: list[Piece], contents: list[bytes]) -> None:
                for (path, offset, _), data in zip(message, contents, strict=True):
                    write_piece(new.staged(path), offset, data)

            async def carry(message: list[Piece]) -> None:
                await asyncio.to_thread(store, message, await _call(client, worker, "read", scratch, message))

            client.sync(_few_at_once, carry, _messages(coming.items()))
            new.finish(found, set(coming))
    except OSError as error:
        if error.errno in DISK_FULL:
            raise no_space(folder, sum(coming.values()), shutil.disk_usage(folder).free) from None
        raise EngineError(
            "What the notebook made cannot be put in place.",
            value=str(error),
            expected=f"outs that can be written, or replaced, in {folder}",
            next_step="see to that file; nothing was changed here",
        ) from None
    return arrived


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


async def _few_at_once(carry: Callable[[list[Piece]], Awaitable[None]], messages: Iterator[list[Piece]]) -> None:
    async def carrier() -> None:
        for message in messages:
            await carry(message)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(PIECES_AT_ONCE):
                group.create_task(carrier())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


# -- putting it in place -------------------------------------------------------------------------------------------
class Replacement:
    """New contents for ``outs`` in ``folder``: staged in hidden folders beside them, then put in place by renaming.

    Beside them, because a rename works within a file system only, and outs may lie on several. A context: what has not
    been put in place when it ends is gone, and what was there before is there still. The folders bear the name of this
    process; what a killed one left is cleared by the next.
    """

    def __init__(self, folder: Path, outs: Iterable[str]) -> None:
        self._folder = folder
        self._outs = [PurePosixPath(out) for out in outs]
        self._places: list[Path] = []
        self._made: list[Path] = []
        self._done = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        for place in self._places:
            shutil.rmtree(place, ignore_errors=True)
        if not self._done:
            for parent in reversed(self._made):
                with contextlib.suppress(OSError):
                    parent.rmdir()

    def prepare(self, found: Iterable[Entry], here: Iterable[str]) -> None:
        """Make room for what was ``found``; what is at the paths ``here`` already is taken from there."""
        here = set(here)
        for place in dict.fromkeys(map(self._place, self._outs)):
            self._make(place)
        for entry in found:
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

    def finish(self, found: Iterable[Entry], arrived: set[str]) -> None:
        """Check what has ``arrived`` and put all outs in place; on any failure put back what was there.

        Raises EngineError when a content is not what was announced, OSError when an out cannot be replaced.
        """
        for entry in found:
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
        return self._folder / out.parent / f"{STAGING}{os.getpid()}-{id(self)}"

    def _make(self, place: Path) -> None:
        for folder in reversed([folder for folder in place.parents if not folder.exists()]):
            folder.mkdir()
            self._made.append(folder)
        _clear(place.parent)
        self._places.append(place)
        for inner in (place, place / "new", place / "old"):
            inner.mkdir(mode=0o700)


def _is_same(file: Path, entry: Entry) -> bool:
    return bool(entry.md5) and file.is_file() and file.stat().st_size == entry.size and digest(file) == entry.md5


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
    for place in parent.glob(f"{STAGING}*"):
        if psutil.pid_exists(int(place.name.removeprefix(STAGING).partition("-")[0])):
            continue
        with contextlib.suppress(OSError):
            for old in (place / "old").iterdir():
                if not os.path.lexists(parent / old.name):
                    old.rename(parent / old.name)
            shutil.rmtree(place, ignore_errors=True)
