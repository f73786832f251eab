"""Examine this machine, shell and clone: what is wrong, and what to type."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from jupyter_client.kernelspec import KernelSpecManager

from workshop.data import schema
from workshop.errors import DataError, WorkshopError
from workshop.models import registry
from workshop.port_owners import find_foreign_owner
from workshop.servers.services import SERVICES, Service, is_healthy
from workshop.settings import EXPORT_COMMAND, Settings
from workshop.teaching import prerequisites

OK, LOOK, WRONG = "ok", "look", "wrong"
MEMORY_GB = 4.0  # the servers take half of it, the pipeline's notebooks the rest
MEMORY_UP_GB = 1.5  # while the servers run
DISK_GB = 1.0
NETWORK_DISKS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "afs", "9p")
STORES = ("mlflow.db", "mlruns", "mlartifacts")  # MLflow writes them into the current folder when it has no address
KERNEL = "python3"  # the kernel that the notebooks name


@dataclass(frozen=True)
class Finding:
    """One thing that was examined, what was found, and what to type if it is not well.

    ``verdict`` is `ok`, `look` (it works, yet may surprise) or `wrong` (something will fail).
    """

    check: str
    verdict: str
    found: str
    next_step: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing will fail because of this."""
        return self.verdict != WRONG

    def as_dict(self) -> dict:
        """Return the fields as JSON-able values."""
        return asdict(self) | {"ok": self.ok}


def examine(settings: Settings) -> list[Finding]:
    """Examine everything; findings that are not `ok` have a next step."""
    findings = [
        *_machine(settings),
        _memory(settings),
        *_folders(settings),
        find_network_disk(settings.state, prerequisites.read("/proc/mounts")),
        _tracking_address(settings),
        _stray_runs(settings),
        _programs(),
        _kernel(),
    ]
    servers = [_server(service, settings) for service in SERVICES]
    here = settings.tracking_uri == settings.exports()["MLFLOW_TRACKING_URI"]
    if settings.is_up and here and any((each.check, each.verdict) == ("mlflow", OK) for each in servers):
        servers.append(_production(settings))
    return findings + servers


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


def _folders(settings: Settings) -> Iterator[Finding]:
    """Check that the folders to which programs of the workshop write are writable and have room."""
    folders = (
        ("home folder", Path.home(), "HOME"),
        ("temporary folder", Path(tempfile.gettempdir()), "TMPDIR"),
        ("cache folder", settings.downloads, "WORKSHOP_DOWNLOADS"),
        ("state folder", settings.state, "WORKSHOP_STATE"),
    )
    for name, folder, variable in folders:
        try:
            nearest = next(path for path in (folder, *folder.parents) if path.exists())
            with tempfile.TemporaryFile(dir=nearest):
                free_GB = shutil.disk_usage(nearest).free / 1e9
            problem = f"has {free_GB:.1f} GB free, {DISK_GB:g} GB are needed" if free_GB < DISK_GB else ""
        except OSError as error:
            problem = f"cannot be written to: {error.strerror}"
        if problem:
            elsewhere = f"set {variable} to a folder of yours on a disk with room"
            yield Finding(name, WRONG, f"{folder} {problem}", elsewhere)
        else:
            yield Finding(name, OK, f"{folder} has {free_GB:.1f} GB free")


def find_network_disk(folder: Path, mounts: str) -> Finding:
    """Check whether a folder is on a disk of another machine, where SQLite cannot lock files well.

    ``mounts`` is the text of /proc/mounts.
    """
    kind = prerequisites.find_filesystem(str(folder), mounts)
    if kind in NETWORK_DISKS:
        text = f"{folder} is on a disk of another machine ({kind}): slow, and the tracking database may be locked"
        next_step = "write WORKSHOP_STATE=/a/folder/on/a/disk/of/this/machine into .env, then workshop down and up"
        return Finding("disk", LOOK, text, next_step)
    return Finding("disk", OK, f"{folder} is on a disk of this machine")


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


def _kernel() -> Finding:
    """Check that notebooks would run on this Python, and not on that of another environment."""
    spec = KernelSpecManager().get_all_specs().get(KERNEL)
    if spec is None:
        return Finding("kernel", WRONG, f"there is no kernel `{KERNEL}`", "make run")
    program = Path(spec["spec"]["argv"][0])  # a bare `python` is replaced by that of JupyterLab
    if program.is_absolute() and (program.parent != Path(sys.executable).parent or not program.exists()):
        text = f"notebooks would run on {program}, which {spec['resource_dir']} names"
        return Finding("kernel", WRONG, text, f"jupyter kernelspec remove {KERNEL}")
    return Finding("kernel", OK, f"notebooks run on {sys.executable}")


# -- the servers -----------------------------------------------------------------------------------------------------
def _server(service: Service, settings: Settings) -> Finding:
    name, stranger = service.name, find_foreign_owner(settings, *service.ports_of(settings))
    if stranger and settings.is_up:
        next_step = f"workshop down, then workshop up, which takes other ports; then {EXPORT_COMMAND}"
        return Finding(name, WRONG, f"port {stranger.port} is held by {stranger}", next_step)
    if stranger:
        text = f"not started; port {stranger.port} is held by {stranger}, `workshop up` takes another"
        return Finding(name, OK, text)
    if is_healthy(service, settings):
        return Finding(name, OK, f"answers at {service.address(settings)}")
    if settings.is_up:
        return Finding(name, WRONG, "does not answer", f"workshop up; its log: {settings.logs / f'{name}.log'}")
    return Finding(name, OK, "not started (workshop up)")


def _production(settings: Settings) -> Finding:
    """Load the model in production and predict with it, as the dashboard does."""
    from mlflow.exceptions import MlflowException

    from workshop.models import storage  # imports scikit-learn

    try:
        serving = registry.production()
        if serving is not None:
            model = storage.load(serving.model_uri)
            with contextlib.suppress(DataError):  # there need not be any data
                model.predict_with_band(schema.read(settings.pipeline / "data" / "germany.parquet"))
    except (WorkshopError, MlflowException, OSError) as error:
        next_step = "workshop rollback, to the version before it (workshop history); or restore a backup"
        return Finding("production", WRONG, str(error).splitlines()[0], next_step)
    text = f"{serving.name} version {serving.version} loads" if serving else "no model is in production"
    return Finding("production", OK, text)
