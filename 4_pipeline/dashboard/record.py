"""The record of the version in production: history, lineage, explanations and the last decision."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import plotly.graph_objects as go
from forecast.govern.gate import Registry
from forecast.terms.errors import ModelError
from forecast.tracking import connect
from mlflow_gate import Link, Move, Production

EXPLANATIONS = {f"explanations/{name}.json": name for name in ("importance", "responses")}
MAX_BYTES = 1_000_000
WEEK = re.compile(r"<title>.*(\d{4}-W\d\d)</title>")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """Information about a version, none of it needed for predictions.

    ``explanations`` are plotly figures as parsed JSON, by name (`importance`, `responses`). ``decision`` is the gate's
    last decision in the pipeline, if any, and ``report_week`` the week of the last report.
    """

    history: tuple[Move, ...] = ()
    lineage: tuple[Link, ...] = ()
    explanations: dict[str, dict] = field(default_factory=dict)
    decision: dict[str, Any] = field(default_factory=dict)
    report_week: str | None = None


def read(production: Production, previous: Record, results: Path) -> Record:
    """Return the record of the version in production; parts that cannot be read are taken from ``previous``.

    ``results`` is the pipeline's `results` folder.
    """
    registry, run_id = Registry(), production.evaluated.run_id
    parts = {
        "history": lambda: tuple(registry.history()),
        "lineage": lambda: tuple(registry.lineage(production.version)),
        "explanations": lambda: {
            EXPLANATIONS[file.path]: figure(mlflow.artifacts.load_text(f"runs:/{run_id}/{file.path}"), file.path)
            for file in (connect().list_artifacts(run_id, "explanations") if run_id else [])
            if file.path in EXPLANATIONS and (file.file_size or 0) <= MAX_BYTES
        },
        "decision": lambda: json.loads(_text(results / "decision.json") or "{}"),
        "report_week": lambda: (WEEK.search(_text(results / "report.html")) or [None] * 2)[1],
    }
    values = {}
    for name, read_part in parts.items():
        try:
            values[name] = read_part()
        except Exception as error:  # noqa: BLE001 - predictions do not need the record
            values[name] = getattr(previous, name)
            log.warning("%s of version %s cannot be read: %r", name, production.version, error)
    return Record(**values)


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def figure(text: str, name: str) -> dict[str, Any]:
    """Return the parsed JSON of a plotly figure; raise ModelError if it is invalid or too large.

    The JSON is untrusted, because many clients can write to the artifact store. `security.POLICY` prevents the browser
    from loading images or maps that a figure links to.
    """
    try:
        content = json.loads(text) if len(text) <= MAX_BYTES else None
        go.Figure(content)  # raises ValueError for unknown plotly properties
    except (ValueError, TypeError, RecursionError):
        content = None
    if not isinstance(content, dict) or not content.keys() <= {"data", "layout"}:
        raise ModelError(
            f"{name} is not a valid figure.",
            value=text[:100],
            expected=f"a plotly figure with only data and layout, at most {MAX_BYTES:,} bytes",
        )
    return content
