"""One attempt at a notebook: a task on one worker, followed by its events and shown in papermill's notebook."""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import json
import os
import pickle
import time
import uuid
from pathlib import Path
from typing import Any

import nbformat
from distributed import wait
from jupyter_client.jsonutil import parse_date
from nbclient.exceptions import CellExecutionComplete
from papermill.clientwrap import PapermillNotebookClient
from papermill.log import logger
from papermill.utils import merge_kwargs, remove_args

from papermill_dask import cluster, placement
from papermill_dask.events import EventReceiver
from papermill_dask.executed import ExecutedNotebook
from papermill_dask.files.declaration import Declaration, declared
from papermill_dask.worker import LOST, Place, Task, WorkerLost, collected, release, run_notebook
from workshop.engine.repro.alone import STAGE, RunningStage
from workshop.errors import EngineError
from workshop.settings import NotebookOptions, get_settings

FORWARDED = ("DVC_*", "MLFLOW_*", "WORKSHOP_*")
CLIENTS_OWN = ("WORKSHOP_ROOT", "WORKSHOP_STATE")  # paths of the client, which mean nothing on another machine
SECRET_WORDS = ("PASSWORD", "TOKEN", "SECRET", "KEY")
POLL_SECONDS = 0.1
WAITING_SECONDS = 2.0
PLACING_SECONDS = 0.3
SETTLE_SECONDS = 1.0
SILENCE_SECONDS = 4.0
PROBE_SECONDS = 1.5
ANSWER_SECONDS = 30.0  # from a worker that is busy, but there


