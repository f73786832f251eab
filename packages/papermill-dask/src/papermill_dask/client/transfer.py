"""Sends a notebook's files to a worker that shares no disk with the client, and back, through the scheduler.

The worker stores contents by their hash, and has a scratch folder for each notebook.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import io
import os
import secrets
import shutil
import socket
import stat
import tarfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from distributed import Client, Worker

from papermill_dask import compat
from papermill_dask.client.contact import lost_contact
from papermill_dask.client.stage import Declaration
from papermill_dask.failures import FULL_DISK, LOST, EngineError, WorkerLost

PERMISSIONS = 0o777
PIECE_BYTES = 2**20  # sent at a time: this limits the memory of client, scheduler and worker
WATCH_SECONDS = 1.0
ANSWER_SECONDS = 1.5


# -- the client ----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def scratch_folder(client: Client, worker: str, folder: Path, declaration: Declaration) -> Iterator[str]:
    """Send the deps in ``folder`` to a scratch folder on ``worker``; yield its path there, and remove it after.

    Contents that the worker has already, by their hash, are not sent. Raises EngineError for a dep that is missing or
    leaves ``folder``, for a full disk, and when the worker or the scheduler is lost.
    """
    for path in declaration.outs:
        inside(folder, path, follow=False)
    inputs = entries(folder, declaration.deps, links_to=declaration.links_to)
    parents = {str(PurePosixPath(path).parent) for path in declaration.outs} - {"."}
    inputs += [Entry(parent, "", 0, 0o755) for parent in parents if (folder / parent).is_dir()]
    scratch, gaps = _ask(client, worker, "open", inputs)
    try:
        if gaps:
            contents = {entry.md5: entry for entry in inputs if entry.md5 in gaps}
            _send(_Pieces(client, worker, scratch), folder, contents)
        _ask(client, worker, "fill", scratch, inputs)
        yield scratch
    finally:
        if client.status == "running":
            with contextlib.suppress(EngineError):  # the worker removes the rest by itself, later
                _ask(client, worker, "remove", scratch)


def _send(pieces: _Pieces, folder: Path, contents: dict[str, Entry]) -> None:
    """Send contents, named by their hash, in one tar file."""
    try:
        with tarfile.open(fileobj=pieces, mode="w|", bufsize=PIECE_BYTES, copybufsize=PIECE_BYTES) as tar:  # type: ignore[call-overload] # typeshed lacks copybufsize
            for md5, entry in contents.items():
                member = tarfile.TarInfo(md5)
                member.size = entry.size
                with (folder / entry.path).open("rb") as content:
                    tar.addfile(member, content)
    except OSError as error:
        raise EngineError("A dependency of the notebook cannot be read.", value=str(error)) from None


def fetch(client: Client, worker: str, scratch: str, folder: Path, declaration: Declaration) -> None:
    """Fetch the outs from a scratch folder into ``folder``: all of them or none.

    Raises EngineError for an out that the notebook did not write or that leaves its folder, for a full disk, and for a
    lost worker.
    """
    outs = outermost(declaration.outs)
    for out in outs:
        inside(folder, out, follow=False)
    _ask(client, worker, "pack", scratch, list(map(str, outs)), declaration.partial)
    try:
        _replace(_Pieces(client, worker, scratch), folder, outs)
    except OSError as error:
        raise EngineError(
            "The notebook's outs cannot be moved into place.",
            value=str(error),
            expected=f"outs that can be written, or replaced, in {folder}, and room for them",
            next_step=f"{'make room' if error.errno in FULL_DISK else 'repair that file'}; no file was changed here",
        ) from None


# -- asking the worker ---------------------------------------------------------------------------------------------
def _ask(client: Client, worker: str, operation: str, *arguments: Any) -> Any:
    """Call a method of the worker's `Store`: through the scheduler, and without a free thread on the worker.

    Raises WorkerLost when the worker or the scheduler is lost meanwhile: Dask itself would wait longer.
    """
    question = compat.ask_worker(client, worker, serve, operation, *arguments)
    request = compat.run_in_loop(client, question)
    try:
        while not wait([request], WATCH_SECONDS).done:
            if reason := lost_contact(client, worker, ANSWER_SECONDS):
                raise OSError(reason)
        if isinstance(answer := request.result(), OSError):
            raise answer
    except (OSError, KeyError) as error:
        what = "The worker was lost while files were on their way."
        raise WorkerLost(what, value=f"{worker} ({error})", **LOST) from None
    finally:
        request.cancel()
    if isinstance(answer, Exception):
        raise answer
    return answer


class _Pieces(io.RawIOBase):
    """A file for `tarfile` that is written to a scratch folder's `receive`, or read from its `read`."""

    def __init__(self, client: Client, worker: str, scratch: str) -> None:
        self._to, self._scratch, self._offset = (client, worker), scratch, 0

    def write(self, piece: Any) -> int:
        _ask(*self._to, "receive", self._scratch, piece)
        return len(piece)

    def read(self, length: int = -1) -> bytes:
        piece: bytes = _ask(*self._to, "read", self._scratch, self._offset, length)
        self._offset += len(piece)
        return piece


