"""Transfer files between the client and a worker without a shared disk, through the scheduler.

The worker caches file contents by hash, and has a scratch folder for each notebook.
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
from papermill_dask.client.connectivity import connection_problem
from papermill_dask.client.stage import Declaration
from papermill_dask.errors import DISK_FULL, LOST, EngineError, WorkerLost

PERMISSIONS = 0o777
CHUNK_BYTES = 2**20  # limits the memory that client, scheduler and worker need
WATCH_SECONDS = 1.0
ANSWER_SECONDS = 1.5


# -- the client ----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def scratch_folder(client: Client, worker: str, folder: Path, declaration: Declaration) -> Iterator[str]:
    """Send the deps in ``folder`` to a scratch folder on ``worker``; yield its path, and remove it after the block.

    Contents cached on the worker are not sent again. Raises EngineError if a dep is missing or outside of ``folder``,
    if the disk is full, or if the worker or the scheduler is lost.
    """
    for path in declaration.outs:
        validate(folder, path, follow=False)
    inputs = list_entries(folder, declaration.deps, links_to=declaration.links_to)
    parents = {str(PurePosixPath(path).parent) for path in declaration.outs} - {"."}
    inputs += [Entry(parent, "", 0, 0o755) for parent in parents if (folder / parent).is_dir()]
    scratch, missing = _call_store(client, worker, "open", inputs)
    try:
        if missing:
            contents = {entry.md5: entry for entry in inputs if entry.md5 in missing}
            _send(_TarStream(client, worker, scratch), folder, contents)
        _call_store(client, worker, "fill", scratch, inputs)
        yield scratch
    finally:
        if client.status == "running":
            with contextlib.suppress(EngineError):  # if the worker is lost, Dask removes its folders
                _call_store(client, worker, "remove", scratch)


def _send(stream: _TarStream, folder: Path, contents: dict[str, Entry]) -> None:
    """Send file contents in one tar file, with their hashes as member names."""
    try:
        with tarfile.open(fileobj=stream, mode="w|", bufsize=CHUNK_BYTES, copybufsize=CHUNK_BYTES) as tar:  # type: ignore[call-overload] # typeshed lacks copybufsize
            for md5, entry in contents.items():
                member = tarfile.TarInfo(md5)
                member.size = entry.size
                with (folder / entry.path).open("rb") as content:
                    tar.addfile(member, content)
    except OSError as error:
        raise EngineError("Reading a dependency of the notebook failed.", value=str(error)) from None


def fetch(client: Client, worker: str, scratch: str, folder: Path, declaration: Declaration) -> None:
    """Fetch the outs from a scratch folder into ``folder``, all or none.

    Raises EngineError if an out is missing or outside of ``folder``, if the disk is full, or if the worker is lost.
    """
    outs = outermost_paths(declaration.outs)
    for out in outs:
        validate(folder, out, follow=False)
    _call_store(client, worker, "pack", scratch, list(map(str, outs)), declaration.partial)
    try:
        _extract_outs(_TarStream(client, worker, scratch), folder, outs)
    except OSError as error:
        raise EngineError(
            "Moving the notebook's outs into place failed.",
            value=str(error),
            expected=f"outs that can be written or replaced in {folder}, and enough disk space",
            next_step=f"{'free disk space' if error.errno in DISK_FULL else 'fix the problem'}; no local file changed",
        ) from None


# -- requests to the worker ----------------------------------------------------------------------------------------
def _call_store(client: Client, worker: str, operation: str, *arguments: Any) -> Any:
    """Call a method of the worker's `Store` through the scheduler, without occupying a thread of the worker.

    Raises WorkerLost if the worker or the scheduler is lost during the call; Dask itself would wait longer.
    """
    call = compat.run_on_worker(client, worker, serve, operation, *arguments)
    request = compat.run_in_loop(client, call)
    try:
        while not wait([request], WATCH_SECONDS).done:
            if reason := connection_problem(client, worker, ANSWER_SECONDS):
                raise OSError(reason)
        if isinstance(answer := request.result(), OSError):
            raise answer
    except (OSError, KeyError) as error:
        problem = "The worker was lost during a file transfer."
        raise WorkerLost(problem, value=f"{worker} ({error})", **LOST) from None
    finally:
        request.cancel()
    if isinstance(answer, Exception):
        raise answer
    return answer


class _TarStream(io.RawIOBase):
    """A file object for `tarfile` that writes with the store's `receive` method and reads with its `read` method."""

    def __init__(self, client: Client, worker: str, scratch: str) -> None:
        self._target, self._scratch, self._offset = (client, worker), scratch, 0

    def write(self, chunk: Any) -> int:
        _call_store(*self._target, "receive", self._scratch, chunk)
        return len(chunk)

    def read(self, length: int = -1) -> bytes:
        chunk: bytes = _call_store(*self._target, "read", self._scratch, self._offset, length)
        self._offset += len(chunk)
        return chunk


