"""Files on a worker that shares no disk with the client: contents kept by hash, and a scratch folder per notebook.

How files are named, checked to stay in their folder, listed and hashed is the same on both sides.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from papermill_dask.errors import EngineError

PERMISSIONS = 0o777
LIMIT_BYTES = 20 * 2**30
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
MD5 = re.compile(r"[0-9a-f]{32}")
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
    """Return what lies at ``paths``, folders with all that is in them; links give what they lead to.

    Raises EngineError for a path that leaves ``folder``, for a link that leads nowhere or in a circle, and for what is
    neither file nor folder.
    """
    pure = dict.fromkeys(map(PurePosixPath, paths))
    outermost = [str(path) for path in pure if not any(parent in pure for parent in path.parents)]
    result = []
    for file in (file for path in outermost for file in _files(folder, path, tuple(links_to), ())):
        status = file.stat()
        name, mode = file.relative_to(folder).as_posix(), status.st_mode & PERMISSIONS
        is_folder = stat.S_ISDIR(status.st_mode)
        result.append(Entry(name, "" if is_folder else digest(file), 0 if is_folder else status.st_size, mode))
    return result


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


def no_space(folder: Path, needed: int | None, free: int | None = None) -> EngineError:
    """Return the error for a disk that is full, or would be; sizes in bytes."""
    place = f"{HOST}:{folder}"
    return EngineError(
        "There is not enough space on the disk for the notebook's files.",
        value=place if free is None else f"{place} has {free:,} bytes free",
        expected=None if needed is None else f"{needed:,} bytes free",
        next_step="make room there; nothing half-written was left",
    )


# -- the worker's store --------------------------------------------------------------------------------------------
async def serve(operation: str, *arguments, dask_worker):
    """Do what the client asks for through `Client.run`; return what it gives, or the EngineError that it raised.

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
            return no_space(store.root, None, shutil.disk_usage(store.root).free)
        return EngineError(
            "The worker could not handle the notebook's files.",
            value=f"{HOST}: {error}",
            expected=f"a folder {store.root} that the worker can write to",
            next_step="see to the worker's disk, or give the worker another folder with `--local-directory`",
        )


