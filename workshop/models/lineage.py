"""Where a model comes from and how it got into production: from the data to the alias, link by link."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from papermill_dask.tracking import NOTEBOOK_TAG

from workshop.errors import ModelError, ParameterError
from workshop.models import history, registry
from workshop.models.tracking import (
    COMMIT_TAG,
    DATA_TAG,
    DIRTY_TAG,
    LEARNED_TAG,
    STAGE_TAG,
    connect,
    run_url,
)
from workshop.settings import REGISTERED_MODEL, get_settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

KINDS = ("data", "commit", "stage", "notebook", "run", "model", "decision", "production")
LARGEST_FILE_BYTES = 20_000_000


@dataclass(frozen=True)
class Link:
    """One link of the chain; ``kind`` is one of `KINDS`.

    ``name`` is what people call it, ``facts`` what is known of it, in words, ``url`` a page that shows it.
    ``trouble`` says what is broken, after `lineage_checks.check`; a link that was never recorded is ``known`` not.
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


def trace(subject: str | None = None) -> list[Link]:
    """Return the chain of what ``subject`` names; every kind stands in it once, known or not.

    It is a registered version (`3`, `wind_solar/3`), a run's id, a file that a model spoke in, or nothing for what is
    in production. Raises ParameterError when it is none of these, ModelError when there is no such version or run.
    """
    if subject is None:
        now = registry.production()
        if now is None:
            raise ModelError("No model is in production.", next_step="workshop repro; or name a version or a run")
        return of_version(now.version)
    if named := re.fullmatch(rf"(?:(?:models:/)?{REGISTERED_MODEL}/)?0*(\d{{1,9}})", subject):
        return of_version(named[1])
    if re.fullmatch(r"[0-9a-f]{32}", subject):
        return of_run(subject)
    if _is_file(subject):
        return of_version(version_in(Path(subject)))
    raise ParameterError(
        "This names neither a model, nor a run, nor a prediction.",
        value=repr(subject),
        expected="a version such as 3, a run's id of 32 characters, or a file that a model spoke in",
        next_step="workshop history",
    )


def _is_file(subject: str) -> bool:
    try:
        return Path(subject).is_file()
    except OSError:  # too long for a name, or in a folder that is closed to us
        return False


def version_in(file: Path) -> str:
    """Return the version that speaks in a file: an answer of /predict, a table of predictions, a report.

    Each of them holds the model as `wind_solar/3`, or as JSON `{"name": "wind_solar", "version": "3"}`.
    """
    try:
        with file.open("rb") as content:
            text = content.read(LARGEST_FILE_BYTES).decode(errors="replace")
    except OSError as error:
        raise ModelError(f"{file} cannot be read.", value=error.strerror) from None
    try:
        said = json.loads(text)
        models = [said.get(key) for key in ("model", "production")] if isinstance(said, dict) else []
        named = {str(model["version"]) for model in models if model and model.get("name") == REGISTERED_MODEL}
        found = {version for version in named if re.fullmatch(r"\d{1,9}", version)}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        found = set(re.findall(rf"\b{REGISTERED_MODEL}/(\d{{1,9}})\b", text))
    if len(found) == 1:
        return found.pop()
    raise ModelError(
        f"{file} does not say which model spoke in it." if not found else f"More than one model speaks in {file}.",
        value=", ".join(sorted(found)) or None,
        expected=f"one name such as {REGISTERED_MODEL}/3",
        next_step="workshop history, and name a version",
    )


