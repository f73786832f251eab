"""MLflow's REST stores, which also check that the server on this clone's port belongs to this clone.

After `workshop down` a shell still has the addresses of `workshop config --export`, but any user of the machine may
now take the ports. MLflow loads this module through the entry points `mlflow.tracking_store` and
`mlflow.model_registry_store` during its own import, so only the bodies of the functions import MLflow.
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
    """Return MLflow's REST tracking store for a URI."""
    from mlflow.store.tracking.rest_store import RestStore

    return RestStore(_host_creds_provider(store_uri))


def open_model_registry_store(store_uri: str, **_: Any) -> Any:
    """Return MLflow's REST model registry store for a URI."""
    from mlflow.store.model_registry.rest_store import RestStore

    return RestStore(_host_creds_provider(store_uri))


def _host_creds_provider(uri: str) -> Callable[[], Any]:
    """Return a function that MLflow calls before requests; it raises ServiceError if another server has the port."""
    from mlflow.utils.credentials import get_default_host_creds

    *addresses, state = os.environ.get("WORKSHOP_EXPORTED", "").split(" ", 2)
    last_check = float("-inf")

    def get_host_creds() -> Any:
        nonlocal last_check
        if uri in addresses and time.monotonic() > last_check + CHECK_SECONDS:
            from workshop.port_owners import require_own
            from workshop.settings import get_settings

            require_own(get_settings().model_copy(update={"state": Path(state)}), urlsplit(uri).port or 80)
            last_check = time.monotonic()
        return get_default_host_creds(uri)

    return get_host_creds
