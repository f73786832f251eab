"""Whose server listens on a port: this state folder's, another clone's, or another program's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from workshop.errors import ServiceError
from workshop.settings import Settings, get_settings

MARK = "WORKSHOP_SERVED_STATE"  # in the environment of all that `workshop up` starts: the state folder


@dataclass(frozen=True)
class Holder:
    """The process that listens on a port; None where the system does not tell, which it does of our own ones.

    ``state`` is the state folder that it serves, None when it is no clone's server; ``by_hand`` tells that a person
    started it, and not `workshop up`.
    """

    port: int
    process: psutil.Process | None = None
    state: Path | None = None
    by_hand: bool = False

    def __str__(self) -> str:
        """Return what it is, for people."""
        with contextlib.suppress(psutil.Error, AttributeError):
            process = f"{self.process.name()} (process {self.process.pid})"
            return f"another clone: {self.state}, {process}" if self.state else process
        return "another user's process"


def find_holders(settings: Settings, *ports: int) -> dict[int, Holder]:
    """Return who listens on each of the ports that somebody listens on."""
    found: dict[int, Holder] = {}
    for port, pid in _listeners() if ports else ():
        if port in ports and (port not in found or found[port].state != settings.state):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                found[port] = _identify(port, pid, settings)
    return found


def find_stranger(settings: Settings, *ports: int) -> Holder | None:
    """Return who listens on the first of the ports that is not this state folder's any more."""
    holders = find_holders(settings, *ports).values()
    return next((holder for holder in holders if holder.state != settings.state), None)


def require_own(settings: Settings, *ports: int) -> None:
    """Raise ServiceError when a server that is not this state folder's listens on one of its ports."""
    if stranger := find_stranger(settings, *ports):
        raise ServiceError(
            f"The port {stranger.port} of this clone is held by {stranger}.",
            expected=f"a server of {settings.state}",
            next_step="workshop down, then workshop up: it takes a port of its own",
        )


def use_own_servers() -> None:
    """Make this process a client of the servers that `workshop up` started, where the shell names no others.

    Raises ServiceError when another's scheduler listens at what should be ours.
    """
    settings = get_settings()
    if not settings.is_up:
        return
    servers = settings.exports()
    if settings.given_tracking_uri:
        del servers["MLFLOW_TRACKING_URI"]
    if settings.given_scheduler_address is None:
        require_own(settings, settings.dask_port)
        import dask

        # Dask may have read the variable before, and our scheduler may have moved since.
        if dask.config.get("scheduler-address", None) in (None, os.environ.get("DASK_SCHEDULER_ADDRESS")):
            dask.config.set({"scheduler-address": servers["DASK_SCHEDULER_ADDRESS"]})
    else:
        del servers["DASK_SCHEDULER_ADDRESS"]
    os.environ.update(servers)


def marked_processes(state: Path) -> list[psutil.Process]:
    """Return the processes that `workshop up` started for a state folder, and their descendants; not this one."""
    own, found = [psutil.Process(), *psutil.Process().parents()], []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # other people's processes, and those that end just now
            if process not in own and process.environ().get(MARK) == str(state):
                found.append(process)
    return found


def users_of(file: Path) -> Iterator[psutil.Process]:
    """Yield the processes that have a file open and were not started by `workshop up`."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(held.path == str(file) for held in process.open_files()) and MARK not in process.environ():
                yield process


def family_of(process: psutil.Process) -> list[psutil.Process]:
    """Return a process, its parent and its descendants: `mlflow server` starts others, and any of them may listen."""
    with contextlib.suppress(psutil.Error):
        return [process, *filter(None, [process.parent()]), *process.children(recursive=True)]
    return [process]


def _listeners() -> Iterator[tuple[int, int | None]]:
    """Yield the ports that processes listen on, with the number of the process where the system tells."""
    try:
        connections = [(each, each.pid) for each in psutil.net_connections(kind="tcp")]
    except psutil.Error:  # macOS tells this to root only, but of each process to its owner
        connections = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                connections += [(each, process.pid) for each in process.net_connections(kind="tcp")]
    for connection, pid in connections:
        if connection.status == psutil.CONN_LISTEN:
            yield connection.laddr.port, pid


def _identify(port: int, pid: int | None, settings: Settings) -> Holder:
    """Tell by its mark what `workshop up` started, and by the file that it holds open what a person did.

    No password is sent to a stranger so. A tracking server on a database server is known by the address of that.
    """
    process = psutil.Process(pid) if pid else None
    if process is None:
        return Holder(port)
    with contextlib.suppress(psutil.AccessDenied, OSError):
        if state := process.environ().get(MARK):
            return Holder(port, process, Path(state))
    for relative in family_of(process):
        with contextlib.suppress(psutil.Error, OSError):
            for file in (Path(held.path) for held in relative.open_files()):
                for state in (file.parent, file.parent.parent):
                    place = settings.model_copy(update={"state": state})
                    if file in (place.database, place.transfers_log):
                        return Holder(port, process, state, by_hand=True)
            uri = settings.database_uri and settings.database_uri.get_secret_value()
            if uri and uri in (*relative.cmdline(), *relative.environ().values()):
                return Holder(port, process, settings.state, by_hand=True)
    return Holder(port, process)
