"""A head start: what the chapters before one leave, for somebody who begins there.

The notebooks are run as they were given, in a folder of their own, so that no file of an attendee's is touched. What is
there already is not made again. Each run and version that is made here is tagged, and each file written down, so that
nobody takes it for the attendee's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from workshop.data.prepare import load_or_make
from workshop.errors import EngineError, ModelError, ServiceError
from workshop.servers.services import program
from workshop.settings import EXPERIMENT, PRODUCTION, REGISTERED_MODEL, Settings
from workshop.teaching import brought
from workshop.teaching.checkpoints import projects, tracking
from workshop.teaching.checkpoints.evidence import gather
from workshop.teaching.checkpoints.step import State
from workshop.teaching.checkpoints.store import BROUGHT_TAG, look
from workshop.teaching.outline import CHAPTERS, Chapter
from workshop.teaching.reset import ResetError, start_of, unpacked

NOTEBOOK_SECONDS = 300  # most for one cell
TABLE = "germany.csv"
Tell = Callable[[str], None]
Bar = Callable[[str, int], contextlib.AbstractContextManager[Callable[[], None]]]  # of a title and a number of cells


def bring(settings: Settings, number: int, tell: Tell, bar: Bar) -> None:
    """Make what the chapters before ``number`` leave, where it is missing; the servers run already.

    ``tell`` gets a line for each thing, ``bar`` makes one that is advanced at each cell of a notebook. Raises
    EngineError when a notebook or a project fails, ServiceError when the tracking server does not answer.
    """
    settings = settings.model_copy(update={"mlflow_tracking_uri": None})  # the servers that were just brought up
    made = f"up --chapter {number}"
    _bring_tables(settings, number, tell)
    if number > 2:
        _bring_runs(settings, made, tell, bar)
        _bring_version(settings, made, tell)
    if number > 3:
        _bring_project_run(settings, made, tell)


def _bring_tables(settings: Settings, number: int, tell: Tell) -> None:
    """Put the table into each earlier chapter's folder."""
    files = [f"{each.folder}/{TABLE}" for each in CHAPTERS[: number - 1]]
    absent = [file for file in files if not (settings.root / file).exists()]
    for file in absent:
        ready = next((settings.root / each for each in files if (settings.root / each).exists()), None)
        if ready is None:
            load_or_make(settings.root / file)
        else:
            shutil.copyfile(ready, settings.root / file)
        tell(f"{file}: made")
    brought.add(settings, number, absent)


# -- chapter 2 -------------------------------------------------------------------------------------------------------
def _bring_runs(settings: Settings, made: str, tell: Tell, bar: Bar) -> None:
    """Run the notebooks of chapter 2 whose runs are missing, in order."""
    found = gather(settings)
    if found.store is None:
        raise ServiceError(found.trouble)
    places = {step.where for step in tracking.STEPS if step.look(found).state == State.MISSING}
    absent = [name for name in tracking.RUN_NOTEBOOKS if tracking.NOTEBOOKS[name] in places]
    if not absent:
        return
    with _as_given(settings, tracking.CHAPTER) as folder:
        shutil.copyfile(settings.root / tracking.CHAPTER.folder / TABLE, folder / TABLE)
        for name in absent:
            _execute(folder / f"{name}.ipynb", _environment(settings, made), bar)
            tell(f"{tracking.NOTEBOOKS[name]}: its runs are tracked")


@contextlib.contextmanager
def _as_given(settings: Settings, wanted: Chapter) -> Iterator[Path]:
    """Yield a folder with a chapter's files as they were given; as they are, where git does not know them."""
    with tempfile.TemporaryDirectory(prefix="workshop-") as temporary:
        folder = Path(temporary, wanted.folder)
        try:
            with unpacked(settings.root, wanted, start_of(settings.root)) as fresh:
                shutil.copytree(fresh, folder)
        except ResetError:
            shutil.copytree(settings.root / wanted.folder, folder)
        yield folder


