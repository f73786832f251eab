"""Environment variables that point a shell and its programs at the servers; none holds a secret."""

from __future__ import annotations

import os

from dashboard.hosts import LOOPBACK
from forecast.problem import EXPERIMENT

from workshop.settings import Settings

EXPORT_COMMAND = 'eval "$(.venv/bin/workshop config --export)"'  # points a shell at the servers
# Report a server that is down after 4 s; MLflow's own 7 tries take four minutes. `forecast.tracking` tries longer.
MLFLOW_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


def exports_of(settings: Settings) -> dict[str, str]:
    """Return the variables by their names.

    Servers that run here win over addresses that the shell holds, so that a second export corrects an old shell.
    """
    own = settings.model_copy(update={"mlflow_tracking_uri": None, "dask_scheduler_address": None})
    used = own if settings.is_up else settings
    tracking = "-" if used.explicit_tracking_uri else own.tracking_uri
    scheduler = "-" if used.explicit_scheduler_address else own.scheduler_address
    table = {
        # Addresses that a later export may replace, since it was not a person who set them.
        "WORKSHOP_EXPORTED": f"{tracking} {scheduler} {settings.state}",
        "WORKSHOP_DASHBOARD_URL": settings.dashboard_url,
        "WORKSHOP_FTP_URI": settings.artifacts_uri,
        "MLFLOW_TRACKING_URI": used.tracking_uri,
        "MLFLOW_EXPERIMENT_NAME": EXPERIMENT,
        **MLFLOW_RETRIES,
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # one for each few kilobytes
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorFlow's words on this machine's processor
        "DASK_SCHEDULER_ADDRESS": used.scheduler_address,
        # A slow machine blocks a scheduler or worker for a minute. With Dask's 30 s, a connection with data on its way
        # would be closed, and its worker end. The connection of a dead process closes immediately.
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "5 minutes",
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "60 s",
        # By default both use folders that every user of the machine shares, and run what they find there.
        "DASK_TEMPORARY_DIRECTORY": str(settings.state),
        "DVC_SITE_CACHE_DIR": str(settings.state / "dvc"),
    }
    key = {} if used.explicit_scheduler_address else dask_security(settings)
    return table | key | loopback_without_proxy() | _package_source(settings)


def dask_security(settings: Settings) -> dict[str, str]:
    """Return the variables that give a Dask program our key: https://distributed.dask.org/en/stable/tls.html."""
    names = ("CA_FILE", "CLIENT__CERT", "SCHEDULER__CERT", "WORKER__CERT")
    return {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(settings.dask_key) for name in names}


def loopback_without_proxy() -> dict[str, str]:
    """Return the variables that keep requests to this machine away from the proxy that `http_proxy` names."""
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if hosts != "*":
        hosts = ",".join(dict.fromkeys([*filter(None, hosts.split(",")), *LOOPBACK]))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def _package_source(settings: Settings) -> dict[str, str]:
    """Return the variables with which `mlflow run` makes environments without a network."""
    if settings.offline is None:
        return {}
    wheels = (settings.root / settings.offline / "wheels").as_uri()  # as an address, for a blank would end a path
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "UV_OFFLINE": "1", "UV_FIND_LINKS": wheels}
