"""papermill's `dask` engine: execute a notebook on a Dask cluster."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import dask.config
import nbformat
from distributed import Client
from papermill.log import logger

from papermill_dask import tracking
from papermill_dask.client import cluster, stage
from papermill_dask.client.attempt import Attempt
from papermill_dask.client.output import ExecutedNotebook
from papermill_dask.config import METADATA, OPTIONS, RESULT_KEYS, NotebookOptions, cell_tags
from papermill_dask.errors import EngineError, WorkerLost

RESTART_SECONDS = 30  # time for a nanny to restart its worker
LOG_SECONDS = 120
POLL_SECONDS = 0.2
_preloaded = threading.Event()


def preload() -> None:
    """Compile nbformat's JSON schema once for all programs that `dvc-parallel` forks from this process."""
    nbformat.validate(nbformat.v4.new_notebook())
    _preloaded.set()


def execute_notebook(
    nb: nbformat.NotebookNode,
    kernel_name: str,
    *,
    output_path: str | None = None,
    progress_bar: bool = True,
    log_output: bool = False,
    autosave_cell_every: float = 30,
    client: Client | None = None,
    **keywords: Any,
) -> nbformat.NotebookNode:
    """Run a notebook on the cluster, as papermill's own engine does locally.

    Parameters
    ----------
    nb : nbformat.NotebookNode
        The notebook; it is updated in place.
    kernel_name : str
        Name of a kernel installed on the worker.
    output_path : str, optional
        File to save the notebook to while it runs.
    progress_bar, log_output : bool
        As in papermill.
    autosave_cell_every : float
        Maximum seconds between saves while a cell runs; 0 saves only after each cell.
    client : distributed.Client, optional
        Client to use; by default, a new one for this call.
    **keywords
        Options of this engine (the fields of `NotebookOptions`) and of papermill's own engine.

    Returns
    -------
    nbformat.NotebookNode
        The executed notebook, including the error of a failed cell, which papermill raises.

    Raises
    ------
    EngineError
        An option is invalid, or no worker can run the notebook. Other errors are the same as in papermill's own engine.
    WorkerLost
        The worker or the scheduler was lost.
    """
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)  # Skip the garbage collection at exit (saves 0.2 s).
    if _preloaded.is_set():  # Dask read its variables before `dvc-parallel` set those of this command
        dask.config.update(dask.config.config, dask.config.collect_env())
    arguments = {name: keywords.pop(name) for name in OPTIONS if name in keywords}
    metadata = nb.metadata.get(METADATA, {})
    for result in RESULT_KEYS:
        metadata.pop(result, None)  # left by an earlier execution
    options = NotebookOptions.resolve(metadata, arguments)
    if unknown := set(options.skip_tags) - cell_tags(nb.cells):
        logger.warning("No code cell has these tags to skip: %s.", ", ".join(sorted(unknown)))
    executed = ExecutedNotebook(nb, output_path, log_output, progress_bar, autosave_cell_every)
    executed.skip_tags = frozenset(options.skip_tags)
    with stage.terminate_with_dvc(), contextlib.nullcontext(client) if client else cluster.connect() as client:
        executed.notebook_start()
        attempt = None
        try:
            attempt = _run(executed, kernel_name, client, options, keywords | {"log_output": log_output})
        finally:
            if attempt is None:
                executed.mark_aborted()
            executed.cleanup_pbar()
            executed.notebook_complete()
        if attempt.runs:
            _log_to_mlflow(client, attempt, nb, keywords.get("input_path"))
    return executed.nb


