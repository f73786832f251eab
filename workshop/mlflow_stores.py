"""MLflow's client for servers at `http:`, which sends nothing to a stranger on the port of a server of ours.

A shell keeps the addresses of `workshop config --export` after `workshop down`, when any user of the machine may take
the ports. The entry points `mlflow.tracking_store` and `mlflow.model_registry_store` name the functions; MLflow loads
them while it is itself being imported, so imports are inside.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHECK_SECONDS = 2.0


def open_tracking_store(store_uri: str, **_: Any) -> Any:
    """Return MLflow's own store of runs at an address."""
    from mlflow.store.tracking.rest_store import RestStore

    return RestStore(_checked(store_uri))


def open_model_registry_store(store_uri: str, **_: Any) -> Any:
    """Return MLflow's own model registry at an address."""
    from mlflow.store.model_registry.rest_store import RestStore

    return RestStore(_checked(store_uri))


def _checked(uri: str) -> Callable[[], Any]:
    """Return the function that MLflow calls before each request; it raises ServiceError if the port is not ours."""
    from mlflow.utils.credentials import get_default_host_creds

    *addresses, state = os.environ.get("WORKSHOP_EXPORTED", "").split(" ", 2)
    last_check = float("-inf")

    def prepare() -> Any:
        nonlocal last_check
        if uri in addresses and time.monotonic() > last_check + CHECK_SECONDS:
            from workshop.port_owners import require_own
            from workshop.settings import get_settings

            require_own(get_settings().model_copy(update={"state": Path(state)}), urlsplit(uri).port or 80)
            last_check = time.monotonic()
        return get_default_host_creds(uri)

    return prepare
