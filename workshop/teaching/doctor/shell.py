"""The shell: which programs it finds, where it sends them, and what earlier commands left behind."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import workshop
from workshop.settings import EXPORT, Settings
from workshop.teaching.doctor.findings import Finding, look, well, wrong

LOOPBACK = {"127.0.0.1", "localhost"}
STORES = ("mlflow.db", "mlruns", "mlartifacts")
# Four slashes make a path from the root; three, one from wherever the program happens to be started.
RELATIVE = re.compile(r"sqlite(\+\w+)?:///(?!/)")
ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_BACKEND_STORE_URI")


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at the environment of the shell that this was typed in."""
    yield _proxy(settings)
    yield _tracking_address(settings)
    yield _relative_addresses()
    yield _stray_stores(settings)
    yield _programs()
    yield _package(settings)


def _proxy(settings: Settings) -> Finding:
    if getproxies().get("http") and not proxy_bypass(settings.host):
        return wrong(
            "proxy",
            f"requests to {settings.host} go through a proxy, which cannot reach the servers of this machine",
            f"export NO_PROXY={','.join(sorted(LOOPBACK | {settings.host}))}",
        )
    return well("proxy", f"requests to {settings.host} go straight there")


def _tracking_address(settings: Settings) -> Finding:
    here = settings.model_copy(update={"mlflow_tracking_uri": None}).tracking_uri
    said = os.environ.get("MLFLOW_TRACKING_URI")
    if said is None:
        found = f"MLFLOW_TRACKING_URI is not set in this shell: plain `mlflow` and `python` would not find {here}"
        return look("tracking address", found, EXPORT)
    found = f"MLFLOW_TRACKING_URI is {said}; the server here {'is' if settings.is_up else 'will be'} at {here}"
    if said == here:
        return well("tracking address", found)
    # While nothing runs here, another server may well be meant.
    return wrong("tracking address", found, EXPORT) if settings.is_up else look("tracking address", found, EXPORT)


def _relative_addresses() -> Finding:
    """A relative SQLite file is another one in each folder, and runs seem to vanish."""
    said = {name: os.environ.get(name, "") for name in ADDRESSES}
    found = [f"{name} is {address}" for name, address in said.items() if RELATIVE.match(address)]
    if not found:
        return well("database address", "no address depends on the current folder")
    return wrong(
        "database address",
        f"{'; '.join(found)}: another file in each folder",
        f"unset it; then {EXPORT}. By hand: four slashes and a whole path",
    )


def _stray_stores(settings: Settings) -> Finding:
    """MLflow without an address writes into the current folder; such runs are on no server."""
    folders = {Path.cwd(), settings.root, *settings.root.glob("[1-4]_*"), *settings.root.glob("3_projects/*/")}
    strays = sorted(folder / name for folder in folders for name in STORES if (folder / name).exists())
    strays = [path for path in strays if settings.state not in path.parents]
    if not strays:
        return well("stray runs", "no runs lie beside the server")
    database = next((path for path in strays if path.name == "mlflow.db"), None)
    see = f"`mlflow ui --port 5399 --backend-store-uri sqlite:///{database}` shows them; " if database else ""
    return look(
        "stray runs",
        f"runs were written beside the server: {', '.join(map(str, strays))}",
        f"{see}run what made them again after {EXPORT}, then remove: rm -r {' '.join(map(str, strays))}",
    )


def _programs() -> Finding:
    """Look which `mlflow`, `dvc` and `jupyter` a person would start by typing these."""
    own = Path(sys.executable).parent
    found = {name: shutil.which(name) for name in ("mlflow", "dvc", "jupyter")}
    foreign = [path for path in found.values() if path and Path(path).parent != own]
    activated = os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
    if foreign:
        leave = f"; `deactivate` (conda: `conda deactivate`) leaves {activated}" if activated else ""
        return wrong("programs", f"typed here, {', '.join(foreign)} would run, not those of {own}", f"{EXPORT}{leave}")
    if None in found.values():
        return look("programs", f"the programs of {own} are not on PATH", EXPORT)
    return well("programs", f"those of {own} come first on PATH")


def _package(settings: Settings) -> Finding:
    """Look whether the code that runs is this clone's, and whether another PYTHONPATH gets in the way."""
    folder = Path(workshop.__file__).resolve().parent.parent
    if folder != settings.root:
        return look(
            "package",
            f"the code of {folder} acts on this clone, {settings.root}",
            "`make run` here, once, gives this clone an environment of its own",
        )
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != folder]
    if others:
        return look("package", f"PYTHONPATH puts {', '.join(others)} before what is installed", "unset PYTHONPATH")
    return well("package", f"the code is that of {folder}")
