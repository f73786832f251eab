"""The papermill engine `dask`, on the client: from a notebook to the same notebook, executed on the cluster."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from papermill.log import logger

from papermill_dask import cluster, stage, tracking
from papermill_dask.attempt import Attempt
from papermill_dask.config import METADATA, RESULTS, NotebookOptions, option_names
from papermill_dask.errors import WorkerLost
from papermill_dask.executed import ExecutedNotebook
from papermill_dask.signals import handled

RESTART_SECONDS = 30  # for a nanny that starts the next worker
ATTACH_SECONDS = 120
EARLIER_SECONDS = 0.2
# Dask's modules are many objects, and the interpreter would look through them once more, 0.2 s long, before it ends.
atexit.register(gc.freeze)


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
    keywords |= {"log_output": log_output}
    own = {name: keywords.pop(name) for name in option_names() if name in keywords}
    asked = nb.metadata.get(METADATA, {})
    for result in RESULTS:
        asked.pop(result, None)  # of an earlier execution
    options = NotebookOptions.of(asked, own)
    executed = ExecutedNotebook(
        nb,
        output_path=output_path,
        progress_bar=progress_bar,
        log_output=log_output,
        autosave_cell_every=autosave_cell_every,
    )
    with stage.ends_with_dvc(), contextlib.nullcontext(client) if client else cluster.connect() as client:
        executed.notebook_start()
        attempt = None
        try:
            attempt = _run(executed, kernel_name, client, options, keywords)
        finally:
            if attempt is None:
                executed.cut_short()
            executed.cleanup_pbar()
            executed.notebook_complete()
        if attempt.runs:
            _attach(client, attempt, nb, keywords.get("input_path"))
    return executed.nb


def _run(executed, kernel_name: str, client, options: NotebookOptions, keywords: dict[str, Any]) -> Attempt:
    """Run the notebook, and again after a lost worker as often as the options allow; return the attempt that did it."""
    lost: list[dict[str, Any]] = []
    while True:
        workers = cluster.select(_survey(executed, kernel_name, client), options, kernel_name)
        with handled((signal.SIGTERM, signal.SIGHUP), _leave), cluster.room(client, workers) as worker:
            attempt = Attempt(executed, kernel_name, client, worker, options, **keywords)
            began = time.time()
            try:
                attempt.run()
            except WorkerLost as error:
                lost.append({"worker": worker.address, "began": began, "ended": time.time(), "error": error.what})
                if options.retries:
                    _record(executed, lost=lost)
                executed.cut_short()  # and saved so, before the tracking server is asked
                tracking.end_open_runs(attempt.key)
                left = options.retries - len(lost)
                if left < 0 or client.status != "running":
                    raise
                logger.warning("%s\nThe notebook runs again, from its first cell; tries left: %d.", error, left)
            else:
                if attempt.runs:
                    _record(executed, runs=attempt.runs)
                return attempt
        cluster.require_worker(client, RESTART_SECONDS)
        executed.notebook_start()


def _survey(executed, kernel_name: str, client) -> list[cluster.Worker]:
    """Return what the workers are, once none runs a notebook with this output: a killed client's may be ending yet."""
    output, said = cluster.this_output(executed.output_path), False
    while True:
        workers = cluster.survey(client, kernel_name, Path.cwd())
        busy = [worker.name for worker in workers for run in worker.running if output and run["output"] == output]
        if not busy:
            return workers
        if not said:
            logger.info("Waiting for an earlier notebook with this output to end: on %s.", ", ".join(busy))
            said = True
        time.sleep(EARLIER_SECONDS)


def _record(executed, **results: Any) -> None:
    """Write results of the execution into the notebook's metadata."""
    metadata = executed.nb.metadata
    metadata[METADATA] = {**metadata.get(METADATA, {}), **results}


def _leave(number: int, _frame) -> None:
    """End the notebook at SIGTERM or SIGHUP as Ctrl-C does: the kernel stopped, what there is saved."""
    raise SystemExit(128 + number)


def _attach(client, attempt: Attempt, notebook, input_path: object) -> None:
    """Log the executed notebook to its MLflow runs.

    On its worker, or another if that is gone: they keep MLflow imported from one notebook to the next, and a fresh
    process takes two seconds for it. A failure is only told: what the notebook did is done.
    """
    name = Path(input_path).name if isinstance(input_path, str) else "notebook.ipynb"
    plain, run_ids = json.loads(json.dumps(notebook)), [run["run_id"] for run in attempt.runs]
    try:
        client.submit(
            tracking.attach, plain, name, run_ids, os.environ.get(tracking.URI_VARIABLE),
            pure=False, workers=[attempt.worker.address], allow_other_workers=True,
        ).result(ATTACH_SECONDS)  # fmt: skip
    except Exception as error:  # noqa: BLE001 - whatever it was, it must not hide how the notebook ended
        logger.warning("The executed notebook was not logged to its run: %s", error)
