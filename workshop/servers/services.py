"""Each server's command, address, ports and health check.

Each clone reuses the ports it used last, and replaces those that are taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import distribution
from itertools import chain
from pathlib import Path
from typing import Any

import requests
from dashboard.hosts import is_loopback
from forecast.terms.errors import ServiceError, SettingsError
from forecast.terms.files import write_atomically

from workshop import port_owners
from workshop.exports import dask_security
from workshop.settings import Settings

HEALTH_SECONDS = 3.0
POSTGRESQL = r"postgresql\+psycopg://([^@]*@)?(\[[^@/]+\]|[^@/:]*)(:\d+)?/[^@]+"
# Alternative ports: 20000 to 29999. The ephemeral range is higher, so outgoing connections do not take them.
FIRST_PORT, BLOCK_SIZE, BLOCKS = 20000, 10, 1000


Report = Callable[[str], None]  # called with each progress message


@dataclass(frozen=True)
class Service:
    """A server; ``ports``: the names of its port fields in `Settings`, main port first."""

    name: str
    title: str
    ports: tuple[str, ...]
    command: Callable[[Settings], list[str]]
    address: Callable[[Settings], str]
    healthy: Callable[[Settings], bool]
    environment: dict[str, str] = field(default_factory=dict)
    requires_password: bool = False
    folder: str | None = None  # working folder in the repository; default: the state folder
    private: bool = True  # only the owner can read files that the service writes

    def ports_of(self, settings: Settings) -> list[int]:
        """Return the service's port numbers."""
        return [getattr(settings, name) for name in self.ports]


def program(name: str) -> str:
    """Return the path of a console script in this environment, regardless of PATH."""
    return str(Path(sys.executable).with_name(name))


def _ftp_answers(settings: Settings) -> bool:
    with socket.create_connection((settings.host, settings.ftp_port), timeout=HEALTH_SECONDS) as connection:
        connection.settimeout(HEALTH_SECONDS)
        return connection.recv(64).startswith(b"220")


def _get(url: str) -> requests.Response:
    return requests.get(url, timeout=HEALTH_SECONDS)


def _scheduler_answers(settings: Settings) -> bool:
    context = ssl.create_default_context(cafile=settings.dask_key)
    context.check_hostname = False  # like Dask: the shared key authenticates the scheduler, not its host name
    context.load_cert_chain(settings.dask_key)
    with (
        socket.create_connection((settings.host, settings.dask_port), HEALTH_SECONDS) as connection,
        context.wrap_socket(connection),
    ):
        return _get(f"http://{settings.host}:{settings.dask_dashboard_port}/health").ok


def _workers_answer(settings: Settings) -> bool:
    counts = _get(f"http://{settings.host}:{settings.dask_dashboard_port}/json/counts.json").json()
    ports = settings.dask_port, settings.dask_dashboard_port
    return counts["workers"] >= settings.dask_workers and not port_owners.find_foreign_owner(settings, *ports)


def database_address(settings: Settings) -> str:
    """Return the tracking database's URI, with the path of a password file (mode 0600) in place of the password.

    Raises SettingsError, without showing the password, if WORKSHOP_DATABASE_URI is not a PostgreSQL URI.
    """
    if settings.database_uri is None:
        return f"sqlite:///{settings.database}"
    # SQLAlchemy would misread other values and might show part of the password in an error.
    if not re.fullmatch(POSTGRESQL, settings.database_uri.get_secret_value()):
        raise SettingsError(
            "The setting WORKSHOP_DATABASE_URI is invalid.",
            expected="postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE; write @ in a password as %40",
            next_step="correct or unset WORKSHOP_DATABASE_URI in the environment or in `.env`",
        )
    from sqlalchemy.engine import make_url  # slow import (0.1 s), needed only for PostgreSQL

    address = make_url(settings.database_uri.get_secret_value())
    if address.password is None:
        return address.render_as_string()
    # escaped as in https://www.postgresql.org/docs/current/libpq-pgpass.html
    password = re.sub(r"([:\\])", r"\\\1", address.password)
    file = write_atomically(settings.state / "pgpass", f"*:*:*:*:{password}\n".encode())
    file.chmod(0o600)
    return address._replace(password=None).update_query_dict({"passfile": str(file)}).render_as_string()


