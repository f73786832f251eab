"""The papermill engine `dask`, on the client: from a notebook to the same notebook, executed on the cluster."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import signal
import time
from pathlib import Path
from typing import Any

from papermill.log import logger

from papermill_dask import cluster, placement
from papermill_dask.attempt import Attempt, WorkerLost, stage_id
from papermill_dask.executed import ExecutedNotebook
from papermill_dask.signals import handled
from workshop.engine.repro.alone import alone
from workshop.settings import NotebookOptions, get_settings

RESTART_SECONDS = 30  # for a nanny that starts the next worker
# Dask's modules are many objects, and the interpreter would look through them once more, 0.2 s long, before it ends.
atexit.register(gc.freeze)
ATTACH_SECONDS = 120


def execute_notebook(
    nb,
    kernel_name: str,
    *,
    output_path=None,
    progress_bar=True,
    log_output=False,
    autosave_cell_every=30,
    client=None,
    **keywords: Any,
):
    """Run a notebook (an nbformat node) on the cluster and return it; arguments are those of papermill's engines.

    This engine's own keywords: the fields of `NotebookOptions`, ``client`` (a Dask client to use instead of connecting
    for the call) and ``task`` (the name of the Dask task). Raises what papermill's own engine raises (a cell's error
    is left in the notebook for papermill to raise), EngineError when no worker suits, and WorkerLost.
    """
    own = {name: keywords.pop(name) for name in list(keywords) if name in NotebookOptions.model_fields}
    nb.metadata.get("workshop", {}).pop("lost", None)  # of an earlier execution
    options = NotebookOptions.of(nb.metadata.get("workshop", {}), own)
    executed = ExecutedNotebook(
        nb,
        output_path=output_path,
        progress_bar=progress_bar,
        log_output=log_output,
        autosave_cell_every=autosave_cell_every,
    )
    with alone() as is_first, contextlib.nullcontext(client) if client else cluster.connect() as client:
        if is_first:  # else those that run are of this same copy
            cluster.wait_for_stage(client, stage_id())
        executed.notebook_start()
        worker = None
        try:
            worker = _run_attempts(executed, kernel_name, client, options, log_output=log_output, **keywords)
        finally:
            if worker is None:
                executed.cut_short()
            executed.cleanup_pbar()
            executed.notebook_complete()
        attach(client, worker, nb, keywords.get("input_path"))
    return executed.nb


def _run_attempts(executed, kernel_name: str, client, options: NotebookOptions, **keywords: Any) -> str:
    """Run the notebook once, and again after a lost worker as often as the options allow; return the last worker.

    Each loss is recorded in the notebook.
    """
    lost: list[dict[str, Any]] = []
    while True:
        workers = placement.select(cluster.survey(client, kernel_name, Path.cwd()), options, kernel_name)
        attempt = Attempt(executed, kernel_name, client, workers, options, **keywords)
        began = time.time()
        try:
            with handled((signal.SIGTERM, signal.SIGHUP), _leave), placement.slot(client, workers) as resources:
                attempt.run(options.resources | resources)
        except WorkerLost as error:
            lost.append({"worker": attempt.worker, "began": began, "ended": time.time(), "error": error.what})
            if options.retries:
                executed.nb.metadata["workshop"] = {**executed.nb.metadata.get("workshop", {}), "lost": lost}
            executed.cut_short()  # and saved so, before the tracking server is asked
            attempt.end_open_runs()
            left = options.retries - len(lost)
            if left < 0 or client.status != "running":
                raise
            logger.warning("%s\nThe notebook runs again, from its first cell; tries left: %d.", error, left)
            cluster.require_worker(client, RESTART_SECONDS)
            executed.notebook_start()
        else:
            return attempt.worker


def _leave(number: int, _frame) -> None:
    """End the notebook at SIGTERM or SIGHUP as Ctrl-C does: the kernel stopped, what there is saved."""
    raise SystemExit(128 + number)


def attach(client, worker: str, notebook, input_path: object) -> None:
    """Log the executed notebook to the MLflow runs that it opened, if any.

    On its worker, or another if that is gone: they keep MLflow imported from one notebook to the next, and a fresh
    process takes two seconds for it.
    A failure is only told: what the notebook did is done.
    """
    from workshop.models.tracking import attach_notebook, runs_of_notebook

    if not runs_of_notebook(notebook):
        return
    name = Path(input_path).name if isinstance(input_path, str) else "notebook.ipynb"
    plain = json.loads(json.dumps(notebook))
    try:
        uri = get_settings().tracking_uri
        attached = client.submit(
            attach_notebook, plain, name, uri, pure=False, workers=[worker], allow_other_workers=True
        )
        attached.result(ATTACH_SECONDS)
    except Exception as error:  # noqa: BLE001 - whatever it was, it must not hide how the notebook ended
        logger.warning("The executed notebook was not logged to its run: %s", error)
