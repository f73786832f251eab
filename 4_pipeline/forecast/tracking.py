"""The tracking server or the records without one: how to reach them, which store it is, and runs with their lineage."""

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

PRODUCTION = "production"  # the alias
TRIES = 4  # after 0, 4, 12 and 28 s: outlasts a restart of the server; MLflow's own 7 tries are four minutes
STAGE_TAG = "pipeline.stage"  # of a run: which stage logged it
DIRTY_TAG = "pipeline.git.dirty"
# Tags of a run that mlflow-gate shows in the lineage: a file's path with its MD5, and the experiment of DVC.
DATA_TAG, EXPERIMENT_TAG, OVERRIDES_TAG = "mlflow_gate.data.", "mlflow_gate.experiment", "mlflow_gate.overrides"
STORE_ID_TAG = "pipeline.store_id"  # of the experiment
MADE = ("dvc.lock", "results/metrics.json")  # what the pipeline itself writes does not make a tree dirty
START = "start one (`mlflow server`), and set MLFLOW_TRACKING_URI to its address"
RECORDS, ARTIFACTS = "mlflow.db", "mlartifacts"  # as `mlflow server` names them in the folder where it is started
NO_SERVER = (
    f"No MLFLOW_TRACKING_URI: runs and models are kept here, in {RECORDS} and {ARTIFACTS}/. For their pages, and for"
    " others: `mlflow server --port 5500` here, and export MLFLOW_TRACKING_URI=http://127.0.0.1:5500"
)


# -- the server --------------------------------------------------------------------------------------------------------
def connect(uri: str | None = None) -> mlflow.MlflowClient:
    """Point MLflow at the tracking server and return a client; raise ServiceError when it does not answer.

    ``uri`` is the server's address, by default that of `tracking_uri`. The server is asked once, with MLflow's own
    credentials, certificates, time-outs and retries: a program connects once and passes the client on. Records without
    a server keep their artifacts where `mlflow server` looks for them.
    """
    uri = uri or tracking_uri()
    try:
        client = mlflow_gate.connect(uri)
    except mlflow_gate.ServerError as error:
        is_away = error.what.endswith("does not answer.")
        wait = f"wait up to a minute for a server that was just started; otherwise {START}"
        step = wait if is_away else error.next_step
        raise ServiceError(error.what, value=error.value, expected=error.expected, next_step=step) from None
    import mlflow

    mlflow.set_tracking_uri(uri)
    if uri.startswith("sqlite:"):
        Path(uri.removeprefix("sqlite:///")).with_name(ARTIFACTS).mkdir(exist_ok=True)
        if client.get_experiment_by_name(EXPERIMENT) is None:
            with contextlib.suppress(mlflow.MlflowException):  # another process was faster
                client.create_experiment(EXPERIMENT, f"mlflow-artifacts:/{EXPERIMENT}")
    return client


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI; without it the address of the records in a repository of the project's own.

    Raises ServiceError when there is neither: in a folder of another repository, or on a worker that does not see it.
    """
    uri, folder = os.environ.get("MLFLOW_TRACKING_URI", ""), str(project())
    folder = folder.partition("/.dvc/tmp/exps/")[0]  # `dvc exp run --temp` works in a copy
    records = f"sqlite:///{folder}/{RECORDS}"
    if uri in ("", records) and Path(folder, ".dvc").is_dir():
        return records
    if not uri.startswith(("http://", "https://")):
        what, value = "The tracking address does not name a server.", f"MLFLOW_TRACKING_URI is not set ({folder})"
        expected = "http://HOST:PORT; it may be left out in a repository of the project's own, with its folder .dvc"
        raise ServiceError(what, value=uri or value, expected=expected, next_step=START)
    return uri


def store_id(client: mlflow.MlflowClient | None = None) -> str:
    """Return the tracking store's identity, kept in a tag of the experiment; a new store gets a new one."""
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
    """Open a run of the experiment that carries its lineage; end it with the block, as failed when the block raises.

    ``data`` are the files that the run reads, relative to the working folder: their hashes, as DVC has them, become
    tags. ``learned_from`` is the processed table that its model learns from: its hours and its source are declared, by
    which the gate knows that held-out hours are new to the model. ``refit_of`` is the run whose recipe is fitted again.
    In a notebook a link to the run is shown, too.
    """
    client = connect()
    import mlflow
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as RETRIES

    RETRIES.set(max(RETRIES.get() if RETRIES.is_set() else 0, TRIES))  # nobody waits at this terminal
    mlflow.set_experiment(EXPERIMENT)
    name, tags = f"{stage}, refit" if refit_of else stage, {STAGE_TAG: stage} | _lineage_tags(data)
    with mlflow.start_run(run_name=name, parent_run_id=refit_of, nested=bool(refit_of), tags=tags) as run:
        if learned_from:
            _declare_learned(Path(learned_from))
        if parameters:
            params = [mlflow.entities.Param(name, str(value)) for name, value in parameters.items()]
            client.log_batch(run.info.run_id, params=params)
        show_run(run.info.run_id)
        yield run


