"""Make what the chapters before one leave: tables, tracked runs, a registered version, a project's run.

The notebooks are run as they were given, in a temporary folder, so that no file of an attendee changes. What exists
is not made again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from workshop.data.prepare import load_or_make
from workshop.errors import EngineError, ModelError
from workshop.models.tracking import connect
from workshop.settings import EXPERIMENT, PRODUCTION, REGISTERED_MODEL, Settings, get_settings
from workshop.teaching import checkpoints, reset
from workshop.teaching.checkpoints import CHAPTERS, STEPS

CELL_SECONDS = 300
PROJECT_COMMAND = ["mlflow", "run", "lr", "--env-manager", "local", "--experiment-name", EXPERIMENT]


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
        _bring_version(settings, tell)
    if number > 3 and not checkpoints.runs_of_lr("main", checkpoints.gather(settings)):
        _run(PROJECT_COMMAND, settings.root / "3_projects")
        tell("3_projects/lr: ran, and its run is tracked")


def _bring_runs(settings: Settings, tell: Callable[[str], None]) -> None:
    """Run the notebooks of chapter 2 whose runs are missing, in order."""
    evidence = checkpoints.gather(settings)
    open_steps = [step for step in STEPS[2] if step.not_yet is checkpoints.RUN and not step.is_done(evidence)]
    absent = dict.fromkeys(step.where for step in open_steps)
    if not absent:
        return
    with contextlib.ExitStack() as stack:
        try:
            given = stack.enter_context(reset.unpacked(settings.root, CHAPTERS[1], reset.find_start(settings.root)))
        except reset.ResetError:  # git does not know the files: take them as they are
            given = Path(stack.enter_context(tempfile.TemporaryDirectory()), "2_tracking")
            shutil.copytree(settings.root / "2_tracking", given)
        shutil.copyfile(settings.root / "2_tracking" / "germany.csv", given / "germany.csv")
        for notebook in absent:
            tell(f"{notebook}: running")
            _run(["jupyter", "execute", f"--timeout={CELL_SECONDS}", Path(notebook).name], given)


def _run(command: list[str], folder: Path) -> None:
    """Run a program of this environment; raise EngineError when it fails."""
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(
        [programs / command[0], *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EngineError(
            f"`{' '.join(command)}` failed.",
            value=(done.stderr.strip().splitlines() or ["no output"])[-1],
            next_step="workshop doctor; then the same command again, which continues where this one stopped",
        )


def _bring_version(settings: Settings, tell: Callable[[str], None]) -> None:
    """Register the best model of chapter 2, and put it into production if no other model is."""
    evidence = checkpoints.gather(settings)
    if checkpoints.chapter_versions(evidence):
        return
    runs = [
        run for run in checkpoints.chapter_runs(evidence, "r2")
        if run.data.tags.get("target") != "capacity_factor" and checkpoints.models_of([run])
    ]  # fmt: skip
    if not runs:
        raise ModelError("No run of chapter 2 has a model and a score.", next_step="run its notebooks by hand")
    best = max(runs, key=lambda run: run.data.metrics["r2"])
    [model_uri, *_] = checkpoints.models_of([best])
    client = connect()
    if not client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
        client.create_registered_model(REGISTERED_MODEL)
    version = client.create_model_version(
        REGISTERED_MODEL, model_uri, best.info.run_id, model_id=model_uri.removeprefix("models:/"), await_creation_for=0
    ).version
    tell(f"{REGISTERED_MODEL} version {version}: registered, from the run {best.info.run_name}")
    if PRODUCTION not in client.get_registered_model(REGISTERED_MODEL).aliases:
        client.set_registered_model_alias(REGISTERED_MODEL, PRODUCTION, version)
        tell(f"{REGISTERED_MODEL} version {version}: in production")