# -- moving into place ---------------------------------------------------------------------------------------------
def _replace(pieces: _Pieces, folder: Path, outs: list[PurePosixPath]) -> None:
    """Unpack ``outs`` in hidden folders beside their places in ``folder``, then rename them into place.

    A rename works within a file system only, and outs may be on several.
    """
    hidden = f".papermill-dask-{secrets.token_hex(8)}"

    def staging_path(out: PurePosixPath, kind: str) -> Path:
        return folder / out.parent / hidden / kind / out.name

    with contextlib.ExitStack() as cleanup:
        for parent in dict.fromkeys(folder / out.parent for out in outs):
            parent.mkdir(parents=True, exist_ok=True)
            cleanup.callback(shutil.rmtree, parent / hidden, ignore_errors=True)
            for place in (parent / hidden, parent / hidden / "new", parent / hidden / "old"):
                place.mkdir(mode=0o700)
        with tarfile.open(fileobj=pieces, mode="r|", bufsize=PIECE_BYTES) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                out = next((out for out in outs if path.is_relative_to(out) and ".." not in path.parts), None)
                if out is None:
                    raise refused(folder, path, "the client did not request it")
                unpack(tar, member, staging_path(out, "new") / path.relative_to(out))
        arrivals = [out for out in outs if staging_path(out, "new").exists()]
        moves = [(folder / out, staging_path(out, "old")) for out in arrivals if os.path.lexists(folder / out)]
        moves += [(staging_path(out, "new"), folder / out) for out in arrivals]
        history: list[tuple[Path, Path]] = []
        try:
            for source, target in moves:
                history.append((source, target))  # first, because Ctrl-C may come right after the move
                source.rename(target)
        except BaseException:
            for source, target in reversed(history):
                with contextlib.suppress(FileNotFoundError):  # this move was not made
                    target.rename(source)
            raise


# -- files on both sides -------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Entry:
    """A file, or an empty folder (then ``md5`` is empty), at a path relative to the working folder."""

    path: str
    md5: str
    size: int  # bytes
    mode: int


def inside(folder: Path, path: str | os.PathLike[str], links_to: Iterable[Path] = (), *, follow: bool = True) -> Path:
    """Return the absolute path of ``path``, which must be relative to ``folder`` and stay in it.

    Symbolic links in the path may lead into ``folder`` or one of ``links_to`` (such as DVC's cache). Without ``follow``
    the last part may itself be a link, which will be replaced. Raises EngineError.
    """
    parts = PurePosixPath(path).parts
    if not parts or Path(path).is_absolute() or ".." in parts or "\0" in str(path):
        raise refused(folder, path)
    file = folder / path
    place = file if follow else file.parent
    try:
        place.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise refused(folder, path, "it is a link to itself") from None
    real = place.resolve()
    if not any(real.is_relative_to(place.resolve()) for place in (folder, *links_to)):
        raise refused(folder, path, f"it leads to {real}")
    return file


def refused(folder: Path, path: object, why: str = "it leaves the folder") -> EngineError:
    """Return the error for a path that may not be sent."""
    return EngineError(
        "A path cannot be sent between this machine and the worker.",
        value=f"{path} ({why})",
        expected=f"a relative path, without `..` and without links that lead out of {folder}",
        next_step="bring the file into the folder, or run on workers that share the disk",
    )


def entries(folder: Path, paths: Iterable[str], *, links_to: Iterable[Path] = ()) -> list[Entry]:
    """Return the files and empty folders at and below ``paths``; raise EngineError as `members` does."""
    result = []
    for file in (file for path in outermost(paths) for file in members(folder, str(path), links_to)):
        status, name = file.stat(), file.relative_to(folder).as_posix()
        is_folder, mode = stat.S_ISDIR(status.st_mode), status.st_mode & PERMISSIONS
        result.append(Entry(name, "" if is_folder else digest(file), 0 if is_folder else status.st_size, mode))
    return result


def outermost(paths: Iterable[str]) -> list[PurePosixPath]:
    """Return the ``paths`` that are not inside of another.

    >>> [str(path) for path in outermost(["data/raw", "data", "notes.txt"])]
    ['data', 'notes.txt']
    """
    pure = dict.fromkeys(map(PurePosixPath, paths))
    return [path for path in pure if not any(parent in pure for parent in path.parents)]


