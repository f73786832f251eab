"""The tracking server: how to reach it, which store it keeps, and runs that carry their lineage."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow_gate

from forecast.errors import ServiceError
from forecast.problem import EXPERIMENT, REGISTERED_MODEL
from forecast.table.files import write_atomically

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


# -- the server --------------------------------------------------------------------------------------------------------
def connect(uri: str | None = None) -> mlflow.MlflowClient:
    """Point MLflow at the tracking server and return a client; raise ServiceError when it does not answer.

    ``uri`` is the server's address, by default MLFLOW_TRACKING_URI. The server is asked once, with MLflow's own
    credentials, certificates, time-outs and retries: a program connects once and passes the client on.
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
    return client


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI; raise ServiceError when it is not the address of a server."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        what = "The tracking address does not name a server."
        raise ServiceError(
            what, value=uri or "MLFLOW_TRACKING_URI is not set", expected="http://HOST:PORT", next_step=START
        )
    return uri


def write_state(folder: Path, decision: Path) -> None:
    """Write what DVC cannot see to files in ``folder``, for stages to depend on.

    `tracking_store.json` says which store this is: a lock of DVC knows nothing of a tracking server that was wiped.
    `alias.json` says where the alias went since the decision in the file ``decision``, if it moved: the gate decides
    again after a rollback or a promotion from elsewhere.
    """
    client = connect()
    contents = {"tracking_store.json": {"store_id": store_id(client)}}
    moved, alias = _moved_since(decision, client), folder / "alias.json"
    if moved is not None or not alias.exists():
        contents[alias.name] = moved or {}
    for name, content in contents.items():
        file, new = folder / name, f"{json.dumps(content, indent=1)}\n".encode()
        if not file.exists() or file.read_bytes() != new:  # its time says when it has changed
            write_atomically(file, new)


def store_id(client: mlflow.MlflowClient | None = None) -> str:
    """Return the tracking store's identity, kept in a tag of the experiment; a new store gets a new one."""
    client = client or connect()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment = experiment or client.get_experiment(client.create_experiment(EXPERIMENT))
    if STORE_ID_TAG not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, STORE_ID_TAG, uuid.uuid4().hex)
        experiment = client.get_experiment(experiment.experiment_id)
    return experiment.tags[STORE_ID_TAG]


def _moved_since(decision: Path, client: mlflow.MlflowClient) -> dict[str, Any] | None:
    """Return where the alias is if not where a decision left it: version, run, and the number of its last move."""
    now = mlflow_gate.Registry(REGISTERED_MODEL, PRODUCTION, client=lambda: client).production()
    decided = json.loads(decision.read_text()) if decision.exists() else {"production": {}}
    left = decided.get("production") or {}
    version, run_id = (now.version, now.run_id) if now else (None, None)
    if (left.get("version"), left.get("run_id")) == (version, run_id) and not decided.get("experiment"):
        return None
    return {"version": version, "run_id": run_id, "moves": now.move.number if now else 0}


def unnamed_runs(days: int, results: Path) -> list[mlflow.entities.Run]:
    """Return the runs of stages that began more than ``days`` ago and that nothing names.

    Named is each id in a registered model or version, in their tags, or in JSON of the folder ``results``; and for each
    named run the last run of `prepare` before it, which has the findings on its data.
    """
    client, tag = connect(), f"tags.`{STAGE_TAG}` LIKE '%'"
    versions, registered = client.search_model_versions(max_results=200_000), client.search_registered_models()
    import mlflow

    texts = [
        *(str(dict(each)) for each in [*versions, *registered]),
        *(file.read_text() for file in results.glob("*.json")),
    ]
    named = set(re.findall("[0-9a-f]{32}", " ".join(texts)))
    runs = mlflow.search_runs(None, tag, order_by=["start_time"], output_format="list", experiment_names=[EXPERIMENT])
    kept, prepared = set(), ""
    for run in runs:
        prepared = run.info.run_id if run.data.tags[STAGE_TAG] == "prepare" else prepared
        models = run.outputs.model_outputs  # type: ignore[union-attr] # a server's answer has them
        if named & {run.info.run_id, *(model.model_id.removeprefix("m-") for model in models)}:
            kept |= {run.info.run_id, prepared}
    end = 1000 * (time.time() - 86400 * days)
    return [run for run in runs if run.info.start_time < end and run.info.run_id not in kept]


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

    from forecast.table.origin import origin_of

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


def run_url(run_id: str, experiment_id: str) -> str:
    """Return the page of a run in the MLflow UI."""
    return f"{tracking_uri()}/#/experiments/{experiment_id}/runs/{run_id}"


def show_run(run_id: str) -> None:
    """Show a link to a run in the notebook."""
    import mlflow
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        return
    run = mlflow.get_run(run_id)
    url = run_url(run_id, run.info.experiment_id)
    display(
        {
            "text/html": f'MLflow run <a href="{url}">{run.info.run_name}</a>',
            "text/plain": f"MLflow run {run.info.run_name}: {url}",
        },
        raw=True,
    )
