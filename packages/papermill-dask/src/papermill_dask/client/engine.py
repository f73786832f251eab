"""The papermill engine `dask`, on the client: executes a notebook on the cluster."""

from __future__ import annotations

import atexit
import contextlib
import fnmatch
import functools
import gc
import json
import os
import pickle
import queue
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from distributed import Client, Future, KilledWorker
from jupyter_client.jsonutil import parse_date
from nbclient.exceptions import CellExecutionComplete
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NotebookExecutionManager
from papermill.iorw import LocalHandler, papermill_io
from papermill.log import logger

from papermill_dask import compat, tracking
from papermill_dask.client import cluster, stage
from papermill_dask.config import METADATA, OPTIONS, RESULTS, NotebookOptions, tags_of
from papermill_dask.failures import FULL_DISK, LOST, EngineError, WorkerLost
from papermill_dask.task import Task
from papermill_dask.worker.notebook import run_notebook

FORWARDED = ("DVC_*", "MLFLOW_*", "PYDEVD_*")  # papermill's command line sets the last
SECRET_WORDS = ("PASSWORD", "TOKEN", "SECRET", "KEY")
POLL_SECONDS = 0.1
SILENCE_SECONDS = 3.0
PROBE_SECONDS = 1.5
RESTART_SECONDS = 30  # for a nanny that starts the next worker
ATTACH_SECONDS = 120
EARLIER_SECONDS = 0.2
SAVE_SECONDS = 1.0
SAVE_SHARE = 0.05  # of the time, at most, for saving
# Compile the schema of notebooks, once for all programs that are forked from a process with this module.
nbformat.validate(nbformat.v4.new_notebook())
# Dask's modules have many objects; without this the interpreter would search them for 0.2 s at its end.
atexit.register(gc.freeze)


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


class ExecutedNotebook(NotebookExecutionManager):
    """The executed notebook on the client's disk: saved whole, soon after each output, with the true status of cells.

    papermill itself marks cells that never ran as completed when a kernel dies or a cell times out.
    """

    SKIPPED = "skipped"
    output_path: str | None
    skip_tags: frozenset[str] = frozenset()
    has_changed = False
    _save_seconds = 0.0

    def notebook_start(self, **_: Any) -> None:
        """Reset the notebook as papermill does, and mark the cells that are not run."""
        super().notebook_start()
        for cell in self.nb.cells:
            if tags_of([cell]) & self.skip_tags:
                cell.metadata.papermill["status"] = self.SKIPPED

    def is_skipped(self, index: int) -> bool:
        """Return whether a cell is not run."""
        return self.nb.cells[index].metadata.papermill["status"] == self.SKIPPED

    def save(self, **_: Any) -> None:
        """Write the notebook to a hidden file, and put that in place; raise EngineError if it cannot be written."""
        began, target, file = time.monotonic(), self.output_path, _local_file(self.output_path)
        partial = file and file.with_name(f".{uuid.uuid4().hex}.ipynb")  # a name may be as long as the system allows
        try:
            if partial:
                self.output_path = str(partial)
            super().save()
            if file and partial:
                put_in_place(partial, file)
        except OSError as error:
            if partial:
                partial.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):
                raise  # no such folder: papermill's own error is clear
            raise EngineError(
                f"The executed notebook cannot be saved{'; the last saved version is whole' if partial else ''}.",
                value=f"{target}: {error}".partition("\n")[0],  # pyarrow lists each place without Java
                next_step=f"{'free space, or ' if error.errno in FULL_DISK else ''}write elsewhere; then run it again",
            ) from None
        finally:
            self.output_path = target
        self.has_changed = False
        self._save_seconds = time.monotonic() - began

    def autosave_cell(self) -> None:
        """Save new outputs when a save is due: soon, unless saving takes long or is turned off."""
        seconds = (self.now() - self.last_save_time).total_seconds()
        due = min(self.autosave_cell_every, max(SAVE_SECONDS, self._save_seconds / SAVE_SHARE))
        if self.autosave_cell_every and self.has_changed and seconds >= due:
            self.save()

    def mark_aborted(self) -> None:
        """Mark the running cell as failed and leave the cells after it pending: the notebook was ended early."""
        self.nb.metadata.papermill["exception"] = True
        for index, cell in enumerate(self.nb.cells):
            if cell.metadata.papermill["status"] == self.RUNNING:
                self.cell_exception(cell, cell_index=index)
                self.cell_complete(cell, cell_index=index)

    def notebook_complete(self, **_: Any) -> None:
        """Finish as papermill does, but leave cells pending that never ran."""
        pending_cells = [cell for cell in self.nb.cells if cell.metadata.papermill["status"] == self.PENDING]
        super().notebook_complete()
        if self.nb.metadata.papermill["exception"] and pending_cells:
            for cell in pending_cells:
                cell.metadata.papermill["status"] = self.PENDING
            self.save()


