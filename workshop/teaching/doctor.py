"""What is the matter with a machine, and what to type about it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import psutil

from workshop.settings import Settings
from workshop.teaching import prerequisites

MEMORY_GB = 4.0
LOOPBACK = {"127.0.0.1", "localhost"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, whether it is well, and what to type if not."""

    check: str
    ok: bool
    found: str
    next_step: str = ""

    def as_dict(self) -> dict:
        """Return the fields as JSON-able values."""
        return asdict(self)


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; findings that are not ok come with the next step."""
    address, servers = _address(settings), list(_servers(settings))
    return [
        *_machine(settings),
        _memory(),
        _proxy(settings),
        address,
        *servers,
        *_production(settings, [address, *servers]),
    ]


def _machine(settings: Settings) -> Iterator[Finding]:
    problems = prerequisites.find_problems(str(settings.root))
    for what, next_step in problems:
        yield Finding("machine", ok=False, found=what, next_step=next_step)
    if not problems:
        yield Finding("machine", ok=True, found="Python, git and disk are as needed")


def _memory() -> Finding:
    available_GB = psutil.virtual_memory().available / 1e9
    return Finding(
        "memory",
        ok=available_GB >= MEMORY_GB,
        found=f"{available_GB:.1f} GB available, {MEMORY_GB:g} GB are needed",
        next_step="" if available_GB >= MEMORY_GB else "close programs, or WORKSHOP_DASK_WORKERS=1 in .env",
    )


def _proxy(settings: Settings) -> Finding:
    from urllib.request import getproxies, proxy_bypass

    caught = bool(getproxies().get("http")) and not proxy_bypass(settings.host)
    return Finding(
        "proxy",
        ok=not caught,
        found=f"requests to {settings.host} {'go through a proxy' if caught else 'go straight there'}",
        next_step=f"export NO_PROXY={','.join(sorted(LOOPBACK | {settings.host}))}" if caught else "",
    )


def _address(settings: Settings) -> Finding:
    here = settings.exports()["MLFLOW_TRACKING_URI"]
    said = os.environ.get("MLFLOW_TRACKING_URI")
    ok = said in (None, here)
    return Finding(
        "tracking address",
        ok=ok,
        found=f"MLFLOW_TRACKING_URI is {said or 'not set in this shell'}; the servers here are at {here}",
        next_step="" if ok else 'eval "$(workshop config --export)"',
    )


def _servers(settings: Settings) -> Iterator[Finding]:
    from workshop.servers.services import SERVICES, is_healthy

    for service in SERVICES:
        if is_healthy(service, settings):
            yield Finding(service.name, ok=True, found=f"answers at {service.address(settings)}")
        elif settings.is_up:
            log = settings.logs / f"{service.name}.log"
            yield Finding(service.name, ok=False, found="does not answer", next_step=f"workshop up; its log: {log}")
        else:
            yield _port(service.name, [getattr(settings, name) for name in service.ports])


def _port(name: str, wanted: list[int]) -> Finding:
    """Servers that are down are no fault; a port that somebody else holds is worth a word: `up` moves on."""
    from workshop.servers import ports

    for port in wanted:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        if taken:
            return Finding(
                name,
                ok=True,
                found=f"not started; port {port} is held by {ports.find_holder(port)}, `up` takes another",
            )
    return Finding(name, ok=True, found="not started (workshop up)")


def _production(settings: Settings, findings: list[Finding]) -> Iterator[Finding]:
    """Load what is in production: a version, or its files, may have been deleted by other means than ours."""
    if not settings.is_up or not all(row.ok for row in findings if row.check in ("tracking address", "mlflow")):
        return  # which is told as such
    from mlflow.exceptions import MlflowException

    from workshop.errors import WorkshopError
    from workshop.models import loading, registry

    try:
        serving = registry.production()
        if serving is not None:
            loading.load(serving.model_uri)
    except (WorkshopError, MlflowException, OSError) as error:
        next_step = "workshop rollback, to the version before it (workshop history); or restore a backup"
        yield Finding("production", ok=False, found=str(error).splitlines()[0], next_step=next_step)
    else:
        words = f"{serving.name} version {serving.version} loads" if serving else "no model is in production"
        yield Finding("production", ok=True, found=words)
