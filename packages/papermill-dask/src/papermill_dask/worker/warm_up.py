"""Prepare a worker for its first notebook."""

from __future__ import annotations

import os
import threading

import dask.config
from dask.utils import parse_timedelta
from distributed import Worker

from papermill_dask import config

NANNY_HASH_SEED = "6640"  # PYTHONHASHSEED set by Dask's nanny
_warm_up_lock = threading.Lock()


def warm_up(worker: Worker) -> None:
    """Import the modules for notebooks in the background; do nothing if called again."""
    if _warm_up_lock.acquire(blocking=False):
        threading.Thread(target=_import_modules, args=(worker,), name="ready-for-notebooks", daemon=True).start()


def kernel_environment(worker: Worker) -> dict[str, str]:
    """Return the environment of a worker's kernels, including the cluster's address and TLS key for `Client()`.

    Drop the values that Dask's nanny sets for workers, and divide the worker's threads among its notebooks. Keep values
    set by the user.
    """
    variables, names = os.environ | {"DASK_SCHEDULER_ADDRESS": worker.scheduler.address}, {}
    threads = worker.state.nthreads
    parallel = int(worker.state.total_resources.get(config.NOTEBOOK, threads) or threads)
    nanny_variables = dask.config.get("distributed.nanny.pre-spawn-environ") | {"PYTHONHASHSEED": NANNY_HASH_SEED}
    for name, value in nanny_variables.items():
        if is_from_nanny := worker.nanny and variables.get(name) == str(value):
            del variables[name]
        if name.endswith("_NUM_THREADS") and (is_from_nanny or parallel > 1):
            variables.setdefault(name, str(max(1, threads // parallel)))
    tls = worker.security.get_tls_config_for_role("worker")
    if tls["cert"] and not dask.config.get("distributed.comm.tls.client.cert"):
        names = {"ca_file": "CA_FILE", "cert": "CLIENT__CERT", "key": "CLIENT__KEY"}
    keys = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": tls[field] for field, name in names.items()}
    # Dask evaluates the values as Python: a bare key can cause a SyntaxWarning, which the notebook would show.
    return variables | {name: repr(value) for name, value in keys.items() if value}


def _import_modules(worker: Worker) -> None:
    from papermill_dask.worker.kernels.warm import WARM

    modules, idle = (dask.config.get(f"{config.SECTION}.{option}") for option in ("kernel-imports", "kernel-idle"))
    WARM.start(modules or (), kernel_environment(worker), parse_timedelta(idle) if idle else None)
    from papermill_dask.worker import cells  # noqa: F401 - preloads papermill's client for all notebooks
