"""What each server is: its command, its address, and how to tell that it answers."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import requests

from workshop import ownership
from workshop.errors import ServiceError
from workshop.settings import Settings, is_loopback

HEALTH_SECONDS = 3.0


@dataclass(frozen=True)
class Service:
    """One server: ``ports`` are the names of the settings with its ports, the first of them the one it answers on."""

    name: str
    title: str
    ports: tuple[str, ...]
    command: Callable[[Settings], list[str]]
    address: Callable[[Settings], str]
    healthy: Callable[[Settings], bool]
    environment: dict[str, str] = field(default_factory=dict)
    asks_for_password: bool = False

    def ports_of(self, settings: Settings) -> list[int]:
        """Return the numbers of its ports."""
        return [getattr(settings, name) for name in self.ports]


def program(name: str) -> str:
    """Return the path of a console script of this environment; PATH may name another's."""
    return str(Path(sys.executable).with_name(name))


def _ftp_answers(settings: Settings) -> bool:
    with socket.create_connection((settings.host, settings.ftp_port), timeout=HEALTH_SECONDS) as connection:
        connection.settimeout(HEALTH_SECONDS)
        return connection.recv(64).startswith(b"220")


def _get(url: str) -> requests.Response:
    return requests.get(url, timeout=HEALTH_SECONDS)


def _workers_answer(settings: Settings) -> bool:
    counts = _get(f"http://{settings.host}:{settings.dask_dashboard_port}/json/counts.json").json()
    ports = settings.dask_port, settings.dask_dashboard_port
    return counts["workers"] >= settings.dask_workers and not ownership.find_stranger(settings, *ports)


def _scheduler_command(settings: Settings) -> list[str]:
    return [
        program("dask"),
        "scheduler",
        *("--host", settings.host, "--port", str(settings.dask_port)),
        *("--dashboard-address", f"{settings.host}:{settings.dask_dashboard_port}"),
        "--no-show",
    ]


def _workers_command(settings: Settings) -> list[str]:
    return [
        program("dask"),
        "worker",
        f"tcp://{settings.host}:{settings.dask_port}",
        *("--host", settings.host, "--nworkers", str(settings.dask_workers), "--nthreads", "1"),
        # One notebook a worker: a notebook leaves its thread free, so threads no longer bound how many run.
        *("--resources", "notebook=1"),
        *("--preload", "papermill_dask.preload"),
        *("--local-directory", str(settings.state / "dask")),
        *("--dashboard-address", f"{settings.host}:0"),
    ]


SERVICES = (
    Service(
        "ftp",
        "FTP artifact store",
        ("ftp_port",),
        lambda settings: [sys.executable, str(settings.root / "server" / "ftpserver.py")],
        lambda settings: settings.ftp_uri,
        _ftp_answers,
        asks_for_password=True,
    ),
    Service(
        "mlflow",
        "MLflow tracking",
        ("mlflow_port",),
        lambda _: [sys.executable, "-m", "workshop.servers.tracking_server"],
        lambda settings: f"http://{settings.host}:{settings.mlflow_port}",
        lambda settings: _get(f"http://{settings.host}:{settings.mlflow_port}/health").ok,
        {
            # MLflow's job workers for GenAI evaluation: eight more processes, which can outlive the server.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            # MLflow's pool (5 + 10) is too small for 32 writers, and the answer is a 400 that no client repeats.
            "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "20",
            "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "60",
            # A server needs no progress bars, and the lock that they share can be lost with many threads.
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        },
    ),
    Service(
        "dask-scheduler",
        "Dask scheduler",
        ("dask_port", "dask_dashboard_port"),
        _scheduler_command,
        lambda settings: f"tcp://{settings.host}:{settings.dask_port}",
        lambda settings: _get(f"http://{settings.host}:{settings.dask_dashboard_port}/health").ok,
        # A lost worker is an error that a person sees, not a reason to run a notebook again.
        {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"},
    ),
    Service(
        "dask-workers",
        "Dask workers",
        (),
        _workers_command,
        lambda settings: f"http://{settings.host}:{settings.dask_dashboard_port}/workers",
        _workers_answer,
        {"DASK_CONFIG": str(Path(__file__).with_name("dask.yaml"))},
    ),
    Service(
        "dashboard",
        "Dashboard",
        ("dashboard_port",),
        lambda settings: [sys.executable, str(settings.pipeline / "dashboard" / "app.py")],
        lambda settings: settings.dashboard_url,
        lambda settings: _get(f"{settings.dashboard_url}/health").ok,
        # scikit-learn's threads wait for one another, busily: an hour took 400 ms with two and 10 ms with one.
        {"OMP_NUM_THREADS": "1"},
    ),
)


def refuse_beyond_loopback(settings: Settings, *names: str) -> None:
    """Raise ServiceError when services without a password would be open to other machines."""
    if is_loopback(settings.host):
        return
    open_ones = [service.title for service in SERVICES if service.name in names and not service.asks_for_password]
    if open_ones:
        raise ServiceError(
            f"{', '.join(open_ones)}: not started, since other machines could use it without a password.",
            value=f"WORKSHOP_HOST={settings.host}",
            expected="127.0.0.1, localhost or ::1",
            next_step="unset WORKSHOP_HOST; from another machine use a tunnel, such as "
            f"`ssh -L {settings.dashboard_port}:127.0.0.1:{settings.dashboard_port} HOST`",
        )


def is_healthy(service: Service, settings: Settings) -> bool:
    """Return whether a service answers; another clone's, or another program's, answer counts as none."""
    try:
        return service.healthy(settings) and not ownership.find_stranger(settings, *service.ports_of(settings))
    except (OSError, ValueError, KeyError, requests.RequestException):
        return False
