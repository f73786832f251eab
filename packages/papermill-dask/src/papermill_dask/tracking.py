"""Link notebooks to their MLflow runs, if MLflow is installed.

Each run is tagged with the key of its Dask task and the commit of the client's folder. Runs that a failed notebook left
open are terminated. The executed notebook and its HTML page become artifacts of the runs.
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

import yaml

if TYPE_CHECKING:
    from distributed import Worker

URI_VARIABLE = "MLFLOW_TRACKING_URI"
TASK_VARIABLE = "PAPERMILL_DASK_TASK"  # set for the kernel: the key of its Dask task
COMMIT_VARIABLE = "PAPERMILL_DASK_COMMIT"  # set for the kernel: the commit of the client's folder
CHANGES_VARIABLE = "PAPERMILL_DASK_CHANGES"  # set for the kernel: that folder's changed tracked files, one per line
TASK_TAG = "papermill_dask.task"
NOTEBOOK_TAG = "papermill_dask.notebook."  # + the executed notebook's name; value: the notebook's sha256
PAGE_TAG = "papermill_dask.page."  # + the executed notebook's name; value: path of the HTML artifact
COMMIT_TAG = "mlflow.source.git.commit"
DIRTY_TAG = "mlflow.source.git.dirty"  # as MLflow's autologging: "true" or "false"
MAX_CHANGES = 100
CONNECT_SECONDS = 2.0
PAGE_SECONDS, CHECK_SECONDS = 30.0, 0.2


def is_installed() -> bool:
    """Return whether MLflow is installed."""
    return importlib.util.find_spec("mlflow") is not None


class TaskContext:
    """MLflow run context provider that tags a notebook's runs with its task and commit.

    Entry point ``mlflow.run_context_provider``. It has no base class, because MLflow loads it during its own import.
    """

    def in_context(self) -> bool:
        """Return whether this process is a kernel on the cluster."""
        return TASK_VARIABLE in os.environ

    def tags(self) -> dict[str, str]:
        """Return the tags for new runs."""
        variables = {TASK_TAG: TASK_VARIABLE, COMMIT_TAG: COMMIT_VARIABLE, DIRTY_TAG: CHANGES_VARIABLE}
        tags = {tag: os.environ[name] for tag, name in variables.items() if name in os.environ}
        return tags | {DIRTY_TAG: str(bool(tags[DIRTY_TAG])).lower()} if DIRTY_TAG in tags else tags


class NotebookRuns:
    """The MLflow ``runs`` of a task, sorted by start time, each with id, status and metrics."""

    def __init__(self, task: str, environment: Mapping[str, str]) -> None:
        self._task, self._uri = task, environment.get(URI_VARIABLE) if is_installed() else None
        self.runs: list[dict[str, Any]] = []
        if self._uri:  # import MLflow in the background, before `find` needs it
            threading.Thread(target=importlib.import_module, args=("mlflow",), daemon=True).start()

    def check_reachable(self, logger: logging.Logger) -> None:
        """Log a warning if the tracking server is unreachable; raise no error, because many notebooks log no runs."""
        if self._uri and not _is_reachable(self._uri):
            logger.warning(
                "The worker on %s cannot reach the MLflow tracking server (%s=%s). Start the server, or set the "
                "variable to a URI that the workers can reach. Ignore this if the notebook logs no runs.",
                socket.gethostname(), URI_VARIABLE, self._uri,
            )  # fmt: skip

    def find(self) -> None:
        """Find the runs while the kernel is alive, because MLflow marks open runs as finished when the kernel exits."""
        with contextlib.suppress(Exception):  # must not mask the notebook's own error
            if self._uri and _is_reachable(self._uri):
                from mlflow import MlflowClient

                client = MlflowClient(self._uri)
                experiments = [experiment.experiment_id for experiment in client.search_experiments()]
                task_filter = f"tags.`{TASK_TAG}` = '{self._task}'"
                self.runs = [
                    {"run_id": run.info.run_id, "status": run.info.status, "metrics": dict(run.data.metrics)}
                    for run in client.search_runs(experiments, task_filter, order_by=["attributes.start_time"])
                ]

    def end(self, status: str) -> None:
        """Set open runs to ``status``: ``KILLED`` or ``FAILED``."""
        # MLflow prints a link to standard output, which may carry the notebook itself (`papermill IN -`).
        with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
            for run in self.runs:
                if run["status"] == "RUNNING":
                    from mlflow import MlflowClient

                    MlflowClient(self._uri).set_terminated(run["run_id"], status)


def log_notebook(notebook: dict[str, Any], name: str, run_ids: list[str], uri: str) -> None:
    """Log an executed notebook as ``notebook/<name>`` to its runs; log its HTML page in the background."""
    from distributed import get_worker
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    text = json.dumps(notebook, indent=1)
    for run_id in run_ids:
        client.log_text(run_id, text, f"notebook/{name}")
        client.set_tag(run_id, NOTEBOOK_TAG + name, hashlib.sha256(text.encode()).hexdigest())
    if importlib.util.find_spec("nbconvert"):
        # Use the actor executor: it occupies no notebook slot, and a closing local cluster waits for it.
        worker, deadline = get_worker(), time.monotonic() + PAGE_SECONDS
        worker.executors["actor"].submit(_log_page, notebook, name, run_ids, client, worker, deadline)


def _log_page(
    notebook: dict[str, Any], name: str, run_ids: list[str], client: Any, worker: Worker, deadline: float
) -> None:
    """Log the HTML page of an executed notebook once this worker is idle or closing, or at the ``deadline``."""
    try:
        from papermill_dask import page

        while worker.state.all_running_tasks and worker.status.name == "running" and time.monotonic() < deadline:
            time.sleep(CHECK_SECONDS)
        text, path = page.convert(notebook, name), f"notebook/{Path(name).stem}.html"
        for run_id in run_ids:
            client.log_text(run_id, text, path)
            client.set_tag(run_id, PAGE_TAG + name, path)
    except Exception as error:  # noqa: BLE001 - the notebook itself is already logged
        message = "Logging the HTML page of the executed notebook %s to its run failed: %s"
        logging.getLogger(__name__).warning(message, name, error)


def default_variables() -> dict[str, str]:
    """Return the tracking URI variable for `mlflow.db` in the current folder, if this file exists and no URI is set.

    Set this variable only on workers that see the folder.
    """
    file = Path(str(Path.cwd()).partition("/.dvc/tmp/exps/")[0], "mlflow.db")  # `dvc exp run --temp` works in a copy
    is_chosen = is_installed() and not os.environ.get(URI_VARIABLE) and file.exists()
    return {URI_VARIABLE: f"sqlite:///{file}"} if is_chosen else {}


# -- the commit ----------------------------------------------------------------------------------------------------
def git_state(folder: Path | None = None) -> tuple[str, list[str]] | None:
    """Return the commit of a folder's repository and its changed tracked files, without those that DVC writes.

    DVC writes dvc.lock and the outs of its stages, which may be tracked (`cache: false`). In a kernel on the cluster
    the result describes the client's folder, which the worker may not see.

    Parameters
    ----------
    folder : Path, optional
        A folder in the repository; the current folder by default.

    Returns
    -------
    tuple of str and list of str, or None
        Commit hash and changed files (at most 100); None outside of a repository.
    """
    if COMMIT_VARIABLE in os.environ:
        return os.environ[COMMIT_VARIABLE], os.environ.get(CHANGES_VARIABLE, "").splitlines()

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=30
        ).stdout

    try:
        made = [f":(exclude,literal){out}" for out in _outs(folder or Path.cwd())]
        paths = (":/", ":(exclude,top,glob)**/dvc.lock", *made)
        changes = git("status", "--porcelain", "--untracked-files=no", "--", *paths).splitlines()
        return git("rev-parse", "HEAD").strip(), [line[3:] for line in changes[:MAX_CHANGES]]
    except (OSError, subprocess.SubprocessError):
        return None


def _outs(folder: Path) -> list[str]:
    """Return the outs recorded in a folder's dvc.lock, relative to the folder."""
    with contextlib.suppress(Exception):  # no such file, or an invalid one
        stages = yaml.load((folder / "dvc.lock").read_text(), yaml.CSafeLoader)["stages"]
        return [out["path"] for stage in stages.values() for out in stage.get("outs", ())]
    return []


def git_variables() -> dict[str, str]:
    """Return `git_state` of the current folder as environment variables for a kernel."""
    state = git_state() if is_installed() else None
    return {COMMIT_VARIABLE: state[0], CHANGES_VARIABLE: "\n".join(state[1])} if state else {}


def _is_reachable(uri: str) -> bool:
    """Return whether the server accepts connections; MLflow itself would retry for minutes."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return True
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
