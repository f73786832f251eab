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
        cluster.wait_for_earlier(client, cluster.this_output(output_path))
        executed.notebook_start()
        attempts = _Attempts(executed, kernel_name, client, options, keywords)
        try:
            attempts.run()
        finally:
            if not attempts.done:
                executed.cut_short()
            executed.cleanup_pbar()
            executed.notebook_complete()
        if attempts.runs:
            _attach(client, attempts, nb, keywords.get("input_path"))
    return executed.nb


class _Attempts:
    """A notebook's run, and again after a lost worker as often as the options allow; each loss is recorded in it."""

    def __init__(self, executed, kernel_name: str, client, options: NotebookOptions, keywords: dict[str, Any]) -> None:
        self._executed, self._kernel_name, self._client = executed, kernel_name, client
        self._options, self._keywords = options, keywords
        self.done = False
        self.worker: str | None = None
        self.runs: list[dict[str, Any]] = []

    def run(self) -> None:
        """Run the notebook; raises what ended it early."""
        lost: list[dict[str, Any]] = []
        while not self.done:
            workers = cluster.survey(self._client, self._kernel_name, Path.cwd())
            workers = cluster.select(workers, self._options, self._kernel_name)
            with handled((signal.SIGTERM, signal.SIGHUP), _leave), cluster.room(self._client, workers) as worker:
                self.worker = worker.address
                attempt = Attempt(
                    self._executed, self._kernel_name, self._client, worker, self._options, **self._keywords
                )
                began = time.time()
                try:
                    self.runs = attempt.run()
                    self.done = True
                except WorkerLost as error:
                    lost.append({"worker": worker.address, "began": began, "ended": time.time(), "error": error.what})
                    self._recover(attempt, error, lost)
        if self.runs:
            self._record(runs=[{"run_id": run["run_id"], "metrics": run["metrics"]} for run in self.runs])

    def _recover(self, attempt: Attempt, error: WorkerLost, lost: list[dict[str, Any]]) -> None:
        """Leave the notebook as a lost worker leaves it; raise the error unless the notebook is to run again."""
        if self._options.retries:
            self._record(lost=lost)
        self._executed.cut_short()  # and saved so, before the tracking server is asked
        tracking.end_open_runs(attempt.key)
        left = self._options.retries - len(lost)
        if left < 0 or self._client.status != "running":
            raise error
        logger.warning("%s\nThe notebook runs again, from its first cell; tries left: %d.", error, left)
        cluster.require_worker(self._client, RESTART_SECONDS)
        self._executed.notebook_start()

    def _record(self, **results: Any) -> None:
        metadata = self._executed.nb.metadata
        metadata[METADATA] = {**metadata.get(METADATA, {}), **results}


def _leave(number: int, _frame) -> None:
    """End the notebook at SIGTERM or SIGHUP as Ctrl-C does: the kernel stopped, what there is saved."""
    raise SystemExit(128 + number)


def _attach(client, attempts: _Attempts, notebook, input_path: object) -> None:
    """Log the executed notebook to its MLflow runs.

    On its worker, or another if that is gone: they keep MLflow imported from one notebook to the next, and a fresh
    process takes two seconds for it. A failure is only told: what the notebook did is done.
    """
    name = Path(input_path).name if isinstance(input_path, str) else "notebook.ipynb"
    plain, run_ids = json.loads(json.dumps(notebook)), [run["run_id"] for run in attempts.runs]
    try:
        client.submit(
            tracking.attach, plain, name, run_ids, os.environ.get(tracking.URI_VARIABLE),
            pure=False, workers=[attempts.worker], allow_other_workers=True,
        ).result(ATTACH_SECONDS)  # fmt: skip
    except Exception as error:  # noqa: BLE001 - whatever it was, it must not hide how the notebook ended
        logger.warning("The executed notebook was not logged to its run: %s", error)