# -- moving into place ---------------------------------------------------------------------------------------------
def _extract_outs(stream: _TarStream, folder: Path, outs: list[PurePosixPath]) -> None:
    """Extract ``outs`` to hidden folders beside their targets in ``folder``, then rename them into place.

    A single hidden folder would not work: outs may be on several file systems, and renaming works only within one.
    """
    hidden = f".papermill-dask-{secrets.token_hex(8)}"

    def staging_path(out: PurePosixPath, kind: str) -> Path:
        return folder / out.parent / hidden / kind / out.name

    with contextlib.ExitStack() as cleanup:
        for parent in dict.fromkeys(folder / out.parent for out in outs):
            parent.mkdir(parents=True, exist_ok=True)
            cleanup.callback(shutil.rmtree, parent / hidden, ignore_errors=True)
            for path in (parent / hidden, parent / hidden / "new", parent / hidden / "old"):
                path.mkdir(mode=0o700)
        with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK_BYTES) as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                out = next((out for out in outs if name.is_relative_to(out) and ".." not in name.parts), None)
                if out is None:
                    raise transfer_error(folder, name, "the client did not request it")
                extract_member(tar, member, staging_path(out, "new") / name.relative_to(out))
        arrivals = [out for out in outs if staging_path(out, "new").exists()]
        moves = [(folder / out, staging_path(out, "old")) for out in arrivals if os.path.lexists(folder / out)]
        moves += [(staging_path(out, "new"), folder / out) for out in arrivals]
        history: list[tuple[Path, Path]] = []
        try:
            for source, target in moves:
                history.append((source, target))  # recorded first: Ctrl-C may interrupt right after the move
                source.rename(target)
        except BaseException:
            for source, target in reversed(history):
                with contextlib.suppress(FileNotFoundError):  # this move was recorded, but not made
                    target.rename(source)
            raise


# -- files, on client and worker -----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Entry:
    """A file or an empty folder (with an empty ``md5``); ``path`` is relative to the working folder."""

    path: str
    md5: str
    size: int  # bytes
    mode: int


def validate(folder: Path, path: str | os.PathLike[str], links_to: Iterable[Path] = (), *, follow: bool = True) -> Path:
    """Return ``folder / path``; raise EngineError unless ``path`` is relative and stays in ``folder``.

    Symbolic links may point into ``folder`` or one of ``links_to`` (such as DVC's cache). Without ``follow``, the last
    component may be any link, because it will be replaced.
    """
    parts = PurePosixPath(path).parts
    if not parts or Path(path).is_absolute() or ".." in parts or "\0" in str(path):
        raise transfer_error(folder, path)
    file = folder / path
    target = file if follow else file.parent
    try:
        target.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise transfer_error(folder, path, "it is a link to itself") from None
    real = target.resolve()
    if not any(real.is_relative_to(root.resolve()) for root in (folder, *links_to)):
        raise transfer_error(folder, path, f"it points to {real}")
    return file


def transfer_error(folder: Path, path: object, reason: str = "it is outside of the folder") -> EngineError:
    """Return the error for a path that must not be transferred."""
    return EngineError(
        "A path cannot be transferred between this machine and the worker.",
        value=f"{path} ({reason})",
        expected=f"a relative path, without `..` or links that point out of {folder}",
        next_step="copy the file into the folder, or use workers that share the disk",
    )


def list_entries(folder: Path, paths: Iterable[str], *, links_to: Iterable[Path] = ()) -> list[Entry]:
    """Return the files and empty folders at and below ``paths``; raise EngineError as `walk_files` does."""
    entries = []
    for file in (file for path in outermost_paths(paths) for file in walk_files(folder, str(path), links_to)):
        status, name = file.stat(), file.relative_to(folder).as_posix()
        is_folder, mode = stat.S_ISDIR(status.st_mode), status.st_mode & PERMISSIONS
        entries.append(Entry(name, "" if is_folder else md5_of(file), 0 if is_folder else status.st_size, mode))
    return entries


def outermost_paths(paths: Iterable[str]) -> list[PurePosixPath]:
    """Return the ``paths`` that are not inside another of these paths.

    >>> [str(path) for path in outermost_paths(["data/raw", "data", "notes.txt"])]
    ['data', 'notes.txt']
    """
    unique = dict.fromkeys(map(PurePosixPath, paths))
    return [path for path in unique if not any(parent in unique for parent in path.parents)]


