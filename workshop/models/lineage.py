"""Where a model comes from and how it got into production: from the data to the alias, link by link."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pooch
from papermill_dask import NOTEBOOK_TAG

from workshop import fingerprint
from workshop.errors import ModelError, ParameterError
from workshop.models import registry, storage
from workshop.models.registry import Move
from workshop.models.store import connect
from workshop.models.tracking import (
    CODE_TAG,
    COMMIT_TAG,
    DATA_TAG,
    DIRTY_TAG,
    EXPERIMENT_TAG,
    LEARNED_TAG,
    find_run,
    run_url,
)
from workshop.problem import REGISTERED_MODEL
from workshop.settings import STAGE_TAG, get_settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

KINDS = ("data", "commit", "code", "stage", "notebook", "run", "model", "decision", "production")
HASH = "md5 of "
MAX_COMMITS = 50  # later ones in which uncommitted code is looked for; each takes a tenth of a second
LARGEST_FILE_BYTES = 20_000_000


@dataclass(frozen=True)
class Link:
    """One link of the chain; ``kind`` is one of `KINDS`.

    ``name`` is what people call it, ``facts`` what is known of it, in words, ``url`` a page that shows it. ``known`` is
    false for a link that was never recorded; ``trouble`` says what is broken, after `check`.
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


# -- what a chain starts from ------------------------------------------------------------------------------------------
def trace(subject: str | None = None, client: MlflowClient | None = None) -> list[Link]:
    """Return the chain of what ``subject`` names; it holds every kind once, known or not.

    The subject is a registered version (`3`, `wind_solar/3`), a run's id, a file with predictions, or None for the
    model in production. Raises ParameterError for anything else, ModelError when there is no such version or run.
    """
    client = client or connect()
    if subject is None:
        now = registry.production(client=client)
        if now is None:
            raise ModelError("No model is in production.", next_step="workshop repro; or name a version or a run")
        return of_version(now.version, client)
    if named := re.fullmatch(rf"(?:(?:models:/)?{REGISTERED_MODEL}/)?0*(\d{{1,9}})", subject):
        return of_version(named[1], client)
    if re.fullmatch(r"[0-9a-f]{32}", subject):
        return of_run(subject, client)
    if os.path.isfile(subject):  # noqa: PTH113 - unlike Path, no error for a text that cannot be a name
        return of_version(version_in(Path(subject)), client)
    raise ParameterError(
        "This names neither a model, nor a run, nor a prediction.",
        value=repr(subject),
        expected="a version such as 3, a run's id of 32 characters, or a file with predictions",
        next_step="workshop history",
    )


def version_in(file: Path) -> str:
    """Return the version that made a file: an answer of /predict, a table of predictions, a report, a decision.

    Each of them holds the model as `wind_solar/3`, or as JSON `{"name": "wind_solar", "version": "3"}`.
    """
    try:
        with file.open("rb") as content:
            text = content.read(LARGEST_FILE_BYTES).decode(errors="replace")
    except OSError as error:
        raise ModelError(f"{file} cannot be read.", value=error.strerror) from None
    # In JSON the version comes after the name, in the same object.
    written = rf'\b{REGISTERED_MODEL}/(\d{{1,9}})\b|"name":\s*"{REGISTERED_MODEL}"[^{{}}]*"version":\s*"(\d{{1,9}})"'
    versions = {one or other for one, other in re.findall(written, text)}
    if len(versions) == 1:
        return versions.pop()
    raise ModelError(
        f"{file} names more than one model." if versions else f"{file} does not name the model that made it.",
        value=", ".join(sorted(versions)) or None,
        expected=f"one name such as {REGISTERED_MODEL}/3",
        next_step="workshop history, and name a version",
    )


