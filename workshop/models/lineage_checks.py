"""Whether the links of a chain still hold: what they name exists, and is what it was."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from workshop.errors import ModelError
from workshop.models import history, loading, registry
from workshop.models.lineage import Link
from workshop.models.tracking import connect, file_hash
from workshop.settings import REGISTERED_MODEL, get_settings

HASH = "md5 of "


def check(links: Iterable[Link]) -> list[Link]:
    """Return the links, each with a `trouble` when it does not hold; those that were never recorded are left alone."""
    checks: dict[str, Callable[[dict[str, str], list[Link]], str | None]] = {
        "data": _check_data,
        "commit": _check_commit,
        "notebook": _check_notebook,
        "run": _check_run,
        "model": _check_model,
        "production": _check_production,
    }
    links = list(links)
    return [
        replace(link, trouble=checks[link.kind](link.facts, links)) if link.known and link.kind in checks else link
        for link in links
    ]


def _check_data(facts: dict[str, str], _links: list[Link]) -> str | None:
    """Look for each table, by its hash, in the pipeline's folder and in DVC's cache."""
    lost = []
    cache = _cache()
    for name, md5 in facts.items():
        if not name.startswith(HASH):
            continue
        file = get_settings().pipeline / "data" / name.removeprefix(HASH)
        # https://dvc.org/doc/user-guide/project-structure/internal-files#structure-of-the-cache-directory
        kept = cache / "files" / "md5" / md5[:2] / md5[2:] if cache else None
        if not any(place and place.is_file() and file_hash(place) == md5 for place in (file, kept)):
            lost.append(f"{file.name} with the md5 {md5}")
    if not lost:
        return None
    return f"neither in the pipeline's folder nor in DVC's cache: {', '.join(lost)}"


def _cache() -> Path | None:
    try:
        done = subprocess.run(
            ["dvc", "cache", "dir"], cwd=get_settings().pipeline, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return Path(done.stdout.strip())


def _check_commit(facts: dict[str, str], _links: list[Link]) -> str | None:
    commit = facts["commit"]
    done = subprocess.run(
        ["git", "cat-file", "-e", f"{commit}^{{commit}}"],
        cwd=get_settings().root, capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    return None if done.returncode == 0 else f"this repository has no commit {commit[:10]}; fetch it"


def _check_run(facts: dict[str, str], _links: list[Link]) -> str | None:
    run = registry.find_run(connect(), facts["id"])
    if run is None:
        return f"there is no run {facts['id']}"
    if run.info.lifecycle_stage != "active":
        return f"the run {facts['id']} was deleted; `mlflow runs restore --run-id {facts['id']}` brings it back"
    return None if run.info.status == "FINISHED" else f"the run ended as {run.info.status}"


def _check_notebook(facts: dict[str, str], links: list[Link]) -> str | None:
    run_id = next(link.facts.get("id") for link in links if link.kind == "run")
    client = connect()
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            fetched = client.download_artifacts(run_id, facts["artifact"], folder)
        except (MlflowException, OSError):
            return f"the run has no artifact {facts['artifact']}"
        found = hashlib.sha256(Path(fetched).read_bytes()).hexdigest()
    return None if found == facts["sha256"] else f"it was changed: its sha256 is {found[:16]}..."


def _check_model(facts: dict[str, str], _links: list[Link]) -> str | None:
    """Load the version, which holds its files against their digest."""
    try:
        loading.load(f"models:/{REGISTERED_MODEL}/{facts['version']}")
    except ModelError as error:
        return f"{error.what} {error.value}"
    return None


def _check_production(_facts: dict[str, str], links: list[Link]) -> str | None:
    """Ask whether the alias still leads where the last move went."""
    model = history.find_model(connect())
    now = history.version_of(model) if model else None
    version = next(link.facts.get("version") for link in links if link.kind == "model")
    last = history.moves_of(model)[-1].version if model else None
    return None if now or last != version else "the alias `production` was taken away"
