"""The tracking store, a server or a local SQLite file: connection, identity, and runs with their lineage."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow_gate

from forecast.problem import EXPERIMENT
from forecast.terms.errors import ServiceError
from forecast.terms.parameters import project

if TYPE_CHECKING:
    import mlflow
    from plotly.graph_objects import Figure

PRODUCTION = "production"  # alias of the version in production
TRIES = 4  # retries after 0, 4, 12 and 28 s, enough for a server restart; MLflow's default of 7 takes four minutes
STAGE_TAG = "pipeline.stage"  # tag of a run: the stage that logged it
DIRTY_TAG = "pipeline.git.dirty"
# Tags that `mlflow-gate lineage` shows: each file's MD5, the DVC experiment, and the parameters changed in it.
DATA_TAG, EXPERIMENT_TAG, OVERRIDES_TAG = "mlflow_gate.data.", "mlflow_gate.experiment", "mlflow_gate.overrides"
STORE_ID_TAG = "pipeline.store_id"  # tag of the experiment
MADE = ("dvc.lock", "results/metrics.json")  # the pipeline writes these files, so changes to them do not count as dirty
START = "start a server (`mlflow server`) and set MLFLOW_TRACKING_URI to its URL"
RECORDS, ARTIFACTS = "mlflow.db", "mlartifacts"  # the default names of `mlflow server`
NO_SERVER = (
    f"MLFLOW_TRACKING_URI is not set: runs and models are stored here, in {RECORDS} and {ARTIFACTS}/. For the MLflow UI"
    " and for other users, run `mlflow server --port 5500` here and export MLFLOW_TRACKING_URI=http://127.0.0.1:5500"
)


# -- tracking store ----------------------------------------------------------------------------------------------------
def connect(uri: str | None = None) -> mlflow.MlflowClient:
    """Set MLflow's tracking URI and return a client; raise ServiceError if the server does not respond.

    ``uri`` defaults to `tracking_uri`. The check uses MLflow's credentials, certificates, timeouts and retries, so
    connect once and pass the client on. A local SQLite store keeps its artifacts where `mlflow server` expects them.
    """
    uri = uri or tracking_uri()
    try:
        client = mlflow_gate.connect(uri)
    except mlflow_gate.ServerError as error:
        is_down = error.what.endswith("does not respond.")
        wait = f"wait up to a minute for a server that was just started; otherwise {START}"
        step = wait if is_down else error.next_step
        raise ServiceError(error.what, value=error.value, expected=error.expected, next_step=step) from None
    import mlflow

    mlflow.set_tracking_uri(uri)
    if uri.startswith("sqlite:"):
        Path(uri.removeprefix("sqlite:///")).with_name(ARTIFACTS).mkdir(exist_ok=True)
        if client.get_experiment_by_name(EXPERIMENT) is None:
            with contextlib.suppress(mlflow.MlflowException):  # another process has created it
                client.create_experiment(EXPERIMENT, f"mlflow-artifacts:/{EXPERIMENT}")
    return client


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI; if it is not set, the SQLite store of a project with its own .dvc folder.

    Raises ServiceError otherwise, as in a subfolder of a DVC repository or on a worker without a copy of the project.
    """
    uri, folder = os.environ.get("MLFLOW_TRACKING_URI", ""), str(project())
    folder = folder.partition("/.dvc/tmp/exps/")[0]  # `dvc exp run --temp` runs in a copy
    records = f"sqlite:///{folder}/{RECORDS}"
    if uri in ("", records) and Path(folder, ".dvc").is_dir():
        return records
    if not uri.startswith(("http://", "https://")):
        what, value = "The tracking URI is not the URL of a server.", f"MLFLOW_TRACKING_URI is not set ({folder})"
        expected = "http://HOST:PORT, or unset in a folder that is itself a DVC repository (with a .dvc folder)"
        raise ServiceError(what, value=uri or value, expected=expected, next_step=START)
    return uri


def store_id(client: mlflow.MlflowClient | None = None) -> str:
    """Return the tracking store's id, which is kept as a tag of the experiment; create it for a new store."""
    client = client or connect()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment = experiment or client.get_experiment(client.create_experiment(EXPERIMENT))
    if STORE_ID_TAG not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, STORE_ID_TAG, uuid.uuid4().hex)
        experiment = client.get_experiment(experiment.experiment_id)
    return experiment.tags[STORE_ID_TAG]


