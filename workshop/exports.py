"""Environment variables that point a shell and its programs at the servers; none contains a secret."""

from __future__ import annotations

import os

from dashboard.hosts import LOOPBACK
from forecast.problem import EXPERIMENT

from workshop.settings import Settings

EXPORT_COMMAND = 'eval "$(.venv/bin/workshop config --export)"'  # points a shell at the servers
# Fail after 4 s if the server is down: MLflow's default of 7 retries takes four minutes.
MLFLOW_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


def exports_of(settings: Settings) -> dict[str, str]:
    """Return the variables' values, keyed by name.

    Addresses of this clone's running servers override the shell's addresses, so exporting again updates the shell.
    """
    local = settings.model_copy(update={"mlflow_tracking_uri": None, "dask_scheduler_address": None})
    used = local if settings.is_up else settings
    tracking = "-" if used.explicit_tracking_uri else local.tracking_uri
    scheduler = "-" if used.explicit_scheduler_address else local.scheduler_address
    variables = {
        # Addresses that a later export may replace (`-`: the user set the address), then the state folder.
        "WORKSHOP_EXPORTED": f"{tracking} {scheduler} {settings.state}",
        "WORKSHOP_DASHBOARD_URL": settings.dashboard_url,
        "WORKSHOP_FTP_URI": settings.artifacts_uri,
        "MLFLOW_TRACKING_URI": used.tracking_uri,
        "MLFLOW_EXPERIMENT_NAME": EXPERIMENT,
        **MLFLOW_RETRIES,
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # MLflow would show progress bars even for small files
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TF_CPP_MIN_LOG_LEVEL": "3",  # hide TensorFlow's messages about the CPU
        "DASK_SCHEDULER_ADDRESS": used.scheduler_address,
        # A slow machine can block a scheduler or worker for a minute. Dask's default of 30 s would close connections in
        # use and stop the worker. If a process dies, its connections close at once, whatever the timeout.
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "5 minutes",
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "60 s",
        # By default, Dask and DVC use folders shared by all users of the machine, and execute files in these folders.
        "DASK_TEMPORARY_DIRECTORY": str(settings.state),
        "DVC_SITE_CACHE_DIR": str(settings.state / "dvc"),
    }
    security = {} if used.explicit_scheduler_address else dask_security(settings)
    return variables | security | loopback_without_proxy() | _package_index(settings)


def dask_security(settings: Settings) -> dict[str, str]:
    """Return Dask's TLS variables for this clone's cluster: https://distributed.dask.org/en/stable/tls.html."""
    names = ("CA_FILE", "CLIENT__CERT", "SCHEDULER__CERT", "WORKER__CERT")
    return {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(settings.dask_key) for name in names}


def loopback_without_proxy() -> dict[str, str]:
    """Return the variables that make requests to loopback addresses bypass `http_proxy`."""
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if hosts != "*":
        hosts = ",".join(dict.fromkeys([*filter(None, hosts.split(",")), *LOOPBACK]))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def _package_index(settings: Settings) -> dict[str, str]:
    """Return the pip and uv variables that let `mlflow run` create environments offline."""
    if settings.offline is None:
        return {}
    wheels = (settings.root / settings.offline / "wheels").as_uri()  # as a URI, because pip splits paths at spaces
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "UV_OFFLINE": "1", "UV_FIND_LINKS": wheels}
