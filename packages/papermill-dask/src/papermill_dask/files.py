"""Carries a notebook's files to a worker that shares no disk with the client, and back, through the scheduler alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Self

import psutil

from papermill_dask.errors import EngineError
from papermill_dask.stage import Declaration
from papermill_dask.store import (
    DISK_FULL,
    LIMIT_BYTES,
    Entry,
    absent,
    digest,
    entries,
    inside,
    no_space,
    outermost,
    refused,
    serve,
)

# What is under way at a time bounds the memory on all three sides; more or larger pieces are no faster.
PIECE_BYTES = 4 * 2**20
PIECES_AT_ONCE = 3
PIECES_IN_A_MESSAGE = 500
WATCH_SECONDS = 1
ANSWER_SECONDS = 10
BAR_BYTES = 50 * 10**6

STAGING = f".papermill-dask-{socket.gethostname()}-"  # and a process id: folders beside outs

Piece = tuple[str, int, int]  # a path or a hash, then offset and length in bytes


def send(
    client, worker: str, folder: Path, declaration: Declaration, *, limit: int = LIMIT_BYTES, progress: bool = False
) -> str:
    """Bring the deps of a stage in ``folder`` to ``worker`` and return the path there of a scratch folder with them.

    What the worker holds already, by its hash, is not sent; it keeps up to ``limit`` bytes. ``progress`` shows a bar
    for what takes a while. The caller removes the folder with `remove`. Raises EngineError for a dep that is missing or
    leaves ``folder``, for a full disk, and when the worker or the scheduler is lost; then no folder is left.
    """
    for path in declaration.outs:
        inside(folder, path, follow=False)
    for path in declaration.deps:
        inside(folder, path, declaration.links_to)
    if missing := absent(folder, declaration.deps):
        raise EngineError(
            "The stage's dependencies are not all there.",
            value=f"missing in {folder}: {', '.join(missing)}",
            next_step="make them first (`dvc repro` makes what other stages write), or mend the list",
        )
    wanted = entries(folder, declaration.deps, links_to=declaration.links_to, known=declaration.known)
    parents = {str(PurePosixPath(path).parent) for path in declaration.outs} - {"."}
    folders = sorted(parent for parent in parents if (folder / parent).is_dir())
    scratch, lacking = _ask(client, worker, "open", wanted, limit)
    try:
        by_hash = {entry.md5: entry for entry in wanted}
        with _bar(sum(by_hash[md5].size for md5 in lacking), "Sending", progress) as bar:
            sources = {md5: folder / by_hash[md5].path for md5 in lacking}
            messages = _messages((md5, by_hash[md5].size) for md5 in lacking)
            client.sync(_watched, client, worker, _send(client, worker, scratch, sources, messages, bar))
        _ask(client, worker, "fill", scratch, wanted, folders)
    except BaseException as error:
        with contextlib.suppress(EngineError):
            remove(client, worker, scratch)
        if isinstance(error, OSError):
            raise EngineError("A dependency of the stage cannot be read.", value=str(error)) from None
        raise
    return scratch


def fetch(
    client, worker: str, scratch: str, folder: Path, declaration: Declaration, *, progress: bool = False
) -> list[str]:
    """Bring the outs of a stage from its scratch folder into ``folder``: all of them or none; return what has come.

    Files that lie in their place already, with the same content, are not fetched. Raises EngineError for an out that
    the notebook did not write, for one that leaves its folder, for a full disk, and when the worker is lost.
    """
    outs = outermost(declaration.outs)
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
        with Replacement(folder, arrived) as new, _bar(sum(coming.values()), "Fetching", progress) as bar:
            new.prepare(found, here)
            targets = {path: new.staged(path) for path in coming}
            messages = _messages(coming.items())
            client.sync(_watched, client, worker, _fetch(client, worker, scratch, targets, messages, bar))
            new.finish(found, set(coming))
    except OSError as error:
        raise _unwritable(folder, sum(coming.values()), error) from None
    return arrived


def remove(client, worker: str, scratch: str) -> None:
    """Remove a scratch folder on ``worker``; raise EngineError when the worker is lost."""
    _ask(client, worker, "remove", scratch)


# -- asking the worker ---------------------------------------------------------------------------------------
def _ask(client, worker: str, operation: str, *arguments) -> Any:
    return client.sync(_watched, client, worker, _call(client, worker, operation, *arguments))


async def _call(client, worker: str, operation: str, *arguments) -> Any:
    """Have the worker do something for its `Store`: relayed by the scheduler, with no need for a free thread."""
    try:
        answer = (await client.run(serve, operation, *arguments, workers=[worker]))[worker]
    except OSError as error:
        raise _lost(worker, error) from None
    if isinstance(answer, EngineError):
        raise answer
    return answer


async def _watched(client, worker: str, work: Coroutine) -> Any:
    """Return what ``work`` does, unless the worker or the scheduler goes meanwhile: Dask itself would wait longer."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=WATCH_SECONDS))[0]:
            if client.status != "running":
                raise _lost(worker, "the scheduler is gone")
            try:
                cluster = await asyncio.wait_for(client.scheduler.identity(n_workers=-1), ANSWER_SECONDS)
            except OSError as error:
                raise _lost(worker, f"the scheduler does not answer: {error!r}") from None
            if worker not in cluster["workers"]:
                raise _lost(worker, "it has left the cluster")
        return task.result()
    finally:
        task.cancel()


