"""What DVC cannot see, in files for stages to depend on: the tracking store, and where the alias went."""

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
    """Write what DVC cannot see to files in ``folder``, for stages to depend on.

    `tracking_store.json` says which store this is: a lock of DVC knows nothing of a tracking server that was wiped.
    `alias.json` says where the alias went since the decision in the file ``decision``, if it moved: the gate decides
    again after a rollback or a promotion from elsewhere.
    """
    client = connect()
    store, alias = map(folder.joinpath, FILES)
    contents = {store: {"store_id": store_id(client)}}
    moved = _moved_since(decision, client)
    if moved is not None or not alias.exists():
        contents[alias] = moved or {}
    for file, content in contents.items():
        new = f"{json.dumps(content, indent=1)}\n".encode()
        if not file.exists() or file.read_bytes() != new:  # its time says when it has changed
            write_atomically(file, new)


def is_as_left(folder: Path, decision: Path) -> bool:
    """Return whether a server says what the files in ``folder`` say, so that `write_state` would change nothing.

    Asked without MLflow, whose import takes longer than all else that is done here; False where anything is in doubt.
    """
    import requests

    api, alias = f"{tracking_uri()}/api/2.0/mlflow", {"name": REGISTERED_MODEL, "alias": PRODUCTION}
    try:
        store, _, decided = (json.loads(file.read_text()) for file in (*map(folder.joinpath, FILES), decision))
        now = requests.get(f"{api}/registered-models/alias", alias, timeout=2).json()["model_version"]
        asked = requests.get(f"{api}/experiments/get-by-name", {"experiment_name": EXPERIMENT}, timeout=2).json()
        is_known = {"key": STORE_ID_TAG, "value": store["store_id"]} in asked["experiment"]["tags"]
        is_there = all(now[key] == decided["production"][key] for key in ("version", "run_id"))
    except (OSError, LookupError, TypeError, ValueError):
        return False
    return is_known and is_there and not decided.get("experiment") and "MLFLOW_WORKSPACE" not in os.environ


def _moved_since(decision: Path, client: mlflow.MlflowClient) -> dict[str, Any] | None:
    """Return where the alias is if not where a decision left it: version, run, and the number of its last move."""
    now = mlflow_gate.Registry(REGISTERED_MODEL, PRODUCTION, client=lambda: client).production()
    decided = read_decision(decision) or {}
    left = decided.get("production") or {}
    version, run_id = (now.version, now.run_id) if now else (None, None)
    if (left.get("version"), left.get("run_id")) == (version, run_id) and not decided.get("experiment"):
        return None
    return {"version": version, "run_id": run_id, "moves": now.move.number if now else 0}
