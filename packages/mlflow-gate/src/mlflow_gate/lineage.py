"""Where a model comes from and how it got into production: from the data to the alias, link by link."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_gate import moves as record
from mlflow_gate.errors import ConfigError, GateError, ModelError
from mlflow_gate.learned import LEARNED_TAG
from mlflow_gate.moves import Move

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

    from mlflow_gate.registry import Registry

DATA_TAG = "mlflow_gate.data."  # and a file's path: its MD5, as DVC has it
COMMIT_TAG = "mlflow.source.git.commit"
EXPERIMENT_TAG, OVERRIDES_TAG = "mlflow_gate.experiment", "mlflow_gate.overrides"
HASH = "md5 of "
LARGEST_FILE_BYTES = 20_000_000
PUSH = "`dvc push` before the next `dvc gc`, or `dvc gc --all-commits`, keeps it"


@dataclass(frozen=True)
class Link:
    """One link of the chain, such as `data` or `commit`.

    ``name`` is what people call it, ``facts`` what is known of it, in words, ``url`` a page that shows it. ``known`` is
    false for a link that was never recorded; ``trouble`` says what is broken, after `Registry.verify`.

    >>> Link("commit", "1f0c9a2b7d", {"branch": "main"}).as_dict()["known"]
    True
    """

    kind: str
    name: str
    facts: dict[str, str] = field(default_factory=dict)
    url: str | None = None
    known: bool = True
    trouble: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)


Facts = dict[str, dict[str, str]]  # of all links, by kind


# -- what a chain starts from ------------------------------------------------------------------------------------------
def trace(registry: Registry, subject: str | None) -> list[Link]:
    """Return the chain of what ``subject`` names: see `Registry.lineage`."""
    if subject is None:
        version = registry.version_in_production()
        if version is None:
            step = "promote a model; or name a version or a run"
            raise ModelError("No model is in production.", next_step=step)
        return of_version(registry, str(version.version))
    if named := re.fullmatch(rf"(?:(?:models:/)?{re.escape(registry.name)}/)?0*(\d{{1,9}})", subject):
        return of_version(registry, named[1])
    if re.fullmatch(r"[0-9a-f]{32}", subject):
        return of_run(registry, subject)
    try:
        is_file = Path(subject).is_file()
    except (OSError, ValueError):
        is_file = False  # a text that cannot be a name
    if is_file:
        return of_version(registry, version_in(Path(subject), registry.name))
    raise ConfigError(
        "This names neither a model, nor a run, nor a file with predictions.",
        value=repr(subject),
        expected="a version such as 3, a run's id of 32 characters, or a file that names the version",
        next_step=f"mlflow-gate history {registry.name}",
    )


def version_in(file: Path, name: str) -> str:
    """Return the version that made a file: it holds `NAME/3`, or JSON as `{"name": "NAME", "version": "3"}`."""
    try:
        with file.open("rb") as content:
            text = content.read(LARGEST_FILE_BYTES).decode(errors="replace")
    except OSError as error:
        raise ModelError(f"{file} cannot be read.", value=error.strerror) from None
    # In JSON the version comes after the name, in the same object.
    quoted = re.escape(name)
    written = rf'\b{quoted}/(\d{{1,9}})\b|"name":\s*"{quoted}"[^{{}}]*"version":\s*"(\d{{1,9}})"'
    versions = {one or other for one, other in re.findall(written, text)}
    if len(versions) == 1:
        return versions.pop()
    raise ModelError(
        f"{file} names more than one model." if versions else f"{file} does not name the model that made it.",
        value=", ".join(sorted(versions)) or None,
        expected=f"one name such as {name}/3",
        next_step=f"mlflow-gate history {name}, and name a version",
    )


# -- the chain ---------------------------------------------------------------------------------------------------------
def of_version(registry: Registry, version: str) -> list[Link]:
    """Return the chain of a registered version, the data first."""
    from mlflow.exceptions import MlflowException

    try:
        registered = registry.client.get_model_version(registry.name, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        what = f"There is no version {version} of {registry.name}, or it was deleted."
        raise ModelError(what, next_step=f"mlflow-gate history {registry.name}") from None
    moves, current = registry.history(), registry.version_in_production()
    own = registry.find_run(registered.run_id)
    tags, evidence = registry.tags_of(registered, own), registry.refit_of(registered)
    run = registry.find_run(evidence.run_id) if evidence else own
    is_current = current is not None and current.version == registered.version
    return [
        *registry.origin(run, {**evidence.tags, **(run.data.tags if run else {})} if evidence else tags),
        run_link(registry, run),
        *([_refit(registry, own, tags)] if evidence else []),
        environment_link(registry, registry.uri_of(version)),
        _model(registry, registered),
        _decision(version, moves),
        _production(version, moves, is_current=is_current),
    ]


def of_run(registry: Registry, run_id: str) -> list[Link]:
    """Return the chain of a run, and from the model on that of the last version made of it, if there is one."""
    run = registry.find_run(run_id)
    if run is None:
        raise ModelError("There is no such run.", value=run_id, next_step="look for it in MLflow")
    if numbers := registry.versions_of(run_id):
        return of_version(registry, max(numbers, key=int))
    outputs = run.outputs.model_outputs if run.outputs else []
    environment = environment_link(registry, f"models:/{outputs[0].model_id}") if len(outputs) == 1 else None
    words = {"model": "not registered", "decision": "never before the gate", "production": "never in production"}
    return [
        *registry.origin(run, run.data.tags),
        run_link(registry, run),
        environment or Link("environment", "not recorded", known=False),
        *(Link(kind, name, known=False) for kind, name in words.items()),
    ]


def data_link(run: Run | None, tags: Mapping[str, str]) -> Link:
    """Describe the data: MLflow's data sets of the run, hashes of files in its tags, and what it learned from."""
    facts: dict[str, str] = {}
    for each in run.inputs.dataset_inputs if run and run.inputs else []:
        facts[f"data set {each.dataset.name}"] = f"digest {each.dataset.digest}"
    learned: dict[str, Any] = {}
    try:
        learned = dict(json.loads(tags.get(LEARNED_TAG, "{}")))
    except ValueError:
        facts["learned"] = "not readable"
    if learned.get("source"):
        facts["source"] = str(learned["source"])
    if learned.get("rows"):
        facts["learned"] = (
            f"{learned['rows']} rows, {learned.get('first')} to {learned.get('last')}, as the run declares"
        )
    facts |= {
        HASH + name.removeprefix(DATA_TAG): md5 for name, md5 in sorted(tags.items()) if name.startswith(DATA_TAG)
    }
    if not facts:
        return Link("data", "not recorded", known=False)
    return Link("data", str(learned.get("source") or next(iter(facts))), facts)


