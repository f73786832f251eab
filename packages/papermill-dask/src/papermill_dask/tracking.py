"""Connects a notebook with its MLflow runs, if MLflow is installed.

Each run that a notebook starts is tagged with the key of its task and the commit of the client's folder. Runs that a
dead notebook left open are ended. The executed notebook becomes an artifact of its runs, as a page, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from distributed import Worker

URI_VARIABLE = "MLFLOW_TRACKING_URI"
TASK_VARIABLE = "PAPERMILL_DASK_TASK"  # in the kernel's environment: which task of the cluster it is
COMMIT_VARIABLE = "PAPERMILL_DASK_COMMIT"  # likewise: the commit of the client's folder
CHANGES_VARIABLE = "PAPERMILL_DASK_CHANGES"  # and the tracked files that differ from it, a line each
TASK_TAG = "papermill_dask.task"
NOTEBOOK_TAG = "papermill_dask.notebook."  # and an executed notebook's name: its sha256
PAGE_TAG = "papermill_dask.page."  # and its name: the artifact that shows it in a browser
COMMIT_TAG = "mlflow.source.git.commit"
MAX_CHANGES = 100
CONNECT_SECONDS = 2.0
PAGE_SECONDS, CHECK_SECONDS = 30.0, 0.2


def is_installed() -> bool:
    """Return whether MLflow is installed."""
    return importlib.util.find_spec("mlflow") is not None


class TaskContext:
    """Tags every run that a notebook on the cluster starts with its task and its commit.

    It is a run context provider of MLflow (entry point ``mlflow.run_context_provider``). It has no base class, because
    MLflow loads it during its own import.
    """

    def in_context(self) -> bool:
        """Return whether this process is a notebook's kernel on the cluster."""
        return TASK_VARIABLE in os.environ

    def tags(self) -> dict[str, str]:
        """Return the tags."""
        variables = {TASK_TAG: TASK_VARIABLE, COMMIT_TAG: COMMIT_VARIABLE}
        return {tag: os.environ[name] for tag, name in variables.items() if name in os.environ}


class NotebookRuns:
    """The MLflow ``runs`` of a task, the first run first: their ids, statuses and metrics."""

    def __init__(self, task: str, environment: Mapping[str, str]) -> None:
        self._task, self._uri = task, environment.get(URI_VARIABLE) if is_installed() else None
        self.runs: list[dict[str, Any]] = []
        if self._uri:  # imported before the first notebook of this worker ends
            threading.Thread(target=importlib.import_module, args=("mlflow",), daemon=True).start()

    def check_reachable(self, logger: logging.Logger) -> None:
        """Warn when the tracking server does not answer on this machine; many notebooks track nothing."""
        if self._uri and not _answers(self._uri):
            logger.warning(
                "The worker on %s cannot reach the MLflow tracking server (%s=%s). Start it, or set the "
                "variable to an address that the workers reach; a notebook that tracks nothing needs none.",
                socket.gethostname(), URI_VARIABLE, self._uri,
            )  # fmt: skip

    def find(self) -> None:
        """Find the runs while the kernel runs: at its exit MLflow would end them as successful."""
        with contextlib.suppress(Exception):  # no error here may hide how the notebook ended
            if self._uri and _answers(self._uri):
                from mlflow import MlflowClient

                client = MlflowClient(self._uri)
                experiments = [experiment.experiment_id for experiment in client.search_experiments()]
                these = f"tags.`{TASK_TAG}` = '{self._task}'"
                self.runs = [
                    {"run_id": run.info.run_id, "status": run.info.status, "metrics": dict(run.data.metrics)}
                    for run in client.search_runs(experiments, these, order_by=["attributes.start_time"])
                ]

    def end(self, status: str) -> None:
        """End the runs that the notebook left open as ``KILLED`` or ``FAILED``."""
        # MLflow prints a link; standard output may be a notebook's.
        with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
            for run in self.runs:
                if run["status"] == "RUNNING":
                    from mlflow import MlflowClient

                    MlflowClient(self._uri).set_terminated(run["run_id"], status)


def attach(notebook: dict[str, Any], name: str, run_ids: list[str], uri: str) -> None:
    """Log an executed notebook as ``notebook/<name>`` to runs; nothing waits for its page."""
    from distributed import get_worker
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    text = json.dumps(notebook, indent=1)
    for run_id in run_ids:
        client.log_text(run_id, text, f"notebook/{name}")
        client.set_tag(run_id, NOTEBOOK_TAG + name, hashlib.sha256(text.encode()).hexdigest())
    if importlib.util.find_spec("nbconvert"):
        # Its thread is no slot for notebooks, and a local cluster that closes waits for it.
        worker, deadline = get_worker(), time.monotonic() + PAGE_SECONDS
        worker.executors["actor"].submit(_attach_page, notebook, name, run_ids, client, worker, deadline)


def _attach_page(
    notebook: dict[str, Any], name: str, run_ids: list[str], client: Any, worker: Worker, deadline: float
) -> None:
    """Log an executed notebook as an HTML page beside itself, once this worker has nothing else to do."""
    try:
        from papermill_dask import page

        while worker.state.all_running_tasks and worker.status.name == "running" and time.monotonic() < deadline:
            time.sleep(CHECK_SECONDS)
        text, path = page.convert(notebook, name), f"notebook/{Path(name).stem}.html"
        for run_id in run_ids:
            client.log_text(run_id, text, path)
            client.set_tag(run_id, PAGE_TAG + name, path)
    except Exception as error:  # noqa: BLE001 - the notebook itself is logged
        words = "The page of the executed notebook %s was not logged to its run: %s"
        logging.getLogger(__name__).warning(words, name, error)


def default_variables() -> dict[str, str]:
    """Return MLFLOW_TRACKING_URI as MLflow itself chooses it in the current folder: its `mlflow.db`, if it is there.

    Empty if the variable is set. A worker that does not see the folder cannot use it.
    """
    file = Path(str(Path.cwd()).partition("/.dvc/tmp/exps/")[0], "mlflow.db")  # `dvc exp run --temp` works in a copy
    is_chosen = is_installed() and not os.environ.get(URI_VARIABLE) and file.exists()
    return {URI_VARIABLE: f"sqlite:///{file}"} if is_chosen else {}


# -- the commit ----------------------------------------------------------------------------------------------------
def git_state(folder: Path | None = None) -> tuple[str, list[str]] | None:
    """Return the commit of a folder's repository and the tracked files that differ from it; None outside of one.

    In a kernel on the cluster these are of the client's folder, which the worker may not see.
    """
    if COMMIT_VARIABLE in os.environ:
        return os.environ[COMMIT_VARIABLE], os.environ.get(CHANGES_VARIABLE, "").splitlines()

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=30
        ).stdout

    try:
        changes = git("status", "--porcelain", "--untracked-files=no").splitlines()
        return git("rev-parse", "HEAD").strip(), [line[3:] for line in changes[:MAX_CHANGES]]
    except (OSError, subprocess.SubprocessError):
        return None


def git_variables() -> dict[str, str]:
    """Return `git_state` of the current folder as variables, for a kernel on another machine."""
    state = git_state() if is_installed() else None
    return {COMMIT_VARIABLE: state[0], CHANGES_VARIABLE: "\n".join(state[1])} if state else {}


def _answers(uri: str) -> bool:
    """Return whether a server accepts connections at an address; MLflow itself would try for minutes."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return True
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
