"""A chapter's files back to their start; what an attendee made or changed is kept aside.

The start is what the repository gave: the last commit that this branch shares with the one it follows, so that commits
of one's own do not count; without such a branch it is the latest commit. Only the working tree changes: no commit, no
branch, and nothing that was staged.
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
from workshop.teaching.outline import Chapter
from workshop.teaching.outline import chapter as find_chapter

GIT_SECONDS = 60
# What the pipeline made is DVC's, and dvc.lock says what that is: the next `dvc repro` mends what no longer fits.
PIPELINE_MADE = ("data", "results", "executed", "remote", "dvc.lock")
SCRAPS = (".ipynb_checkpoints", "__pycache__")  # made anew by whatever needs them
ENVIRONMENT_MARK = "pyvenv.cfg"  # in each virtual environment, which is large, and made anew by what made it


class ResetError(WorkshopError):
    """A chapter cannot be put back."""


@dataclass(frozen=True)
class Plan:
    """What a reset will do: ``changed`` and ``own`` go aside; ``changed`` and ``deleted`` come from ``start``.

    That is a commit. Paths are relative to the chapter's folder; a folder of one's own is one of them. ``solved`` are
    the exercises that will be forgotten.
    """

    chapter: Chapter
    start: str
    kept: Path
    changed: tuple[Path, ...] = ()
    deleted: tuple[Path, ...] = ()
    own: tuple[Path, ...] = ()
    solved: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether everything is at its start already."""
        return not (self.changed or self.deleted or self.own or self.solved)


def plan(settings: Settings, number: int) -> Plan:
    """Look what differs from the start; raise ResetError where nobody can know. Nothing is changed."""
    chapter = find_chapter(number)
    folder = settings.root / chapter.folder
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ResetError(
            f"{folder} is no folder of its own.", expected="a folder, no link", next_step=f"move it away: mv {folder} ~"
        )
    start = start_of(settings.root)
    stays = PIPELINE_MADE if number == 4 else ()
    with unpacked(settings.root, chapter, start) as fresh:
        given = {path.relative_to(fresh) for path in fresh.rglob("*") if not path.is_dir()}
        own = {path for path in _own(folder, given) if path.parts[0] not in stays}
        there = {path for path in given if _is_file(folder, path)}
        changed = {path for path in there if path.parts[0] not in stays and not _same(fresh / path, folder / path)}
    return Plan(
        chapter=chapter,
        start=start,
        kept=settings.state / "kept" / f"chapter-{number}-{datetime.now().astimezone():%Y%m%dT%H%M%S}",
        changed=tuple(sorted(changed)),
        deleted=tuple(sorted(given - there)),
        own=tuple(sorted(own)),
        solved=tuple(sorted(each for each in exercises.solved(settings) if each.startswith(f"{number}."))),
    )


def carry_out(settings: Settings, planned: Plan) -> Path:
    """Do what was planned, and return the folder that keeps the attendee's files.

    All copies are made before anything is put back. Raises ResetError when a file cannot be moved or written.
    """
    folder = settings.root / planned.chapter.folder
    try:
        if planned.changed or planned.own:
            planned.kept.mkdir(parents=True)
        for path in planned.changed:
            _make_parents(planned.kept / path)
            shutil.copy2(folder / path, planned.kept / path)
        for path in planned.own:
            _make_parents(planned.kept / path)
            shutil.move(folder / path, planned.kept / path)
        with unpacked(settings.root, planned.chapter, planned.start) as fresh:
            for path in (*planned.changed, *planned.deleted):
                _make_parents(folder / path)
                temporary = folder / path.with_name(f".{path.name}.{os.getpid()}")
                shutil.copy(fresh / path, temporary)
                temporary.replace(folder / path)
    except OSError as error:
        raise ResetError(
            f"{planned.chapter.folder} could not be put back.",
            value=str(error),
            next_step=f"what was moved so far is in {planned.kept}; mend the cause, then `workshop reset` again",
        ) from None
    exercises.forget(planned.solved, settings)
    return planned.kept


def start_of(root: Path) -> str:
    """Return the commit that this branch shares with the one it follows, or with its origin; else the latest."""
    latest = _git(root, "rev-parse", "--verify", "HEAD").decode().strip()
    for followed in ("@{upstream}", "origin/HEAD"):
        with contextlib.suppress(ResetError):
            return _git(root, "merge-base", "HEAD", followed).decode().strip()
    return latest


@contextlib.contextmanager
def unpacked(root: Path, chapter: Chapter, commit: str) -> Iterator[Path]:
    """Yield a folder with the chapter's files as a commit has them."""
    packed = _git(root, "archive", "--format=tar", commit, "--", chapter.folder)
    with tempfile.TemporaryDirectory(prefix="workshop-") as folder:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder, chapter.folder)


def _git(root: Path, *arguments: str) -> bytes:
    """Return what git prints; raise ResetError when it fails, or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True, timeout=GIT_SECONDS)
    except FileNotFoundError:
        found = "git is not installed, or the folder is not there"
    except subprocess.TimeoutExpired:
        found = f"`git {arguments[0]}` took more than {GIT_SECONDS} s"
    except subprocess.CalledProcessError as error:
        found = error.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
    else:
        return done.stdout
    raise ResetError(
        "Nobody can say what the chapter's start is: git does not know these files.",
        value=f"{root}: {found}",
        expected="a clone made by `git clone`, with at least one commit",
        next_step="clone the repository anew into another folder",
    )


def _own(folder: Path, given: set[Path]) -> Iterator[Path]:
    """Yield what lies below ``folder`` and is not given; a folder without given files as a whole, links unfollowed.

    Virtual environments are nobody's work: they stay where they are.
    """
    parents = {parent for path in given for parent in path.parents}

    def walk(below: Path) -> Iterator[Path]:
        with os.scandir(folder / below) as entries:
            for entry in entries:
                path = below / entry.name
                is_folder = entry.is_dir(follow_symlinks=False)
                if entry.name in SCRAPS:
                    continue
                if is_folder and path in parents:
                    yield from walk(path)
                elif is_folder and Path(entry.path, ENVIRONMENT_MARK).is_file():
                    continue
                elif path not in given or not entry.is_file(follow_symlinks=False):
                    yield path

    if folder.is_dir():
        yield from walk(Path())


def _is_file(folder: Path, path: Path) -> bool:
    """Tell whether a path is a file, and neither it nor a folder on the way to it is a link."""
    way = [folder / path, *(folder / parent for parent in path.parents)]
    return (folder / path).is_file() and not any(each.is_symlink() for each in way)


def _same(one: Path, other: Path) -> bool:
    """Tell whether content and the right to execute are the same."""
    return filecmp.cmp(one, other, shallow=False) and os.access(one, os.X_OK) == os.access(other, os.X_OK)


def _make_parents(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