def walk_files(folder: Path, path: str, links_to: Iterable[Path] = (), above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files and empty folders at and below ``path``, following links.

    Raises EngineError for a path outside of ``folder``, a broken link, a link to one of its parent folders (``above``),
    or a special file such as a device or a socket.
    """
    file = validate(folder, path, links_to)
    if file.is_file():
        yield file
    elif file.is_dir():
        real = file.resolve()
        if real in above:
            raise transfer_error(folder, path, "it is a link to a folder that contains it")
        if not (names := sorted(os.listdir(file))):  # noqa: PTH208 - only names are needed
            yield file
        for name in names:
            yield from walk_files(folder, f"{path}/{name}", links_to, (*above, real))
    else:
        reason = "it is neither a file nor a folder" if file.exists() else "it does not exist"
        raise transfer_error(folder, path, reason)


def md5_of(file: Path) -> str:
    """Return a file's MD5."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Extract a tar member to ``target``; raise EngineError unless it is a file or a folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        target.mkdir()
    elif content := tar.extractfile(member) if member.isfile() else None:
        with content, target.open("xb") as file:
            shutil.copyfileobj(content, file, CHUNK_BYTES)
    else:
        raise transfer_error(target.parent, member.name, "it is neither a file nor a folder")
    target.chmod(member.mode & PERMISSIONS)


# -- the worker's store --------------------------------------------------------------------------------------------
async def serve(operation: str, *arguments: Any, dask_worker: Worker) -> Any:
    """Call a method of the worker's `Store`; return its result or its EngineError.

    Use a thread, so that the worker's event loop stays responsive. Return errors instead of raising them, because Dask
    would log a raised error with the arguments, which contain the user's files.
    """
    # Use the local directory, because Dask removes it after the worker exits, even if the worker was killed.
    store = Store(Path(dask_worker.local_directory) / "papermill-dask")
    try:
        return await asyncio.to_thread(getattr(store, operation), *arguments)
    except EngineError as error:
        return error
    except OSError as error:
        return EngineError(
            "The worker cannot store the notebook's files.",
            value=f"{socket.gethostname()}: {error}",
            expected=f"a writable folder {store.root}, with enough disk space",
            next_step=f"{'free space, or ' if error.errno in DISK_FULL else ''}set the worker's `--local-directory`",
        )


class Store:
    """The worker's files in ``root``: a cache of contents by MD5 (`files`), and scratch folders (`scratch`).

    Sequence of calls for a notebook: `open`, `receive`, `fill`, then `pack` and `read` for its outs, then `remove`.
    """

    _lock = threading.Lock()  # serializes changes to the cache

    def __init__(self, root: Path) -> None:
        self.root = root
        self._cache, self._scratch = root / "files", root / "scratch"
        for folder in (self._cache, self._scratch):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self, inputs: list[Entry]) -> tuple[str, list[str]]:
        """Create a scratch folder; return its path and the hashes of ``inputs`` that are not in the cache.

        If disk space may be insufficient, first remove from the cache all contents that ``inputs`` do not need.
        """
        with self._lock:
            cached, hashes = {file.name for file in self._cache.iterdir()}, {entry.md5 for entry in inputs if entry.md5}
            if shutil.disk_usage(self.root).free < 2 * sum(entry.size for entry in inputs):
                for md5 in cached - hashes:
                    (self._cache / md5).unlink()
            files = self._scratch / secrets.token_hex(8) / "files"
            files.mkdir(parents=True, mode=0o700)
        return str(files), list(hashes - cached)

    def receive(self, scratch: str, chunk: bytes) -> None:
        """Append a chunk to the tar file of missing contents, whose members are named by their MD5."""
        with (Path(scratch).parent / "incoming").open("ab") as incoming:
            incoming.write(chunk)

    def fill(self, scratch: str, inputs: list[Entry]) -> None:
        """Cache the received contents; copy all ``inputs`` to the scratch folder, where a notebook may change them.

        Raises EngineError if a file does not match its hash.
        """
        files, incoming = Path(scratch), Path(scratch).parent / "incoming"
        with self._lock:
            if incoming.exists():
                with tarfile.open(incoming, "r:") as tar:
                    for member in tar:
                        extract_member(tar, member, content := files.parent / member.name)
                        if md5_of(content) != member.name:
                            raise EngineError(
                                "A file changed while it was being sent to the worker.",
                                value=f"its MD5 is no longer {member.name}",
                                next_step="run the notebook again when no program is writing to its dependencies",
                            )
                        content.replace(self._cache / member.name)
                incoming.unlink()
            for entry in inputs:
                target = validate(files, entry.path)
                if entry.md5:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self._cache / entry.md5, target)
                else:
                    target.mkdir(parents=True, exist_ok=True)
                # Make the copy writable for the notebook, even if the client's original is read-only.
                target.chmod(entry.mode | 0o600)

    def pack(self, scratch: str, outs: list[str], partial: bool = False) -> None:
        """Write the ``outs`` to a tar file for `read`; raise EngineError if some are missing, unless ``partial``."""
        files = Path(scratch)
        missing = [path for path in outs if not validate(files, path).exists()]
        if missing and not partial:
            raise EngineError(
                "The notebook succeeded, but did not write all its outs.",
                value=f"missing: {', '.join(missing)}",
                expected=", ".join(outs),
                next_step="write them in the notebook, or remove them from its `outs`",
            )
        with tarfile.open(files.parent / "outgoing", "w", dereference=True) as tar:
            for file in (file for path in outs if path not in missing for file in walk_files(files, path)):
                tar.add(file, file.relative_to(files).as_posix(), recursive=False)

    def read(self, scratch: str, offset: int, length: int) -> bytes:
        """Return a chunk of the tar file written by `pack`."""
        with (Path(scratch).parent / "outgoing").open("rb") as outgoing:
            outgoing.seek(offset)
            return outgoing.read(length)

    def remove(self, scratch: str) -> None:
        """Remove a scratch folder, if it exists."""
        shutil.rmtree(Path(scratch).parent, ignore_errors=True)
