"""A tracked run with its lineage: the commit, the data's hash, the stage, and the notebook that ran it."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop.errors import ServiceError
from workshop.models.heartbeat import heartbeat
from workshop.ownership import require_own
from workshop.settings import EXPERIMENT, EXPORT, MLFLOW_RETRIES, Settings, get_settings, loopback_without_proxy

if TYPE_CHECKING:
    import mlflow
    from plotly.graph_objects import Figure

ANSWER_SECONDS = 3.0
RUN_MIME_TYPE = "application/vnd.workshop.run+json"
STORE_ID_TAG = "workshop.store_id"
STAGE_TAG = "workshop.stage"
DATA_TAG = "workshop.data."  # and a file's name: its hash
LEARNED_TAG = "workshop.learned."  # and one of: table, first, last, hours, source, modelled
NOTEBOOK_TAG = "workshop.notebook."  # and an executed copy's name: its sha256
COMMIT_TAG = "mlflow.source.git.commit"
DIRTY_TAG = "workshop.git.dirty"
TASK_TAG = "workshop.task"
TASK_VARIABLE = "WORKSHOP_TASK"  # in the kernel's environment: which task of the cluster it is
PARENT_TAG = "mlflow.parentRunId"
PARENT_VARIABLE = "WORKSHOP_PARENT_RUN"  # likewise: under which run its own ones belong
GIT_VARIABLES = {"WORKSHOP_GIT_COMMIT": COMMIT_TAG, "WORKSHOP_GIT_DIRTY": DIRTY_TAG}
LOCAL_LOCK = "dvc.lock"  # names this machine's tracking store, so a change of it alone does not make a tree dirty


def connect(uri: str | None = None) -> mlflow.MlflowClient:
    """Point MLflow at the tracking server and return a client; raise ServiceError within seconds when it is dead.

    ``uri`` is the server's address, by default the one in the settings; that of our own server has to be ours.
    """
    # MLflow reads these when it is imported.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", MLFLOW_RETRIES)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for each few kilobytes
    # It would write a model's files again, between their digest and their upload (`loading.log_model`).
    os.environ.setdefault("MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING", "false")
    os.environ.update(loopback_without_proxy())
    uri = uri or own_or_given_uri()
    _check_server(uri)
    import mlflow

    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def own_or_given_uri(settings: Settings | None = None) -> str:
    """Return the address in the settings; raise ServiceError when another's server listens at what should be ours."""
    settings = settings or get_settings()
    if settings.given_tracking_uri is None:
        require_own(settings, settings.mlflow_port)
    return settings.tracking_uri


def check_address(uri: str) -> None:
    """Raise ServiceError when ``uri`` is not the address of a tracking server."""
    if not uri.startswith(("http://", "https://")):
        raise ServiceError(
            "The tracking address is not one of a server.",
            value=uri,
            expected="http://HOST:PORT",
            next_step=EXPORT,
        )


def _check_server(uri: str) -> None:
    """Raise ServiceError when there is no server at ``uri``, or it does not answer."""
    import requests

    check_address(uri)
    try:
        healthy = requests.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS).ok
    except requests.RequestException:
        healthy = False
    if not healthy:
        raise ServiceError(
            f"The MLflow tracking server at {uri} does not answer.",
            expected=f"an answer within {ANSWER_SECONDS:g} s",
            next_step="workshop up",
        )


def store_id() -> str:
    """Return the tracking store's identity, kept in a tag of the experiment; a new store gets a new one.

    DVC's lock knows nothing of a tracking server that was wiped. The stages that log depend on this identity, so
    that they run, and log, again when it has changed.
    """
    return _known_store_id() or _new_store_id()


def _known_store_id() -> str | None:
    """Ask MLflow's REST interface: the pipeline asks each time it runs, and importing MLflow takes three seconds.

    https://mlflow.org/docs/latest/api_reference/rest-api.html#get-experiment-by-name
    """
    import requests

    uri = own_or_given_uri().rstrip("/")
    _check_server(uri)
    answer = requests.get(
        f"{uri}/api/2.0/mlflow/experiments/get-by-name",
        params={"experiment_name": EXPERIMENT},
        timeout=ANSWER_SECONDS,
    )
    tags = answer.json()["experiment"].get("tags", []) if answer.ok else []
    return next((tag["value"] for tag in tags if tag["key"] == STORE_ID_TAG), None)


def _new_store_id() -> str:
    client = connect()
    experiment = _experiment(client)
    if STORE_ID_TAG not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, STORE_ID_TAG, uuid.uuid4().hex)
        experiment = client.get_experiment(experiment.experiment_id)
    return experiment.tags[STORE_ID_TAG]


