"""Files on a worker that shares no disk with the client: contents kept by hash, and a scratch folder per notebook.

How files are named, checked to stay in their folder, listed and hashed is the same on both sides.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import shutil
import socket
import stat
import tarfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from papermill_dask.errors import EngineError

PERMISSIONS = 0o777
PIECE_BYTES = 2**20  # under way at a time: this bounds the memory on all three sides
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
HOST = socket.gethostname()


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
    try:
        real = file.resolve() if follow else file.parent.resolve()
    except (OSError, RuntimeError):  # what a circle of links raises, before and from Python 3.13
        raise refused(folder, path, "it is a link to itself") from None
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
    for file in members(folder, paths, tuple(links_to)):
        status, name = file.stat(), file.relative_to(folder).as_posix()
        is_folder, mode = stat.S_ISDIR(status.st_mode), status.st_mode & PERMISSIONS
        result.append(Entry(name, "" if is_folder else digest(file), 0 if is_folder else status.st_size, mode))
    return result


def outermost(paths: Iterable[str]) -> list[PurePosixPath]:
    """Return those of ``paths`` that lie in no other."""
    pure = dict.fromkeys(map(PurePosixPath, paths))
    return [path for path in pure if not any(parent in pure for parent in path.parents)]


def members(folder: Path, paths: Iterable[str], links_to: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files and empty folders at ``paths`` and in them; links give what they lead to.

    Raises EngineError for a path that leaves ``folder``, for a link that leads nowhere or in a circle, and for what is
    neither file nor folder.
    """
    for path in outermost(paths):
        yield from _files(folder, str(path), links_to, ())


def _files(folder: Path, path: str, links_to: tuple[Path, ...], above: tuple[Path, ...]) -> Iterator[Path]:
    file = inside(folder, path, links_to)
    if file.is_file():
        yield file
    elif file.is_dir():
        real = file.resolve()
        if real in above:
            raise refused(folder, path, "it is a link to a folder around it")
        names = sorted(member.name for member in file.iterdir())
        if not names:
            yield file
        for name in names:
            yield from _files(folder, f"{path}/{name}", links_to, (*above, real))
    else:
        why = "it is neither a file nor a folder" if file.exists() else "it is a link to nothing"
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
    elif member.isfile():
        with tar.extractfile(member) as content, target.open("xb") as file:
            shutil.copyfileobj(content, file, PIECE_BYTES)
    else:
        raise refused(target.parent, member.name, "it is neither a file nor a folder")
    target.chmod(member.mode & PERMISSIONS)


def no_space(folder: Path, needed: int | None = None) -> EngineError:
    """Return the error for a disk that is full, or would be with ``needed`` bytes."""
    return EngineError(
        "There is not enough space on the disk for the notebook's files.",
        value=f"{HOST}:{folder} has {shutil.disk_usage(folder).free:,} bytes free",
        expected=None if needed is None else f"{needed:,} bytes free",
        next_step="make room there; nothing half-written was left",
    )


# -- the worker's store --------------------------------------------------------------------------------------------
async def serve(operation: str, *arguments, dask_worker):
    """Call a method of the worker's `Store` for the client; return what it gives, or the EngineError that it raised.

    In a thread, so that the worker's event loop stays free; an error is returned, as Dask would log one that is raised
    with all its arguments, and those are the user's files.
    """
    store = Store.of(dask_worker)
    try:
        return await asyncio.to_thread(getattr(store, operation), *arguments)
    except EngineError as error:
        return error
    except OSError as error:
        if error.errno in DISK_FULL:
            return no_space(store.root)
        return EngineError(
            "The worker could not handle the notebook's files.",
            value=f"{HOST}: {error}",
            expected=f"a folder {store.root} that the worker can write to",
            next_step="see to the worker's disk, or give the worker another folder with `--local-directory`",
        )


class Store:
    """The folder ``root``: `files` holds contents by their MD5, `scratch` the notebooks' folders.

    A notebook's folder is made with `open`, filled with `receive` and `fill`; `pack` and `read` give what it holds in
    the end; it is gone after `remove`.
    """

    _lock = threading.Lock()  # of what several notebooks of this process must not do at once

    def __init__(self, root: Path) -> None:
        self.root = root
        self._kept, self._scratch = root / "files", root / "scratch"
        for folder in (self._kept, self._scratch):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @classmethod
    def of(cls, worker) -> Store:
        """Return the store in a worker's own folder, which Dask removes with the worker, also after a kill."""
        return cls(Path(worker.local_directory) / "papermill-dask")

    def open(self, wanted: list[Entry]) -> tuple[str, list[str]]:
        """Make a scratch folder; return it and the hashes of those of ``wanted`` whose contents are not here.

        On a disk that is too full, contents that are not wanted now go; raises EngineError when that does not help.
        """
        with self._lock:
            kept = {file.name: file for file in self._kept.iterdir()}
            lacking = {entry.md5: entry.size for entry in wanted if entry.md5 and entry.md5 not in kept}
            needed = sum(lacking.values()) + sum(entry.size for entry in wanted)
            if shutil.disk_usage(self.root).free < needed:
                for md5 in kept.keys() - {entry.md5 for entry in wanted}:
                    kept[md5].unlink()
            if shutil.disk_usage(self.root).free < needed:
                raise no_space(self.root, needed)
            files = self._scratch / secrets.token_hex(8) / "files"
            files.mkdir(parents=True, mode=0o700)
        return str(files), list(lacking)

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

    def pack(self, scratch: str, outs: list[str], partial: bool = False) -> int:
        """Gather what the notebook left at ``outs`` in a tar file, for `read`; return its size in bytes.

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
        found = list(members(files, [path for path in outs if path not in missing]))
        with tarfile.open(files.parent / "outgoing", "w", dereference=True) as tar:
            for file in found:
                tar.add(file, file.relative_to(files).as_posix(), recursive=False)
        return sum(file.stat().st_size for file in found if file.is_file())

    def read(self, scratch: str, offset: int, length: int) -> bytes:
        """Return a piece of the tar file that `pack` made."""
        with (Path(scratch).parent / "outgoing").open("rb") as outgoing:
            outgoing.seek(offset)
            return outgoing.read(length)

    def remove(self, scratch: str) -> None:
        """Remove a scratch folder; one that is gone already is no error."""
        shutil.rmtree(Path(scratch).parent, ignore_errors=True)
