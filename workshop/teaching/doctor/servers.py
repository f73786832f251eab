"""The servers: whether they answer, whose they are, and whether what is in production can be loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from workshop.ownership import find_stranger
from workshop.servers.services import SERVICES, Service, is_healthy
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
    stranger = find_stranger(settings, *service.ports_of(settings))
    if stranger and settings.is_up:
        next_step = f"workshop down, then workshop up: it takes ports of its own; then {EXPORT}"
        return wrong(service.name, f"port {stranger.port} is held by {stranger}", next_step)
    if stranger:  # servers that are down are no fault; that somebody has their port is worth a word
        what = f"not started; port {stranger.port} is held by {stranger}, `workshop up` takes another"
        return well(service.name, what)
    if is_healthy(service, settings):
        return well(service.name, f"answers at {service.address(settings)}")
    if settings.is_up:
        log = settings.logs / f"{service.name}.log"
        return wrong(service.name, "does not answer", f"workshop up; its log: {log}")
    return well(service.name, "not started (workshop up)")


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
