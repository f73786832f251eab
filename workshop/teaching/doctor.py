"""Check this machine, shell and clone for problems, and say how to fix each one."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
from forecast.govern import gate
from forecast.table import processed
from forecast.terms.errors import DataError, PipelineError

from workshop import port_owners
from workshop.exports import EXPORT_COMMAND, exports_of
from workshop.servers import supervisor
from workshop.settings import Settings
from workshop.teaching import prerequisites
from workshop.tracking import connect

OK, LOOK, WRONG = "ok", "look", "wrong"
MEMORY_GB = 4.0  # before the servers start: about half for them, half for the pipeline's notebooks
MEMORY_UP_GB = 1.5  # if the servers are already running
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "afs", "9p")
STORES = ("mlflow.db", "mlruns", "mlartifacts")  # MLflow's default stores if no tracking URI is set


@dataclass(frozen=True)
class Finding:
    """The result of one check; ``next_step`` says what to do if there is a problem.

    ``verdict`` is `ok`, `look` (works, but may surprise you) or `wrong` (something will fail).
    """

    check: str
    verdict: str
    found: str
    next_step: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Run all checks; each finding that is not `ok` has a next step."""
    findings = [
        *_machine(settings),
        _memory(settings),
        _disk(settings),
        _other_users(settings),
        _tracking_address(settings),
        _stray_runs(settings),
        _programs(),
        *(_server(row, settings) for row in supervisor.status(settings)),
    ]
    is_local = settings.tracking_uri == exports_of(settings)["MLFLOW_TRACKING_URI"]
    if settings.is_up and is_local and any((each.check, each.verdict) == ("mlflow", OK) for each in findings):
        findings.append(_production(settings))
    return findings


# -- the machine -----------------------------------------------------------------------------------------------------
def _machine(settings: Settings) -> list[Finding]:
    problems = [Finding("machine", WRONG, *each) for each in prerequisites.find_problems(str(settings.root))]
    return problems or [Finding("machine", OK, "Python, git and the clone's folder meet the requirements")]


def _memory(settings: Settings) -> Finding:
    from distributed.system import memory_limit  # also considers container limits and `ulimit`

    available_GB = min(psutil.virtual_memory().available, memory_limit()) / 1e9
    needed_GB = MEMORY_UP_GB if settings.is_up else MEMORY_GB
    text = f"{available_GB:.1f} GB available, {needed_GB:g} GB needed"
    if available_GB >= needed_GB:
        return Finding("memory", OK, text)
    next_step = "close programs; or write WORKSHOP_DASK_WORKERS=1 into .env, and type `workshop down`, `workshop up`"
    return Finding("memory", LOOK if available_GB >= needed_GB / 2 else WRONG, text, next_step)


def _disk(settings: Settings) -> Finding:
    """Check whether the state folder is on a network file system, where SQLite's locks are unreliable."""
    folder = settings.state
    mounts = [each for each in psutil.disk_partitions(all=True) if folder.is_relative_to(each.mountpoint)]
    kind = max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""
    if kind in NETWORK_FILE_SYSTEMS:
        text = f"{folder} is on a network file system ({kind}): it is slow, and the tracking database may be locked"
        next_step = "write WORKSHOP_STATE=/a/local/folder into .env, then type `workshop down` and `workshop up`"
        return Finding("disk", LOOK, text, next_step)
    return Finding("disk", OK, f"{folder} is on a local disk")


def _other_users(settings: Settings) -> Finding:
    if other_users := port_owners.describe_other_users(settings):
        next_step = "read the Ports section of server/README.md; to protect users from each other, set up server/room"
        return Finding("other users", LOOK, other_users, next_step)
    return Finding("other users", OK, "no other user is running programs that could reach the servers")


# -- the shell -------------------------------------------------------------------------------------------------------
def _tracking_address(settings: Settings) -> Finding:
    local = settings.model_copy(update={"mlflow_tracking_uri": None}).tracking_uri
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if address is None:
        text = f"MLFLOW_TRACKING_URI is not set in this shell: plain `mlflow` and `python` will not find {local}"
        return Finding("tracking address", LOOK, text, EXPORT_COMMAND)
    text = f"MLFLOW_TRACKING_URI is {address}; this clone's server {'is' if settings.is_up else 'will be'} at {local}"
    if address == local:
        return Finding("tracking address", OK, text)
    # If this clone's servers are down, another address may be intentional.
    return Finding("tracking address", WRONG if settings.is_up else LOOK, text, EXPORT_COMMAND)


def _stray_runs(settings: Settings) -> Finding:
    """Find runs that MLflow logged to local files because no tracking URI was set."""
    folders = {Path.cwd(), settings.root, *settings.root.glob("[1-4]_*"), *settings.root.glob("3_projects/*/")}
    strays = sorted(folder / name for folder in folders for name in STORES if (folder / name).exists())
    strays = [path for path in strays if settings.state not in path.parents]
    if not strays:
        return Finding("stray runs", OK, "no runs were logged to local files")
    paths = " ".join(map(str, strays))
    next_step = f"{EXPORT_COMMAND}; run the same notebooks or commands again; then remove the files: rm -r {paths}"
    return Finding("stray runs", LOOK, f"MLflow logged runs to local files, not to the server: {paths}", next_step)


def _programs() -> Finding:
    """Check that this shell starts the `mlflow`, `dvc` and `jupyter` of this environment."""
    folder = Path(sys.executable).parent
    programs = [shutil.which(name) for name in ("mlflow", "dvc", "jupyter")]
    if foreign := [path for path in programs if path and Path(path).parent != folder]:
        text = f"this shell starts {', '.join(foreign)} instead of the programs in {folder}"
        return Finding("programs", WRONG, text, f"{EXPORT_COMMAND}; or leave the other environment with `deactivate`")
    if None in programs:
        return Finding("programs", LOOK, f"the programs in {folder} are not on PATH", EXPORT_COMMAND)
    return Finding("programs", OK, f"the programs in {folder} are first on PATH")


# -- the servers -----------------------------------------------------------------------------------------------------
def _server(row: supervisor.Status, settings: Settings) -> Finding:
    if row.healthy:
        return Finding(row.name, OK, f"responds at {row.address}")
    if not settings.is_up:
        return Finding(row.name, OK, f"not started: {row.reason or 'start it with `workshop up`'}")
    next_step = f"type `workshop down`, `workshop up` and {EXPORT_COMMAND}; log: {settings.logs / row.name}.log"
    return Finding(row.name, WRONG, row.reason or "does not respond", next_step)


def _production(settings: Settings) -> Finding:
    """Check that the model in production loads and predicts."""
    from forecast.learn import storage  # imports scikit-learn
    from mlflow.exceptions import MlflowException

    try:
        version = gate.Registry(connect()).production()
        if version is not None:
            model = storage.load(version.model_uri)
            with contextlib.suppress(DataError):  # no data before the pipeline has run
                model.predict_with_band(processed.read(settings.pipeline / "data" / "germany.parquet"))
    except (PipelineError, MlflowException, OSError) as error:
        next_step = "roll back with `mlflow-gate rollback` (see `mlflow-gate history`), or restore a backup"
        return Finding("production", WRONG, str(error).splitlines()[0], next_step)
    text = f"{version.name} version {version.version} loads" if version else "no model is in production"
    return Finding("production", OK, text)