def put_in_place(new: Path, file: Path) -> None:
    """Move a new file to ``file``, whole or not at all; one that exists keeps its links, mode, owner and ACL.

    Raises OSError, and leaves both files: the old one may not be written to, or the disk is full.
    """
    try:
        stream = file.open("r+b")
    except FileNotFoundError:  # of a link, the file that it names
        shutil.move(new, os.path.realpath(file))
        return
    with stream:
        old, fresh = file.lstat(), new.stat()
        is_alone = not file.is_symlink() and old.st_nlink == 1
        if is_alone and (old.st_uid, old.st_gid) == (fresh.st_uid, fresh.st_gid):
            shutil.copystat(file, new)
            os.utime(new)
            with contextlib.suppress(OSError):  # a mount point
                new.replace(file)
                return
        content, size = new.read_bytes(), os.fstat(stream.fileno()).st_size
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error before the content changes
                os.posix_fallocate(stream.fileno(), 0, len(content))
        except OSError:
            stream.truncate(size)
            raise
        stream.write(content)
        stream.truncate()
    new.unlink()


def _local_file(path: str | None) -> Path | None:
    """Return the local file to which papermill writes ``path``; None if it is not a plain local file."""
    if not path or path == "-" or not isinstance(papermill_io.get_handler(path), LocalHandler):
        return None
    file = Path(compat.folder_of_papermills_files() or os.curdir, path).absolute()
    return file if file.is_file() or not file.exists() else None


