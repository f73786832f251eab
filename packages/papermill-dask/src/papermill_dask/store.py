"""Files on a worker that shares no disk with the client: contents kept by hash, and a scratch folder per notebook.

How files are named, checked to stay in their folder, listed and hashed is the same on both sides.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil
from filelock import FileLock, Timeout

from papermill_dask.errors import EngineError

PERMISSIONS = 0o777
LIMIT_BYTES = 20 * 2**30
IDLE_SECONDS = 24 * 3600
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
MD5 = re.compile(r"[0-9a-f]{32}")
# Every kept file bears this time of change (the first second of 2000): whatever writes to one gives itself away.
KEPT_NS = 946_684_800 * 10**9

# The scratch folders of this process. A lock ends with its process, also in a container with process ids of its own.
_mine: dict[str, FileLock] = {}


# -- files on either side --------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Entry:
    """A file, or an empty folder (then ``md5`` is empty), at a path relative to the stage's folder."""

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
    found = folder / path
    try:
        real = found.resolve() if follow else found.parent.resolve()
    except (OSError, RuntimeError):  # what a circle of links raises, before and from Python 3.13
        raise refused(folder, path, "it is a link to itself") from None
    if not any(real.is_relative_to(place.resolve()) for place in (folder, *links_to)):
        raise refused(folder, path, f"it leads to {real}")
    return found


def refused(folder: Path, path: object, why: str = "it leaves the folder") -> EngineError:
    """Return the error for a path that may not travel."""
    return EngineError(
        "A path cannot travel between this machine and the worker.",
        value=f"{path} ({why})",
        expected=f"a relative path, without `..` and without links that lead out of {folder}",
        next_step="bring the file into the folder, or run on workers that share the disk",
    )


def absent(folder: Path, paths: Iterable[str]) -> list[str]:
    """Return those of ``paths`` at which nothing lies."""
    return [path for path in paths if not (folder / path).exists()]


def outermost(paths: Iterable[str]) -> list[str]:
    """Return ``paths``, each once, without those that lie in another of them."""
    pure = dict.fromkeys(map(PurePosixPath, paths))
    return [str(path) for path in pure if not any(parent in pure for parent in path.parents)]


