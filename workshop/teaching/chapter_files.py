"""Restore the original files of a chapter, or create the missing results of earlier chapters.

The original files are those of the last commit shared with the upstream branch, so the attendee's own commits are
ignored; without an upstream, they are those of the latest commit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import click
from forecast.terms.errors import PipelineError

from workshop.exports import exports_of
from workshop.settings import Settings, get_settings
from workshop.teaching import exercises
from workshop.teaching.checkpoints import CHAPTERS, STEPS, runs_of_lr, state_of

GIT_SECONDS = 60
CELL_SECONDS = 300
# A reset keeps the pipeline's outputs; the next `dvc repro` updates the outdated ones.
PIPELINE_OUTPUTS = ("data", "results", "executed", "remote", "dvc.lock")


class ResetError(PipelineError):
    """A chapter's files cannot be restored."""


# -- reset -------------------------------------------------------------------------------------------------------------
def restore_chapter(settings: Settings, number: int, start: str) -> Path:
    """Move a chapter's files to a backup folder, restore those of the commit ``start``, and return the backup folder.

    Outputs of the pipeline in chapter 4 are kept. Only the working tree changes, not commits, branches or the index.
    Raises ResetError if a file cannot be moved or written.
    """
    chapter = CHAPTERS[number - 1]
    folder, preserved = settings.root / chapter.folder, PIPELINE_OUTPUTS if number == 4 else ()
    copies = settings.state / "kept" / f"chapter-{number}-{datetime.now().astimezone():%Y%m%dT%H%M%S}"
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ResetError(f"{folder} is a symbolic link or a file.", expected="a folder", next_step=f"mv {folder} ~")
    try:
        copies.mkdir(parents=True)
        for path in sorted(folder.glob("*")):
            if path.name not in preserved:
                shutil.move(path, copies / path.name)
    except OSError as error:
        step = f"fix the cause, then repeat `workshop reset`; files already moved are in {copies}"
        raise ResetError(f"{chapter.folder} could not be restored.", value=str(error), next_step=step) from None
    outputs = [f":(exclude){chapter.folder}/{name}" for name in ("dvc.lock", "results")]  # the outputs that git tracks
    _git(settings.root, "restore", f"--source={start}", "--worktree", "--", chapter.folder, *outputs)
    exercises.write_solved(set(exercises.solved(settings)) - exercises.of_chapter(number).keys(), settings)
    return copies


def find_start(root: Path) -> str:
    """Return the last commit that this branch shares with its upstream or origin; else the latest commit."""
    for upstream in ("@{upstream}", "origin/HEAD"):
        with contextlib.suppress(ResetError):
            return _git(root, "merge-base", "HEAD", upstream).strip()
    return _git(root, "rev-parse", "--verify", "HEAD").strip()


def _git(root: Path, *arguments: str) -> str:
    """Return the output of a git command; raise ResetError if it fails or git is not installed."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, check=True, text=True, timeout=GIT_SECONDS
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ResetError(
            "git failed, so the original files cannot be restored.",
            value=f"{root}: {getattr(error, 'stderr', None) or error}",
            expected="a clone made by `git clone`, with at least one commit",
            next_step="clone the repository again into another folder",
        ) from None


# -- head start --------------------------------------------------------------------------------------------------------
def prepare_for(settings: Settings, number: int, report: Callable[[str], None]) -> None:
    """Create the missing results of the chapters before ``number``: tables, runs, a registered version, a project run.

    The servers must be running. The original notebooks run in a temporary folder, so the attendee's files do not
    change. ``report`` is called with a line for each result. Raises PipelineError if a notebook or project fails,
    ServiceError if the tracking server does not respond.
    """
    os.environ.update(exports_of(settings))  # use the servers just started, not the shell's addresses
    settings = get_settings()
    for chapter in CHAPTERS[: number - 1]:
        table = settings.root / chapter.folder / "germany.csv"
        if not table.exists():
            _run(["python", "-m", "forecast", "csv", table], settings.root)
            report(f"{chapter.folder}/{table.name}: written")
    if number > 2:
        _prepare_runs(settings, report)
    if number > 3 and not runs_of_lr("main", state_of(settings)):
        _run(["mlflow", "run", "lr", "--env-manager", "local"], settings.root / "3_projects")
        report("3_projects/lr: run and tracked")


def _prepare_runs(settings: Settings, report: Callable[[str], None]) -> None:
    """Run the notebooks of chapter 2 that have open steps, in order; the last one registers the best model."""
    state = state_of(settings)
    pending = dict.fromkeys(step.where for step in STEPS[2] if not step.is_done(state) and "#" not in step.where)
    with tempfile.TemporaryDirectory(prefix="workshop-") as temporary:
        folder, start = Path(temporary, CHAPTERS[1].folder), f"--source={find_start(settings.root)}"
        _git(settings.root, f"--work-tree={temporary}", "restore", start, "--worktree", "--", folder.name)
        shutil.copyfile(settings.root / "2_tracking" / "germany.csv", folder / "germany.csv")
        shutil.copyfile(settings.root / "3_projects" / "hourly.py", folder / "scores.py")  # both define `score`
        for notebook in pending:
            report(f"{notebook}: running")
            _run(["jupyter", "execute", f"--timeout={CELL_SECONDS}", Path(notebook).name], folder)


def _run(command: Sequence[str | Path], folder: Path) -> None:
    """Run a program of this environment; raise PipelineError if it fails."""
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
    environment.pop("MLFLOW_EXPERIMENT_ID", None)  # set here by MLflow, which fails if it contradicts the name
    completed = subprocess.run(
        [programs / command[0], *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if completed.returncode:
        lines = click.unstyle(completed.stderr).strip().splitlines() or ["no output"]
        start = max((number for number, line in enumerate(lines) if line.startswith("Error:")), default=-1)
        raise PipelineError(
            f"`{' '.join(map(str, command))}` failed.",
            value=lines[start:],
            next_step="type `workshop doctor`, then repeat your command; it skips results that already exist",
        )
