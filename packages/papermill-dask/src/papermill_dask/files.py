"""Carries a notebook's files to a worker that shares no disk with the client, and back, through the scheduler alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

from papermill_dask import compat
from papermill_dask.errors import EngineError
from papermill_dask.stage import Declaration
from papermill_dask.store import (
    DISK_FULL,
    HOST,
    PIECE_BYTES,
    Entry,
    entries,
    inside,
    no_space,
    outermost,
    refused,
    serve,
    unpack,
)

WATCH_SECONDS = 1
ANSWER_SECONDS = 10
STAGING = f".papermill-dask-{HOST}-"  # and a process id: hidden folders beside outs


def send(client, worker: str, folder: Path, declaration: Declaration) -> str:
    """Bring the deps in ``folder`` to ``worker`` and return the path there of a scratch folder with them.

    What the worker holds already, by its hash, is not sent. The caller removes the folder with `remove`. Raises
    EngineError for a dep that is missing or leaves ``folder``, for a full disk, and when the worker or the scheduler is
    lost; then no folder is left.
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
    for parent in {str(PurePosixPath(path).parent) for path in declaration.outs} - {"."}:
        if (folder / parent).is_dir():  # the notebook finds it there, too
            wanted.append(Entry(parent, "", 0, 0o755))
    scratch, lacking = _ask(client, worker, "open", wanted)
    try:
        _send_contents(_Pieces(client, worker, scratch), folder, wanted, lacking)
        _ask(client, worker, "fill", scratch, wanted)
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
    outs = outermost(declaration.outs)
    for out in outs:
        inside(folder, out, follow=False)
    size = _ask(client, worker, "pack", scratch, list(map(str, outs)), declaration.partial)
    try:
        return _replace(_Pieces(client, worker, scratch), folder, outs)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise no_space(folder, size) from None
        raise EngineError(
            "What the notebook made cannot be put in place.",
            value=str(error),
            expected=f"outs that can be written, or replaced, in {folder}",
            next_step="see to that file; nothing was changed here",
        ) from None


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


class _Pieces:
    """A file for `tarfile` that is written to a scratch folder's `receive`, or read from its `read`."""

    def __init__(self, client, worker: str, scratch: str) -> None:
        self._to, self._scratch, self._offset = (client, worker), scratch, 0

    def write(self, piece: bytes) -> None:
        _ask(*self._to, "receive", self._scratch, piece)

    def read(self, length: int) -> bytes:
        piece = _ask(*self._to, "read", self._scratch, self._offset, length)
        self._offset += len(piece)
        return piece


def _send_contents(pieces: _Pieces, folder: Path, wanted: list[Entry], lacking: list[str]) -> None:
    by_hash = {entry.md5: entry for entry in wanted}
    if not lacking:
        return
    with tarfile.open(fileobj=pieces, mode="w|", bufsize=PIECE_BYTES, copybufsize=PIECE_BYTES) as tar:
        for md5 in lacking:
            member = tarfile.TarInfo(md5)
            member.size = by_hash[md5].size
            with (folder / by_hash[md5].path).open("rb") as content:
                tar.addfile(member, content)


# -- putting it in place -------------------------------------------------------------------------------------------
def _replace(pieces: _Pieces, folder: Path, outs: list[PurePosixPath]) -> list[str]:
    """Unpack ``outs`` beside their places in ``folder``, then rename them into place; return those that came.

    Beside them, in hidden folders, because a rename works within a file system only, and outs may lie on several. The
    folders bear the name of this process; what a killed one left is cleared by the next.
    """
    hidden = f"{STAGING}{os.getpid()}-{secrets.token_hex(4)}"

    def staged(out: PurePosixPath, kind: str) -> Path:
        return folder / out.parent / hidden / kind / out.name

    with contextlib.ExitStack() as cleanup, contextlib.ExitStack() as undo:
        for parent in dict.fromkeys(folder / out.parent for out in outs):
            for made in reversed([place for place in (parent, *parent.parents) if not place.exists()]):
                made.mkdir()
                cleanup.callback(_remove_empty, made)
            _clear(parent)
            cleanup.callback(shutil.rmtree, parent / hidden, ignore_errors=True)
            for place in (parent / hidden, parent / hidden / "new", parent / hidden / "old"):
                place.mkdir(mode=0o700)
        with tarfile.open(fileobj=pieces, mode="r|", bufsize=PIECE_BYTES) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                out = next((out for out in outs if path.is_relative_to(out) and ".." not in path.parts), None)
                if out is None:
                    raise refused(folder, path, "the worker was not asked for it")
                unpack(tar, member, staged(out, "new") / path.relative_to(out))
        arrived = [out for out in outs if staged(out, "new").exists()]
        for out in arrived:
            if os.path.lexists(folder / out):
                _move(folder / out, staged(out, "old"), undo)
            _move(staged(out, "new"), folder / out, undo)
        undo.pop_all()
    return list(map(str, arrived))


def _move(source: Path, target: Path, undo: contextlib.ExitStack) -> None:
    # Noted first: undoing a move that was not made does no harm, but Ctrl-C could lose one that is noted after it.
    undo.callback(_move_back, source, target)
    source.rename(target)


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
