"""Find out which process owns a port (this clone's, another clone's or another program's), and who can reach it."""

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

STATE_VARIABLE = "WORKSHOP_SERVED_STATE"  # set to the state folder for every process that `workshop up` starts
FIRST_USER_ID = 501 if sys.platform == "darwin" else 1000  # lower ids are system accounts


@dataclass(frozen=True)
class Owner:
    """The process that listens on a port; ``process`` is None if the system hides it (another user's process).

    ``state``: the state folder that the process serves, if any; ``by_hand``: started without `workshop up`.
    """

    port: int
    process: psutil.Process | None = None
    state: Path | None = None
    by_hand: bool = False

    def __str__(self) -> str:
        """Return a phrase for messages, such as "port 5000 is used by python (process 42)"."""
        who = "another user's process, which the system hides"
        with contextlib.suppress(psutil.Error):
            if self.process is not None:
                who = f"{self.process.name()} (process {self.process.pid})"
                who = f"another clone: {self.state}, {who}" if self.state else who
        return f"port {self.port} is used by {who}"


def find_owners(settings: Settings, *ports: int) -> dict[int, Owner]:
    """Return the owner of each port that is in use, keyed by port."""
    owners: dict[int, Owner] = {}
    for port, pid in _listeners() if ports else ():
        if port in ports and (port not in owners or owners[port].state != settings.state):
            with contextlib.suppress(psutil.NoSuchProcess):  # the process has just exited
                owners[port] = _identify(port, pid, settings)
    return owners


def find_foreign_owner(settings: Settings, *ports: int) -> Owner | None:
    """Return the first port owner that does not serve this state folder."""
    owners = find_owners(settings, *ports).values()
    return next((owner for owner in owners if owner.state != settings.state), None)


def require_own(settings: Settings, *ports: int) -> None:
    """Raise ServiceError if another clone or program listens on one of the ports."""
    if foreign_owner := find_foreign_owner(settings, *ports):
        raise ServiceError(
            f"The {foreign_owner}.",
            expected=f"a server that uses {settings.state}",
            next_step="type `workshop down`, then `workshop up`, which chooses a free port",
        )


def describe_other_users(settings: Settings) -> str | None:
    """Return a sentence that lists this machine's other users and what they can access, or None if there are none.

    Only login accounts with a process in the same network namespace count.
    """
    names = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError, KeyError):  # the process has exited, or its user has no name
            account = pwd.getpwuid(process.uids().real)
            is_login = account.pw_uid >= FIRST_USER_ID and not account.pw_shell.endswith(("nologin", "false"))
            if is_login and account.pw_uid != os.getuid() and _shares_network(process.pid):
                names.add(account.pw_name)
    if not names:
        return None
    return (
        f"other users of this machine: {', '.join(sorted(names))}. Without a password they can read and change "
        f"everything in MLflow (http://{settings.host}:{settings.mlflow_port}), and view the dashboards"
    )


def _shares_network(pid: int) -> bool:
    # Processes in the same network namespace share this file. macOS has no network namespaces.
    return sys.platform != "linux" or Path("/proc/self/net/tcp").samefile(f"/proc/{pid}/net/tcp")


def marked_processes(state: Path) -> list[psutil.Process]:
    """Return the processes started by `workshop up` for a state folder, except this process and its parents."""
    callers, marked = [psutil.Process(), *psutil.Process().parents()], []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # another user's process, or one that has exited
            if process not in callers and process.environ().get(STATE_VARIABLE) == str(state):
                marked.append(process)
    return marked


def _listeners() -> Iterator[tuple[int, int | None]]:
    """Yield each listening port, with the process id if the system reports it."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr:
                yield connection.laddr.port, connection.pid
    except psutil.Error:  # on macOS, users other than root can only list the connections of their own processes
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                for listener in process.net_connections(kind="tcp"):
                    if listener.status == psutil.CONN_LISTEN and listener.laddr:
                        yield listener.laddr.port, process.pid


def _identify(port: int, pid: int | None, settings: Settings) -> Owner:
    """Identify a port's owner by the variable that `workshop up` sets, or by an open file in a state folder.

    Sending a request to the server instead could reveal a password to another program.
    """
    process = psutil.Process(pid) if pid else None
    if process is None:
        return Owner(port)
    with contextlib.suppress(psutil.AccessDenied, OSError):
        if served := process.environ().get(STATE_VARIABLE):
            return Owner(port, process, Path(served))
    # `mlflow server` starts child processes, any of which may listen on the port.
    for relative in filter(None, [process, process.parent(), *process.children(recursive=True)]):
        with contextlib.suppress(psutil.Error, OSError):
            for file in (Path(opened.path) for opened in relative.open_files()):
                for state in (file.parent, file.parent.parent):
                    clone = settings.model_copy(update={"state": state})
                    if file in (clone.database, clone.transfers_log):
                        return Owner(port, process, state, by_hand=True)
    return Owner(port, process)