def members(folder: Path, path: str, links_to: Iterable[Path] = (), above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files and empty folders at and below ``path``; links are followed.

    Raises EngineError for a path that leaves ``folder``, for a broken link, for a link to one of the folders ``above``,
    and for a device, a socket or the like.
    """
    file = inside(folder, path, links_to)
    if file.is_file():
        yield file
    elif file.is_dir():
        real = file.resolve()
        if real in above:
            raise refused(folder, path, "it is a link to a folder that contains it")
        if not (names := sorted(os.listdir(file))):  # noqa: PTH208 - the names alone
            yield file
        for name in names:
            yield from members(folder, f"{path}/{name}", links_to, (*above, real))
    else:
        why = "it is neither a file nor a folder" if file.exists() else "it does not exist"
        raise refused(folder, path, why)


def digest(file: Path) -> str:
    """Return a file's MD5."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Write a file or a folder from a tar file to ``target``; raise EngineError for other kinds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        target.mkdir()
    elif content := tar.extractfile(member) if member.isfile() else None:
        with content, target.open("xb") as file:
            shutil.copyfileobj(content, file, PIECE_BYTES)
    else:
        raise refused(target.parent, member.name, "it is neither a file nor a folder")
    target.chmod(member.mode & PERMISSIONS)


# -- the worker's store --------------------------------------------------------------------------------------------
async def serve(operation: str, *arguments: Any, dask_worker: Worker) -> Any:
    """Call a method of the worker's `Store` for the client; return its result, or its EngineError.

    The method runs in a thread, so that the worker's event loop stays free. Dask would log a raised error with all its
    arguments, which are the user's files; so the error is returned.
    """
    # In the worker's own folder, which Dask removes with the worker, also after a kill.
    store = Store(Path(dask_worker.local_directory) / "papermill-dask")
    try:
        return await asyncio.to_thread(getattr(store, operation), *arguments)
    except EngineError as error:
        return error
    except OSError as error:
        return EngineError(
            "The worker could not handle the notebook's files.",
            value=f"{socket.gethostname()}: {error}",
            expected=f"a folder {store.root} that the worker can write to, with room for them",
            next_step=f"{'make room, or ' if error.errno in FULL_DISK else ''}set the worker's `--local-directory`",
        )


class Store:
    """The folder ``root``: `files` holds contents by their MD5, `scratch` the notebooks' folders.

    `open` makes a notebook's folder, `receive` and `fill` fill it, `pack` and `read` return its outs, then `remove` it.
    """

    _lock = threading.Lock()  # one notebook of this process at a time changes the store

    def __init__(self, root: Path) -> None:
        self.root = root
        self._kept, self._scratch = root / "files", root / "scratch"
        for folder in (self._kept, self._scratch):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self, inputs: list[Entry]) -> tuple[str, list[str]]:
        """Make a scratch folder; return it and the hashes of those ``inputs`` whose contents are not stored here.

        If the disk may be too full, remove all other contents.
        """
        with self._lock:
            stock, hashes = {file.name for file in self._kept.iterdir()}, {entry.md5 for entry in inputs if entry.md5}
            if shutil.disk_usage(self.root).free < 2 * sum(entry.size for entry in inputs):
                for md5 in stock - hashes:
                    (self._kept / md5).unlink()
            files = self._scratch / secrets.token_hex(8) / "files"
            files.mkdir(parents=True, mode=0o700)
        return str(files), list(hashes - stock)

    def receive(self, scratch: str, piece: bytes) -> None:
        """Append the next piece of a tar file with missing contents, each named by its MD5."""
        with (Path(scratch).parent / "incoming").open("ab") as incoming:
            incoming.write(piece)

    def fill(self, scratch: str, inputs: list[Entry]) -> None:
        """Store the received contents, and copy all ``inputs`` into place: a notebook may change its inputs.

        Raises EngineError for a content with another hash than its name.
        """
        files, incoming = Path(scratch), Path(scratch).parent / "incoming"
        with self._lock:
            if incoming.exists():
                with tarfile.open(incoming, "r:") as tar:
                    for member in tar:
                        unpack(tar, member, content := files.parent / member.name)
                        if digest(content) != member.name:
                            raise EngineError(
                                "A file changed while it was sent to the worker.",
                                value=f"its MD5 is no longer {member.name}",
                                next_step="run again when nothing writes to the notebook's dependencies",
                            )
                        content.replace(self._kept / member.name)
                incoming.unlink()
            for entry in inputs:
                target = inside(files, entry.path)
                if entry.md5:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self._kept / entry.md5, target)
                else:
                    target.mkdir(parents=True, exist_ok=True)
                # The notebook may write here, even if the client may not write the original.
                target.chmod(entry.mode | 0o600)

    def pack(self, scratch: str, outs: list[str], partial: bool = False) -> None:
        """Write the files at ``outs`` to a tar file, for `read`.

        Raises EngineError, naming missing outs, unless ``partial``.
        """
        files = Path(scratch)
        gaps = [path for path in outs if not inside(files, path).exists()]
        if gaps and not partial:
            raise EngineError(
                "The notebook succeeded, but did not write all its outs.",
                value=f"missing: {', '.join(gaps)}",
                expected=", ".join(outs),
                next_step="write them in the notebook, or take them out of the `outs`",
            )
        with tarfile.open(files.parent / "outgoing", "w", dereference=True) as tar:
            for file in (file for path in outs if path not in gaps for file in members(files, path)):
                tar.add(file, file.relative_to(files).as_posix(), recursive=False)

    def read(self, scratch: str, offset: int, length: int) -> bytes:
        """Return a piece of the tar file that `pack` made."""
        with (Path(scratch).parent / "outgoing").open("rb") as outgoing:
            outgoing.seek(offset)
            return outgoing.read(length)

    def remove(self, scratch: str) -> None:
        """Remove a scratch folder, if it exists."""
        shutil.rmtree(Path(scratch).parent, ignore_errors=True)
