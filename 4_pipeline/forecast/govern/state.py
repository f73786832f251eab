"""The state of the tracking server as files that stages depend on: the store's id and moves of the alias."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow_gate
from mlflow_gate.decision import read_decision

from forecast.problem import EXPERIMENT, REGISTERED_MODEL
from forecast.terms.files import write_atomically
from forecast.tracking import PRODUCTION, STORE_ID_TAG, connect, store_id, tracking_uri

if TYPE_CHECKING:
    import mlflow

FILES = "tracking_store.json", "alias.json"


def write_state(folder: Path, decision: Path) -> None:
    """Write the state of the tracking server to files in ``folder``, which stages depend on.

    `tracking_store.json` holds the store's id, because dvc.lock alone would not reveal a recreated tracking server.
    `alias.json` holds the alias's version if the alias has moved since ``decision``, so that the gate runs again after
    a rollback or a promotion outside the pipeline.
    """
    client = connect()
    store, alias = map(folder.joinpath, FILES)
    contents = {store: {"store_id": store_id(client)}}
    moved = _moved_since(decision, client)
    if moved is not None or not alias.exists():
        contents[alias] = moved or {}
    for file, content in contents.items():
        new = f"{json.dumps(content, indent=1)}\n".encode()
        if not file.exists() or file.read_bytes() != new:  # keep the modification time of unchanged files
            write_atomically(file, new)


def is_unchanged(folder: Path, decision: Path) -> bool:
    """Return whether the server agrees with the files in ``folder``, so that `write_state` would not change them.

    The check uses plain HTTP, because importing MLflow would take longer; if the check fails, the result is False.
    """
    import requests

    api, alias = f"{tracking_uri()}/api/2.0/mlflow", {"name": REGISTERED_MODEL, "alias": PRODUCTION}
    try:
        store, _, decided = (json.loads(file.read_text()) for file in (*map(folder.joinpath, FILES), decision))
        now = requests.get(f"{api}/registered-models/alias", alias, timeout=2).json()["model_version"]
        experiment = requests.get(f"{api}/experiments/get-by-name", {"experiment_name": EXPERIMENT}, timeout=2).json()
        is_known = {"key": STORE_ID_TAG, "value": store["store_id"]} in experiment["experiment"]["tags"]
        is_in_production = all(now[key] == decided["production"][key] for key in ("version", "run_id"))
    except (OSError, LookupError, TypeError, ValueError):
        return False
    return is_known and is_in_production and not decided.get("experiment") and "MLFLOW_WORKSPACE" not in os.environ


def _moved_since(decision: Path, client: mlflow.MlflowClient) -> dict[str, Any] | None:
    """Return the alias's version, run id and number of moves; None if it has not moved since the decision."""
    now = mlflow_gate.Registry(REGISTERED_MODEL, PRODUCTION, client=lambda: client).production()
    decided = read_decision(decision) or {}
    former = decided.get("production") or {}
    version, run_id = (now.version, now.run_id) if now else (None, None)
    if (former.get("version"), former.get("run_id")) == (version, run_id) and not decided.get("experiment"):
        return None
    return {"version": version, "run_id": run_id, "moves": now.move.number if now else 0}
