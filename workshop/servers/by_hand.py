"""Servers that a person started by hand for this state folder, on the settings' ports: `up` leaves them be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

from workshop.errors import ServiceError
from workshop.servers.services import SERVICES, is_healthy
from workshop.servers.supervisor import MARK
from workshop.settings import Settings

# By the file that it holds open a server is told from another clone's, without a password being sent to a stranger. A
# tracking server on a database server holds none, and is not recognised.
HELD = {"ftp": lambda settings: settings.transfers_log, "mlflow": lambda settings: settings.database}


def find(settings: Settings) -> dict[str, psutil.Process]:
    """Return the process that listens for each service that answers and that `up` did not start, by its name."""
    found = {}
    for service in SERVICES:
        if service.name in HELD and is_healthy(service, settings):
            port = getattr(settings, service.ports[0])
            for holder in _holders(HELD[service.name](settings)):
                listening = next((process for process in _family(holder) if _listens(process, port)), None)
                if listening is not None:
                    found[service.name] = listening
    return found


def refuse_second_database_holder(settings: Settings, left: dict[str, psutil.Process]) -> None:
    """Raise ServiceError when a program other than the tracking server that is ``left`` has the database open."""
    for holder in _holders(settings.database):
        if left.get("mlflow") not in _family(holder):
            raise ServiceError(
                "Another server has the tracking database open; two on one database would lose runs.",
                value=f"process {holder.pid}: {' '.join(holder.cmdline())[:120]}",
                expected=f"nobody holds {settings.database}, or a tracking server that answers on port "
                f"{settings.mlflow_port}",
                next_step=f"stop it (Ctrl-C where it was started, or `kill {holder.pid}`), or wait until it answers, "
                "then try again",
            )


def _holders(file: Path) -> Iterator[psutil.Process]:
    """Yield the processes that have a file open and were not started by `up`."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # other people's processes, and those that end just now
            if any(held.path == str(file) for held in process.open_files()) and MARK not in process.environ():
                yield process


def _family(process: psutil.Process) -> list[psutil.Process]:
    """Return a process with those above and below it: `mlflow server` starts others, and any of them may listen."""
    with contextlib.suppress(psutil.Error):
        return [process, *process.parents(), *process.children(recursive=True)]
    return [process]


def _listens(process: psutil.Process, port: int) -> bool:
    with contextlib.suppress(psutil.Error):
        connections = process.net_connections(kind="tcp")
        return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)
    return False
