"""Put a chapter's files back to their start, and keep a copy of what an attendee made or changed.

The start is the last commit that this branch shares with the branch that it follows, so that an attendee's commits do
not count; without such a branch it is the latest commit. Only the working tree changes: no commit, no branch, and
nothing that was staged.
"""

from __future__ import annotations

import contextlib
import filecmp
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from workshop.errors import WorkshopError
from workshop.settings import Settings
from workshop.teaching import exercises
from workshop.teaching.checkpoints import CHAPTERS, Chapter

GIT_SECONDS = 60
# DVC manages what the pipeline made; the next `dvc repro` mends what no longer fits.
PIPELINE_MADE = ("data", "results", "executed", "remote", "dvc.lock")
SCRAPS = (".ipynb_checkpoints", "__pycache__")


class ResetError(WorkshopError):
    """A chapter cannot be put back."""


@dataclass(frozen=True)
class Plan:
    """What a reset will do; paths are relative to the chapter's folder.

    ``changed`` and ``added`` files are moved to the folder ``kept``; ``changed`` and ``deleted`` ones come back from
    the commit ``start``; the exercises ``solved`` will be forgotten.
    """

    chapter: Chapter
    start: str
    kept: Path
    changed: tuple[Path, ...]
    deleted: tuple[Path, ...]
    added: tuple[Path, ...]
    solved: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether everything is at its start already."""
        return not (self.changed or self.deleted or self.added or self.solved)


def plan(settings: Settings, number: int) -> Plan:
    """Compare a chapter with its start and change nothing; raise ResetError where git does not know the start."""
    chapter = CHAPTERS[number - 1]
    folder, start = settings.root / chapter.folder, find_start(settings.root)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ResetError(f"{folder} is a link or a file.", expected="a folder", next_step=f"mv {folder} ~")
    stays = PIPELINE_MADE if number == 4 else ()
    with unpacked(settings.root, chapter, start) as fresh:
        given = {path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file()}
        present = {path for path in given if _is_file(folder, path)}
        changed = {path for path in present if path.parts[0] not in stays and not _same(fresh / path, folder / path)}
    added = {path for path in _find_added(folder, Path(), given) if path.parts[0] not in stays}
    return Plan(
        chapter=chapter,
        start=start,
        kept=settings.state / "kept" / f"chapter-{number}-{datetime.now().astimezone():%Y%m%dT%H%M%S}",
        changed=tuple(sorted(changed)),
        deleted=tuple(sorted(given - present)),
        added=tuple(sorted(added)),
        solved=tuple(each for each in exercises.solved(settings) if each.startswith(f"{number}.")),
    )


def carry_out(settings: Settings, planned: Plan) -> None:
    """Move the attendee's files away, then put the chapter's files back.

    Raises ResetError when a file cannot be moved or written.
    """
    folder = settings.root / planned.chapter.folder
    try:
        for path in (*planned.changed, *planned.added):
            (planned.kept / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder / path, planned.kept / path)
        with unpacked(settings.root, planned.chapter, planned.start) as fresh:
            for path in (*planned.changed, *planned.deleted):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(fresh / path, folder / path)
    except OSError as error:
        raise ResetError(
            f"{planned.chapter.folder} could not be put back.",
            value=str(error),
            next_step=f"mend the cause, then `workshop reset` again; moved files are in {planned.kept}",
        ) from None
    exercises.forget(planned.solved, settings)


def find_start(root: Path) -> str:
    """Return the commit that this branch shares with the one that it follows, or with its origin; else the latest."""
    for followed in ("@{upstream}", "origin/HEAD"):
        with contextlib.suppress(ResetError):
            return _git(root, "merge-base", "HEAD", followed).decode().strip()
    return _git(root, "rev-parse", "--verify", "HEAD").decode().strip()


@contextlib.contextmanager
def unpacked(root: Path, chapter: Chapter, commit: str) -> Iterator[Path]:
    """Yield a folder with the chapter's files as a commit has them."""
    packed = _git(root, "archive", "--format=tar", commit, "--", chapter.folder)
    with tempfile.TemporaryDirectory(prefix="workshop-") as folder:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder, chapter.folder)


def _git(root: Path, *arguments: str) -> bytes:
    """Return what git prints; raise ResetError when it fails or is not installed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        raise ResetError(
            "git does not know these files, so their start is unknown.",
            value=f"{root}: {said.decode(errors='replace').strip()}",
            expected="a clone made by `git clone`, with at least one commit",
            next_step="clone the repository again, into another folder",
        ) from None
    return done.stdout


def _find_added(folder: Path, below: Path, given: set[Path]) -> Iterator[Path]:
    """Yield what is in a folder and not given: files, links, and whole folders without given files.

    Virtual environments stay where they are: they are large, and made again by a command.
    """
    parents = {parent for path in given for parent in path.parents}
    for entry in sorted((folder / below).iterdir()) if folder.is_dir() else ():
        path = below / entry.name
        is_folder = entry.is_dir() and not entry.is_symlink()
        if entry.name in SCRAPS or (is_folder and (entry / "pyvenv.cfg").is_file()):
            continue
        if is_folder and path in parents:
            yield from _find_added(folder, path, given)
        elif is_folder or entry.is_symlink() or path not in given:
            yield path


def _is_file(folder: Path, path: Path) -> bool:
    """Tell whether a path is a file, and neither it nor a folder above it is a link."""
    return (folder / path).is_file() and not any((folder / each).is_symlink() for each in (path, *path.parents))


def _same(one: Path, other: Path) -> bool:
    """Tell whether two files have the same content and the same right to execute."""
    return filecmp.cmp(one, other, shallow=False) and os.access(one, os.X_OK) == os.access(other, os.X_OK)
