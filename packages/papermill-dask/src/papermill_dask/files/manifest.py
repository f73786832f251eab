"""What lies at the paths that a stage declares: checked to stay in its folder, listed, hashed; alike on both sides."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from workshop.errors import EngineError

PERMISSIONS = 0o777


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
