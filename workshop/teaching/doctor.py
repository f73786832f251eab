"""Examine this machine, shell and clone: what is wrong, and what to type."""

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
MEMORY_GB = 4.0  # the servers take half of it, the pipeline's notebooks the rest
MEMORY_UP_GB = 1.5  # while the servers run
NETWORK_DISKS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "afs", "9p")
STORES = ("mlflow.db", "mlruns", "mlartifacts")  # MLflow writes them into the current folder when it has no address


@dataclass(frozen=True)
class Finding:
    """One thing that was examined, what was found, and what to type if it needs a change.

    ``verdict`` is `ok`, `look` (it works, yet may surprise) or `wrong` (something will fail).
    """

    check: str
    verdict: str
    found: str
    next_step: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Examine everything; findings that are not `ok` have a next step."""
    findings = [
        *_machine(settings),
        _memory(settings),
        _disk(settings),
        _people(settings),
        _tracking_address(settings),
        _stray_runs(settings),
        _programs(),
        *(_server(row, settings) for row in supervisor.status(settings)),
    ]
    here = settings.tracking_uri == exports_of(settings)["MLFLOW_TRACKING_URI"]
    if settings.is_up and here and any((each.check, each.verdict) == ("mlflow", OK) for each in findings):
        findings.append(_production(settings))
    return findings


# -- the machine -----------------------------------------------------------------------------------------------------
def _machine(settings: Settings) -> list[Finding]:
    problems = [Finding("machine", WRONG, *each) for each in prerequisites.find_problems(str(settings.root))]
    return problems or [Finding("machine", OK, "Python, git and the folder of this clone are as needed")]


def _memory(settings: Settings) -> Finding:
    from distributed.system import memory_limit  # also knows the limits of containers, and of `ulimit`

    available_GB = min(psutil.virtual_memory().available, memory_limit()) / 1e9
    needed_GB = MEMORY_UP_GB if settings.is_up else MEMORY_GB
    text = f"{available_GB:.1f} GB available, {needed_GB:g} GB are needed"
    if available_GB >= needed_GB:
        return Finding("memory", OK, text)
    next_step = "close programs; or write WORKSHOP_DASK_WORKERS=1 into .env, then workshop down and up"
    return Finding("memory", LOOK if available_GB >= needed_GB / 2 else WRONG, text, next_step)


def _disk(settings: Settings) -> Finding:
    """Check whether the state folder is on a disk of another machine, where SQLite cannot lock files well."""
    folder = settings.state
    mounts = [each for each in psutil.disk_partitions(all=True) if folder.is_relative_to(each.mountpoint)]
    kind = max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""
    if kind in NETWORK_DISKS:
        text = f"{folder} is on a disk of another machine ({kind}): slow, and the tracking database may be locked"
        next_step = "write WORKSHOP_STATE=/a/folder/on/a/disk/of/this/machine into .env, then workshop down and up"
        return Finding("disk", LOOK, text, next_step)
    return Finding("disk", OK, f"{folder} is on a disk of this machine")


def _people(settings: Settings) -> Finding:
    if people := port_owners.describe_people(settings):
        next_step = (
            "server/README.md, Ports, says what protects what; for people who must not reach one another: server/room"
        )
        return Finding("other people", LOOK, people, next_step)
    return Finding("other people", OK, "nobody else has programs here that could reach the servers")


# -- the shell -------------------------------------------------------------------------------------------------------
def _tracking_address(settings: Settings) -> Finding:
    here = settings.model_copy(update={"mlflow_tracking_uri": None}).tracking_uri
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if address is None:
        text = f"MLFLOW_TRACKING_URI is not set in this shell: plain `mlflow` and `python` would not find {here}"
        return Finding("tracking address", LOOK, text, EXPORT_COMMAND)
    text = f"MLFLOW_TRACKING_URI is {address}; the server here {'is' if settings.is_up else 'will be'} at {here}"
    if address == here:
        return Finding("tracking address", OK, text)
    # While nothing runs here, the shell may well mean another server.
    return Finding("tracking address", WRONG if settings.is_up else LOOK, text, EXPORT_COMMAND)


def _stray_runs(settings: Settings) -> Finding:
    """Look for the runs that MLflow wrote into a folder because it had no address; they are on no server."""
    folders = {Path.cwd(), settings.root, *settings.root.glob("[1-4]_*"), *settings.root.glob("3_projects/*/")}
    strays = sorted(folder / name for folder in folders for name in STORES if (folder / name).exists())
    strays = [path for path in strays if settings.state not in path.parents]
    if not strays:
        return Finding("stray runs", OK, "MLflow wrote no runs beside the server")
    paths = " ".join(map(str, strays))
    next_step = f"{EXPORT_COMMAND}; run again what made them; then remove them: rm -r {paths}"
    return Finding("stray runs", LOOK, f"MLflow wrote runs beside the server: {paths}", next_step)


def _programs() -> Finding:
    """Check which `mlflow`, `dvc` and `jupyter` this shell would start."""
    folder = Path(sys.executable).parent
    programs = [shutil.which(name) for name in ("mlflow", "dvc", "jupyter")]
    if foreign := [path for path in programs if path and Path(path).parent != folder]:
        text = f"typed here, {', '.join(foreign)} would run, and not the programs of {folder}"
        return Finding("programs", WRONG, text, f"{EXPORT_COMMAND}; or leave the other environment: deactivate")
    if None in programs:
        return Finding("programs", LOOK, f"the programs of {folder} are not on PATH", EXPORT_COMMAND)
    return Finding("programs", OK, f"the programs of {folder} come first on PATH")


# -- the servers -----------------------------------------------------------------------------------------------------
def _server(row: supervisor.Status, settings: Settings) -> Finding:
    if row.healthy:
        return Finding(row.name, OK, f"answers at {row.address}")
    if not settings.is_up:
        return Finding(row.name, OK, f"not started: {row.reason or 'type workshop up'}")
    next_step = f"workshop down, then workshop up, then {EXPORT_COMMAND}; its log: {settings.logs / row.name}.log"
    return Finding(row.name, WRONG, row.reason or "does not answer", next_step)


def _production(settings: Settings) -> Finding:
    """Load the model in production and predict with it, as the dashboard does."""
    from forecast.learn import storage  # imports scikit-learn
    from mlflow.exceptions import MlflowException

    try:
        serving = gate.Registry(connect()).production()
        if serving is not None:
            model = storage.load(serving.model_uri)
            with contextlib.suppress(DataError):  # there need not be any data
                model.predict_with_band(processed.read(settings.pipeline / "data" / "germany.parquet"))
    except (PipelineError, MlflowException, OSError) as error:
        next_step = "mlflow-gate rollback, to the version before it (mlflow-gate history); or restore a backup"
        return Finding("production", WRONG, str(error).splitlines()[0], next_step)
    text = f"{serving.name} version {serving.version} loads" if serving else "no model is in production"
    return Finding("production", OK, text)
