"""A tracked run with its lineage: the commit, the data's hash, the stage, and the notebook that ran it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop.errors import ServiceError
from workshop.settings import EXPERIMENT, get_settings

if TYPE_CHECKING:
    import mlflow

ANSWER_SECONDS = 3.0
RUN_MIME_TYPE = "application/vnd.workshop.run+json"
STORE_ID_TAG = "workshop.store_id"
LOCAL_LOCK = "dvc.lock"  # names this machine's tracking store, so a change of it alone does not make a tree dirty


def connect(uri: str | None = None) -> mlflow.MlflowClient:
    """Point MLflow at the tracking server and return a client; raise ServiceError within seconds when it is dead.

    ``uri`` is the server's address, by default the one in the settings.
    """
    import requests

    # MLflow reads these when it is imported. Its own patience with a dead server is four minutes.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    uri = uri or get_settings().tracking_uri
    if not uri.startswith(("http://", "https://")):
        raise ServiceError(
            "The tracking address is not one of a server.",
            value=uri,
            expected="http://HOST:PORT",
            next_step='eval "$(workshop config --export)"',
        )
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
    import mlflow

    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def store_id() -> str:
    """Return the tracking store's identity, kept in a tag of the experiment; a new store gets a new one.

    DVC's lock knows nothing of a tracking server that was wiped. Training stages depend on this identity, so
    that they run, and register, again when it has changed.
    """
    client = connect()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        experiment = client.get_experiment(client.create_experiment(EXPERIMENT))
    if STORE_ID_TAG not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, STORE_ID_TAG, uuid.uuid4().hex)
        experiment = client.get_experiment(experiment.experiment_id)
    return experiment.tags[STORE_ID_TAG]


@contextlib.contextmanager
def start_run(
    stage: str, *, data: Iterable[Path | str] = (), parameters: dict[str, Any] | None = None
) -> Iterator[mlflow.ActiveRun]:
    """Open a run of the experiment that carries its lineage; close it when the block ends, failed when it raises.

    ``data`` are the files it learns from: their DVC hashes become the tags ``workshop.data.<name>``. In a
    notebook the run is also shown, as a link for people and, in the cell's output, for whoever later asks which
    run this notebook made.
    """
    client = connect()
    import mlflow

    mlflow.set_experiment(EXPERIMENT)
    hashes = {f"workshop.data.{Path(file).name}": file_hash(Path(file)) for file in data}
    with mlflow.start_run(run_name=stage, tags={"workshop.stage": stage} | hashes | git_tags()) as run:
        if parameters:
            client.log_batch(run.info.run_id, params=[mlflow.entities.Param(k, str(v)) for k, v in parameters.items()])
        show_run(run.info.run_id)
        yield run


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
    for run_id in runs_of_notebook(notebook):
        client.log_text(run_id, json.dumps(notebook, indent=1), f"notebook/{name}")


def file_hash(file: Path) -> str:
    """Return the md5 of a file's bytes, which is what DVC 3 calls the file by in `dvc.lock` and its cache."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def git_tags(folder: Path | None = None) -> dict[str, str]:
    """Return the commit and whether tracked files differ from it; empty outside a git repository."""
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
    return {"mlflow.source.git.commit": commit, "workshop.git.dirty": str(dirty).lower()}