def _experiment(client: mlflow.MlflowClient) -> mlflow.entities.Experiment:
    """Return the experiment; make it where there is none yet."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return experiment or client.get_experiment(client.create_experiment(EXPERIMENT))


@contextlib.contextmanager
def start_run(
    stage: str, *, data: Iterable[Path | str] = (), learned_from: Path | None = None,
    parameters: dict[str, Any] | None = None,
) -> Iterator[mlflow.ActiveRun]:  # fmt: skip
    """Open a run of the experiment that carries its lineage; close it when the block ends, failed when it raises.

    ``data`` are the files it reads: their DVC hashes become the tags ``workshop.data.<name>``. ``learned_from`` is the
    processed table that its model learns from: its name, hours and source become the tags ``workshop.learned.<...>``,
    by which the gate knows that held-out hours are new to the model. In a
    notebook the run is also shown, as a link for people and, in the cell's output, for whoever later asks which
    run this notebook made.
    """
    client = connect()
    import mlflow

    mlflow.set_experiment(EXPERIMENT)
    hashes = {DATA_TAG + Path(file).name: file_hash(Path(file)) for file in data}
    tags = {STAGE_TAG: stage} | hashes | (learned_tags(learned_from) if learned_from else {}) | git_tags()
    with mlflow.start_run(run_name=stage, tags=tags) as run, heartbeat(run.info.run_id, mlflow.get_tracking_uri()):
        if parameters:
            client.log_batch(run.info.run_id, params=[mlflow.entities.Param(k, str(v)) for k, v in parameters.items()])
        show_run(run.info.run_id)
        yield run


def learned_tags(file: Path) -> dict[str, str]:
    """Return the tags of a run whose model learns from the processed table ``file``."""
    import pandas as pd

    from workshop.data import coverage, origin

    table = pd.read_parquet(file, columns=["utc_timestamp"])
    stamps, told = table["utc_timestamp"], origin.of_frame(table)
    facts = {
        "table": Path(file).name,
        "first": f"{stamps.min():{coverage.STAMP}}",
        "last": f"{stamps.max():{coverage.STAMP}}",
        "hours": len(table),
        "source": told.source,
        "modelled": str(told.modelled).lower(),
    }
    return {LEARNED_TAG + name: str(value) for name, value in facts.items()}


def find_run(client: mlflow.MlflowClient, run_id: str | None) -> mlflow.entities.Run | None:
    """Return a run; None when it was purged, or there never was one: a version has its own copy of the model."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id) if run_id else None
    except MlflowException as error:
        # INVALID_PARAMETER_VALUE: a version that was registered by hand may name anything as its run.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


@contextlib.contextmanager
def resume_run(run_id: str) -> Iterator[mlflow.ActiveRun]:
    """Open a run again, to add to it; close it as `start_run` does."""
    connect()
    import mlflow

    with mlflow.start_run(run_id=run_id) as run, heartbeat(run_id, mlflow.get_tracking_uri()):
        yield run


def log_explanations(**figures: Figure) -> None:
    """Log plotly figures to the active run as `explanations/NAME.html`, for people, and `.json`, for the dashboard."""
    import mlflow

    for name, figure in figures.items():
        mlflow.log_figure(figure, f"explanations/{name}.html")
        mlflow.log_text(figure.to_json(), f"explanations/{name}.json")


def run_url(run_id: str, experiment_id: str) -> str:
    """Return the page of a run in the MLflow UI."""
    return f"{get_settings().tracking_uri}/#/experiments/{experiment_id}/runs/{run_id}"


def show_run(run_id: str) -> None:
    """Show a run in the notebook: a link, and its id as data that stays in the executed copy."""
    import mlflow
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        return
    run = mlflow.get_run(run_id)
    url = run_url(run_id, run.info.experiment_id)
    display(
        {
            RUN_MIME_TYPE: {"run_id": run_id},
            "text/html": f'MLflow run <a href="{url}">{run.info.run_name}</a>',
            "text/plain": f"MLflow run {run.info.run_name}: {url}",
        },
        raw=True,
    )


def runs_of_notebook(notebook: dict[str, Any]) -> list[str]:
    """Return the ids of the runs that an executed notebook (an nbformat document) says it opened."""
    bundles = (
        output.get("data", {}).get(RUN_MIME_TYPE)
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if output["output_type"] == "display_data"
    )
    return [bundle["run_id"] for bundle in bundles if bundle]


def attach_notebook(notebook: dict[str, Any], name: str, uri: str) -> None:
    """Log an executed notebook as ``notebook/<name>`` to every run that it opened on the server at ``uri``."""
    client = connect(uri)
    text = json.dumps(notebook, indent=1)
    for run_id in runs_of_notebook(notebook):
        client.log_text(run_id, text, f"notebook/{name}")
        client.set_tag(run_id, NOTEBOOK_TAG + name, hashlib.sha256(text.encode()).hexdigest())


class TaskContext:
    """Tags every run that a notebook on the cluster starts with its task, so that it can be found and ended.

    Where many notebooks have a common run, theirs are also put under that; those that a notebook nests itself stay
    where they are, for MLflow lets the caller's own tags win. A run context provider of MLflow's (entry point
    ``mlflow.run_context_provider``). It has no base class, since MLflow loads it in the middle of its own import.
    """

    def in_context(self) -> bool:
        """Tell whether this process is a notebook's kernel on the cluster."""
        return TASK_VARIABLE in os.environ

    def tags(self) -> dict[str, str]:
        """Return the tags."""
        parent = os.environ.get(PARENT_VARIABLE)
        return {TASK_TAG: os.environ[TASK_VARIABLE]} | ({PARENT_TAG: parent} if parent else {})


