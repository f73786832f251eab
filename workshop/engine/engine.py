"""The papermill engine `dask`: the notebook runs on a Dask worker, its cells come back as they finish."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import uuid
from pathlib import Path

from papermill.log import logger
from papermill.utils import merge_kwargs, remove_args

from workshop.errors import EngineError
from workshop.settings import get_settings

FORWARDED_PREFIXES = ("DVC_", "MLFLOW_", "WORKSHOP_")
SECRET_WORDS = ("PASSWORD", "TOKEN", "SECRET", "KEY")
CONNECT_SECONDS = 10
POLL_SECONDS = 0.1
LAST_EVENTS_SECONDS = 2.0


def execute(
    nb_man,
    kernel_name: str,
    *,
    client,
    log_output=False,
    stdout_file=None,
    stderr_file=None,
    start_timeout=60,
    execution_timeout=None,
    **kwargs,
) -> None:
    """Run the notebook of papermill's ``nb_man`` on a worker of ``client``'s cluster; the rest is as in papermill.

    Raises what papermill's own engine raises (a cell's error is left in the notebook for papermill to raise), and
    EngineError when the worker is lost.
    """
    from papermill.clientwrap import PapermillNotebookClient

    from workshop.engine.worker import run_notebook

    options = merge_kwargs(
        remove_args(["timeout", "startup_timeout"], **remove_args(["input_path"], **kwargs)),
        timeout=execution_timeout or kwargs.get("timeout"),
        startup_timeout=start_timeout,
    )
    # Never starts a kernel: it only knows how papermill logs outputs and copies them to files.
    log = PapermillNotebookClient(
        nb_man, log=logger, log_output=log_output, stdout_file=stdout_file, stderr_file=stderr_file
    )
    echo = log.log_output_message if log_output or stdout_file or stderr_file else None
    name = Path(kwargs.get("input_path") or "notebook").stem
    key = f"{name}-{uuid.uuid4().hex[:8]}"
    topic = f"workshop-notebook-{key}"
    events: queue.SimpleQueue[dict] = queue.SimpleQueue()
    client.subscribe_topic(topic, lambda event: events.put(event[1]))
    future = client.submit(
        run_notebook,
        _plain(nb_man.nb),
        kernel_name,
        topic,
        str(Path.cwd()),
        _environment(),
        options,
        key=key,
        pure=False,
        retries=0,
        resources=_resources(client),
    )
    try:
        _follow(future, events, nb_man, echo)
    finally:
        # Cancelling what is done does nothing; what still runs is ended by its worker.
        future.cancel()
        client.unsubscribe_topic(topic)


def attach(client, notebook, input_path: str | None) -> None:
    """Log the executed notebook to the MLflow runs that it opened, if any.

    On a worker, which keeps MLflow imported from one notebook to the next; a fresh process takes two seconds for it.
    A failure is only told: what the notebook did is done.
    """
    from workshop.models.tracking import attach_notebook, runs_of_notebook

    if not runs_of_notebook(notebook):
        return
    name = Path(input_path or "notebook.ipynb").name
    try:
        client.submit(attach_notebook, _plain(notebook), name, get_settings().tracking_uri, pure=False).result()
    except Exception as error:  # noqa: BLE001 - whatever it was, it must not hide how the notebook ended
        logger.warning("The executed notebook was not logged to its run: %s", error)


@contextlib.contextmanager
def connect():
    """Yield a client of the cluster to run on; close what was opened for the call.

    That is DASK_SCHEDULER_ADDRESS (or Dask's own configuration), else the cluster that `workshop up` started, else a
    local one of one worker for the call. Raises EngineError when the scheduler does not answer or has no worker.
    """
    import dask
    from distributed import Client, LocalCluster

    # papermill logs at INFO; what Dask's own parts say at that level is not about the notebook.
    logging.getLogger("distributed").setLevel(logging.WARNING)

    address = dask.config.get("scheduler-address", None)
    if address is None and get_settings().is_up:
        address = get_settings().scheduler_address
    with contextlib.ExitStack() as stack:
        if address is None:
            logger.info("No scheduler address is set: starting a local Dask cluster for this notebook.")
            # Dask's own default for the page, ":0", listens on every interface.
            cluster = LocalCluster(
                n_workers=1, threads_per_worker=1, resources={"notebook": 1}, dashboard_address="127.0.0.1:0"
            )
            stack.enter_context(cluster)
            address = cluster.scheduler_address
        try:
            client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise EngineError(
                "The Dask scheduler does not answer.",
                value=f"{address} ({error})",
                expected="the address of a running scheduler",
                next_step="`workshop up` starts one; DASK_SCHEDULER_ADDRESS names another",
            ) from None
        stack.enter_context(client)
        if not client.scheduler_info(n_workers=1)["workers"]:
            raise EngineError(
                "The Dask cluster has no worker.",
                value=address,
                expected="at least one worker",
                next_step="`workshop status` shows what runs; a worker's log lies in server/state/logs",
            )
        yield client


def _resources(client) -> dict[str, float] | None:
    """Return one unit of `notebook` where workers declare it: seceding lifts Dask's own limit (one task a thread)."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return {"notebook": 1} if any("notebook" in worker.get("resources", {}) for worker in workers) else None


def _environment() -> dict[str, str]:
    """Return the variables that the kernel shall see as the client does; secrets stay at home."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(FORWARDED_PREFIXES) and not any(word in name for word in SECRET_WORDS)
    }


def _plain(notebook) -> dict:
    """Return the notebook as plain dicts and lists, which unpickle without nbformat."""
    return json.loads(json.dumps(notebook))


def _follow(future, events: queue.SimpleQueue, nb_man, echo) -> None:
    """Show each cell as its events come, then what the task returned; raise what ended the notebook."""
    seen = 0
    while not (future.done() and events.empty()):
        with contextlib.suppress(queue.Empty):
            _apply(events.get(timeout=POLL_SECONDS), nb_man, echo)
            seen += 1
    result = _result(future)
    while seen < result["events"]:
        try:
            _apply(events.get(timeout=LAST_EVENTS_SECONDS), nb_man, echo)
        except queue.Empty:
            break  # an event was lost on the way; the notebook itself has come back whole
        seen += 1
    for cell, returned in zip(nb_man.nb.cells, result["notebook"]["cells"], strict=True):
        _copy_cell(cell, returned)
    metadata = {name: value for name, value in result["notebook"]["metadata"].items() if name != "papermill"}
    nb_man.nb.metadata.update(_nodes(metadata))
    if result["error"] is not None:
        raise result["error"]


def _apply(event: dict, nb_man, echo) -> None:
    """Bring one event into the notebook as papermill's own engine would have."""
    index = event["index"]
    cell = nb_man.nb.cells[index]
    if event["kind"] == "start":
        nb_man.cell_start(cell, index)
        return
    _copy_cell(cell, event["cell"])
    for output in cell.get("outputs", []) if echo else []:
        echo(output)
    if event["failed"]:
        nb_man.cell_exception(cell, cell_index=index)
    nb_man.cell_complete(cell, cell_index=index)


def _copy_cell(cell, returned: dict) -> None:
    """Take outputs, count and metadata of the cell that ran; papermill's own metadata is kept by the client."""
    returned = _nodes(returned)
    for field in ("outputs", "execution_count"):
        if field in returned:
            cell[field] = returned[field]
    cell.metadata.update({name: value for name, value in returned["metadata"].items() if name != "papermill"})


def _nodes(value):
    """Return nbformat nodes of plain dicts."""
    import nbformat

    return nbformat.from_dict(value)


def _result(future) -> dict:
    """Return what the task returned; a lost worker becomes an error in words."""
    from distributed.scheduler import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        raise EngineError(
            "The Dask worker that ran the notebook was lost.",
            value=str(error).split(".")[0],
            expected="a worker that lives until the notebook ends",
            next_step="see the worker's log (`workshop status`), then run the notebook again; it was not repeated",
        ) from None