def check_database(settings: Settings) -> None:
    """Raise ServiceError if the database at WORKSHOP_DATABASE_URI does not respond."""
    if not settings.database_uri:
        return
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        create_engine(database_address(settings), connect_args={"connect_timeout": 10}).connect().close()
    except SQLAlchemyError as error:
        raise ServiceError(
            "The tracking database does not respond.",
            value=str(error).splitlines()[0],
            next_step="correct WORKSHOP_DATABASE_URI in the environment or in `.env`, or start the database",
        ) from None


def _tracking_command(settings: Settings) -> list[str]:
    logs = settings.logging_file or distribution("mlflow").locate_file("mlflow/server/uvicorn_log_config.yaml")
    # A single process: several would share the SQLite file, and each keep-alive request would take 40 ms longer.
    return [
        *("env", f"MLFLOW_BACKEND_STORE_URI={database_address(settings)}"),
        *(program("uvicorn"), "--factory", "workshop.servers.tracking_server:make_app"),
        *("--host", settings.host, "--port", str(settings.mlflow_port)),
        *("--log-config", str(logs)),
    ]


def _scheduler_command(settings: Settings) -> list[str]:
    return [
        program("dask"),
        "scheduler",
        *("--protocol", "tls", "--host", settings.host, "--port", str(settings.dask_port)),
        *("--dashboard-address", f"{settings.host}:{settings.dask_dashboard_port}"),
        "--no-show",
    ]


def _workers_command(settings: Settings) -> list[str]:
    return [
        program("dask"),
        "worker",
        f"tls://{settings.host}:{settings.dask_port}",
        *("--host", settings.host, "--nworkers", str(settings.dask_workers), "--nthreads", "1"),
        # One notebook per worker. `--nthreads` does not enforce this, because a notebook occupies no worker thread.
        *("--resources", "notebook=1"),
        *("--preload", "papermill_dask.preload"),
        *("--preload-nanny", "workshop.servers.services"),
        # `--no-dashboard` saves 25 MB per worker. Workers still serve some pages, by default on all interfaces.
        *("--no-dashboard", "--dashboard-address", f"{settings.host}:0"),
    ]


def _dashboard_command(settings: Settings) -> list[str]:
    address = ["--host", settings.host, "--port", str(settings.dashboard_port)]
    logs = ["--log-config", str(settings.logging_file)] if settings.logging_file else []
    return [sys.executable, "-m", "dashboard", *address, *logs]


def dask_teardown(_nanny: Any) -> None:
    """Stop the `dask worker` process when one of its workers closes, so that supervisor restarts it.

    Dask calls this function when a nanny closes (`--preload-nanny`), for example because its worker lost the scheduler.
    Otherwise the process would continue with one worker fewer. If SIGTERM has its default handler, Dask is stopping.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        os.kill(os.getpid(), signal.SIGTERM)


DASK_CONFIG = {"DASK_CONFIG": str(Path(__file__).with_name("dask.yaml"))}
SERVICES = (
    Service(
        "ftp",
        "FTP artifact store",
        ("ftp_port",),
        lambda settings: [sys.executable, str(settings.root / "server" / "ftpserver.py")],
        lambda settings: settings.ftp_uri,
        _ftp_answers,
        requires_password=True,
    ),
    Service(
        "mlflow",
        "MLflow tracking",
        ("mlflow_port",),
        _tracking_command,
        lambda settings: f"http://{settings.host}:{settings.mlflow_port}",
        lambda settings: _get(f"http://{settings.host}:{settings.mlflow_port}/health").ok,
        {
            # Do not start the job workers for GenAI evaluation: they are eight processes that can outlive the server.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            # SQLAlchemy's default pool (5 + 10) is too small for 32 writers: MLflow returns 400, which is not retried.
            "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "20",
            "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "60",
            # A server needs no progress bars; their shared lock can break with many threads.
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        },
    ),
    Service(
        "dask-scheduler",
        "Dask scheduler",
        ("dask_port", "dask_dashboard_port"),
        _scheduler_command,
        lambda settings: f"tls://{settings.host}:{settings.dask_port}",
        _scheduler_answers,
        DASK_CONFIG,
    ),
    Service(
        "dask-workers",
        "Dask workers",
        (),
        _workers_command,
        lambda settings: f"http://{settings.host}:{settings.dask_dashboard_port}/workers",
        _workers_answer,
        DASK_CONFIG,
        private=False,  # files written by notebooks follow the user's umask
    ),
    Service(
        "dashboard",
        "Dashboard",
        ("dashboard_port",),
        _dashboard_command,
        lambda settings: settings.dashboard_url,
        lambda settings: _get(f"{settings.dashboard_url}/health").ok,
        folder="4_pipeline",  # makes the package `dashboard` importable
    ),
)


def environment_of(service: Service, settings: Settings) -> dict[str, str]:
    """Return a service's environment variables, including those for logging if `settings.logging_file` is set."""
    variables = service.environment | (dask_security(settings) if "DASK_CONFIG" in service.environment else {})
    if not (file := settings.logging_file):
        return variables
    return variables | {
        "LOG_SERVICE": service.name,
        "LOG_FOLDER": str(settings.logs / "json"),
        "PYTHONPATH": str(file.parent),
        "DASK_ROOT_CONFIG": str(file),
        "MLFLOW_CONFIGURE_LOGGING": "false",
    }