def _lineage_tags(data: Iterable[Path | str]) -> dict[str, str]:
    """Return the tags of a run: hashes of its files, commit, and the experiment of DVC, if it is one."""
    import pooch

    hashes = {DATA_TAG + Path(file).as_posix(): pooch.file_hash(file, "md5") for file in data}
    return hashes | git_tags() | experiment_tags()


def _declare_learned(table: Path) -> None:
    import pandas as pd

    from forecast.terms.origin import origin_of

    frame = pd.read_parquet(table, columns=["utc_timestamp"])
    origin = origin_of(frame)
    # An own file may be a table that the pipeline made of the sample: only what is said makes its hours others.
    population = {True: "modelled", False: "measured", None: ""}[origin.modelled]
    mlflow_gate.log_learned(pd.Index(frame["utc_timestamp"]), span=True, source=origin.label, population=population)


def experiment_tags(folder: Path | None = None) -> dict[str, str]:
    """Return the experiment of DVC in which this runs, and the parameters that it changed; nothing outside one.

    Changed is what differs from the commit's params.yaml in ``folder``, by default the working folder.
    """
    name = os.environ.get("DVC_EXP_NAME") or os.environ.get("DVC_EXP_BASELINE_REV")
    if not name:
        return {}
    import pandas as pd
    import yaml

    folder = folder or Path.cwd()
    now, show = folder / "params.yaml", ["git", "show", "HEAD:./params.yaml"]
    try:
        then = subprocess.run(show, cwd=folder, capture_output=True, text=True, check=True).stdout
        texts = now.read_text(), then
    except (OSError, subprocess.SubprocessError):
        return {EXPERIMENT_TAG: name}
    ours, committed = (pd.json_normalize(yaml.safe_load(text)).T[0].to_dict() for text in texts)
    changed = [f"{key}={value}" for key, value in sorted(ours.items()) if committed.get(key) != value]
    return {EXPERIMENT_TAG: name, OVERRIDES_TAG: ", ".join(changed) or "none"}


def git_tags(folder: Path | None = None) -> dict[str, str]:
    """Return the commit and whether tracked files differ from it; empty outside a git repository.

    In a kernel on the cluster they are those of the client's folder: a worker may have no repository, or another one
    than that in which DVC runs an experiment (`dvc exp run --temp`).
    """
    from papermill_dask import COMMIT_TAG, git_state

    if (state := git_state(folder or Path.cwd())) is None:
        return {}
    commit, changes = state
    return {COMMIT_TAG: commit, DIRTY_TAG: str(any(not file.endswith(MADE) for file in changes)).lower()}


def log_explanations(**figures: Figure) -> None:
    """Log plotly figures to the active run as `explanations/NAME.html`, for people, and `.json`, for the dashboard."""
    import mlflow

    for name, figure in figures.items():
        mlflow.log_figure(figure, f"explanations/{name}.html")
        mlflow.log_text(figure.to_json(), f"explanations/{name}.json")


def run_url(run_id: str, experiment_id: str) -> str | None:
    """Return the page of a run in the MLflow UI; None without a server."""
    uri = tracking_uri()
    return f"{uri}/#/experiments/{experiment_id}/runs/{run_id}" if uri.startswith("http") else None


def show_run(run_id: str) -> None:
    """Show a link to a run in the notebook; without a server its name and its id."""
    import mlflow
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        return
    run = mlflow.get_run(run_id)
    name, url = run.info.run_name, run_url(run_id, run.info.experiment_id)
    html = f'MLflow run <a href="{url}">{name}</a>' if url else f"MLflow run {name}, <code>{run_id}</code>"
    display({"text/html": html, "text/plain": f"MLflow run {name}: {url or run_id}"}, raw=True)