def runs_of_task(task: str, uri: str) -> list[mlflow.entities.Run]:
    """Return the runs that the notebook with the key ``task`` opened on the server at ``uri``, the first one first."""
    client = connect(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`{TASK_TAG}` = '{task}'", order_by=["attributes.start_time"]))


def open_runs(task: str, uri: str) -> list[str]:
    """Return the ids of the runs that the notebook with the key ``task`` has not ended, on the server at ``uri``."""
    return [run.info.run_id for run in runs_of_task(task, uri) if run.info.status == "RUNNING"]


def end_runs(run_ids: Iterable[str], status: str, uri: str) -> None:
    """End runs whose notebook is dead, as ``KILLED`` or ``FAILED``."""
    client = connect(uri)
    with contextlib.redirect_stdout(sys.stderr):  # MLflow prints a link; the output may be a notebook's
        for run_id in run_ids:
            client.set_terminated(run_id, status)


def open_parent(name: str, parameters: dict[str, Any], tags: dict[str, str], uri: str) -> str:
    """Open a run under which those of many notebooks shall be; return its id. Its end is the caller's (`end_runs`)."""
    client = connect(uri)
    return _create_run(client, _experiment(client).experiment_id, name, parameters, tags)


@contextlib.contextmanager
def under_parent(run_id: str, uri: str) -> Iterator[None]:
    """Put the runs of all notebooks that are started meanwhile under the run ``run_id`` of the server at ``uri``."""
    # For notebooks that name no server and no experiment: MLflow shows children where their parent is. The commit is
    # that of now for all of them.
    told = {PARENT_VARIABLE: run_id, "MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": EXPERIMENT}
    told |= git_variables()
    before = {variable: os.environ.get(variable) for variable in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value


def record_notebook(
    task: str, parent: str, notebook: dict[str, Any], name: str, *, status: str, seconds: float,
    parameters: dict[str, Any], tags: dict[str, str], uri: str,
) -> tuple[list[str], dict[str, float]]:  # fmt: skip
    """Return the ids and the metrics of the runs that an executed notebook opened, and its task is ``task``.

    One that opened none gets a run under ``parent``, with the notebook as artifact ``notebook/<name>``, its
    ``parameters`` and ``seconds``; ``status`` is how it ended, in MLflow's words.
    """
    if opened := runs_of_task(task, uri):
        metrics = [run.data.metrics for run in opened]
        return [run.info.run_id for run in opened], {key: run[key] for run in metrics for key in run}
    client = connect(uri)
    experiment = client.get_run(parent).info.experiment_id
    tags = tags | {PARENT_TAG: parent, TASK_TAG: task}
    run_id = _create_run(client, experiment, Path(name).stem, parameters, tags, seconds=seconds)
    client.log_text(run_id, json.dumps(notebook, indent=1), f"notebook/{name}")
    client.set_terminated(run_id, status)
    return [run_id], {}


def _create_run(
    client, experiment: str, name: str, parameters: dict[str, Any], tags: dict[str, str], seconds: float | None = None
) -> str:
    """Create a run; one that took ``seconds`` began that long ago, and has them as a metric."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    began = now - int((seconds or 0) * 1000)
    run_id = client.create_run(experiment, start_time=began, run_name=name, tags=tags).info.run_id
    metrics = [] if seconds is None else [Metric("seconds", seconds, now, 0)]
    client.log_batch(run_id, metrics, [Param(name, str(value)) for name, value in parameters.items()])
    return run_id


def notebook_tags(notebook: Path) -> dict[str, str]:
    """Return what MLflow shows of the source of runs that are made for a notebook, and the commit."""
    source = {"mlflow.source.name": str(notebook), "mlflow.source.type": "NOTEBOOK", "mlflow.user": getpass.getuser()}
    return source | git_tags()


def file_hash(file: Path) -> str:
    """Return the md5 of a file's bytes, which is what DVC 3 calls the file by in `dvc.lock` and its cache."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def git_tags(folder: Path | None = None) -> dict[str, str]:
    """Return the commit and whether tracked files differ from it; empty outside a git repository.

    In a kernel on the cluster they come from the environment, where the client has put those of its own folder: a
    worker may know no repository, or another than that in which DVC tries an experiment (`dvc exp run --temp`).
    """
    if GIT_VARIABLES.keys() <= os.environ.keys():
        return {tag: os.environ[variable] for variable, tag in GIT_VARIABLES.items()}
    folder = folder or get_settings().root

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=30
        ).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        changes = git("status", "--porcelain", "--untracked-files=no").splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    dirty = any(not line.endswith(LOCAL_LOCK) for line in changes)
    return {COMMIT_TAG: commit, DIRTY_TAG: str(dirty).lower()}


def git_variables() -> dict[str, str]:
    """Return this folder's `git_tags` as the variables from which a worker without the repository takes them."""
    tags = git_tags()
    return {variable: tags[tag] for variable, tag in GIT_VARIABLES.items() if tag in tags}
