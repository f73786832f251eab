"""What a worker does before its first notebook."""

from __future__ import annotations

import os
import threading

import dask.config
from dask.utils import parse_timedelta
from distributed import Worker

from papermill_dask import config

NANNY_SEED = "6640"  # for the hashes of texts, which Dask's tasks share
_warm_up_lock = threading.Lock()


def warm_up(worker: Worker) -> None:
    """Import the modules that the first notebook needs, in the background; repeated calls do nothing."""
    if _warm_up_lock.acquire(blocking=False):
        threading.Thread(target=_import_modules, args=(worker,), name="ready-for-notebooks", daemon=True).start()


def environment_of(worker: Worker) -> dict[str, str]:
    """Return the variables of a worker's kernels: a notebook's `Client()` reads the cluster's address and key.

    What Dask's nanny sets for workers is not for notebooks: a kernel has as many threads as the worker has for each of
    its notebooks. A value that a person gave to the worker stays.
    """
    variables, names = os.environ | {"DASK_SCHEDULER_ADDRESS": worker.scheduler.address}, {}
    threads = worker.state.nthreads
    parallel = int(worker.state.total_resources.get(config.NOTEBOOK, threads) or threads)
    preset = dask.config.get("distributed.nanny.pre-spawn-environ") | {"PYTHONHASHSEED": NANNY_SEED}
    for name, value in preset.items():
        if is_nannys := worker.nanny and variables.get(name) == str(value):
            del variables[name]
        if name.endswith("_NUM_THREADS") and (is_nannys or parallel > 1):
            variables.setdefault(name, str(max(1, threads // parallel)))
    tls = worker.security.get_tls_config_for_role("worker")
    if tls["cert"] and not dask.config.get("distributed.comm.tls.client.cert"):
        names = {"ca_file": "CA_FILE", "cert": "CLIENT__CERT", "key": "CLIENT__KEY"}
    keys = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": tls[field] for field, name in names.items()}
    return variables | {name: value for name, value in keys.items() if value}


def _import_modules(worker: Worker) -> None:
    from papermill_dask.worker.kernels.warm import WARM

    modules, idle = (dask.config.get(f"{config.SECTION}.{option}") for option in ("kernel-imports", "kernel-idle"))
    WARM.start(modules, environment_of(worker), parse_timedelta(idle) if idle else None)
    from papermill_dask.worker import cells  # noqa: F401 - papermill's client, which each notebook needs