def _run(
    executed: ExecutedNotebook, kernel_name: str, client: Client, options: NotebookOptions, keywords: dict[str, Any]
) -> Attempt:
    """Run the notebook, and retry if the worker is lost; return the completed attempt."""
    losses: list[dict[str, Any]] = []
    while True:
        query = functools.partial(_query_workers, executed, kernel_name, client, options)
        slot = cluster.reserve_slot(client, query, options.resources)
        with handle_signals((signal.SIGTERM, signal.SIGHUP), _exit_on_signal), slot as (worker, free_slot):
            attempt = Attempt(executed, kernel_name, client, worker, options, free_slot, **keywords)
            start_time = time.time()
            try:
                attempt.run()
            except WorkerLost as error:
                loss = {"worker": worker.address, "began": start_time, "ended": time.time(), "error": error.what}
                losses.append(loss)
                if options.retries:
                    _record(executed, lost=losses)
                if "scheduler" not in error.what:
                    error.next_step = f"see the worker's log ({worker.log}), then {error.next_step}"
                executed.mark_aborted()  # also saves the notebook, so call it before any request to the tracking server
                runs = tracking.NotebookRuns(attempt.key, attempt.environment)
                runs.find()
                runs.end("FAILED")
                tries = options.retries - len(losses)
                if tries < 0 or client.status != "running":
                    raise
                logger.warning("%s\nRunning the notebook again from its first cell (retries left: %d).", error, tries)
            else:
                if attempt.runs:
                    _record(executed, runs=attempt.runs)
                return attempt
        cluster.require_worker(client, RESTART_SECONDS)
        executed.notebook_start()


def _query_workers(
    executed: ExecutedNotebook, kernel_name: str, client: Client, options: NotebookOptions
) -> list[cluster.Worker]:
    """Wait until no worker writes to this output any more, then return the workers."""
    output, log_once = cluster.output_id(executed.output_path), functools.cache(logger.info)
    while True:
        workers = cluster.query_workers(client, kernel_name, Path.cwd(), options.resources)
        busy = {run["key"]: worker.name for worker in workers for run in worker.running if run["output"] == output}
        if not output or not busy:
            return workers
        if os.environ.get(tracking.TASK_VARIABLE) in busy:
            raise EngineError("A notebook cannot write to the output of the notebook that runs it.", value=output)
        log_once("Waiting for an earlier run with this output to end on %s.", ", ".join(busy.values()))
        time.sleep(POLL_SECONDS)


def _record(executed: ExecutedNotebook, **results: Any) -> None:
    """Add results to the notebook's metadata."""
    metadata = executed.nb.metadata
    metadata[METADATA] = {**metadata.get(METADATA, {}), **results}


@contextlib.contextmanager
def handle_signals(numbers: Iterable[int], handler: Callable[[int, object], None]) -> Iterator[None]:
    """Call ``handler`` on these signals during the block; restore the previous handlers afterwards.

    Do nothing in other threads: Python allows handlers only in the main thread.
    """
    with contextlib.ExitStack() as restored:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                restored.callback(signal.signal, number, signal.signal(number, handler))
        yield


def _exit_on_signal(number: int, _frame: object) -> None:
    """Exit on SIGTERM or SIGHUP as on Ctrl-C: stop the kernel and save the notebook."""
    raise SystemExit(128 + number)


def _log_to_mlflow(client: Client, attempt: Attempt, notebook: nbformat.NotebookNode, input_path: object) -> None:
    """Log the executed notebook to its MLflow runs, on a worker: it has already imported MLflow (saves 2 s).

    A failure only causes a warning, because the notebook itself succeeded.
    """
    name = Path(input_path).name if isinstance(input_path, str) else "notebook.ipynb"
    plain, run_ids = json.loads(json.dumps(notebook)), [run["run_id"] for run in attempt.runs]
    try:
        client.submit(
            tracking.log_notebook, plain, name, run_ids, attempt.environment.get(tracking.URI_VARIABLE),
            pure=False, workers=[attempt.worker.address], allow_other_workers=True,
        ).result(LOG_SECONDS)  # fmt: skip
    except Exception as error:  # noqa: BLE001 - must not fail a notebook that succeeded
        logger.warning("Logging the executed notebook to its MLflow run failed: %s", error)