class Store:
    """The folder ``root``: `files` holds contents by their MD5, `scratch` the notebooks' folders.

    A notebook's folder is made with `open`, filled with `receive` and `fill`, looked at with `list_outs` and `read`,
    and gone after `remove`.
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

    def open(self, wanted: list[Entry], limit: int = LIMIT_BYTES) -> tuple[str, list[str]]:
        """Make a scratch folder with those of ``wanted`` whose contents are here; return it and the others' hashes.

        They are copies: a notebook that changes its inputs changes only those. The store keeps at most ``limit``
        bytes, the least recently used going first. Raises EngineError when the disk is too full.
        """
        if bad := [entry.md5 for entry in wanted if entry.md5 and not MD5.fullmatch(entry.md5)]:
            raise EngineError("This is not the MD5 of a file.", value=bad[0], expected="32 hexadecimal digits")
        place = self._scratch / secrets.token_hex(8)
        for name in ("files", "incoming"):
            (place / name).mkdir(parents=True, mode=0o700)
        with self._lock:
            missing = {entry.md5: entry.size for entry in wanted if entry.md5 and not self._file(entry.md5).exists()}
            needed = sum(missing.values()) + sum(entry.size for entry in wanted)
            self._trim(limit - sum(missing.values()), needed, keep={entry.md5 for entry in wanted})
            if (free := shutil.disk_usage(self.root).free) < needed:
                self.remove(str(place / "files"))
                raise no_space(self.root, needed, free)
            lacking = dict.fromkeys(entry.md5 for entry in wanted if not self._put(place / "files", entry))
        return str(place / "files"), list(lacking)

    def receive(self, scratch: str, pieces: list[tuple[str, int, bytes]]) -> None:
        """Take pieces of missing contents: hash, offset in bytes, data."""
        place = self._place(scratch)
        for md5, offset, data in pieces:
            if not MD5.fullmatch(md5):
                raise EngineError("This is not the MD5 of a file.", value=md5)
            write_piece(place / "incoming" / md5, offset, data)

    def fill(self, scratch: str, wanted: list[Entry], folders: Iterable[str] = ()) -> None:
        """Put those of ``wanted`` in place that have come since `open`; make ``folders``, too, though empty.

        Raises EngineError when what was received is not what was announced.
        """
        place = self._place(scratch)
        for received in (place / "incoming").iterdir():
            if digest(received) != received.name:
                raise EngineError(
                    "A file changed while it was sent to the worker.",
                    value=f"its MD5 is no longer {received.name}",
                    next_step="run again when nothing writes to the notebook's dependencies",
                )
            received.replace(self._file(received.name))
        for name in folders:
            inside(place / "files", name).mkdir(parents=True, exist_ok=True)
        with self._lock:
            for entry in wanted:
                if not (place / "files" / entry.path).exists() and not self._put(place / "files", entry):
                    raise EngineError("A file has gone from the worker's store.", value=entry.path)

    def list_outs(self, scratch: str, outs: list[str], partial: bool = False) -> list[Entry]:
        """Return what the notebook left at ``outs``; raise EngineError naming those that are not there.

        With ``partial`` these are passed over.
        """
        files = self._place(scratch) / "files"
        missing = [path for path in outs if not inside(files, path).exists()]
        if missing and not partial:
            raise EngineError(
                "The notebook ended well, but did not write all that is declared.",
                value=f"missing: {', '.join(missing)}",
                expected=", ".join(outs),
                next_step="write them in the notebook, or take them out of the `outs`",
            )
        return entries(files, [path for path in outs if path not in missing])

    def read(self, scratch: str, pieces: list[tuple[str, int, int]]) -> list[bytes]:
        """Return pieces of files in the scratch folder: path, offset and length in bytes."""
        files = self._place(scratch) / "files"
        return [read_piece(inside(files, path), offset, length) for path, offset, length in pieces]

    def remove(self, scratch: str) -> None:
        """Remove a scratch folder; one that is gone already is no error."""
        place = self._place(scratch, exists=False)
        for folder, names, _ in os.walk(place):  # a notebook may have taken the permissions of its own folders away
            for inner in (Path(folder, name) for name in names):
                if not inner.is_symlink():
                    inner.chmod(0o700)
        shutil.rmtree(place, ignore_errors=True)

    def _place(self, scratch: str, *, exists: bool = True) -> Path:
        """Return the folder around a scratch folder's files; refuse one that this store did not make."""
        place = Path(scratch).parent
        if Path(scratch) != self._scratch / place.name / "files" or (exists and not place.is_dir()):
            raise EngineError(
                "The worker has no such folder.",
                value=scratch,
                expected=f"one in {self._scratch}",
                next_step="run the notebook again: the worker was restarted, or the folder removed",
            )
        return place

    # -- contents --------------------------------------------------------------------------------------------
    def _file(self, md5: str) -> Path:
        return self._kept / md5

    def _put(self, files: Path, entry: Entry) -> bool:
        """Put a copy of a content in its place; tell whether it is here, and what its hash says."""
        target = inside(files, entry.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not entry.md5:
            target.mkdir(exist_ok=True)
        else:
            kept = self._file(entry.md5)
            if not kept.exists():
                return False
            shutil.copyfile(kept, target)
            os.utime(kept)
            if digest(target) != entry.md5:  # something has written to it
                kept.unlink()
                target.unlink()
                return False
        # Whatever the mode was at home, the notebook's user writes here.
        target.chmod(entry.mode | 0o600)
        return True

    def _trim(self, limit: int, free: int, keep: set[str]) -> None:
        """Remove contents, least recently used first, until at most ``limit`` bytes are kept and ``free`` are free."""
        kept = [(file.stat().st_mtime_ns, file.stat().st_size, file) for file in self._kept.iterdir()]
        total = sum(size for _, size, _ in kept)
        for _, size, file in sorted(kept):
            if total <= limit and shutil.disk_usage(self.root).free >= free:
                return
            if file.name not in keep:
                file.unlink()
                total -= size


def read_piece(file: Path, offset: int, length: int) -> bytes:
    """Return a piece of a file."""
    with file.open("rb") as content:
        content.seek(offset)
        return content.read(length)


def write_piece(file: Path, offset: int, data: bytes) -> None:
    """Write a piece of a file that others may be writing, too."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "wb") as content:
        content.seek(offset)
        content.write(data)
