"""Where a model comes from and how it got into production: from the data to the alias, link by link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlflow_gate.keys import declared
from mlflow_gate.record import FORCED, PROMOTED, Move

if TYPE_CHECKING:
    from mlflow.entities import Run

DATA_TAG = "mlflow_gate.data."  # and a file's path: its MD5, as DVC has it
COMMIT_TAG = "mlflow.source.git.commit"
EXPERIMENT_FACTS = {"mlflow_gate.experiment": "experiment of DVC", "mlflow_gate.overrides": "parameters changed"}


@dataclass(frozen=True)
class Link:
    """One link of the chain, such as `data` or `commit`.

    ``name`` is what people call it, ``facts`` what is known of it, in words, ``url`` a page that shows it. ``known`` is
    false for a link that was never recorded.
    """

    kind: str
    name: str = "not recorded"
    facts: dict[str, str] = field(default_factory=dict)
    url: str | None = None
    known: bool = True

    @classmethod
    def of(cls, kind: str, name: str | None, facts: Mapping[str, Any], url: str = "") -> Link:
        """Return a link with the facts that are known."""
        words = {fact: str(value) for fact, value in facts.items() if value not in (None, "")}
        return cls(kind, name or next(iter(words), "not recorded"), words, url or None, known=bool(words))


def data_link(run: Run | None, tags: Mapping[str, str]) -> Link:
    """Describe the data: MLflow's data sets of the run, hashes of files in its tags, and what it learned from."""
    inputs, learned = run.inputs.dataset_inputs if run and run.inputs else [], declared(tags)
    facts = {f"data set {each.dataset.name}": f"digest {each.dataset.digest}" for each in inputs}
    facts["source"] = source = str(learned.get("source", ""))
    if learned.get("rows"):
        facts["learned"] = f"{learned['rows']} rows, {learned['first']} to {learned['last']}, as the run declares"
    names = sorted(name for name in tags if name.startswith(DATA_TAG))
    return Link.of("data", source, facts | {f"md5 of {name.removeprefix(DATA_TAG)}": tags[name] for name in names})


def commit_link(tags: Mapping[str, str]) -> Link:
    """Describe the commit that a run's tags name, and what an experiment of DVC changed."""
    if not (commit := tags.get(COMMIT_TAG)):
        return Link("commit", known=False)
    words = {True: "yes: the code that ran was not the commit's alone", False: "no", None: "not recorded"}
    facts = {"commit": commit} | {word: tags.get(tag) for tag, word in EXPERIMENT_FACTS.items()}
    return Link.of("commit", commit[:10], facts | {"uncommitted changes": words[is_dirty(tags)]})


def is_dirty(tags: Mapping[str, str]) -> bool | None:
    """Return whether the code of a run was not its commit's, by a tag such as MLflow's; None if that is unknown."""
    values = [value.lower() == "true" for name, value in tags.items() if name.endswith(".git.dirty")]
    return any(values) if values else None


def run_link(run: Run | None, url: str, more: dict[str, Any], kind: str = "run") -> Link:
    """Describe a run of MLflow, with ``more`` facts."""
    if run is None:
        return Link(kind, "no run, or it was purged", known=False)
    info, step = run.info, f"`mlflow runs restore --run-id {run.info.run_id}` brings it back"
    started = datetime.fromtimestamp(info.start_time / 1000, UTC).isoformat(timespec="seconds")
    facts = {"id": info.run_id, "status": info.status, "started": started, "by": run.data.tags.get("mlflow.user")}
    facts["deleted"] = None if info.lifecycle_stage == "active" else step
    return Link.of(kind, info.run_name or info.run_id, facts | more, url)


def move_links(version: str, moves: list[Move], current: str | None) -> list[Link]:
    """Describe the last promotion of a version, and each time that the alias came to it."""
    decision, times, words = Link("decision", "registered by hand: no gate, no record", known=False), {}, ""
    for move, after in zip(moves, [*moves[1:], None], strict=True):
        if move.version != version:
            continue
        if move.action in (PROMOTED, FORCED):
            facts = {"when": move.when, "who": move.who, "why": move.why, "reason": move.reason}
            facts |= {"replaced": move.replaced, move.label: move.score}
            facts |= {"replaced score": move.replaced_scores.get(move.label)}
            passed = f"{sum(each['passed'] for each in move.findings)} of {len(move.findings)}"
            decision = Link.of("decision", move.action, facts | {"checks passed": passed})
        came = move.when or "a time that was not recorded"
        left = f"to {after.when or 'a time that was not recorded'}, then version {after.version}" if after else ""
        end = left or ("now" if version == current else "until the alias was removed")
        times[f"{move.action}, from {came}"] = end
        words = f"since {came}" if end == "now" else f"from {came} {end}"
    return [decision, Link.of("production", words or "never in production", times)]