def commit_link(tags: Mapping[str, str]) -> Link:
    """Describe the commit that a run's tags name, its branch, and what an experiment of DVC changed."""
    commit = tags.get(COMMIT_TAG)
    if commit is None:
        return Link("commit", "not recorded", known=False)
    names = {"branch": "branch", EXPERIMENT_TAG: "experiment of DVC", OVERRIDES_TAG: "parameters changed"}
    return Link(
        "commit", commit[:10], {"commit": commit} | {word: tags[tag] for tag, word in names.items() if tag in tags}
    )


def is_dirty(tags: Mapping[str, str]) -> bool:
    """Return whether a run's tags say that its code differed from the commit: MLflow's tag, or one named like it."""
    return any(name.endswith(".git.dirty") and value.lower() == "true" for name, value in tags.items())


def run_link(registry: Registry, run: Run | None) -> Link:
    """Describe a run of MLflow."""
    if run is None:
        return Link("run", "no run, or it was purged", known=False)
    info = run.info
    started = datetime.fromtimestamp(info.start_time / 1000, UTC).isoformat(timespec="seconds")
    facts = {"id": info.run_id, "status": info.status, "started": started, "by": run.data.tags.get("mlflow.user", "")}
    url = registry.page(f"experiments/{info.experiment_id}/runs/{info.run_id}")
    return Link("run", info.run_name or info.run_id, facts, url=url or None)


def _refit(registry: Registry, run: Run | None, tags: Mapping[str, str]) -> Link:
    """Describe the fit on all rows that went into production after the run before it was judged."""
    link, data = run_link(registry, run), data_link(run, tags)
    return replace(link, kind="refit", facts=link.facts | data.facts)


def environment_link(registry: Registry, model_uri: str) -> Link:
    """Describe the versions that a model was made with, from its own requirements."""
    import tempfile

    from mlflow.artifacts import download_artifacts

    facts: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("requirements.txt", "python_env.yaml"):
            try:
                uri = registry.client.tracking_uri
                text = Path(download_artifacts(f"{model_uri}/{name}", dst_path=folder, tracking_uri=uri)).read_text()
            except Exception:  # noqa: BLE001, S112 - a version that was registered by hand may be anywhere
                continue
            pinned = re.findall(r"^([\w.-]+(?:\[[\w,]+\])?) *== *([^\s;]+)", text, re.MULTILINE)
            python = re.findall(r"^python: *['\"]?([\d.]+)", text, re.MULTILINE)
            facts |= {"python": python[0]} if python else dict(pinned)
    packages = [f"{name} {version}" for name, version in facts.items() if name != "mlflow"][:2]
    if not facts:
        return Link("environment", "not recorded", known=False)
    return Link("environment", ", ".join(packages), facts)


def _model(registry: Registry, version: ModelVersion) -> Link:
    url = registry.page(f"models/{registry.name}/versions/{version.version}")
    facts = {"version": str(version.version), "files": version.source or ""}
    return Link("model", f"{registry.name} version {version.version}", facts, url=url or None)