def entries(
    folder: Path, paths: Iterable[str], *, links_to: Iterable[Path] = (), known: Mapping[Path, str] | None = None
) -> list[Entry]:
    """Return what lies at ``paths``, folders with all that is in them; links give what they lead to.

    ``known`` holds MD5 hashes that need not be computed. Raises EngineError for a path that leaves ``folder``, for a
    link that leads nowhere or in a circle, and for what is neither file nor folder.
    """
    known = known or {}
    found = []
    for path in outermost(paths):
        for file in _files(folder, path, tuple(links_to), ()):
            status = file.stat()
            name, mode = file.relative_to(folder).as_posix(), status.st_mode & PERMISSIONS
            if stat.S_ISDIR(status.st_mode):
                found.append(Entry(name, "", 0, mode))
            else:
                found.append(Entry(name, known.get(file) or digest(file), status.st_size, mode))
    return found


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
    """Return a file's MD5: the hash by which DVC, too, knows it."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def no_space(folder: Path, needed: int | None, free: int | None = None) -> EngineError:
    """Return the error for a disk that is full, or would be; sizes in bytes."""
    found = f"{socket.gethostname()}:{folder}"
    return EngineError(
        "There is not enough space on the disk for the notebook's files.",
        value=found if free is None else f"{found} has {free:,} bytes free",
        expected=None if needed is None else f"{needed:,} bytes free",
        next_step="make room there; nothing half-written was left",
    )


# -- the worker's store ----------------------------------------------------------------------------------------------
async def serve(operation: str, *arguments, dask_worker):
    """Do what the client asks for through `Client.run`; return what it gives, or the EngineError that it raised.

    In a thread, so that the worker's event loop stays free; an error is returned, as Dask would log one that is raised
    with all its arguments, and those are the user's files.
    """
    root = home(dask_worker)
    try:
        return await asyncio.to_thread(getattr(Store(root), operation), *arguments)
    except EngineError as error:
        return error
    except OSError as error:
        return _words(error, root)


def home(worker) -> Path:
    """Return the folder that all workers of this user on this host share, outliving each of them.

    It lies beside the workers' own folders, so on the disk that Dask's `--local-directory` or `temporary-directory`
    names: the host's own, where homes are often small, slow and shared. A folder that others could write to could hold
    what they want the notebook to read; then the worker's own folder it is.
    """
    own = Path(worker.local_directory)
    shared = own.parent / "papermill-dask"
    with contextlib.suppress(OSError):
        shared.mkdir(mode=0o700, exist_ok=True)
        status = shared.lstat()
        if shared.is_dir() and not shared.is_symlink() and not status.st_mode & 0o022 and _is_ours(status):
            return shared
    return own / "papermill-dask"


def _is_ours(status: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or status.st_uid == os.getuid()


class Store:
    """The folder ``root``: `files` holds contents by their MD5, as DVC's cache does, `scratch` the notebooks' folders.

    A notebook's folder is made with `open`, filled with `receive` and `fill`, looked at with `list_outs` and `read`,
    and gone after `remove`. Several processes may use one store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files = root / "files"
        self._scratch = root / "scratch"
        for folder in (self._files, self._scratch):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self, wanted: list[Entry], limit: int = LIMIT_BYTES) -> tuple[str, list[str]]:
        """Make a scratch folder; return its path and the hashes of ``wanted`` whose content is not here yet.

        What is here stays until the folder is filled, whatever else happens to the store, which else keeps at most
        ``limit`` bytes, the least recently used going first. Raises EngineError when the disk is too full.
        """
        sizes = {entry.md5: entry.size for entry in wanted if entry.md5}
        if bad := [md5 for md5 in sizes if not MD5.fullmatch(md5)]:
            raise EngineError("This is not the MD5 of a file.", value=bad[0], expected="32 hexadecimal digits")
        place = self._new_scratch()
        missing = [md5 for md5, size in sizes.items() if not self._pin(place, md5, size)]
        coming = sum(sizes[md5] for md5 in missing)
        needed = coming + sum(entry.size for entry in wanted)
        self._trim(limit - coming, needed)
        if (free := shutil.disk_usage(self.root).free) < needed:
            self.remove(str(place / "files"))
            raise no_space(self.root, needed, free)
        return str(place / "files"), missing

    def receive(self, scratch: str, pieces: list[tuple[str, int, bytes]]) -> None:
        """Take pieces of missing contents: hash, offset in bytes, data."""
        place = self._place(scratch)
        for md5, offset, data in pieces:
            if not MD5.fullmatch(md5):
                raise EngineError("This is not the MD5 of a file.", value=md5)
            descriptor = os.open(place / "incoming" / md5, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.seek(offset)
                file.write(data)

    def fill(self, scratch: str, wanted: list[Entry], folders: Iterable[str] = ()) -> None:
        """Put ``wanted`` into the scratch folder, as copies: a notebook that changes its inputs changes only those.

        ``folders`` are made too, though empty. Raises EngineError when what was received is not what was announced.
        """
        place = self._place(scratch)
        for received in (place / "incoming").iterdir():
            self._keep(place, received)
        files = place / "files"
        for name in folders:
            inside(files, name).mkdir(parents=True, exist_ok=True)
        for entry in wanted:
            target = inside(files, entry.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if entry.md5:
                shutil.copyfile(place / "pinned" / entry.md5, target)
            else:
                target.mkdir(exist_ok=True)
            # Whatever it was there, the notebook's own user writes here.
            target.chmod(entry.mode | 0o600)
        shutil.rmtree(place / "pinned")

    def list_outs(self, scratch: str, outs: list[str], partial: bool = False) -> list[Entry]:
        """Return what the notebook left at ``outs``; raise EngineError naming those that are not there.

        With ``partial`` these are passed over.
        """
        files = self._place(scratch) / "files"
        for path in outs:
            inside(files, path)
        missing = absent(files, outs)
        if missing and not partial:
            raise EngineError(
                "The notebook ended well, but did not write all that its stage declares.",
                value=f"missing: {', '.join(missing)}",
                expected=", ".join(outs),
                next_step="write them in the notebook, or take them out of the stage's `outs`",
            )
        return entries(files, [path for path in outs if path not in missing])

    def read(self, scratch: str, pieces: list[tuple[str, int, int]]) -> list[bytes]:
        """Return pieces of files in the scratch folder: path, offset and length in bytes."""
        files = self._place(scratch) / "files"
        contents = []
        for path, offset, length in pieces:
            with inside(files, path).open("rb") as file:
                file.seek(offset)
                contents.append(file.read(length))
        return contents

    def remove(self, scratch: str) -> None:
        """Remove a scratch folder; one that is gone already is no error."""
        place = self._place(scratch, exists=False)
        self._delete(place)
        if lock := _mine.pop(str(place), None):
            lock.release()

    def sweep(self) -> None:
        """Remove scratch folders whose process has died, and those of this one that nobody asked for in a day."""
        for place in self._scratch.iterdir():
            if str(place) in _mine:
                if self._is_idle(place):
                    self.remove(str(place / "files"))
                continue
            with contextlib.suppress(Timeout, OSError), _lock(place).acquire(blocking=False):
                self._delete(place)

    # -- scratch folders -------------------------------------------------------------------------------------
    def _new_scratch(self) -> Path:
        place = self._scratch / secrets.token_hex(8)
        # Between making a folder and locking it, another process would take it for a dead one's.
        with FileLock(self.root / "lock"):
            self.sweep()
            for name in ("files", "pinned", "incoming"):
                (place / name).mkdir(parents=True, mode=0o700)
            _mine[str(place)] = _lock(place)
            _mine[str(place)].acquire()
        return place

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
        if exists:
            os.utime(place)
        return place

    @staticmethod
    def _is_idle(place: Path) -> bool:
        if time.time() - place.stat().st_mtime < IDLE_SECONDS:
            return False
        return not any(_works_in(process, place) for process in psutil.process_iter())

    @staticmethod
    def _delete(place: Path) -> None:
        with contextlib.suppress(OSError):
            shutil.rmtree(place)
            return
        # A notebook may have taken the permissions of its own folders away.
        for folder, names, _ in os.walk(place):
            for inner in (Path(folder, name) for name in names):
                with contextlib.suppress(FileNotFoundError):  # another process removes it, too
                    if not inner.is_symlink():
                        inner.chmod(0o700)
        shutil.rmtree(place, ignore_errors=True)

    # -- contents --------------------------------------------------------------------------------------------
    def _file(self, md5: str) -> Path:
        return self._files / md5[:2] / md5[2:]

    def _pin(self, place: Path, md5: str, size: int) -> bool:
        """Hold on to a content by a second link, which keeps it from being trimmed; tell whether it is here, whole."""
        file = self._file(md5)
        with contextlib.suppress(FileNotFoundError):
            status = file.stat()
            if status.st_size == size and status.st_mtime_ns == KEPT_NS:
                _link(file, place / "pinned" / md5)
                os.utime(file, ns=(time.time_ns(), KEPT_NS))
                return True
            file.unlink()
        return False

    def _keep(self, place: Path, received: Path) -> None:
        md5 = received.name
        if digest(received) != md5:
            raise EngineError(
                "A file changed while it was sent to the worker.",
                value=f"its MD5 is no longer {md5}",
                next_step="run again when nothing writes to the stage's dependencies",
            )
        received.chmod(0o400)
        os.utime(received, ns=(time.time_ns(), KEPT_NS))
        _link(received, place / "pinned" / md5)
        self._file(md5).parent.mkdir(mode=0o700, exist_ok=True)
        received.replace(self._file(md5))

    def _trim(self, limit: int, free: int) -> None:
        """Remove contents, least recently used first, until at most ``limit`` bytes are kept and ``free`` are free."""
        kept = sorted(self._kept(), key=lambda pair: pair[1].st_atime_ns)
        total = sum(status.st_size for _, status in kept)
        for file, status in kept:
            if total <= limit and shutil.disk_usage(self.root).free >= free:
                return
            if status.st_nlink == 1:
                file.unlink(missing_ok=True)
                total -= status.st_size

    def _kept(self) -> Iterator[tuple[Path, os.stat_result]]:
        for file in self._files.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                yield file, file.stat()


def _lock(place: Path) -> FileLock:
    # Taken in one thread, released in another.
    return FileLock(place / "lock", thread_local=False)


def _link(file: Path, target: Path) -> None:
    """Link where the file system can, else copy."""
    try:
        os.link(file, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(file, target)


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(folder)
    except (psutil.Error, OSError):
        return False


def _words(error: OSError, root: Path) -> EngineError:
    if error.errno in DISK_FULL:
        return no_space(root, None, shutil.disk_usage(root).free)
    return EngineError(
        "The worker could not handle the notebook's files.",
        value=f"{socket.gethostname()}: {error}",
        expected=f"a folder {root} that the worker can write to",
        next_step="see to the worker's disk, or give the worker another folder with `--local-directory`",
    )
