"""The papermill engine `dask`, on the client: executes a notebook on the cluster."""

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

import nbformat
from distributed import Client
from papermill.log import logger

from papermill_dask import tracking
from papermill_dask.client import cluster, stage
from papermill_dask.client.attempt import Attempt
from papermill_dask.client.output import ExecutedNotebook
from papermill_dask.config import METADATA, OPTIONS, RESULTS, NotebookOptions, tags_of
from papermill_dask.failures import EngineError, WorkerLost

RESTART_SECONDS = 30  # for a nanny that starts the next worker
ATTACH_SECONDS = 120
EARLIER_SECONDS = 0.2


def preload() -> None:
    """Compile the schema of notebooks, once for all programs that `dvc-parallel` forks from this process."""
    nbformat.validate(nbformat.v4.new_notebook())


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
    """Run a notebook (an nbformat node) on the cluster and return it; arguments are those of papermill's engines.

    This engine's own keywords: the fields of `NotebookOptions`, and ``client``, a Dask client to use instead of
    connecting for the call. Raises what papermill's own engine raises (a cell's error is left in the notebook for
    papermill to raise), EngineError when no worker suits, and WorkerLost.
    """
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)  # Skip the garbage collection at exit: it takes 0.2 s with Dask's modules.
    arguments = {name: keywords.pop(name) for name in OPTIONS if name in keywords}
    metadata = nb.metadata.get(METADATA, {})
    for result in RESULTS:
        metadata.pop(result, None)  # of an earlier execution
    options = NotebookOptions.of(metadata, arguments)
    if unknown := set(options.skip_tags) - tags_of(nb.cells):
        logger.warning("No code cell has the tag to skip: %s.", ", ".join(sorted(unknown)))
    executed = ExecutedNotebook(nb, output_path, log_output, progress_bar, autosave_cell_every)
    executed.skip_tags = frozenset(options.skip_tags)
    with stage.ends_with_dvc(), contextlib.nullcontext(client) if client else cluster.connect() as client:
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
            _attach(client, attempt, nb, keywords.get("input_path"))
    return executed.nb


def _run(
    executed: ExecutedNotebook, kernel_name: str, client: Client, options: NotebookOptions, keywords: dict[str, Any]
) -> Attempt:
    """Run the notebook, again after a lost worker if the options allow it; return the successful attempt."""
    losses: list[dict[str, Any]] = []
    while True:
        query = functools.partial(_query_workers, executed, kernel_name, client, options)
        slot = cluster.reserve_slot(client, query, options.resources)
        with handled((signal.SIGTERM, signal.SIGHUP), _leave), slot as worker:
            attempt = Attempt(executed, kernel_name, client, worker, options, **keywords)
            began = time.time()
            try:
                attempt.run()
            except WorkerLost as error:
                losses.append({"worker": worker.address, "began": began, "ended": time.time(), "error": error.what})
                if options.retries:
                    _record(executed, lost=losses)
                if "scheduler" not in error.what:
                    error.next_step = f"see the worker's log ({worker.log}), then {error.next_step}"
                executed.mark_aborted()  # and save it, before the tracking server is asked
                runs = tracking.NotebookRuns(attempt.key, attempt.environment)
                runs.find()
                runs.end("FAILED")
                tries = options.retries - len(losses)
                if tries < 0 or client.status != "running":
                    raise
                logger.warning("%s\nThe notebook runs again, from its first cell; tries left: %d.", error, tries)
            else:
                if attempt.runs:
                    _record(executed, runs=attempt.runs)
                return attempt
        cluster.require_worker(client, RESTART_SECONDS)
        executed.notebook_start()


def _query_workers(
    executed: ExecutedNotebook, kernel_name: str, client: Client, options: NotebookOptions
) -> list[cluster.Worker]:
    """Return the workers, once none runs a notebook with this output: that of a killed client may still be ending."""
    output, say_once = cluster.this_output(executed.output_path), functools.cache(logger.info)
    while True:
        workers = cluster.query_workers(client, kernel_name, Path.cwd(), options.resources)
        busy = {run["key"]: worker.name for worker in workers for run in worker.running if run["output"] == output}
        if not output or not busy:
            return workers
        if os.environ.get(tracking.TASK_VARIABLE) in busy:
            raise EngineError("A notebook cannot write to the output of the notebook that runs it.", value=output)
        say_once("Waiting for an earlier notebook with this output to end: on %s.", ", ".join(busy.values()))
        time.sleep(EARLIER_SECONDS)


def _record(executed: ExecutedNotebook, **results: Any) -> None:
    """Write results of the execution into the notebook's metadata."""
    metadata = executed.nb.metadata
    metadata[METADATA] = {**metadata.get(METADATA, {}), **results}


@contextlib.contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, object], None]) -> Iterator[None]:
    """Call ``handler`` at each of these signals while the block runs; then restore the former handlers.

    Outside the main thread Python allows no handlers: do nothing.
    """
    with contextlib.ExitStack() as former:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                former.callback(signal.signal, number, signal.signal(number, handler))
        yield


def _leave(number: int, _frame: object) -> None:
    """End the notebook at SIGTERM or SIGHUP as Ctrl-C does: stop the kernel and save the outputs."""
    raise SystemExit(128 + number)


def _attach(client: Client, attempt: Attempt, notebook: nbformat.NotebookNode, input_path: object) -> None:
    """Log the executed notebook to its MLflow runs.

    A worker does this, because it has imported MLflow already; a new process needs two seconds for that. A failure is a
    warning: the notebook itself succeeded.
    """
    name = Path(input_path).name if isinstance(input_path, str) else "notebook.ipynb"
    plain, run_ids = json.loads(json.dumps(notebook)), [run["run_id"] for run in attempt.runs]
    try:
        client.submit(
            tracking.attach, plain, name, run_ids, attempt.environment.get(tracking.URI_VARIABLE),
            pure=False, workers=[attempt.worker.address], allow_other_workers=True,
        ).result(ATTACH_SECONDS)  # fmt: skip
    except Exception as error:  # noqa: BLE001 - no error here may hide how the notebook ended
        logger.warning("The executed notebook was not logged to its run: %s", error)
