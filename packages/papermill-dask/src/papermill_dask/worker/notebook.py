"""Run a notebook on a Dask worker and return its result; a watchdog stops runs that are cancelled or cut off."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from papermill_dask import compat, tracking
from papermill_dask.errors import LOST, EngineError, WorkerLost
from papermill_dask.task import RUNS, Run, Task

WATCH_SECONDS = 0.4
ANSWER_SECONDS = 2.0
SILENCE_SECONDS = 4.0  # time without a response before the connection to the scheduler is tested


def run(task: Task) -> dict[str, Any]:
    """Run a notebook in a kernel of this worker; see `remote.run_notebook`."""
    import distributed

    from papermill_dask.worker.warm_up import warm_up

    worker = distributed.get_worker()
    if worker.id != task.worker:  # Dask reschedules the tasks of a lost worker, but a notebook must not run twice
        raise WorkerLost("The Dask worker that ran the notebook was lost.", value=worker.address, **LOST)
    warm_up(worker)  # for workers started without the preload module
    key = str(worker.get_current_task())
    # This thread only waits for the kernel, so release it for tasks that the notebook submits to this worker.
    distributed.secede()
    notebook = RUNS[key] = Run(key, task, worker)
    finished = threading.Event()
    watch = threading.Thread(target=_watch, args=(notebook, finished), name=f"watch-{key}", daemon=True)
    watch.start()
    try:
        return _run_cells(notebook)
    finally:
        finished.set()
        watch.join()
        del RUNS[key]
        if notebook.stop_reason and task.is_scratch:  # normally removed by the client, which may have died
            shutil.rmtree(Path(task.folder).parent, ignore_errors=True)


def _run_cells(run: Run) -> dict[str, Any]:
    import nbformat
    from jupyter_core.utils import ensure_event_loop

    from papermill_dask.worker.cells import CellEvents, KernelClient
    from papermill_dask.worker.warm_up import kernel_environment

    task = run.task
    environment = kernel_environment(run.worker) | task.environment
    runs = tracking.NotebookRuns(run.key, environment)
    manager = CellEvents(nbformat.from_dict(task.notebook), run)
    error = None
    try:
        runs.check_reachable(run.logger())
        run.kernel = KernelClient(manager, run, before_shutdown=runs.find, kernel_name=task.kernel_name, **task.options)
        if not run.stop_reason:
            # nbclient would leave this thread's event loop open, and with it three file descriptors.
            with contextlib.closing(ensure_event_loop()):
                run.kernel.execute(cwd=task.folder, env=environment | {tracking.TASK_VARIABLE: run.key})
    except Exception as problem:  # noqa: BLE001 - every error is sent to the client
        error = run.kernel.describe_error(problem, run.cell) if run.kernel else problem
    error = run.stop_reason or error
    failed = bool(error or manager.failed)
    if failed:
        runs.end("KILLED" if run.stop_reason else "FAILED")
    return {
        "metadata": manager.nb.metadata,
        "error": error and _pickled(error),
        "failed": failed,
        "runs": [{"run_id": mlflow_run["run_id"], "metrics": mlflow_run["metrics"]} for mlflow_run in runs.runs],
    }


def _pickled(error: Exception) -> bytes:
    try:
        pickle.loads(content := pickle.dumps(error))  # noqa: S301 - pickled here; some errors fail to unpickle
    except Exception:  # noqa: BLE001 - pickling may run any library's code
        return pickle.dumps(EngineError("The notebook failed on its worker.", value=repr(error)))
    return content


# -- the watchdog -------------------------------------------------------------------------------------------------
def _watch(run: Run, finished: threading.Event) -> None:
    """Stop a run if its task is cancelled, its worker closes, or the scheduler is unreachable.

    Dask cannot interrupt a running task, and does not notify it when its client disconnects; without a network, a
    worker would continue for minutes.
    """
    answer_time = time.monotonic()
    while not finished.wait(WATCH_SECONDS):
        if run.stop_reason:
            run.kill()  # repeatedly, because the kernel may still be starting
        elif run.worker.status.name not in ("running", "paused"):
            problem = "The Dask worker that ran the notebook was shut down."
            run.stop_reason = WorkerLost(problem, value=run.worker.address, **LOST)
        else:
            try:
                is_active = compat.get_task_status(run.worker, run.key, ANSWER_SECONDS) is not None
                answer_time, reason = time.monotonic(), None if is_active else "its client cancelled it or disconnected"
            except (OSError, TimeoutError, RuntimeError):  # no network, a busy scheduler, or a closed event loop
                # A missing response may only mean that another task blocks this worker's event loop.
                is_silent = time.monotonic() - answer_time > SILENCE_SECONDS
                is_down = is_silent and not compat.is_listening(run.worker.scheduler.address, ANSWER_SECONDS)
                reason = "the scheduler is unreachable" if is_down else None
            if reason:
                run.stop_reason = EngineError("The notebook was stopped on its worker.", value=reason)
