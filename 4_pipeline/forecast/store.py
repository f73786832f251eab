"""The tracking server: how to reach it, and which store it keeps."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from forecast.errors import ServiceError
from workshop.port_owners import require_own
from forecast.problem import EXPERIMENT, REGISTERED_MODEL
from workshop.settings import EXPORT_COMMAND, MLFLOW_RETRIES, PRODUCTION, Settings, get_settings, loopback_without_proxy

if TYPE_CHECKING:
    import mlflow

ANSWER_SECONDS = 3.0
STORE_ID_TAG = "workshop.store_id"


def connect(uri: str | None = None) -> mlflow.MlflowClient:
    """Point MLflow at the tracking server and return a client; raise ServiceError within seconds when it is dead.

    ``uri`` is the server's address, by default the one in the settings. This asks the server whether it is healthy: a
    command connects once and passes the client on.
    """
    # MLflow reads these when it is imported.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", MLFLOW_RETRIES)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for each few kilobytes
    os.environ.update(loopback_without_proxy())
    uri = uri or own_or_given_uri()
    _check_server(uri)
    import mlflow

    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def own_or_given_uri(settings: Settings | None = None) -> str:
    """Return the address in the settings; raise ServiceError when a server of another clone listens there."""
    settings = settings or get_settings()
    if settings.explicit_tracking_uri is None:
        require_own(settings, settings.mlflow_port)
    return settings.tracking_uri


def _check_server(uri: str) -> None:
    """Raise ServiceError when no server answers at ``uri``."""
    if not uri.startswith(("http://", "https://")):
        raise ServiceError(
            "The tracking address does not name a server.",
            value=uri,
            expected="http://HOST:PORT",
            next_step=EXPORT_COMMAND,
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


def store_id() -> str:
    """Return the tracking store's identity, kept in a tag of the experiment; a new store gets a new one.

    DVC's lock knows nothing of a tracking server that was wiped. The stages that log depend on this identity, so
    that they run, and log, again when it has changed.
    """
    return _known_store_id() or _new_store_id()


def _known_store_id() -> str | None:
    """Ask MLflow's REST interface: the pipeline does so each time it runs, and importing MLflow takes three seconds.

    https://mlflow.org/docs/latest/api_reference/rest-api.html#get-experiment-by-name
    """
    answer = _ask("experiments/get-by-name", experiment_name=EXPERIMENT)
    tags = answer["experiment"].get("tags", []) if answer else []
    return next((tag["value"] for tag in tags if tag["key"] == STORE_ID_TAG), None)


def moved_since(decision: Path) -> dict[str, Any] | None:
    """Return where the alias is if not where a decision left it: version, run, and how often the version came there.

    The stage `promote` depends on this, so that it decides again after a rollback or a promotion from elsewhere.
    """
    answer = _ask("registered-models/alias", name=REGISTERED_MODEL, alias=PRODUCTION)
    version = answer["model_version"] if answer else {}
    decided = json.loads(decision.read_text()) if decision.exists() else {"production": {}}
    left = decided.get("production") or {}
    same = (left.get("version"), left.get("run_id")) == (version.get("version"), version.get("run_id"))
    if same and not decided.get("experiment"):
        return None
    moves = sum(".move." in tag["key"] for tag in version.get("tags", []))
    return {name: version.get(name) for name in ("version", "run_id")} | {"moves": moves}


def _ask(path: str, **parameters: str) -> dict[str, Any] | None:
    """Return an answer of MLflow's REST interface; None when what is asked for does not exist."""
    uri = own_or_given_uri().rstrip("/")
    _check_server(uri)
    answer = requests.get(f"{uri}/api/2.0/mlflow/{path}", params=parameters, timeout=ANSWER_SECONDS)
    return answer.json() if answer.ok else None


def _new_store_id() -> str:
    client = connect()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment = experiment or client.get_experiment(client.create_experiment(EXPERIMENT))
    if STORE_ID_TAG not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, STORE_ID_TAG, uuid.uuid4().hex)
        experiment = client.get_experiment(experiment.experiment_id)
    return experiment.tags[STORE_ID_TAG]
