"""The servers: whether they answer, whose they are, and whether what is in production can be loaded."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from workshop.servers import ports
from workshop.servers.services import SERVICES, Service, is_healthy
from workshop.servers.supervision import MARK
from workshop.settings import EXPORT, Settings
from workshop.teaching.doctor.findings import Finding, well, wrong


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at each server, then at the model in production."""
    findings = [_server(service, settings) for service in SERVICES]
    yield from findings
    at_home = settings.tracking_uri == settings.exports()["MLFLOW_TRACKING_URI"]  # not another server, by the shell
    if settings.is_up and at_home and next(row.ok for row in findings if row.check == "mlflow"):
        yield from _production(settings)


def _server(service: Service, settings: Settings) -> Finding:
    wanted = [getattr(settings, name) for name in service.ports]
    owners = {port: _clone_of(port) for port in wanted}
    strangers = {port: owner for port, owner in owners.items() if owner not in (None, settings.state)}
    if strangers and settings.is_up:
        port, owner = next(iter(strangers.items()))
        return wrong(
            service.name,
            f"port {port} is answered by a server of another clone, {owner}",
            f"workshop down, then workshop up: it takes ports of its own; then {EXPORT}",
        )
    if is_healthy(service, settings) and not strangers:
        return well(service.name, f"answers at {service.address(settings)}")
    if settings.is_up:
        log = settings.logs / f"{service.name}.log"
        return wrong(service.name, "does not answer", f"workshop up; its log: {log}")
    # Servers that are down are no fault; a port that somebody else holds is worth a word: `up` moves on.
    for port, owner in owners.items():
        if _is_taken(settings.host, port):
            whose = f"a server of another clone, {owner}" if owner else ports.find_holder(port)
            return well(service.name, f"not started; port {port} is held by {whose}, `workshop up` takes another")
    return well(service.name, "not started (workshop up)")


def _is_taken(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == 0


def _clone_of(port: int) -> Path | None:
    """Return the state folder for which a workshop's server listens on a port; None when none does, or none tells."""
    process = ports.find_listener(port)
    try:
        state = process.environ().get(MARK) if process else None
    except (psutil.Error, OSError):  # another user's
        return None
    return Path(state) if state else None


def _production(settings: Settings) -> Iterator[Finding]:
    """Try out what is in production, as the dashboard does: alias, version and files may have been changed."""
    from mlflow.exceptions import MlflowException

    from workshop.data import schema
    from workshop.errors import DataError, WorkshopError
    from workshop.models import loading, registry

    try:
        serving = registry.production()
        if serving is not None:
            model = loading.load(serving.model_uri)
            with contextlib.suppress(DataError):  # there need not be any data
                model.predict_with_band(schema.read(settings.pipeline / "data" / "germany.parquet"))
    except (WorkshopError, MlflowException, OSError) as error:
        next_step = "workshop rollback, to the version before it (workshop history); or restore a backup"
        yield wrong("production", str(error).splitlines()[0], next_step)
    else:
        words = f"{serving.name} version {serving.version} loads" if serving else "no model is in production"
        yield well("production", words)