def _lost(worker: str, why: object) -> EngineError:
    return EngineError(
        "The worker was lost while files were on their way.",
        value=f"{worker} ({why})",
        expected="a scheduler and a worker that live until the notebook's files are carried",
        next_step="see the worker's log, then run again; nothing half-carried was put in place",
    )


# -- pieces --------------------------------------------------------------------------------------------------
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


async def _send(client, worker: str, scratch: str, sources: Mapping[str, Path], messages, bar) -> None:
    def load(message: list[Piece]) -> list[tuple[str, int, bytes]]:
        return [(md5, offset, _read(sources[md5], offset, length)) for md5, offset, length in message]

    async def carry(message: list[Piece]) -> None:
        await _call(client, worker, "receive", scratch, await asyncio.to_thread(load, message))

    await _few_at_once(carry, messages, bar)


async def _fetch(client, worker: str, scratch: str, targets: Mapping[str, Path], messages, bar) -> None:
    def store(message: list[Piece], contents: list[bytes]) -> None:
        for (path, offset, _), data in zip(message, contents, strict=True):
            _write(targets[path], offset, data)

    async def carry(message: list[Piece]) -> None:
        await asyncio.to_thread(store, message, await _call(client, worker, "read", scratch, message))

    await _few_at_once(carry, messages, bar)


async def _few_at_once(carry, messages: Iterator[list[Piece]], bar) -> None:
    async def carrier() -> None:
        for message in messages:
            await carry(message)
            bar.update(sum(length for _, _, length in message))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(PIECES_AT_ONCE):
                group.create_task(carrier())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _read(file: Path, offset: int, length: int) -> bytes:
    with file.open("rb") as content:
        content.seek(offset)
        return content.read(length)


def _write(file: Path, offset: int, data: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "wb") as content:
        content.seek(offset)
        content.write(data)


# -- this machine --------------------------------------------------------------------------------------------
def _is_same(file: Path, entry: Entry) -> bool:
    return bool(entry.md5) and file.is_file() and file.stat().st_size == entry.size and digest(file) == entry.md5


def _unwritable(folder: Path, needed: int, error: OSError) -> EngineError:
    if error.errno in DISK_FULL:
        return no_space(folder, needed, shutil.disk_usage(folder).free)
    return EngineError(
        "What the notebook made cannot be put in place.",
        value=str(error),
        expected=f"outs that can be written, or replaced, in {folder}",
        next_step="see to that file; nothing was changed here",
    )


def _bar(size: int, verb: str, progress: bool):
    """Return a bar of bytes like papermill's of cells; it stays hidden unless asked for and worth it."""
    from tqdm.auto import tqdm

    shown = progress and size > BAR_BYTES
    return tqdm(total=size, desc=verb, unit="B", unit_scale=True, unit_divisor=1000, file=sys.stderr, disable=not shown)


# -- putting it in place ---------------------------------------------------------------------------------------------
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

    def prepare(self, entries: Iterable[Entry], here: Iterable[str]) -> None:
        """Make room for ``entries``; those at the paths ``here`` are taken from where they lie now.

        Raises EngineError when what is to come does not fit on the disk, OSError when a folder cannot be written to.
        """
        here = set(here)
        self._check_space(entry for entry in entries if entry.path not in here)
        for out in self._outs:
            self._make_place(self._place(out))
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
        return self._folder / out.parent / f"{STAGING}{os.getpid()}-{id(self)}"

    def _make_place(self, place: Path) -> None:
        if place in self._places:
            return
        parent = place.parent
        missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            self._made.append(folder)
        _clear(parent)
        place.mkdir(mode=0o700)
        self._places.append(place)
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
    for place in parent.glob(f"{STAGING}*"):
        if psutil.pid_exists(int(place.name.removeprefix(STAGING).partition("-")[0])):
            continue
        with contextlib.suppress(OSError):
            for old in (place / "old").iterdir():
                if not os.path.lexists(parent / old.name):
                    old.rename(parent / old.name)
            shutil.rmtree(place, ignore_errors=True)
