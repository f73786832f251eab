"""Connect to this clone's tracking server, even if the shell or kernel has an outdated address."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from forecast import tracking
from forecast.terms.errors import ServiceError

from workshop.exports import EXPORT_COMMAND, MLFLOW_RETRIES, loopback_without_proxy
from workshop.port_owners import require_own
from workshop.settings import Settings, get_settings

if TYPE_CHECKING:
    from mlflow import MlflowClient


def connect(settings: Settings | None = None) -> MlflowClient:
    """Point MLflow at this clone's tracking server and return a client; raise ServiceError if the server is down."""
    settings = settings or get_settings()
    # MLflow reads its retry and timeout settings on import; a shell without `workshop config --export` lacks them.
    for name, value in MLFLOW_RETRIES.items():
        os.environ.setdefault(name, value)
    os.environ.update(loopback_without_proxy())
    try:
        return tracking.connect(verified_tracking_uri(settings))
    except ServiceError as error:
        error.next_step = "workshop up" if "does not respond" in error.what else EXPORT_COMMAND
        raise


def verified_tracking_uri(settings: Settings | None = None) -> str:
    """Return the tracking URI; raise ServiceError if another clone or program listens on this clone's port."""
    settings = settings or get_settings()
    if settings.explicit_tracking_uri is None:
        require_own(settings, settings.mlflow_port)
    return settings.tracking_uri
