"""A chapter's files and runs: put the files back to their start, or make the state that earlier chapters leave.

The start is the last commit that this branch shares with its upstream, so that an attendee's commits do not count;
without an upstream it is the latest commit.
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
# DVC manages the pipeline's outputs; the next `dvc repro` updates those that are out of date.
PIPELINE_MADE = ("data", "results", "executed", "remote", "dvc.lock")


class ResetError(PipelineError):
    """A chapter cannot be put back."""


# -- put back ----------------------------------------------------------------------------------------------------------
def restore_chapter(settings: Settings, number: int, start: str) -> Path:
    """Move the files of a chapter away and write those of the commit ``start``; return the folder of the moved files.

    In chapter 4 the outputs of the pipeline stay. Only the working tree changes: no commit, no branch, and nothing that
    was staged. Raises ResetError when a file cannot be moved or written.
    """
    chapter = CHAPTERS[number - 1]
    folder, preserved = settings.root / chapter.folder, PIPELINE_MADE if number == 4 else ()
    copies = settings.state / "kept" / f"chapter-{number}-{datetime.now().astimezone():%Y%m%dT%H%M%S}"
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ResetError(f"{folder} is a link or a file.", expected="a folder", next_step=f"mv {folder} ~")
    try:
        copies.mkdir(parents=True)
        for path in sorted(folder.glob("*")):
            if path.name not in preserved:
                shutil.move(path, copies / path.name)
    except OSError as error:
        step = f"fix the cause, then `workshop reset` again; moved files are in {copies}"
        raise ResetError(f"{chapter.folder} could not be put back.", value=str(error), next_step=step) from None
    made = [f":(exclude){chapter.folder}/{name}" for name in ("dvc.lock", "results")]  # outputs that git tracks
    _git(settings.root, "restore", f"--source={start}", "--worktree", "--", chapter.folder, *made)
    exercises.write_solved(set(exercises.solved(settings)) - exercises.of_chapter(number).keys(), settings)
    return copies


def find_start(root: Path) -> str:
    """Return the last commit that this branch shares with its upstream or its origin; else the latest commit."""
    for followed in ("@{upstream}", "origin/HEAD"):
        with contextlib.suppress(ResetError):
            return _git(root, "merge-base", "HEAD", followed).strip()
    return _git(root, "rev-parse", "--verify", "HEAD").strip()


def _git(root: Path, *arguments: str) -> str:
    """Return the output of a git command; raise ResetError when it fails or git is not installed."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, check=True, text=True, timeout=GIT_SECONDS
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ResetError(
            "git does not know these files, so their start is unknown.",
            value=f"{root}: {getattr(error, 'stderr', None) or error}",
            expected="a clone made by `git clone`, with at least one commit",
            next_step="clone the repository again, into another folder",
        ) from None


# -- head start --------------------------------------------------------------------------------------------------------
def prepare_for(settings: Settings, number: int, report: Callable[[str], None]) -> None:
    """Prepare the state that the chapters before ``number`` leave: tables, runs, a registered version, a project's run.

    What exists is not made again, and no file of the attendee changes: the notebooks are run as they were given, in a
    temporary folder. The servers have to run. ``report`` gets a line for each thing that is made. Raises PipelineError
    when a notebook or a project fails, ServiceError when the tracking server does not answer.
    """
    os.environ.update(exports_of(settings))  # the servers that were just started, whatever address the shell holds
    settings = get_settings()
    for chapter in CHAPTERS[: number - 1]:
        table = settings.root / chapter.folder / "germany.csv"
        if not table.exists():
            _run(["python", "-m", "forecast", "csv", table], settings.root)
            report(f"{chapter.folder}/{table.name}: made")
    if number > 2:
        _prepare_runs(settings, report)
    if number > 3 and not runs_of_lr("main", state_of(settings)):
        _run(["mlflow", "run", "lr", "--env-manager", "local"], settings.root / "3_projects")
        report("3_projects/lr: ran, and its run is tracked")


def _prepare_runs(settings: Settings, report: Callable[[str], None]) -> None:
    """Run the notebooks of chapter 2 whose steps are open, in order; the last of them registers the best model."""
    state = state_of(settings)
    pending = dict.fromkeys(step.where for step in STEPS[2] if not step.is_done(state) and "#" not in step.where)
    with tempfile.TemporaryDirectory(prefix="workshop-") as temporary:
        folder, start = Path(temporary, CHAPTERS[1].folder), f"--source={find_start(settings.root)}"
        _git(settings.root, f"--work-tree={temporary}", "restore", start, "--worktree", "--", folder.name)
        shutil.copyfile(settings.root / "2_tracking" / "germany.csv", folder / "germany.csv")
        shutil.copyfile(settings.root / "3_projects" / "hourly.py", folder / "scores.py")  # has the function `score`
        for notebook in pending:
            report(f"{notebook}: running")
            _run(["jupyter", "execute", f"--timeout={CELL_SECONDS}", Path(notebook).name], folder)


def _run(command: Sequence[str | Path], folder: Path) -> None:
    """Run a program of this environment; raise PipelineError when it fails."""
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
    environment.pop("MLFLOW_EXPERIMENT_ID", None)  # MLflow sets the variable in this process; the name is exported
    done = subprocess.run(
        [programs / command[0], *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = click.unstyle(done.stderr).strip().splitlines() or ["no output"]
        start = max((number for number, line in enumerate(lines) if line.startswith("Error:")), default=-1)
        raise PipelineError(
            f"`{' '.join(map(str, command))}` failed.",
            value=lines[start:],
            next_step="workshop doctor; then the same command again, which continues where this one stopped",
        )