# -- runs --------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def start_run(
    stage: str, *, data: Iterable[Path | str] = (), learned_from: Path | str | None = None,
    parameters: Mapping[str, Any] | None = None, refit_of: str | None = None,
) -> Iterator[mlflow.ActiveRun]:  # fmt: skip
    """Start a run of the experiment with its lineage as tags; it ends with the block, as failed if the block raises.

    ``data`` are the files that the run reads, relative to the working folder; their MD5 hashes, as in DVC, become tags.
    ``learned_from`` is the table with the training data, whose rows and source are logged, so that the gate can check
    that held-out rows are new to the model. ``refit_of`` is the run whose model is refitted. In a notebook, also show
    a link to the run.
    """
    client = connect()
    import mlflow
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as RETRIES

    RETRIES.set(max(RETRIES.get() if RETRIES.is_set() else 0, TRIES))  # a stage can wait for a server to restart
    mlflow.set_experiment(EXPERIMENT)
    name, tags = f"{stage}, refit" if refit_of else stage, {STAGE_TAG: stage} | _lineage_tags(data)
    with mlflow.start_run(run_name=name, parent_run_id=refit_of, nested=bool(refit_of), tags=tags) as run:
        if learned_from:
            _log_training_data(Path(learned_from))
        if parameters:
            params = [mlflow.entities.Param(name, str(value)) for name, value in parameters.items()]
            client.log_batch(run.info.run_id, params=params)
        show_run(run.info.run_id)
        yield run


def _lineage_tags(data: Iterable[Path | str]) -> dict[str, str]:
    """Return the lineage tags of a run: hashes of its files, commit, and DVC experiment, if any."""
    import pooch

    hashes = {DATA_TAG + Path(file).as_posix(): pooch.file_hash(file, "md5") for file in data}
    return hashes | git_tags() | experiment_tags()


def _log_training_data(table: Path) -> None:
    import pandas as pd

    from forecast.terms.origin import origin_of

    frame = pd.read_parquet(table, columns=["utc_timestamp"])
    origin = origin_of(frame)
    # Do not infer the population from the source: a user's file may derive from the sample. None means unknown.
    population = {True: "modelled", False: "measured", None: ""}[origin.modelled]
    mlflow_gate.log_learned(pd.Index(frame["utc_timestamp"]), span=True, source=origin.label, population=population)


def experiment_tags(folder: Path | None = None) -> dict[str, str]:
    """Return tags with the current DVC experiment and its changed parameters; no tags outside an experiment.

    Parameters are compared with the committed params.yaml in ``folder``, by default the working folder.
    """
    name = os.environ.get("DVC_EXP_NAME") or os.environ.get("DVC_EXP_BASELINE_REV")
    if not name:
        return {}
    import pandas as pd
    import yaml

    folder = folder or Path.cwd()
    file, show = folder / "params.yaml", ["git", "show", "HEAD:./params.yaml"]
    try:
        committed_text = subprocess.run(show, cwd=folder, capture_output=True, text=True, check=True).stdout
        texts = file.read_text(), committed_text
    except (OSError, subprocess.SubprocessError):
        return {EXPERIMENT_TAG: name}
    current, committed = (pd.json_normalize(yaml.safe_load(text)).T[0].to_dict() for text in texts)
    changed = [f"{key}={value}" for key, value in sorted(current.items()) if committed.get(key) != value]
    return {EXPERIMENT_TAG: name, OVERRIDES_TAG: ", ".join(changed) or "none"}


def git_tags(folder: Path | None = None) -> dict[str, str]:
    """Return tags with the commit and whether tracked files are modified; no tags outside a Git repository.

    On a Dask cluster the tags describe the client's folder: a worker may lack the repository, or the copy in which DVC
    runs an experiment (`dvc exp run --temp`).
    """
    from papermill_dask import COMMIT_TAG, git_state

    if (state := git_state(folder or Path.cwd())) is None:
        return {}
    commit, changes = state
    return {COMMIT_TAG: commit, DIRTY_TAG: str(any(not file.endswith(MADE) for file in changes)).lower()}


def log_explanations(**figures: Figure) -> None:
    """Log plotly figures to the active run as `explanations/NAME.html`, and as `.json` for the dashboard."""
    import mlflow

    for name, figure in figures.items():
        mlflow.log_figure(figure, f"explanations/{name}.html")
        mlflow.log_text(figure.to_json(), f"explanations/{name}.json")


def run_url(run_id: str, experiment_id: str) -> str | None:
    """Return the URL of a run in the MLflow UI; None without a server."""
    uri = tracking_uri()
    return f"{uri}/#/experiments/{experiment_id}/runs/{run_id}" if uri.startswith("http") else None


def show_run(run_id: str) -> None:
    """Show a link to a run in the notebook; without a server, its name and id."""
    import mlflow
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        return
    run = mlflow.get_run(run_id)
    name, url = run.info.run_name, run_url(run_id, run.info.experiment_id)
    html = f'MLflow run <a href="{url}">{name}</a>' if url else f"MLflow run {name}, <code>{run_id}</code>"
    display({"text/html": html, "text/plain": f"MLflow run {name}: {url or run_id}"}, raw=True)
