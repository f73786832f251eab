"""The tracking server of this clone, whichever address the shell or the kernel holds."""

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
    """Point MLflow at this clone's tracking server and return a client; raise ServiceError when it does not answer."""
    settings = settings or get_settings()
    # MLflow reads these when it is imported, also in a shell without `workshop config --export`.
    for name, value in MLFLOW_RETRIES.items():
        os.environ.setdefault(name, value)
    os.environ.update(loopback_without_proxy())
    try:
        return tracking.connect(own_or_given_uri(settings))
    except ServiceError as error:
        error.next_step = "workshop up" if "does not answer" in error.what else EXPORT_COMMAND
        raise


def own_or_given_uri(settings: Settings | None = None) -> str:
    """Return the address in the settings; raise ServiceError when a server of another clone listens there."""
    settings = settings or get_settings()
    if settings.explicit_tracking_uri is None:
        require_own(settings, settings.mlflow_port)
    return settings.tracking_uri