class Attempt:
    """One run of a notebook on one worker, told by the worker's events and shown in papermill's notebook."""

    def __init__(
        self,
        executed: ExecutedNotebook,
        kernel_name: str,
        client,
        workers: list[cluster.Worker],
        options: NotebookOptions,
        *,
        log_output=False,
        stdout_file=None,
        stderr_file=None,
        start_timeout=60,
        execution_timeout=None,
        input_path=None,
        task=None,
        **keywords: Any,
    ) -> None:
        self._executed, self._client, self._options = executed, client, options
        self._workers = {worker.address: worker for worker in workers}
        # Never starts a kernel: it does with the kernel's messages what it would do if it had one.
        self._log = PapermillNotebookClient(
            executed,
            log=logger,
            log_output=log_output,
            stdout_file=stdout_file,
            stderr_file=stderr_file,
            record_timing=keywords.get("record_timing", True),
        )
        # papermill also takes a notebook itself as input.
        name = Path(input_path).stem if isinstance(input_path, str) else "notebook"
        # Dask's pages group tasks by what stands before the hexadecimal part: the notebook's name.
        self._key = task or f"{name}-{uuid.uuid4().hex[:8]}"
        self._task = Task(
            notebook=json.loads(json.dumps(executed.nb)),  # plain dicts, which unpickle without nbformat
            name=name,
            kernel_name=kernel_name,
            topic=f"workshop-{self._key}",
            options=merge_kwargs(
                remove_args(["timeout", "startup_timeout"], **keywords),
                timeout=execution_timeout or keywords.get("timeout"),
                startup_timeout=start_timeout,
            ),
            tracking_uri=tracking_uri(),
            stage=stage_id(),
            max_output=options.max_output,
        )
        self._declaration: Declaration | None = None
        self._scratch: str | None = None
        self._shows_progress = executed.pbar is not None
        self.worker: str | None = None

    def run(self, resources: dict[str, float]) -> None:
        """Submit the task, follow it to its end, and leave nothing of it; raises what ended it early."""
        self._events = EventReceiver(self._client, self._task.topic)
        chosen = placement.place(self._client, self._key, list(self._workers), resources)
        future = self._client.submit(
            run_notebook,
            self._task,
            key=self._key,
            pure=False,
            retries=0,
            resources=resources or None,
            workers=[chosen] if chosen else list(self._workers),
            allow_other_workers=False,
        )
        try:
            self._follow(future, resources)
            if not resources:  # who gets this notebook's lease is placed by what the scheduler knows
                with contextlib.suppress(TimeoutError):
                    wait(future, timeout=SETTLE_SECONDS)
            placement.give_back(self._client, self._key)
        except WorkerLost:
            self._scratch = None  # out of reach: the worker, or the next one there, removes it
            raise
        finally:
            if self._client.status == "running":
                future.cancel()  # does nothing to what is done; what still runs is ended by its worker
                self._remove_files()
            self._events.close()

    def _follow(self, future, resources: dict[str, float]) -> None:
        looked = placed = time.monotonic()
        said = False
        while True:
            event = self._events.get(POLL_SECONDS)
            if event is not None:
                if event["kind"] == "done" and self.worker is not None:
                    return self._finish(event)
                getattr(self, f"_on_{event['kind']}")(event)
                continue
            self._executed.autosave_cell()
            if future.status == "error":
                future.result()  # the task itself could not run
            if self._client.status != "running":
                raise WorkerLost("The Dask scheduler was lost.", **LOST)
            if self.worker is not None:
                self._check_contact()
                continue
            now = time.monotonic()
            if now - placed > PLACING_SECONDS:
                placement.place(self._client, self._key, list(self._workers), resources)
                placed = now
            if now - looked > WAITING_SECONDS:
                self._check_workers()
                looked = now
                if not said:
                    said = True
                    logger.info("Waiting for a free worker: all that suit this notebook are busy.")

    # -- events ------------------------------------------------------------------------------------------------
    def _on_begin(self, event: dict[str, Any]) -> None:
        if self.worker is not None:
            return  # Dask repeats the task after it lost the worker; it is never released
        self.worker = event["worker"]
        self._events.watch(self.worker)
        worker = self._workers[self.worker]
        folder, environment = str(Path.cwd()), forwarded_environment(self._options, worker)
        if not worker.sees_folder:
            folder = self._send_files()
        is_scratch, is_remote = self._scratch is not None, not worker.is_local
        place = Place(folder, environment, umask(), is_scratch=is_scratch, is_remote=is_remote)
        self._tell(release, self._key, place)

    def _on_start(self, event: dict[str, Any]) -> None:
        cell = self._executed.nb.cells[event["index"]]
        self._log.clear_before_next_output = False
        self._executed.cell_start(cell, event["index"])

    def _on_message(self, event: dict[str, Any]) -> None:
        message, index = event["message"], event["index"]
        cell = self._executed.nb.cells[index]
        if self._log.record_timing:
            cell.metadata.setdefault("execution", {})
        message["header"]["date"] = parse_date(message["header"]["date"])
        self._executed.output_came()
        with contextlib.suppress(CellExecutionComplete):
            self._log.process_message(message, cell, index)

    def _on_end(self, event: dict[str, Any]) -> None:
        cell = self._executed.nb.cells[event["index"]]
        cell.metadata.update(event["metadata"])
        if cell.cell_type == "code":
            cell["execution_count"] = event["execution_count"]
            if event["outputs"] is not None:
                cell["outputs"] = nbformat.from_dict(event["outputs"])
        if event["failed"]:
            self._executed.cell_exception(cell, cell_index=event["index"])
        self._executed.cell_complete(cell, cell_index=event["index"])

    def _on_log(self, event: dict[str, Any]) -> None:
        logger.log(event["level"], "%s", event["text"])

    def _on_beat(self, _: dict[str, Any]) -> None:
        """Nothing to do: that it came is the message."""

    def _on_collect(self, _: dict[str, Any]) -> None:
        from papermill_dask.files.transfer import fetch

        fetch(self._client, self.worker, self._scratch, Path.cwd(), self._declaration, progress=self._shows_progress)
        self._tell(collected, self._key)

    def _on_lost(self, _: dict[str, Any]) -> None:
        raise WorkerLost("The Dask worker that ran the notebook was lost.", value=self.worker, **LOST)

    def _finish(self, event: dict[str, Any]) -> None:
        metadata = {name: value for name, value in event["metadata"].items() if name != "papermill"}
        self._executed.nb.metadata.update(nbformat.from_dict(metadata))
        if event["error"] is not None:
            raise pickle.loads(base64.b64decode(event["error"]))  # noqa: S301 - from the cluster, which runs our code

    # -- files, where there is no shared disk ------------------------------------------------------------------
    def _send_files(self) -> str:
        """Bring the notebook's deps to the worker; return the scratch folder there."""
        from papermill_dask.files.transfer import send

        self._declaration = declaration(self._options, self._executed.output_path)
        if not self._declaration.deps and not self._declaration.outs:
            logger.warning(
                "The worker %s does not see this folder, and nothing is declared to travel: the notebook runs in an "
                "empty folder (options deps and outs, or the stage in dvc.yaml).", self.worker
            )  # fmt: skip
        self._scratch = send(self._client, self.worker, Path.cwd(), self._declaration, progress=self._shows_progress)
        return self._scratch

    def _remove_files(self) -> None:
        if self._scratch is not None:
            from papermill_dask.files.transfer import remove

            with contextlib.suppress(EngineError):  # the worker removes what is left by itself, later
                remove(self._client, self.worker, self._scratch)

    # -- contact -----------------------------------------------------------------------------------------------
    def _tell(self, function, *arguments) -> None:
        run = self._client._run  # what `Client.run` does, but not for ever: the network may be cut just now
        try:
            self._client.sync(run, function, *arguments, workers=[self.worker], callback_timeout=ANSWER_SECONDS)
        except (OSError, KeyError, ValueError) as error:
            raise WorkerLost(
                "The Dask worker that ran the notebook was lost.", value=f"{self.worker} ({error!r})", **LOST
            ) from None

    def _check_workers(self) -> None:
        """Raise WorkerLost when none is left of the workers for which the task waits; Dask itself waits for ever."""
        known = self._client.scheduler_info(n_workers=-1)["workers"]
        if not self._workers.keys() & known.keys():
            raise WorkerLost(
                "All Dask workers that suit the notebook are gone.", value=", ".join(self._workers), **LOST
            )

    def _check_contact(self) -> None:
        """Raise WorkerLost when nothing was heard for a while, and the worker is out of the scheduler's reach, too."""
        if time.monotonic() - self._events.heard < SILENCE_SECONDS:
            return
        if reason := cluster.lost_contact(self._client, self.worker, PROBE_SECONDS):
            raise WorkerLost(reason, value=self.worker, **LOST)
        self._events.heard = time.monotonic()  # it is there, and busy

    def end_open_runs(self) -> None:
        """End the MLflow runs that the notebook left open: its worker, which else does it, is lost."""
        from workshop.models.tracking import end_runs, open_runs

        if self._task.tracking_uri:
            with contextlib.suppress(Exception):  # it must not hide how the notebook ended
                end_runs(open_runs(self._key, self._task.tracking_uri), "FAILED", self._task.tracking_uri)


