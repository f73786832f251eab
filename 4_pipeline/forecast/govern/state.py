"""What DVC cannot see, in files for stages to depend on: the tracking store, and where the alias went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow_gate

from forecast.problem import REGISTERED_MODEL
from forecast.table.files import write_atomically
from forecast.tracking import PRODUCTION, connect, store_id

if TYPE_CHECKING:
    import mlflow


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


def _moved_since(decision: Path, client: mlflow.MlflowClient) -> dict[str, Any] | None:
    """Return where the alias is if not where a decision left it: version, run, and the number of its last move."""
    now = mlflow_gate.Registry(REGISTERED_MODEL, PRODUCTION, client=lambda: client).production()
    decided = json.loads(decision.read_text()) if decision.exists() else {"production": {}}
    left = decided.get("production") or {}
    version, run_id = (now.version, now.run_id) if now else (None, None)
    if (left.get("version"), left.get("run_id")) == (version, run_id) and not decided.get("experiment"):
        return None
    return {"version": version, "run_id": run_id, "moves": now.move.number if now else 0}
