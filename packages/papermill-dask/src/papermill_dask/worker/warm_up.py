"""What a worker does before its first notebook."""

from __future__ import annotations

import os
import threading

import dask.config
from dask.utils import parse_timedelta
from distributed import Worker

from papermill_dask import config

_warm_up_lock = threading.Lock()


def warm_up(worker: Worker) -> None:
    """Import the modules that the first notebook needs, in the background; repeated calls do nothing."""
    if _warm_up_lock.acquire(blocking=False):
        # For notebooks that use their own cluster: `Client()` reads this address, and the certificate for it.
        os.environ["DASK_SCHEDULER_ADDRESS"] = worker.scheduler.address
        tls = worker.security.get_tls_config_for_role("worker")
        if tls["cert"] and not dask.config.get("distributed.comm.tls.client.cert"):
            names = {"ca_file": "CA_FILE", "cert": "CLIENT__CERT", "key": "CLIENT__KEY"}
            variables = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": tls[field] for field, name in names.items()}
            os.environ.update({name: value for name, value in variables.items() if value})
        threading.Thread(target=_import_modules, name="ready-for-notebooks", daemon=True).start()


def _import_modules() -> None:
    from papermill_dask.worker.kernels.warm import WARM

    modules, idle = (dask.config.get(f"{config.SECTION}.{option}") for option in ("kernel-imports", "kernel-idle"))
    WARM.start(modules, os.environ, parse_timedelta(idle) if idle else None)
    from papermill_dask.worker import cells  # noqa: F401 - papermill's client, which each notebook needs
