"""Find the owner of the server on a port (this state folder, another clone, another program), and who can reach it."""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from forecast.terms.errors import ServiceError

from workshop.settings import Settings

MARK = "WORKSHOP_SERVED_STATE"  # in the environment of all that `workshop up` starts: the state folder
FIRST_PERSON = 501 if sys.platform == "darwin" else 1000  # smaller numbers are accounts of the system


@dataclass(frozen=True)
class Owner:
    """The process that listens on a port; None for a process of another user, which the system hides.

    ``state`` is the state folder of the clone that it serves, if any; ``by_hand``: a person started it, not `up`.
    """

    port: int
    process: psutil.Process | None = None
    state: Path | None = None
    by_hand: bool = False

    def __str__(self) -> str:
        """Say who has the port, for people."""
        who = "a process that the system does not show"
        with contextlib.suppress(psutil.Error):
            if self.process is not None:
                who = f"{self.process.name()} (process {self.process.pid})"
                who = f"another clone: {self.state}, {who}" if self.state else who
        return f"port {self.port} is held by {who}"


def find_owners(settings: Settings, *ports: int) -> dict[int, Owner]:
    """Return the owner of each of the ports on which a process listens."""
    owners: dict[int, Owner] = {}
    for port, pid in _listeners() if ports else ():
        if port in ports and (port not in owners or owners[port].state != settings.state):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                owners[port] = _identify(port, pid, settings)
    return owners


def find_foreign_owner(settings: Settings, *ports: int) -> Owner | None:
    """Return the first owner of a port that is a server of another state folder, or another program."""
    owners = find_owners(settings, *ports).values()
    return next((owner for owner in owners if owner.state != settings.state), None)


def require_own(settings: Settings, *ports: int) -> None:
    """Raise ServiceError when another clone's server, or another program, listens on one of the ports."""
    if foreign_owner := find_foreign_owner(settings, *ports):
        raise ServiceError(
            f"The {foreign_owner}.",
            expected=f"a server of {settings.state}",
            next_step="workshop down, then workshop up, which takes a free port",
        )


def describe_people(settings: Settings) -> str | None:
    """Return a sentence on other people of this machine, and on what of our servers they reach; None if nobody does.

    People are accounts with processes in the same network namespace, as of a person who is logged in.
    """
    people = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError, KeyError):  # it has just ended; a container's number
            account = pwd.getpwuid(process.uids().real)
            is_person = account.pw_uid >= FIRST_PERSON and not account.pw_shell.endswith(("nologin", "false"))
            if is_person and account.pw_uid != os.getuid() and _shares_network(process.pid):
                people.add(account.pw_name)
    if not people:
        return None
    return (
        f"also on this machine: {', '.join(sorted(people))}. Without a password they can read and change what is in "
        f"MLflow (http://{settings.host}:{settings.mlflow_port}), and see the dashboard and Dask's page"
    )


def _shares_network(pid: int) -> bool:
    # The file is the same one for all processes of a namespace. macOS has neither.
    return sys.platform != "linux" or Path("/proc/self/net/tcp").samefile(f"/proc/{pid}/net/tcp")


def marked_processes(state: Path) -> list[psutil.Process]:
    """Return the processes that `workshop up` started for a state folder, and their descendants; not this one."""
    callers, marked = [psutil.Process(), *psutil.Process().parents()], []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # other users' processes, and those that have just ended
            if process not in callers and process.environ().get(MARK) == str(state):
                marked.append(process)
    return marked


def _listeners() -> Iterator[tuple[int, int | None]]:
    """Yield the ports that processes listen on, each with its process id if the system reports one."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr:
                yield connection.laddr.port, connection.pid
    except psutil.Error:  # macOS reports all connections to root alone, and those of a process to its owner
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                for listener in process.net_connections(kind="tcp"):
                    if listener.status == psutil.CONN_LISTEN and listener.laddr:
                        yield listener.laddr.port, process.pid


def _identify(port: int, pid: int | None, settings: Settings) -> Owner:
    """Return the owner of a port: a process that `up` has marked, or one with an open file of a state folder.

    So no password is sent to identify the server.
    """
    process = psutil.Process(pid) if pid else None
    if process is None:
        return Owner(port)
    with contextlib.suppress(psutil.AccessDenied, OSError):
        if marked := process.environ().get(MARK):
            return Owner(port, process, Path(marked))
    # `mlflow server` starts other processes, and any of them may listen.
    for relative in filter(None, [process, process.parent(), *process.children(recursive=True)]):
        with contextlib.suppress(psutil.Error, OSError):
            for file in (Path(opened.path) for opened in relative.open_files()):
                for state in (file.parent, file.parent.parent):
                    clone = settings.model_copy(update={"state": state})
                    if file in (clone.database, clone.transfers_log):
                        return Owner(port, process, state, by_hand=True)
    return Owner(port, process)