def _decision(version: str, moves: list[Move]) -> Link:
    """Describe the promotion of a version: the last move that the gate or a person approved."""
    decided = [move for move in moves if move.version == version and move.action in (record.PROMOTED, record.FORCED)]
    if not decided:
        return Link("decision", "registered by hand: no gate, no record", known=False)
    move = decided[-1]
    passed = sum(rule.get("passed") is True for rule in move.rules)
    facts: dict[str, Any] = {"when": move.when, "who": move.who, "why": move.why, "reason": move.reason}
    facts |= {"replaced": move.replaced, move.label: move.score or None}
    facts["replaced score"] = move.replaced_scores.get(move.label)
    facts["rules passed"] = f"{passed} of {len(move.rules)}" if move.rules else "not recorded"
    return Link("decision", move.action, {name: str(value) for name, value in facts.items() if value is not None})


def _production(version: str, moves: list[Move], *, is_current: bool) -> Link:
    """Describe since when a version is in production, or when it was: every time that the alias came to it."""
    spells = []
    for move, after in zip(moves, [*moves[1:], None], strict=True):
        if move.version == version:
            end = f"to {after.when or 'not recorded'}, then version {after.version}" if after else "now"
            spells.append((move, end if after or is_current else "until the alias was taken away"))
    if not spells:
        return Link("production", "never in production", known=False)
    last, end = spells[-1]
    facts = {f"{move.action}, from {move.when or 'not recorded'}": until for move, until in spells}
    since = last.when or "a time that was not recorded"
    return Link("production", f"since {since}" if end == "now" else f"from {since} {end}", facts)


# -- whether the links still hold --------------------------------------------------------------------------------------
def check_data(_registry: Registry, facts: Facts) -> str | None:
    """Look for each file, by its hash, under the working folder and in DVC's cache."""
    lost = []
    for name, md5 in facts["data"].items():
        if name.startswith(HASH) and not has_data(Path(name.removeprefix(HASH)), md5):
            lost.append(f"{name.removeprefix(HASH)} with the md5 {md5}")
    return f"neither in this folder nor in DVC's cache: {', '.join(lost)}; `dvc pull`; {PUSH}" if lost else None


def has_data(file: Path, md5: str, folder: Path | None = None) -> bool:
    """Return whether a file of this hash is in a folder, by default the working one, or in the cache of its DVC."""
    places, folder = [(folder or Path()) / file], folder or Path()
    if cache := run_program("dvc", "cache", "dir", folder=folder):
        # https://dvc.org/doc/user-guide/project-structure/internal-files#structure-of-the-cache-directory
        places.append(Path(cache) / "files" / "md5" / md5[:2] / md5[2:])
    return any(place.is_file() and _md5(place) == md5 for place in places)


def check_commit(_registry: Registry, facts: Facts) -> str | None:
    """Look for the commit in the repository of the working folder."""
    commit = facts["commit"]["commit"]
    if shutil.which("git") is None:
        return "git cannot be run, so the commit cannot be looked for"
    exists = run_program("git", "cat-file", "-t", commit) == "commit"
    return None if exists else f"this repository has no commit {commit[:10]}; fetch it"


def check_run(registry: Registry, facts: Facts, kind: str = "run") -> str | None:
    """Look whether the run is there and finished."""
    run_id = facts[kind]["id"]
    run = registry.find_run(run_id)
    if run is None:
        return f"there is no run {run_id}"
    if run.info.lifecycle_stage != "active":
        return f"the run {run_id} was deleted; `mlflow runs restore --run-id {run_id}` brings it back"
    return None if run.info.status == "FINISHED" else f"the run ended as {run.info.status}"


def check_refit(registry: Registry, facts: Facts) -> str | None:
    """Look for the refit's run, and for the data that it learned from."""
    return check_run(registry, facts, "refit") or check_data(registry, {"data": facts["refit"]})


def check_model(registry: Registry, facts: Facts) -> str | None:
    """Load the model."""
    try:
        registry.load(registry.uri_of(facts["model"]["version"]))
    except GateError:
        raise
    except Exception as error:  # noqa: BLE001 - each kind of model raises its own
        words = getattr(error, "what", None)
        return f"{words} {getattr(error, 'value', '')}" if words else f"it cannot be loaded: {error!s:.300}"
    return None


def check_decision(registry: Registry, facts: Facts) -> str | None:
    """Compare the tags of the run with those that the record kept; a run that was purged has none."""
    version = facts["model"]["version"]
    run = registry.find_run(facts.get("refit", facts["run"]).get("id"))
    kept = next((move.run for move in registry.history() if move.version == version and move.run), {})
    now = {
        name: value for name, value in (run.data.tags if run else kept).items() if not name.startswith("mlflow.note")
    }
    changed = [name for name, value in kept.items() if name != "branch" and not now.get(name, "").startswith(value)]
    return f"tags of the run were changed since: {', '.join(sorted(changed))}" if changed else None


CHECKS: dict[str, Callable[[Registry, Facts], str | None]] = {
    "data": check_data,
    "commit": check_commit,
    "run": check_run,
    "refit": check_refit,
    "model": check_model,
    "decision": check_decision,
}


def run_program(*command: str, folder: Path | None = None) -> str | None:
    """Return what git or DVC prints in a folder; None when that is not possible."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _md5(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