def declaration(options: NotebookOptions, output_path: str | None) -> Declaration:
    """Return what travels to a worker without shared disk: what the options say, else what the DVC stage declares."""
    stage = os.environ.get(STAGE)
    if options.deps is not None or options.outs is not None or not stage:
        return Declaration(deps=tuple(options.deps or ()), outs=tuple(options.outs or ()))
    return declared(Path.cwd(), stage, written_here=[Path(output_path)] if output_path else [])


def stage_id() -> str | None:
    """Return what tells this stage of this repository from all others; None outside of a DVC stage."""
    stage = RunningStage.of_environment()
    return str(stage) if stage else None


def tracking_uri() -> str | None:
    """Return the tracking server that notebooks are told of: MLFLOW_TRACKING_URI, else that of `workshop up`."""
    from workshop.models.tracking import own_or_given_uri

    settings = get_settings()
    return own_or_given_uri(settings) if settings.mlflow_tracking_uri or settings.is_up else None


def umask() -> int:
    """Return the umask of this process, which a program can only read by setting another for a moment."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def forwarded_environment(options: NotebookOptions, worker: cluster.Worker) -> dict[str, str]:
    """Return the variables that the kernel shall see as the client does; secrets stay at home unless asked for.

    The commit is that of the client's folder: the worker may know another, or none.
    """
    from workshop.models.tracking import git_variables

    found = {
        name: value
        for name, value in os.environ.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in options.environment)
        or (
            any(fnmatch.fnmatchcase(name, pattern) for pattern in FORWARDED)
            and not any(word in name for word in SECRET_WORDS)
        )
    }
    if worker.sees_folder:
        return found | git_variables()
    found = {name: value for name, value in found.items() if name not in CLIENTS_OWN}
    if uri := tracking_uri():
        found["MLFLOW_TRACKING_URI"] = uri
    return found | git_variables()
