"""Carries a notebook's files to a worker that shares no disk with the client, and back, through the scheduler alone.

The worker keeps contents by their hash, and has a scratch folder for each notebook.
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

from papermill_dask import cluster, compat
from papermill_dask.failures import LOST, EngineError, WorkerLost
from papermill_dask.stage import Declaration

PERMISSIONS = 0o777
PIECE_BYTES = 2**20  # under way at a time: this bounds the memory on all three sides
WATCH_SECONDS = 1.0
ANSWER_SECONDS = 1.5


# -- the client ----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def scratch_folder(client: Client, worker: str, folder: Path, declaration: Declaration) -> Iterator[str]:
    """Bring the deps in ``folder`` to a scratch folder on ``worker``; yield its path there, and remove it after.

    What the worker holds already, by its hash, is not sent. Raises EngineError for a dep that is missing or leaves
    ``folder``, for a full disk, and when the worker or the scheduler is lost.
    """
    for path in declaration.outs:
        inside(folder, path, follow=False)
    wanted = entries(folder, declaration.deps, links_to=declaration.links_to)
    parents = {str(PurePosixPath(path).parent) for path in declaration.outs} - {"."}
    wanted += [Entry(parent, "", 0, 0o755) for parent in parents if (folder / parent).is_dir()]
    scratch, lacking = _ask(client, worker, "open", wanted)
    try:
        if lacking:
            contents = {entry.md5: entry for entry in wanted if entry.md5 in lacking}
            _send(_Pieces(client, worker, scratch), folder, contents)
        _ask(client, worker, "fill", scratch, wanted)
        yield scratch
    finally:
        if client.status == "running":
            with contextlib.suppress(EngineError):  # the worker removes what is left by itself, later
                _ask(client, worker, "remove", scratch)


def _send(pieces: _Pieces, folder: Path, contents: dict[str, Entry]) -> None:
    """Send contents by their hash in one tar file."""
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
    """Bring the outs from a scratch folder into ``folder``: all of them or none.

    Raises EngineError for an out that the notebook did not write, for one that leaves its folder, for a full disk, and
    when the worker is lost.
    """
    outs = outermost(declaration.outs)
    for out in outs:
        inside(folder, out, follow=False)
    _ask(client, worker, "pack", scratch, list(map(str, outs)), declaration.partial)
    try:
        _replace(_Pieces(client, worker, scratch), folder, outs)
    except OSError as error:
        raise EngineError(
            "What the notebook made cannot be put in place.",
            value=str(error),
            expected=f"outs that can be written, or replaced, in {folder}, and room for them",
            next_step="see to that file, or make room; nothing was changed here",
        ) from None


# -- asking the worker ---------------------------------------------------------------------------------------------
def _ask(client: Client, worker: str, operation: str, *arguments: Any) -> Any:
    """Have the worker do something for its `Store`: relayed by the scheduler, with no need for a free thread.

    Raises WorkerLost when the worker or the scheduler goes meanwhile: Dask itself would wait longer.
    """
    question = compat.ask_worker(client, worker, serve, operation, *arguments)
    asked = compat.run_in_loop(client, question)
    try:
        while not wait([asked], WATCH_SECONDS).done:
            if reason := cluster.lost_contact(client, worker, ANSWER_SECONDS):
                raise OSError(reason)
        if isinstance(answer := asked.result(), OSError):
            raise answer
    except (OSError, KeyError) as error:
        what = "The worker was lost while files were on their way."
        raise WorkerLost(what, value=f"{worker} ({error})", **LOST) from None
    finally:
        asked.cancel()
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


# -- putting it in place -------------------------------------------------------------------------------------------
def _replace(pieces: _Pieces, folder: Path, outs: list[PurePosixPath]) -> None:
    """Unpack ``outs`` beside their places in ``folder``, then rename them into place.

    Beside them, in hidden folders, because a rename works within a file system only, and outs may lie on several.
    """
    hidden = f".papermill-dask-{secrets.token_hex(8)}"

    def staged(out: PurePosixPath, kind: str) -> Path:
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
                    raise refused(folder, path, "the worker was not asked for it")
                unpack(tar, member, staged(out, "new") / path.relative_to(out))
        arrived = [out for out in outs if staged(out, "new").exists()]
        moves = [(folder / out, staged(out, "old")) for out in arrived if os.path.lexists(folder / out)]
        moves += [(staged(out, "new"), folder / out) for out in arrived]
        begun: list[tuple[Path, Path]] = []
        try:
            for source, target in moves:
                begun.append((source, target))  # first: Ctrl-C could lose a move that is noted after it
                source.rename(target)
        except BaseException:
            for source, target in reversed(begun):
                with contextlib.suppress(FileNotFoundError):  # it was not made
                    target.rename(source)
            raise


# -- files on either side ------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Entry:
    """A file, or an empty folder (then ``md5`` is empty), at a path relative to the working folder."""

    path: str
    md5: str
    size: int  # bytes
    mode: int


def inside(folder: Path, path: str | os.PathLike, links_to: Iterable[Path] = (), *, follow: bool = True) -> Path:
    """Return the absolute path of ``path``, which must be relative to ``folder`` and stay in it.

    Symbolic links on the way may lead to places in ``folder`` or in one of ``links_to`` (such as DVC's cache). Without
    ``follow`` the last part may itself be a link: it will be replaced, not followed. Raises EngineError.
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
    """Return the error for a path that may not travel."""
    return EngineError(
        "A path cannot travel between this machine and the worker.",
        value=f"{path} ({why})",
        expected=f"a relative path, without `..` and without links that lead out of {folder}",
        next_step="bring the file into the folder, or run on workers that share the disk",
    )


def entries(folder: Path, paths: Iterable[str], *, links_to: Iterable[Path] = ()) -> list[Entry]:
    """Return what lies at ``paths``, folders with all that is in them; raises what `members` raises."""
    result = []
    for file in (file for path in outermost(paths) for file in members(folder, str(path), links_to)):
        status, name = file.stat(), file.relative_to(folder).as_posix()
        is_folder, mode = stat.S_ISDIR(status.st_mode), status.st_mode & PERMISSIONS
        result.append(Entry(name, "" if is_folder else digest(file), 0 if is_folder else status.st_size, mode))
    return result


def outermost(paths: Iterable[str]) -> list[PurePosixPath]:
    """Return those of ``paths`` that lie in no other."""
    pure = dict.fromkeys(map(PurePosixPath, paths))
    return [path for path in pure if not any(parent in pure for parent in path.parents)]


def members(folder: Path, path: str, links_to: Iterable[Path] = (), above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files and empty folders at ``path`` and in it; links give what they lead to.

    Raises EngineError for a path that leaves ``folder``, for a link that leads nowhere or to one of the folders
    ``above``, and for what is neither file nor folder.
    """
    file = inside(folder, path, links_to)
    if file.is_file():
        yield file
    elif file.is_dir():
        real = file.resolve()
        if real in above:
            raise refused(folder, path, "it is a link to a folder around it")
        if not (names := sorted(os.listdir(file))):  # noqa: PTH208 - the names alone
            yield file
        for name in names:
            yield from members(folder, f"{path}/{name}", links_to, (*above, real))
    else:
        why = "it is neither a file nor a folder" if file.exists() else "there is nothing"
        raise refused(folder, path, why)


def digest(file: Path) -> str:
    """Return a file's MD5."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Write a file or a folder from a tar file to ``target``; raise EngineError for what is neither."""
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
    """Call a method of the worker's `Store` for the client; return what it gives, or the EngineError that it raised.

    In a thread, so that the worker's event loop stays free; an error is returned, as Dask would log one that is raised
    with all its arguments, and those are the user's files.
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
            next_step="see to the worker's disk, or give the worker another folder with `--local-directory`",
        )


class Store:
    """The folder ``root``: `files` holds contents by their MD5, `scratch` the notebooks' folders.

    A notebook's folder is made with `open`, filled with `receive` and `fill`; `pack` and `read` give what it holds in
    the end; it is gone after `remove`.
    """

    _lock = threading.Lock()  # of what several notebooks of this process must not do simultaneously

    def __init__(self, root: Path) -> None:
        self.root = root
        self._kept, self._scratch = root / "files", root / "scratch"
        for folder in (self._kept, self._scratch):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self, wanted: list[Entry]) -> tuple[str, list[str]]:
        """Make a scratch folder; return it and the hashes of those of ``wanted`` whose contents are not here.

        On a disk that may be too full, contents that are not wanted now go.
        """
        with self._lock:
            kept, hashes = {file.name for file in self._kept.iterdir()}, {entry.md5 for entry in wanted if entry.md5}
            if shutil.disk_usage(self.root).free < 2 * sum(entry.size for entry in wanted):
                for md5 in kept - hashes:
                    (self._kept / md5).unlink()
            files = self._scratch / secrets.token_hex(8) / "files"
            files.mkdir(parents=True, mode=0o700)
        return str(files), list(hashes - kept)

    def receive(self, scratch: str, piece: bytes) -> None:
        """Take the next piece of a tar file with missing contents, each named by its MD5."""
        with (Path(scratch).parent / "incoming").open("ab") as incoming:
            incoming.write(piece)

    def fill(self, scratch: str, wanted: list[Entry]) -> None:
        """Keep what was received, and put copies of all that is ``wanted`` in place: a notebook may change its inputs.

        Raises EngineError for a content that is not what was announced.
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
            for entry in wanted:
                target = inside(files, entry.path)
                if entry.md5:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self._kept / entry.md5, target)
                else:
                    target.mkdir(parents=True, exist_ok=True)
                # Whatever the mode was at home, the notebook's user writes here.
                target.chmod(entry.mode | 0o600)

    def pack(self, scratch: str, outs: list[str], partial: bool = False) -> None:
        """Gather what the notebook left at ``outs`` in a tar file, for `read`.

        Raises EngineError naming those that are not there; with ``partial`` they are passed over.
        """
        files = Path(scratch)
        missing = [path for path in outs if not inside(files, path).exists()]
        if missing and not partial:
            raise EngineError(
                "The notebook ended well, but did not write all that is declared.",
                value=f"missing: {', '.join(missing)}",
                expected=", ".join(outs),
                next_step="write them in the notebook, or take them out of the `outs`",
            )
        with tarfile.open(files.parent / "outgoing", "w", dereference=True) as tar:
            for file in (file for path in outs if path not in missing for file in members(files, path)):
                tar.add(file, file.relative_to(files).as_posix(), recursive=False)

    def read(self, scratch: str, offset: int, length: int) -> bytes:
        """Return a piece of the tar file that `pack` made."""
        with (Path(scratch).parent / "outgoing").open("rb") as outgoing:
            outgoing.seek(offset)
            return outgoing.read(length)

    def remove(self, scratch: str) -> None:
        """Remove a scratch folder; one that is gone already is no error."""
        shutil.rmtree(Path(scratch).parent, ignore_errors=True)
