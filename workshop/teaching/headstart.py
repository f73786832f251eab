"""Make what the chapters before one leave: tables, tracked runs, a registered version, a project's run.

The notebooks are run as they were given, in a temporary folder, so that no file of an attendee changes. What exists
is not made again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click

from workshop.data.prepare import load_or_make
from workshop.errors import EngineError
from workshop.settings import Settings, get_settings
from workshop.teaching import checkpoints, reset
from workshop.teaching.checkpoints import CHAPTERS, STEPS

CELL_SECONDS = 300
PROJECT_COMMAND = ["mlflow", "run", "lr", "--env-manager", "local"]


def bring(settings: Settings, number: int, tell: Callable[[str], None]) -> None:
    """Make what the chapters before ``number`` leave, where it is missing; the servers have to run.

    ``tell`` gets a line for each thing that is made. Raises EngineError when a notebook or a project fails,
    ServiceError when the tracking server does not answer.
    """
    os.environ.update(settings.exports())  # the servers that were just started, whatever address the shell holds
    settings = get_settings()
    checkpoints.begin_at(settings, number)
    for chapter in CHAPTERS[: number - 1]:
        table = settings.root / chapter.folder / "germany.csv"
        if not table.exists():
            load_or_make(table)
            tell(f"{chapter.folder}/{table.name}: made")
    if number > 2:
        _bring_runs(settings, tell)
    if number > 3 and not checkpoints.runs_of_lr("main", checkpoints.gather(settings)):
        _run(PROJECT_COMMAND, settings.root / "3_projects")
        tell("3_projects/lr: ran, and its run is tracked")


def _bring_runs(settings: Settings, tell: Callable[[str], None]) -> None:
    """Run the notebooks of chapter 2 whose steps are open, in order; the last of them registers the best model."""
    evidence = checkpoints.gather(settings)
    absent = dict.fromkeys(step.where for step in STEPS[2] if not step.is_done(evidence) and "#" not in step.where)
    if evidence.tracked.moves:  # a model is in production, and the notebook would leave it there
        absent.pop("2_tracking/compare_runs.ipynb", None)
    with reset.unpacked(settings.root, CHAPTERS[1], reset.find_start(settings.root)) as folder:
        shutil.copyfile(settings.root / "2_tracking" / "germany.csv", folder / "germany.csv")
        for notebook in absent:
            tell(f"{notebook}: running")
            _run(["jupyter", "execute", f"--timeout={CELL_SECONDS}", Path(notebook).name], folder)


def _run(command: list[str], folder: Path) -> None:
    """Run a program of this environment; raise EngineError when it fails."""
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
    environment.pop("MLFLOW_EXPERIMENT_ID", None)  # MLflow sets the variable in this process; the name is exported
    done = subprocess.run(
        [programs / command[0], *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EngineError(
            f"`{' '.join(command)}` failed.",
            value=(click.unstyle(done.stderr).strip().splitlines() or ["no output"])[-1],
            next_step="workshop doctor; then the same command again, which continues where this one stopped",
        )
