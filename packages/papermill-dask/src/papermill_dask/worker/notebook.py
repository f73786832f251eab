"""A notebook on its Dask worker: its cells, its result, and the watch that stops it."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from papermill_dask import compat, tracking
from papermill_dask.failures import LOST, EngineError, WorkerLost
from papermill_dask.task import RUNS, Run, Task

WATCH_SECONDS = 0.4
ANSWER_SECONDS = 2.0
SILENCE_SECONDS = 4.0  # without an answer before the scheduler's address is tried


def run(task: Task) -> dict[str, Any]:
    """Run a notebook in a kernel of this worker, as `remote.run_notebook` says."""
    import distributed

    from papermill_dask.worker.warm_up import warm_up

    worker = distributed.get_worker()
    if worker.id != task.worker:  # Dask repeats the tasks of a lost worker; a notebook runs once
        raise WorkerLost("The Dask worker that ran the notebook was lost.", value=worker.address, **LOST)
    warm_up(worker)  # if the worker was started without the preload
    key = str(worker.get_current_task())
    # This thread only waits for the kernel: free it, so that the notebook can send work to this worker.
    distributed.secede()
    notebook = RUNS[key] = Run(key, task, worker)
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(notebook, over), name=f"watch-{key}", daemon=True)
    watch.start()
    try:
        return _run_cells(notebook)
    finally:
        over.set()
        watch.join()
        del RUNS[key]
        if notebook.stopped and task.is_scratch:  # the client, which would remove it, may be gone
            shutil.rmtree(Path(task.folder).parent, ignore_errors=True)


def _run_cells(run: Run) -> dict[str, Any]:
    import nbformat
    from jupyter_core.utils import ensure_event_loop

    from papermill_dask.worker.cells import CellEvents, KernelClient
    from papermill_dask.worker.warm_up import environment_of

    task = run.task
    environment = environment_of(run.worker) | task.environment
    runs = tracking.NotebookRuns(run.key, environment)
    manager = CellEvents(nbformat.from_dict(task.notebook), run)
    error = None
    try:
        runs.check_reachable(run.logger())
        run.kernel = KernelClient(manager, run, before_end=runs.find, kernel_name=task.kernel_name, **task.options)
        if not run.stopped:
            # nbclient leaves the loop of this thread, with three open files, to the garbage collector.
            with contextlib.closing(ensure_event_loop()):
                run.kernel.execute(cwd=task.folder, env=environment | {tracking.TASK_VARIABLE: run.key})
    except Exception as problem:  # noqa: BLE001 - the client gets every error
        error = run.kernel.explain(problem, run.cell) if run.kernel else problem
    error = run.stopped or error
    failed = bool(error or manager.failed)
    if failed:
        runs.end("KILLED" if run.stopped else "FAILED")
    return {
        "metadata": manager.nb.metadata,
        "error": error and _pickled(error),
        "failed": failed,
        "runs": [{"run_id": mlflow_run["run_id"], "metrics": mlflow_run["metrics"]} for mlflow_run in runs.runs],
    }


def _pickled(error: Exception) -> bytes:
    try:
        pickle.loads(content := pickle.dumps(error))  # noqa: S301 - pickled here; some errors only fail here
    except Exception:  # noqa: BLE001 - pickling runs any library's code
        return pickle.dumps(EngineError("The notebook failed on its worker.", value=repr(error)))
    return content


# -- the watch ----------------------------------------------------------------------------------------------------
def _watch(run: Run, over: threading.Event) -> None:
    """Stop a run when its task is cancelled, its worker closes, or the scheduler is out of reach.

    Dask cannot interrupt a running task, and does not notify a task whose client has gone; without the network a worker
    would continue for minutes.
    """
    answer_time = time.monotonic()
    while not over.wait(WATCH_SECONDS):
        if run.stopped:
            run.kill()  # repeatedly: its kernel may be about to start
        elif run.worker.status.name not in ("running", "paused"):
            what = "The Dask worker that ran the notebook was shut down."
            run.stopped = WorkerLost(what, value=run.worker.address, **LOST)
        else:
            try:
                is_wanted = compat.ask_for_task(run.worker, run.key, ANSWER_SECONDS) is not None
                answer_time, reason = time.monotonic(), None if is_wanted else "the client cancelled it, or went away"
            except (OSError, TimeoutError, RuntimeError):  # no network, a busy scheduler, or a closed event loop
                # A missing answer is no proof: another task may block this worker's own event loop.
                is_silent = time.monotonic() - answer_time > SILENCE_SECONDS
                is_away = is_silent and not compat.listens(run.worker.scheduler.address, ANSWER_SECONDS)
                reason = "the scheduler is out of reach" if is_away else None
            if reason:
                run.stopped = EngineError("The notebook was stopped on its worker.", value=reason)