def of_version(version: str) -> list[Link]:
    """Return the chain of a registered version, the data first; every kind stands in it once, known or not."""
    client = connect()
    from mlflow.exceptions import MlflowException

    model = history.find_model(client)
    moves = history.moves_of(model) if model else []
    try:
        registered = client.get_model_version(REGISTERED_MODEL, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ModelError(
            f"There is no version {version} of {REGISTERED_MODEL}"
            + (", it was deleted." if any(move.version == version for move in moves) else "."),
            next_step="workshop history",
        ) from None
    run = registry.find_run(client, registered.run_id)
    # What the record says of a model outlives its run.
    tags = registry.recorded(registered) | (run.data.tags if run else {})
    current = history.version_of(model) if model else None
    rest = [_model(client, registered), _decision(registered), _production(version, moves, current)]
    return [*_of_run(run, tags), *rest]


def of_run(run_id: str) -> list[Link]:
    """Return the chain of a run; from the model on that of the last version made of it, if there is one."""
    client = connect()
    run = registry.find_run(client, run_id)
    if run is None:
        raise ModelError("There is no such run.", value=run_id, next_step=f"see {get_settings().tracking_uri}")
    versions = client.search_model_versions(f"name='{REGISTERED_MODEL}' and run_id='{run_id}'")
    if versions:
        return of_version(max((str(version.version) for version in versions), key=int))
    words = ("not registered", "never before the gate", "never in production")
    rest = [Link(kind, name, known=False) for kind, name in zip(KINDS[-3:], words, strict=True)]
    return [*_of_run(run, run.data.tags), *rest]


def _of_run(run: Run | None, tags: dict[str, str]) -> list[Link]:
    return [_data(tags), _commit(tags), _stage(run, tags), _notebook(run, tags), _run(run)]


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
    facts |= {f"md5 of {name}": value for name, value in sorted(hashes.items())}
    return Link("data", learned.get("table") or ", ".join(sorted(hashes)), facts)


def _commit(tags: dict[str, str]) -> Link:
    commit = tags.get(COMMIT_TAG)
    if commit is None:
        return Link("commit", "not recorded", known=False)
    dirty = tags.get(DIRTY_TAG)
    changed = {"true": "yes: the commit alone does not tell what ran", "false": "no"}.get(dirty, "not recorded")
    return Link("commit", commit[:10], {"commit": commit, "uncommitted changes": changed}, url=commit_url(commit))


def commit_url(commit: str) -> str | None:
    """Return the page of a commit where the repository has a remote with pages; None otherwise."""
    try:
        remote = subprocess.run(
            ["git", "remote", "get-url", "origin"],
            cwd=get_settings().root, capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    # https://user@host/owner/name.git and git@host:owner/name.git; a user, or a token, is not passed on.
    named = re.fullmatch(r"(?:https?://(?:[^@/]+@)?|(?:ssh://)?git@)([\w.-]+)[:/]([\w./~-]+?)(?:\.git)?/?", remote)
    return f"https://{named[1]}/{named[2]}/commit/{commit}" if named else None


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


def _model(client: MlflowClient, version: ModelVersion) -> Link:
    from mlflow.exceptions import MlflowException

    from workshop.models.loading import DIGEST_TAG, MODELS

    facts = {"version": str(version.version), "files": version.source}
    if version.source.startswith(MODELS):
        try:
            tags = client.get_logged_model(version.source.removeprefix(MODELS)).tags
        except MlflowException:
            tags = {}
        facts["sha256 of its manifest"] = tags.get(DIGEST_TAG, "not recorded")
    url = f"{get_settings().tracking_uri}/#/models/{REGISTERED_MODEL}/versions/{version.version}"
    return Link("model", f"{REGISTERED_MODEL} version {version.version}", facts, url=url)


def _decision(version: ModelVersion) -> Link:
    told = {
        name.removeprefix(registry.TAG): value for name, value in version.tags.items() if name.startswith(registry.TAG)
    }
    if not told:
        return Link("decision", "registered by hand: no gate, no record", known=False)
    kept = ("when", "who", "why", "reason", "replaced", "r2", "replaced_r2")
    facts = {name: told[name] for name in kept if name in told} | {"rules passed": _passed(told.get("rules", ""))}
    return Link("decision", told.get("action", history.PROMOTED), facts)


def _passed(rules: str) -> str:
    try:
        verdicts = [rule["passed"] is True for rule in json.loads(rules)]
    except (ValueError, LookupError, TypeError, RecursionError):
        return "not recorded"
    return f"{sum(verdicts)} of {len(verdicts)}"


def _production(version: str, moves: list[history.Move], current: str | None) -> Link:
    """Say since when a version is in production, or when it was: every time that the alias came to it."""
    spells = []
    for number, move in enumerate(moves):
        if move.version != version:
            continue
        after = moves[number + 1] if number + 1 < len(moves) else None
        end = f"to {after.when or 'not recorded'}, then version {after.version}" if after else "now"
        if not after and version != current:
            end = "until the alias was taken away"
        spells.append((move, end))
    if not spells:
        return Link("production", "never in production", known=False)
    last, end = spells[-1]
    facts = {f"{move.action}, from {move.when or 'not recorded'}": until for move, until in spells}
    since = last.when or "a time that was not recorded"
    return Link("production", f"since {since}" if end == "now" else f"from {since} {end}", facts)