def require_loopback(settings: Settings, *names: str) -> None:
    """Raise ServiceError if services without a password would be reachable from other machines."""
    if is_loopback(settings.host):
        return
    unprotected = [service.title for service in SERVICES if service.name in names and not service.requires_password]
    if unprotected:
        raise ServiceError(
            f"Not started because other machines could use these servers without a password: {', '.join(unprotected)}.",
            value=f"WORKSHOP_HOST={settings.host}",
            expected="127.0.0.1 or localhost",
            next_step="unset WORKSHOP_HOST; to connect from another machine, use a tunnel, such as "
            f"`ssh -L {settings.dashboard_port}:127.0.0.1:{settings.dashboard_port} HOST`",
        )


def is_healthy(service: Service, settings: Settings) -> bool:
    """Return whether this clone's service responds; responses from other clones or programs do not count."""
    try:
        return service.healthy(settings) and not port_owners.find_foreign_owner(settings, *service.ports_of(settings))
    except (OSError, ValueError, KeyError, requests.RequestException):
        return False


# -- ports -------------------------------------------------------------------------------------------------------------
def is_free(host: str, port: int) -> bool:
    """Return whether a server could listen on a port."""
    with socket.socket() as probe:
        # Treat a port in TIME_WAIT as free, as servers do.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((host, port))
            return True
    return False


def choose_ports(settings: Settings, report: Report, *, is_retry: bool = False) -> Settings:
    """Return the settings with each port that another program uses replaced by a free one; ``report`` each change.

    Alternative ports are derived from the state folder's path, so two clones rarely try the same ones. With
    ``is_retry``, replace all ports, since another clone may be about to use them.
    """
    chosen: dict[str, int] = {}
    owners, block = owners_of(settings), zlib.crc32(os.fsencode(settings.state))

    def is_usable(port: int) -> bool:
        if port in owners and owners[port].state == settings.state:
            return True
        return port not in chosen.values() and is_free(settings.host, port)

    for service in SERVICES:
        for name, default in zip(service.ports, service.ports_of(settings), strict=True):
            others = (FIRST_PORT + (block + n) % BLOCKS * BLOCK_SIZE + len(chosen) for n in range(BLOCKS))
            port = chosen[name] = next(filter(is_usable, others if is_retry else chain([default], others)))
            if port != default:
                report(f"{service.title} uses port {port}: {owners.get(default, port_owners.Owner(default))}")
    return settings.model_copy(update=chosen)


def owners_of(settings: Settings) -> dict[int, port_owners.Owner]:
    """Return the owners of the service ports that are in use."""
    return port_owners.find_owners(settings, *(port for service in SERVICES for port in service.ports_of(settings)))


def reserve_ports(settings: Settings, report: Report, *, is_retry: bool = False) -> Settings:
    """Choose the ports and save them where `Settings` reads them; create the cluster's TLS key if it is missing."""
    if not settings.dask_key.exists():
        from mlflow_ftp.certificate import ensure_certificate  # imported here because the import takes 0.1 s

        ensure_certificate(settings.dask_key.parent, settings.dask_key.name.removesuffix("-key.pem"))
    settings = choose_ports(settings, report, is_retry=is_retry)
    chosen = {name: getattr(settings, name) for service in SERVICES for name in service.ports}
    write_atomically(settings.ports_file, json.dumps(chosen, indent=1).encode())
    return settings


def ports_for_shell(settings: Settings, report: Report) -> Settings:
    """Return settings whose addresses remain valid if the servers start after the shell or kernel."""
    with contextlib.suppress(OSError):  # the state folder can be read-only
        if not settings.is_up:
            settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            return reserve_ports(settings, report)
    return choose_ports(settings, report)
