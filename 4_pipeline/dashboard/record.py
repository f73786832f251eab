"""What is known of the model that speaks: how it came into production, where it comes from, and what it goes by."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workshop.errors import ModelError
from workshop.models import history, lineage
from workshop.models.history import Move
from workshop.models.lineage import Link
from workshop.models.registry import Production

EXPLANATIONS = ("importance", "responses")
FOLDER = "explanations"
MOST_BYTES = 1_000_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """What is known of the model that speaks, read when it began to: none of it is needed to answer.

    ``explanations`` are plotly figures as JSON has them, by name (`importance`, `responses`).
    """

    history: tuple[Move, ...] = ()
    lineage: tuple[Link, ...] = ()
    explanations: dict[str, dict] = field(default_factory=dict)


class Reader:
    """Reads records, part by part; a part that cannot be read stays as it was known, and is logged once."""

    def __init__(self) -> None:
        self._failed: dict[str, str] = {}

    def read(self, production: Production, known: Record) -> Record:
        """Return the record of what is in production; ``known`` is what was read of it before."""
        parts = {
            "history": lambda: tuple(history.read()),
            "lineage": lambda: tuple(lineage.of_version(production.version)),
            "explanations": lambda: explanations(production.run_id),
        }
        read = {}
        for name, read_part in parts.items():
            try:
                read[name] = read_part()
                self._failed.pop(name, None)
            except Exception as error:  # noqa: BLE001 - the model answers without it
                read[name] = getattr(known, name)
                if self._failed.get(name) != repr(error):
                    log.warning("%s of version %s cannot be read: %r", name, production.version, error)
                self._failed[name] = repr(error)
        return Record(**read)


def explanations(run_id: str) -> dict[str, dict]:
    """Return the figures that a run logged as `explanations/NAME.json`, those of `EXPLANATIONS` that there are.

    Raises ModelError for one that is no figure of ours: whoever can write to the artifact store may have put it there.
    """
    import mlflow

    from workshop.models.tracking import connect

    client = connect()
    there = {file.path: file.file_size for file in client.list_artifacts(run_id, FOLDER)} if run_id else {}
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in EXPLANATIONS:
            path = f"{FOLDER}/{name}.json"
            if path not in there:
                continue
            if (there[path] or 0) > MOST_BYTES:
                raise _refusal(path, f"{there[path]} bytes", f"at most {MOST_BYTES}")
            file = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, dst_path=folder)
            figures[name] = figure(Path(file).read_bytes(), path)
    return figures


def figure(content: bytes, name: str) -> dict[str, Any]:
    """Return a plotly figure from its JSON; ModelError when it is none, or is too large.

    What it may name elsewhere, such as pictures and maps, the browser does not fetch (`guard.POLICY`).
    """
    import plotly.graph_objects as go

    if len(content) > MOST_BYTES:
        raise _refusal(name, f"{len(content)} bytes", f"at most {MOST_BYTES}")
    try:
        found = json.loads(content)
        go.Figure(found)  # raises on whatever plotly does not know
    except (ValueError, TypeError, RecursionError) as error:
        raise _refusal(name, repr(error)[:200], "a plotly figure") from None
    if not isinstance(found, dict) or not found.keys() <= {"data", "layout"}:
        raise _refusal(name, type(found).__name__, "an object with data and layout")
    return found


def _refusal(name: str, value: str, expected: str) -> ModelError:
    return ModelError(f"{name} is not shown: it is no figure of ours.", value=value, expected=expected)