def _environment(settings: Settings, made: str) -> dict[str, str]:
    """Return the variables of a terminal that is set up; MLflow tags each run that is made with them."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    context = json.dumps({BROUGHT_TAG: made})
    # A run or an experiment that the shell, or MLflow in this process, chose is not meant here.
    mine = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")}
    return mine | settings.exports() | {"PATH": path, "MLFLOW_RUN_CONTEXT": context}


def _execute(notebook: Path, environment: dict[str, str], bar: Bar) -> None:
    """Run a notebook in its folder; raise EngineError when a cell of it fails."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    try:
        document = nbformat.reads(notebook.read_text(encoding="utf-8"), as_version=4)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"The notebook {notebook.name} cannot be read.",
            value=str(error),
            next_step=f"git log -- '*{notebook.name}', to see what became of it",
        ) from None
    with bar(notebook.stem, sum(cell.cell_type == "code" for cell in document.cells)) as advance:
        client = NotebookClient(
            document,
            timeout=NOTEBOOK_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": str(notebook.parent)}},
            on_cell_complete=lambda **_: advance(),
        )
        try:
            client.execute(env=environment, stderr=subprocess.DEVNULL)  # of the kernel; a cell's own is in its output
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failed = isinstance(error, CellExecutionError)
            raise EngineError(
                f"The notebook {notebook.name} could not be run.",
                value=f"{error.ename}: {error.evalue}" if failed else str(error).strip().splitlines()[-1],
                next_step="workshop doctor; then the same command again, which goes on where this one stopped",
            ) from None


def _bring_version(settings: Settings, made: str, tell: Tell) -> None:
    """Register the best model of chapter 2, and put it into production where nothing is."""
    from workshop.models.tracking import connect

    store = look(settings)
    if tracking.own_versions(store):
        return
    candidates = [run for run in store.chapter_runs if tracking.is_candidate(run)]
    if not candidates:
        raise ModelError("No run of chapter 2 has a model and a score.", next_step="run its notebooks by hand")
    best = max(candidates, key=lambda run: run.metrics["r2"])
    client = connect(settings.tracking_uri)
    if REGISTERED_MODEL not in store.aliases:
        client.create_registered_model(REGISTERED_MODEL)
    [model_id, *_] = best.models
    version = client.create_model_version(
        REGISTERED_MODEL,
        f"models:/{model_id}",
        best.run_id,
        model_id=model_id,
        tags={BROUGHT_TAG: made},
        await_creation_for=0,  # it is there when the server has answered
    ).version
    tell(
        f"{REGISTERED_MODEL} version {version}: registered, from the run {best.tags.get('mlflow.runName', best.run_id)}"
    )
    if store.in_production is None:
        client.set_registered_model_alias(REGISTERED_MODEL, PRODUCTION, version)
        tell(f"{REGISTERED_MODEL} version {version}: in production")
    else:
        tell(f"{REGISTERED_MODEL} version {store.in_production}: stays in production")


# -- chapter 3 -------------------------------------------------------------------------------------------------------
def _bring_project_run(settings: Settings, made: str, tell: Tell) -> None:
    """Run the project `lr` where it never ran."""
    from workshop.models.tracking import connect

    if projects.main(gather(settings)).state != State.MISSING:
        return
    command = ["mlflow", "run", projects.PROJECT, "--env-manager", "local", "--experiment-name", EXPERIMENT]
    done = subprocess.run(
        [program(command[0]), *command[1:]],
        cwd=settings.root / projects.CHAPTER.folder,
        env=_environment(settings, made),
        capture_output=True,
        text=True,
        check=False,
        timeout=NOTEBOOK_SECONDS,
    )
    run_ids = set(re.findall(r"ID '([0-9a-f]{32})'", done.stderr))
    client = connect(settings.tracking_uri)
    for run_id in run_ids:  # MLflow makes a project's run without its context
        client.set_tag(run_id, BROUGHT_TAG, made)
    if done.returncode:
        raise EngineError(
            f"`{' '.join(command)}` failed in {projects.CHAPTER.folder}.",
            value=(done.stderr.strip().splitlines() or ["nothing was said"])[-1],
            next_step="workshop reset 3, if its files were changed; then the same command again",
        )
    tell(f"{projects.CHAPTER.folder}/{projects.PROJECT}: ran, and its run is tracked")