class Attempt:
    """One run of a notebook on one worker: a Dask task, whose events update papermill's notebook."""

    def __init__(
        self,
        executed: ExecutedNotebook,
        kernel_name: str,
        client: Client,
        worker: cluster.Worker,
        options: NotebookOptions,
        *,
        input_path: object = None,
        start_timeout: int = 60,
        execution_timeout: int | None = None,
        **keywords: Any,
    ) -> None:
        self._executed, self._client, self.worker, self._options = executed, client, worker, options
        # This client starts no kernel: it processes the messages of the kernel on the worker.
        outputs = {option: keywords.pop(option, None) for option in ("log_output", "stdout_file", "stderr_file")}
        self._log = PapermillNotebookClient(
            executed, log=logger, record_timing=keywords.get("record_timing", True), **outputs
        )
        # papermill also takes a notebook itself as input.
        name = Path(input_path).stem if isinstance(input_path, str) else "notebook"
        # Dask's pages group tasks by the part before the hexadecimal one: the notebook's name.
        self.key = f"{name}-{uuid.uuid4().hex[:8]}"
        timeout = execution_timeout or keywords.get("timeout")
        self.environment = _forwarded_environment(options)
        if worker.sees_folder:
            self.environment |= tracking.default_variables()
        document = json.loads(json.dumps(executed.nb))  # plain dicts, which unpickle without nbformat
        for index in filter(executed.is_skipped, range(len(document["cells"]))):
            document["cells"][index]["source"] = ""  # nbclient does not run empty cells
        self._task = Task(
            notebook=document,
            name=name,
            kernel_name=kernel_name,
            options=keywords | {"startup_timeout": start_timeout, "timeout": timeout},
            worker=worker.id,
            folder=str(Path.cwd()),
            environment=self.environment,
            output=cluster.this_output(executed.output_path),
            resources=options.resources,
        )
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.runs: list[dict[str, Any]] = []  # the notebook's MLflow runs, once it has ended

    def run(self) -> None:
        """Submit the task, follow it to its end, and clean up; raise the error that ended it early."""
        client, task, address = self._client, self._task, self.worker.address
        with contextlib.ExitStack() as stack:
            declaration = None
            if not self.worker.sees_folder:
                from papermill_dask.client import transfer

                declaration = stage.declaration(self._options, self._executed.output_path)
                if not declaration.deps and not declaration.outs:
                    logger.warning(
                        "The worker %s does not see this folder, and no files are declared: the notebook runs "
                        "in an empty folder (options deps and outs, or the stage in dvc.yaml).", address
                    )  # fmt: skip
                task.folder = stack.enter_context(transfer.scratch_folder(client, address, Path.cwd(), declaration))
                task.is_scratch = True
            client.subscribe_topic(self.key, lambda event: self._events.put(json.loads(event[1])))
            stack.callback(compat.forget, client, self.key)
            # The notebook that lends the slot holds the resources already.
            resources = None if self.worker.lent_by else self._options.resources or None
            future = client.submit(run_notebook, task, key=self.key, pure=False, resources=resources, workers=[address])
            # The scheduler forgets a released task, and the worker then stops one that runs. `future.cancel()` would do
            # the same, but Dask reports it to all clients, which breaks connecting ones (`compat.new_client`).
            stack.callback(future.release)
            future.add_done_callback(lambda _: self._events.put({"kind": "done"}))
            ending = self._follow(future)
            if declaration and not ending["failed"]:  # a failed notebook's files are not the declared outs
                transfer.fetch(client, address, task.folder, Path.cwd(), declaration)
        metadata = {name: value for name, value in ending["metadata"].items() if name != "papermill"}
        self._executed.nb.metadata.update(nbformat.from_dict(metadata))
        self.runs = ending["runs"]
        if ending["error"] is not None:
            raise pickle.loads(ending["error"])  # noqa: S301 - from the cluster, which runs our code

    def _follow(self, future: Future[Any]) -> dict[str, Any]:
        """Show the task's events until it has ended; return its result."""
        last = time.monotonic()
        while True:
            try:
                event = self._events.get(timeout=POLL_SECONDS)
            except queue.Empty:
                event = {"kind": "silence"}
            else:
                last = time.monotonic()
            match event["kind"]:
                case "message":
                    self._show(event["message"], event["index"])
                case "start" | "end" if self._executed.is_skipped(event["index"]):
                    pass
                case "start":
                    self._log.clear_before_next_output = False
                    self._executed.cell_start(self._executed.nb.cells[event["index"]], event["index"])
                case "end":
                    self._end_cell(event)
                case "log":
                    logger.log(event["level"], "%s", event["text"])
                case "done":
                    return self._result(future)
                case "silence":
                    self._executed.autosave_cell()
                    if self._client.status != "running" or time.monotonic() - last > SILENCE_SECONDS:
                        if reason := cluster.lost_contact(self._client, self.worker.address, PROBE_SECONDS):
                            raise WorkerLost(reason, value=self.worker.address, **LOST)
                        last = time.monotonic()  # it is busy

    def _result(self, future: Future[Any]) -> dict[str, Any]:
        if self._client.status != "running":
            raise WorkerLost("The Dask scheduler was lost.", **LOST)
        if future.cancelled():
            raise EngineError("The notebook was stopped on its worker.", value="its task was cancelled")
        try:
            return future.result()
        except (OSError, KilledWorker):  # KilledWorker if the scheduler allows no failures
            what = "The Dask worker that ran the notebook was lost."
            raise WorkerLost(what, value=self.worker.address, **LOST) from None

    def _show(self, message: dict[str, Any], index: int) -> None:
        cell = self._executed.nb.cells[index]
        if self._log.record_timing:
            cell.metadata.setdefault("execution", {})
        message["header"]["date"] = parse_date(message["header"]["date"])
        self._executed.has_changed = True
        with contextlib.suppress(CellExecutionComplete):
            self._log.process_message(message, cell, index)

    def _end_cell(self, event: dict[str, Any]) -> None:
        cell = self._executed.nb.cells[event["index"]]
        cell.metadata.update(event["metadata"])
        if cell.cell_type == "code":
            cell["execution_count"] = event["execution_count"]
            if event["outputs"] is not None:
                cell["outputs"] = nbformat.from_dict(event["outputs"])
        if event["failed"]:
            self._executed.cell_exception(cell, cell_index=event["index"])
        self._executed.cell_complete(cell, cell_index=event["index"])


def _forwarded_environment(options: NotebookOptions) -> dict[str, str]:
    """Return the client's variables for the kernel; secrets only if the options name them.

    The commit is that of the client's folder, which the worker may not see.
    """

    def is_forwarded(name: str) -> bool:
        is_asked = any(fnmatch.fnmatchcase(name, pattern) for pattern in options.environment)
        is_usual = any(fnmatch.fnmatchcase(name, pattern) for pattern in FORWARDED)
        return is_asked or (is_usual and not any(word in name for word in SECRET_WORDS))

    return {name: value for name, value in os.environ.items() if is_forwarded(name)} | tracking.git_variables()
