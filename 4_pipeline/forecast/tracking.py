"""The tracking server: how to reach it, which store it keeps, and runs that carry their lineage."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from forecast.errors import ServiceError
from forecast.problem import EXPERIMENT, REGISTERED_MODEL
from forecast.table.files import write_atomically

if TYPE_CHECKING:
    import mlflow
    from plotly.graph_objects import Figure

PRODUCTION = "production"  # the alias
ANSWER_SECONDS = 3.0
TRIES = 4  # after 0, 4, 12 and 28 s: outlasts a restart of the server; MLflow's own 7 tries are four minutes
STAGE_TAG = "pipeline.stage"  # of a run: which stage logged it
DIRTY_TAG = "pipeline.git.dirty"
STORE_ID_TAG = "pipeline.store_id"  # of the experiment
MADE = ("dvc.lock", "results/metrics.json")  # what the pipeline itself writes does not make a tree dirty
START = "start one (`mlflow server`), and set MLFLOW_TRACKING_URI to its address"


# -- the server --------------------------------------------------------------------------------------------------------
def connect(uri: str | None = None) -> mlflow.MlflowClient:
    """Point MLflow at the tracking server and return a client; raise ServiceError within seconds when it is dead.

    ``uri`` is the server's address, by default MLFLOW_TRACKING_URI. This asks the server whether it is healthy: a
    program connects once and passes the client on.
    """
    uri = uri or tracking_uri()
    _ask(uri, "/health")
    import mlflow
    from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR as PROGRESS_BAR

    if not PROGRESS_BAR.is_set():
        PROGRESS_BAR.set(False)  # one for each few kilobytes
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI; raise ServiceError when it is not the address of a server."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        what = "The tracking address does not name a server."
        raise ServiceError(
            what, value=uri or "MLFLOW_TRACKING_URI is not set", expected="http://HOST:PORT", next_step=START
        )
    return uri


def _ask(uri: str, path: str, **parameters: str) -> requests.Response:
    """Ask the server without MLflow, whose import takes three seconds; 404 is an answer, other errors are raised."""
    user, token = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_TOKEN")
    options: dict[str, Any] = {"auth": (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))} if user else {}
    options |= {"headers": {"Authorization": f"Bearer {token}"}} if token else {}
    options |= {"verify": False} if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS") == "true" else {}
    try:
        answer = requests.get(f"{uri.rstrip('/')}{path}", params=parameters, timeout=ANSWER_SECONDS, **options)
        if answer.status_code != requests.codes.not_found:
            answer.raise_for_status()
    except requests.RequestException as error:
        status = f"HTTP {error.response.status_code}" if error.response is not None else type(error).__name__
        raise ServiceError(
            f"The MLflow tracking server at {uri} does not answer.",
            value=status,
            expected=f"an answer within {ANSWER_SECONDS:g} s",
            next_step=f"wait up to a minute for a server that was just started; otherwise {START}",
        ) from None
    return answer


def write_state(folder: Path, decision: Path) -> None:
    """Write what DVC cannot see to files in ``folder``, for stages to depend on.

    `tracking_store.json` says which store this is: a lock of DVC knows nothing of a tracking server that was wiped.
    `alias.json` says where the alias went since the decision in the file ``decision``, if it moved: the gate decides
    again after a rollback or a promotion from elsewhere.
    """
    contents = {"tracking_store.json": {"store_id": store_id()}}
    moved, alias = _moved_since(decision), folder / "alias.json"
    if moved is not None or not alias.exists():
        contents[alias.name] = moved or {}
    for name, content in contents.items():
        file, new = folder / name, f"{json.dumps(content, indent=1)}\n".encode()
        if not file.exists() or file.read_bytes() != new:  # its time says when it has changed
            write_atomically(file, new)


def store_id() -> str:
    """Return the tracking store's identity, kept in a tag of the experiment; a new store gets a new one."""
    return _known_store_id() or _new_store_id()


def _known_store_id() -> str | None:
    """Ask MLflow's REST interface: https://mlflow.org/docs/latest/api_reference/rest-api.html."""
    answer = _ask(tracking_uri(), "/api/2.0/mlflow/experiments/get-by-name", experiment_name=EXPERIMENT)
    tags = answer.json()["experiment"].get("tags", []) if answer.ok else []
    return next((tag["value"] for tag in tags if tag["key"] == STORE_ID_TAG), None)


def _new_store_id() -> str:
    client = connect()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment = experiment or client.get_experiment(client.create_experiment(EXPERIMENT))
    if STORE_ID_TAG not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, STORE_ID_TAG, uuid.uuid4().hex)
        experiment = client.get_experiment(experiment.experiment_id)
    return experiment.tags[STORE_ID_TAG]


def _moved_since(decision: Path) -> dict[str, Any] | None:
    """Return where the alias is if not where a decision left it: version, run, and how often the version came there."""
    path = "/api/2.0/mlflow/registered-models/alias"
    answer = _ask(tracking_uri(), path, name=REGISTERED_MODEL, alias=PRODUCTION)
    version = answer.json()["model_version"] if answer.ok else {}
    decided = json.loads(decision.read_text()) if decision.exists() else {"production": {}}
    left = decided.get("production") or {}
    same = (left.get("version"), left.get("run_id")) == (version.get("version"), version.get("run_id"))
    if same and not decided.get("experiment"):
        return None
    moves = sum(".move." in tag["key"] for tag in version.get("tags", []))
    return {name: version.get(name) for name in ("version", "run_id")} | {"moves": moves}


def unnamed_runs(days: int, results: Path) -> list[mlflow.entities.Run]:
    """Return the runs of stages that began more than ``days`` ago and that nothing names.

    Named is each id in a registered version, in its tags, or in JSON of the folder ``results``; and for each named run
    the last run of `prepare` before it, which has the findings on its data.
    """
    versions, tag = connect().search_model_versions(max_results=200_000), f"tags.`{STAGE_TAG}` LIKE '%'"
    import mlflow

    texts = [*(str(dict(version)) for version in versions), *(file.read_text() for file in results.glob("*.json"))]
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
    from mlflow_gate.lineage import DATA_TAG

    hashes = {DATA_TAG + Path(file).as_posix(): pooch.file_hash(file, "md5") for file in data}
    return hashes | git_tags() | experiment_tags()


def _declare_learned(table: Path) -> None:
    import mlflow_gate
    import pandas as pd

    from forecast.table.origin import origin_of

    frame = pd.read_parquet(table, columns=["utc_timestamp"])
    origin = origin_of(frame)
    population = "modelled" if origin.modelled else "measured"
    mlflow_gate.log_learned(pd.Index(frame["utc_timestamp"]), span=True, source=origin.label, population=population)


def experiment_tags(folder: Path | None = None) -> dict[str, str]:
    """Return the experiment of DVC in which this runs, and the parameters that it changed; nothing outside one.

    Changed is what differs from the commit's params.yaml in ``folder``, by default the working folder.
    """
    from mlflow_gate.lineage import EXPERIMENT_TAG, OVERRIDES_TAG, run_program
    from mlflow_gate.registry import experiment_of_dvc

    name = experiment_of_dvc()
    if name is None:
        return {}
    import pandas as pd
    import yaml

    folder = folder or Path.cwd()
    now, then = (folder / "params.yaml"), run_program("git", "show", "HEAD:./params.yaml", folder=folder)
    if then is None or not now.is_file():
        return {EXPERIMENT_TAG: name}
    ours, committed = (pd.json_normalize(yaml.safe_load(text)).T[0].to_dict() for text in (now.read_text(), then))
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