# -- the chain ---------------------------------------------------------------------------------------------------------
def of_version(version: str, client: MlflowClient | None = None) -> list[Link]:
    """Return the chain of a registered version, the data first."""
    client = client or connect()
    from mlflow.exceptions import MlflowException

    try:
        registered = client.get_model_version(REGISTERED_MODEL, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        what = f"There is no version {version} of {REGISTERED_MODEL}, or it was deleted."
        raise ModelError(what, next_step="workshop history") from None
    moves, current = registry.history(client), registry.version_in_production(client)
    run = find_run(client, registered.run_id)
    is_current = current is not None and current.version == registered.version
    links = [_model(registered), _decision(version, moves), _production(version, moves, is_current=is_current)]
    return [*_origin(run, registry.tags_of(registered, run)), *links]


def of_run(run_id: str, client: MlflowClient) -> list[Link]:
    """Return the chain of a run, and from the model on that of the last version made of it, if there is one."""
    run = find_run(client, run_id)
    if run is None:
        raise ModelError("There is no such run.", value=run_id, next_step=f"see {get_settings().tracking_uri}")
    versions = client.search_model_versions(f"name='{REGISTERED_MODEL}' and run_id='{run_id}'")
    if versions:
        return of_version(max((str(version.version) for version in versions), key=int), client)
    words = ("not registered", "never before the gate", "never in production")
    links = [Link(kind, name, known=False) for kind, name in zip(KINDS[-3:], words, strict=True)]
    return [*_origin(run, run.data.tags), *links]


def _origin(run: Run | None, tags: dict[str, str]) -> list[Link]:
    return [_data(tags), _commit(tags), _code(tags), _stage(run, tags), _notebook(run, tags), _run(run)]


def _data(tags: dict[str, str]) -> Link:
    learned = {name.removeprefix(LEARNED_TAG): value for name, value in tags.items() if name.startswith(LEARNED_TAG)}
    hashes = {name.removeprefix(DATA_TAG): value for name, value in tags.items() if name.startswith(DATA_TAG)}
    if not learned and not hashes:
        return Link("data", "not recorded", known=False)
    facts = {}
    if learned:
        first, last, source, hours = (learned.get(name, "unknown") for name in ("first", "last", "source", "hours"))
        modelled = " (modelled)" if learned.get("modelled") == "true" else ""
        facts = {"source": source + modelled, "period": f"{first} to {last}", "hours": hours}
    facts |= {f"{HASH}{name}": value for name, value in sorted(hashes.items())}
    return Link("data", learned.get("table") or ", ".join(sorted(hashes)), facts)


def _commit(tags: dict[str, str]) -> Link:
    commit = tags.get(COMMIT_TAG)
    if commit is None:
        return Link("commit", "not recorded", known=False)
    words = {"true": "yes: the code that ran was not the commit's alone", "false": "no"}
    facts = {"commit": commit, "uncommitted changes": words.get(tags.get(DIRTY_TAG, ""), "not recorded")}
    if EXPERIMENT_TAG in tags:
        facts["experiment of DVC"] = tags[EXPERIMENT_TAG]
    return Link("commit", commit[:10], facts)


def _code(tags: dict[str, str]) -> Link:
    if CODE_TAG not in tags or STAGE_TAG not in tags:
        return Link("code", "not recorded", known=False)
    return Link("code", f"fingerprint {tags[CODE_TAG]}", {"stage": tags[STAGE_TAG], "fingerprint": tags[CODE_TAG]})


def _run_program(*command: str) -> subprocess.CompletedProcess | None:
    """Run git or DVC in the pipeline's folder; return None when that is not possible."""
    try:
        return subprocess.run(
            command, cwd=get_settings().pipeline, capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _stage(run: Run | None, tags: dict[str, str]) -> Link:
    if STAGE_TAG not in tags:
        return Link("stage", "not recorded", known=False)
    return Link("stage", tags[STAGE_TAG], dict(sorted(run.data.params.items())) if run else {})


def _notebook(run: Run | None, tags: dict[str, str]) -> Link:
    names = [name.removeprefix(NOTEBOOK_TAG) for name in tags if name.startswith(NOTEBOOK_TAG)]
    if not names or run is None:
        return Link("notebook", "not recorded", known=False)
    path = f"notebook/{names[0]}"
    url = f"{run_url(run.info.run_id, run.info.experiment_id)}/artifacts/{path}"
    return Link("notebook", names[0], {"artifact": path, "sha256": tags[NOTEBOOK_TAG + names[0]]}, url=url)


def _run(run: Run | None) -> Link:
    if run is None:
        return Link("run", "no run, or it was purged", known=False)
    info = run.info
    started = datetime.fromtimestamp(info.start_time / 1000, UTC).isoformat(timespec="seconds")
    facts = {"id": info.run_id, "status": info.status, "started": started, "by": run.data.tags.get("mlflow.user", "")}
    return Link("run", info.run_name, facts, url=run_url(info.run_id, info.experiment_id))


def _model(version: ModelVersion) -> Link:
    url = f"{get_settings().tracking_uri}/#/models/{REGISTERED_MODEL}/versions/{version.version}"
    facts = {"version": str(version.version), "files": version.source or ""}
    return Link("model", f"{REGISTERED_MODEL} version {version.version}", facts, url=url)


def _decision(version: str, moves: list[Move]) -> Link:
    """Describe the promotion of a version: the move that the gate or a person approved."""
    decided = (registry.PROMOTED, registry.FORCED)
    move = next((move for move in moves if move.version == version and move.action in decided), None)
    if move is None:
        return Link("decision", "registered by hand: no gate, no record", known=False)
    passed = sum(rule.get("passed") is True for rule in move.rules)
    facts = {"when": move.when, "who": move.who, "why": move.why, "reason": move.reason, "replaced": move.replaced}
    facts |= {"r2": move.scores.get("r2"), "replaced r2": move.replaced_scores.get("r2")}
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
def check(links: Iterable[Link], client: MlflowClient | None = None) -> list[Link]:
    """Return the links, each with a `trouble` when what it names is gone, or is not what it was.

    Links that were never recorded, and kinds that `CHECKS` has no check for, are returned as they are.
    """
    links = list(links)
    facts = {link.kind: link.facts for link in links}
    return [
        replace(link, trouble=CHECKS[link.kind](facts, client)) if link.known and link.kind in CHECKS else link
        for link in links
    ]


Facts = dict[str, dict[str, str]]  # of all links, by kind


def _check_data(facts: Facts, _: MlflowClient | None) -> str | None:
    """Look for each table, by its hash, in the pipeline's folder and in DVC's cache."""
    lost, pipeline = [], get_settings().pipeline
    done = _run_program("dvc", "cache", "dir")
    for name, md5 in facts["data"].items():
        if not name.startswith(HASH):
            continue
        places = [pipeline / "data" / name.removeprefix(HASH)]
        if done and done.returncode == 0:
            # https://dvc.org/doc/user-guide/project-structure/internal-files#structure-of-the-cache-directory
            places.append(Path(done.stdout.strip()) / "files" / "md5" / md5[:2] / md5[2:])
        if not any(place.is_file() and pooch.file_hash(place, "md5") == md5 for place in places):
            lost.append(f"{places[0].name} with the md5 {md5}")
    return f"neither in the pipeline's folder nor in DVC's cache: {', '.join(lost)}" if lost else None


def _check_commit(facts: Facts, _: MlflowClient | None) -> str | None:
    commit = facts["commit"]["commit"]
    done = _run_program("git", "cat-file", "-e", f"{commit}^{{commit}}")
    if done is None:
        return "git cannot be run, so the commit cannot be looked for"
    return None if done.returncode == 0 else f"this repository has no commit {commit[:10]}; fetch it"


def _check_code(facts: Facts, _: MlflowClient | None) -> str | None:
    """Compare the code with the commit's; code that was not committed yet may be that of a later commit."""
    commit, stage, code = facts["commit"].get("commit", ""), facts["code"]["stage"], facts["code"]["fingerprint"]
    then = _code_at(commit, stage)
    if then is None:
        return "the commit cannot be read here, so its code was not compared"
    if then == code:
        return None
    later = _run_program("git", "rev-list", "--all", "--reverse", f"^{commit}")
    for descendant in later.stdout.split()[:MAX_COMMITS] if later else []:
        if _code_at(descendant, stage) == code:
            return None
    return f"neither the commit nor a later one has this code: the commit's fingerprint is {then}; commit what ran"


def _code_at(commit: str, stage: str) -> str | None:
    """Return the fingerprint of a stage's code at a commit; None when the commit has no such stage, or no package."""
    top = _run_program("git", "rev-parse", "--show-toplevel")
    if top is None or top.returncode:
        return None
    pipeline = Path(os.path.relpath(get_settings().pipeline.resolve(), top.stdout.strip()))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "code.zip")
        places = f"--output={file}", commit, fingerprint.PACKAGE, pipeline.as_posix()
        done = _run_program("git", "-C", top.stdout.strip(), "archive", *places)
        if done is None or done.returncode:
            return None
        zipfile.ZipFile(file).extractall(folder)
        stages = fingerprint.stages(Path(folder, pipeline))
        code = fingerprint.code_of(stages.get(stage, {}), Path(folder, pipeline), Path(folder))
    return fingerprint.fingerprint(code) if code else None


def _check_run(facts: Facts, client: MlflowClient | None) -> str | None:
    run_id = facts["run"]["id"]
    run = find_run(client or connect(), run_id)
    if run is None:
        return f"there is no run {run_id}"
    if run.info.lifecycle_stage != "active":
        return f"the run {run_id} was deleted; `mlflow runs restore --run-id {run_id}` brings it back"
    return None if run.info.status == "FINISHED" else f"the run ended as {run.info.status}"


def _check_notebook(facts: Facts, client: MlflowClient | None) -> str | None:
    client = client or connect()
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            fetched = client.download_artifacts(facts["run"]["id"], facts["notebook"]["artifact"], folder)
        except (MlflowException, OSError):
            return f"the run has no artifact {facts['notebook']['artifact']}"
        sha256 = pooch.file_hash(fetched)
    return None if sha256 == facts["notebook"]["sha256"] else f"it was changed: its sha256 is {sha256[:16]}..."


def _check_model(facts: Facts, client: MlflowClient | None) -> str | None:
    try:
        storage.load(registry.uri_of(facts["model"]["version"]), client)
    except ModelError as error:
        return f"{error.what} {error.value}"
    return None


def _check_decision(facts: Facts, client: MlflowClient | None) -> str | None:
    """Compare the tags of the run with those that the record kept; a run that was purged has none."""
    client, version = client or connect(), facts["model"]["version"]
    run = find_run(client, facts["run"].get("id"))
    kept = next((move.run for move in registry.history(client) if move.version == version and move.run), {})
    changed = [name for name, value in kept.items() if run and run.data.tags.get(name) != value]
    return f"tags of the run were changed since: {', '.join(sorted(changed))}" if changed else None


CHECKS: dict[str, Callable[[Facts, MlflowClient | None], str | None]] = {
    "data": _check_data,
    "commit": _check_commit,
    "code": _check_code,
    "notebook": _check_notebook,
    "run": _check_run,
    "model": _check_model,
    "decision": _check_decision,
}
