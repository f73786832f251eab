"""Lineage of a model: the chain of links from its data to its time in production."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlflow_gate.keys import declared
from mlflow_gate.record import FORCED, PROMOTED, Move

if TYPE_CHECKING:
    from mlflow.entities import Run

DATA_TAG = "mlflow_gate.data."  # followed by a file's path; the value is the file's MD5, as in dvc.lock
COMMIT_TAG = "mlflow.source.git.commit"
EXPERIMENT_FACTS = {"mlflow_gate.experiment": "DVC experiment", "mlflow_gate.overrides": "parameters changed"}


@dataclass(frozen=True)
class Link:
    """One link in the lineage of a model.

    Parameters
    ----------
    kind : str
        Type of the link, such as `data`, `commit` or `run`.
    name : str
        The display name.
    facts : dict
        Details to display, keyed by label.
    url : str, optional
        URL of a page about the linked object.
    known : bool
        False if nothing was recorded.
    """

    kind: str
    name: str = "not recorded"
    facts: dict[str, str] = field(default_factory=dict)
    url: str | None = None
    known: bool = True

    @classmethod
    def of(cls, kind: str, name: str | None, facts: Mapping[str, Any], url: str = "") -> Link:
        """Create a link without the facts that are None or empty."""
        recorded = {fact: str(value) for fact, value in facts.items() if value not in (None, "")}
        return cls(kind, name or next(iter(recorded), "not recorded"), recorded, url or None, known=bool(recorded))


def data_link(run: Run | None, tags: Mapping[str, str]) -> Link:
    """Describe a run's data: its MLflow data sets, the file hashes in its tags, and its declared training rows."""
    inputs, learned = run.inputs.dataset_inputs if run and run.inputs else [], declared(tags)
    facts = {f"data set {each.dataset.name}": f"digest {each.dataset.digest}" for each in inputs}
    facts["source"] = source = str(learned.get("source", ""))
    if learned.get("rows"):
        facts["learned"] = f"{learned['rows']} rows, {learned['first']} to {learned['last']}, as the run declares"
    names = sorted(name for name in tags if name.startswith(DATA_TAG))
    return Link.of("data", source, facts | {f"md5 of {name.removeprefix(DATA_TAG)}": tags[name] for name in names})


def commit_link(tags: Mapping[str, str]) -> Link:
    """Describe a run's commit, any uncommitted changes, and its DVC experiment."""
    if not (commit := tags.get(COMMIT_TAG)):
        return Link("commit", known=False)
    words = {True: "yes: the code differs from the commit", False: "no", None: "not recorded"}
    facts = {"commit": commit} | {word: tags.get(tag) for tag, word in EXPERIMENT_FACTS.items()}
    return Link.of("commit", commit[:10], facts | {"uncommitted changes": words[is_dirty(tags)]})


def is_dirty(tags: Mapping[str, str]) -> bool | None:
    """Return whether a run's tags (such as MLflow's `...git.dirty`) report uncommitted changes; None if unknown."""
    values = [value.lower() == "true" for name, value in tags.items() if name.endswith(".git.dirty")]
    return any(values) if values else None


def run_link(run: Run | None, url: str, more: dict[str, Any], kind: str = "run") -> Link:
    """Describe an MLflow run, adding the facts in ``more``."""
    if run is None:
        return Link(kind, "no run, or the run was purged", known=False)
    info, step = run.info, f"restore the run with `mlflow runs restore --run-id {run.info.run_id}`"
    started = datetime.fromtimestamp(info.start_time / 1000, UTC).isoformat(timespec="seconds")
    facts = {"id": info.run_id, "status": info.status, "started": started, "by": run.data.tags.get("mlflow.user")}
    facts["deleted"] = None if info.lifecycle_stage == "active" else step
    return Link.of(kind, info.run_name or info.run_id, facts | more, url)


def move_links(version: str, moves: list[Move], current: str | None) -> list[Link]:
    """Describe a version's last promotion and each of its periods in production."""
    decision, times, latest = Link("decision", "registered by hand, without a decision", known=False), {}, ""
    for move, after in zip(moves, [*moves[1:], None], strict=True):
        if move.version != version:
            continue
        if move.action in (PROMOTED, FORCED):
            facts = {"when": move.when, "who": move.who, "why": move.why, "reason": move.reason}
            facts |= {"replaced": move.replaced, move.label: move.score}
            facts |= {"replaced score": move.replaced_scores.get(move.label)}
            passed = f"{sum(each['passed'] for each in move.findings)} of {len(move.findings)}"
            decision = Link.of("decision", move.action, facts | {"checks passed": passed})
        start = move.when or "an unknown time"
        end = f"to {after.when or 'an unknown time'}, then version {after.version}" if after else ""
        end = end or ("now" if version == current else "until the alias was removed")
        times[f"{move.action}, from {start}"] = end
        latest = f"since {start}" if end == "now" else f"from {start} {end}"
    return [decision, Link.of("production", latest or "never in production", times)]
