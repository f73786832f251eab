"""Carries a stage's files between the client and a worker that shares no disk with it, through the scheduler alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from papermill_dask.files.declaration import Declaration
from papermill_dask.files.landing import Landing
from papermill_dask.files.manifest import Entry, absent, digest, entries, inside, no_space, outermost, refused
from papermill_dask.files.store import DISK_FULL, LIMIT_BYTES, serve
from workshop.errors import EngineError

# What is under way at a time bounds the memory on all three sides; more or larger pieces are no faster.
PIECE_BYTES = 4 * 2**20
PIECES_AT_ONCE = 3
PIECES_IN_A_MESSAGE = 500
WATCH_SECONDS = 1
ANSWER_SECONDS = 10
BAR_BYTES = 50 * 10**6

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
        with Landing(folder, arrived) as landing, _bar(sum(coming.values()), "Fetching", progress) as bar:
            landing.prepare(found, here)
            targets = {path: landing.staged(path) for path in coming}
            messages = _messages(coming.items())
            client.sync(_watched, client, worker, _fetch(client, worker, scratch, targets, messages, bar))
            landing.finish(found, set(coming))
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
