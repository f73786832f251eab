"""The links of a model's lineage that the pipeline knows: its table, the code and the stage, the executed notebook."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pooch
from mlflow_gate import Link
from mlflow_gate.lineage import HASH, PUSH, Facts, commit_link, has_data, run_program
from papermill_dask import NOTEBOOK_TAG

from workshop import fingerprint
from forecast.tracking import CODE_TAG, DATA_TAG, DIRTY_TAG, LEARNED_TAG, run_url
from workshop.settings import STAGE_TAG, get_settings

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow_gate import Registry

KINDS = ("data", "commit", "code", "stage", "notebook", "run", "environment", "model", "decision", "production")
MAX_COMMITS = 50  # later ones in which uncommitted code is looked for; each takes a tenth of a second


def origin(run: Run | None, tags: Mapping[str, str]) -> list[Link]:
    """Return the links up to a run."""
    return [_data(tags), _commit(tags), _code(tags), _stage(run, tags), _notebook(run, tags)]


def _data(tags: Mapping[str, str]) -> Link:
    learned = {name.removeprefix(LEARNED_TAG): value for name, value in tags.items() if name.startswith(LEARNED_TAG)}
    hashes = {name.removeprefix(DATA_TAG): value for name, value in tags.items() if name.startswith(DATA_TAG)}
    if not learned and not hashes:
        return Link("data", "not recorded", known=False)
    facts = {}
    if learned:
        first, last, source, hours = (learned.get(name, "unknown") for name in ("first", "last", "source", "hours"))
        modelled = " (modelled)" if learned.get("modelled") == "true" else ""
        facts = {"source": source + modelled, "period": f"{first} to {last}, as the run declares", "hours": hours}
    facts |= {f"{HASH}{name}": value for name, value in sorted(hashes.items())}
    return Link("data", learned.get("table") or ", ".join(sorted(hashes)), facts)


def _commit(tags: Mapping[str, str]) -> Link:
    link = commit_link(tags)
    words = {"true": "yes: the code that ran was not the commit's alone", "false": "no"}
    changes = {"uncommitted changes": words.get(tags.get(DIRTY_TAG, ""), "not recorded")}
    return replace(link, facts=link.facts | changes) if link.known else link


def _code(tags: Mapping[str, str]) -> Link:
    if CODE_TAG not in tags or STAGE_TAG not in tags:
        return Link("code", "not recorded", known=False)
    return Link("code", f"fingerprint {tags[CODE_TAG]}", {"stage": tags[STAGE_TAG], "fingerprint": tags[CODE_TAG]})


def _stage(run: Run | None, tags: Mapping[str, str]) -> Link:
    if STAGE_TAG not in tags:
        return Link("stage", "not recorded", known=False)
    return Link("stage", tags[STAGE_TAG], dict(sorted(run.data.params.items())) if run else {})


def _notebook(run: Run | None, tags: Mapping[str, str]) -> Link:
    names = [name.removeprefix(NOTEBOOK_TAG) for name in tags if name.startswith(NOTEBOOK_TAG)]
    if not names or run is None:
        return Link("notebook", "not recorded", known=False)
    path = f"notebook/{names[0]}"
    url = f"{run_url(run.info.run_id, run.info.experiment_id)}/artifacts/{path}"
    return Link("notebook", names[0], {"artifact": path, "sha256": tags[NOTEBOOK_TAG + names[0]]}, url=url)


# -- whether the links still hold --------------------------------------------------------------------------------------
def _check_data(_registry: Registry, facts: Facts) -> str | None:
    """Look for each table, by its hash, in the pipeline's folder and in DVC's cache."""
    pipeline = get_settings().pipeline
    hashes = {name.removeprefix(HASH): md5 for name, md5 in facts["data"].items() if name.startswith(HASH)}
    lost = [name for name, md5 in hashes.items() if not has_data(Path("data", name), md5, pipeline)]
    words = ", ".join(f"{name} with the md5 {hashes[name]}" for name in lost)
    return f"neither in the pipeline's folder nor in DVC's cache: {words}; `dvc pull`; {PUSH}" if lost else None


def _check_commit(_registry: Registry, facts: Facts) -> str | None:
    commit = facts["commit"]["commit"]
    exists = run_program("git", "cat-file", "-t", commit, folder=get_settings().pipeline) == "commit"
    return None if exists else f"this repository has no commit {commit[:10]}; fetch it"


def _check_code(_registry: Registry, facts: Facts) -> str | None:
    """Compare the code with the commit's; code that was not committed yet may be that of a later commit."""
    commit, stage, code = facts["commit"].get("commit", ""), facts["code"]["stage"], facts["code"]["fingerprint"]
    then = _code_at(commit, stage)
    if then is None:
        return "the commit cannot be read here, so its code was not compared"
    if then == code:
        return None
    later = run_program("git", "rev-list", "--all", "--reverse", f"^{commit}", folder=get_settings().pipeline)
    if any(_code_at(descendant, stage) == code for descendant in (later or "").split()[:MAX_COMMITS]):
        return None
    return f"neither the commit nor a later one has this code: the commit's fingerprint is {then}; commit what ran"


def _code_at(commit: str, stage: str) -> str | None:
    """Return the fingerprint of a stage's code at a commit; None when the commit has no such stage, or no package."""
    top = run_program("git", "rev-parse", "--show-toplevel", folder=get_settings().pipeline)
    if top is None:
        return None
    pipeline = Path(os.path.relpath(get_settings().pipeline.resolve(), top))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "code.zip")
        places = f"--output={file}", commit, fingerprint.PACKAGE, pipeline.as_posix()
        if run_program("git", "-C", top, "archive", *places) is None:
            return None
        zipfile.ZipFile(file).extractall(folder)
        stages = fingerprint.stages(Path(folder, pipeline))
        code = fingerprint.code_of(stages.get(stage, {}), Path(folder, pipeline), Path(folder))
    return fingerprint.fingerprint(code) if code else None


def _check_notebook(registry: Registry, facts: Facts) -> str | None:
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            fetched = registry.client.download_artifacts(facts["run"]["id"], facts["notebook"]["artifact"], folder)
        except (MlflowException, OSError):
            return f"the run has no artifact {facts['notebook']['artifact']}"
        sha256 = pooch.file_hash(fetched)
    return None if sha256 == facts["notebook"]["sha256"] else f"it was changed: its sha256 is {sha256[:16]}..."


CHECKS: dict[str, Callable[[Registry, Facts], str | None]] = {
    "data": _check_data,
    "commit": _check_commit,
    "code": _check_code,
    "notebook": _check_notebook,
}
