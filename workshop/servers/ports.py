"""The ports that the servers listen on: free ones, chosen by one clone at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import psutil

from workshop.data.files import write_whole
from workshop.errors import ServiceError
from workshop.servers.services import SERVICES
from workshop.settings import Settings

PORTS_TRIED = 200
WAIT_SECONDS = 600  # a clone needs about 15 seconds; 20 people may begin at the same moment


@contextlib.contextmanager
def only_one_chooses(tell: Callable[[str], None]) -> Iterator[None]:
    """Let one clone at a time look for free ports, until its servers listen there: two would choose the same.

    It is a courtesy among all clones and users of a machine (on macOS, of one user): what is in the way of it, or
    hangs, is told and passed by.
    """
    with contextlib.ExitStack() as held:
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            if not (turn := _take_turn()):
                tell("waiting for another clone, which takes its ports just now")
            while not turn and time.monotonic() < deadline:
                time.sleep(0.3)
                turn = _take_turn()
            if turn:
                held.enter_context(turn)
        except OSError as error:
            tell(f"other clones' choice of ports is not waited for: {error}")
        yield


def _take_turn() -> contextlib.AbstractContextManager | None:
    """Return what holds the turn until it is closed, or this process ends; None while another has it."""
    if sys.platform == "linux":
        # A name without a file: users share it, and each network namespace has its own, as it has ports.
        turn = socket.socket(socket.AF_UNIX)
        try:
            turn.bind("\0workshop-ports")
        except OSError as error:
            turn.close()
            if error.errno != errno.EADDRINUSE:
                raise
            return None
        return turn
    import filelock

    lock = filelock.FileLock(Path(tempfile.gettempdir()) / f"workshop-{os.getuid()}.lock")
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        return None


def find_listener(port: int) -> psutil.Process | None:
    """Return the process that listens on a port, if there is one and the system tells."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return psutil.Process(connection.pid)
    except psutil.Error:
        pass  # macOS tells this to root only
    return None


def find_holder(port: int) -> str:
    """Return the name and number of the process that listens on a port, as far as the system tells."""
    process = find_listener(port)
    try:
        return f"{process.name()} (process {process.pid})" if process else "another process"
    except psutil.Error:
        return "another process"


def is_free(host: str, port: int) -> bool:
    """Tell whether a server could listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As servers do it: a port in TIME_WAIT is free, one that somebody listens on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def first_free(host: str, wanted: int) -> int:
    """Return the wanted port, or the first free one above it; raise ServiceError when there is none."""
    return _search(host, wanted, (), "There is no free port.", "name another with --port")


def _search(host: str, wanted: int, taken: Collection[int], problem: str, next_step: str) -> int:
    candidates = range(wanted, min(wanted + PORTS_TRIED, 65536))
    for port in candidates:
        if port not in taken and is_free(host, port):
            return port
    raise ServiceError(problem, value=f"{candidates.start} to {candidates.stop - 1} are all taken", next_step=next_step)


def take(settings: Settings, tell: Callable[[str], None], left: Collection[str] = ()) -> Settings:
    """Choose a free port for every service, write them where `settings` reads them, and tell of each that moved.

    The services of the names ``left`` run already, and keep theirs.
    """
    taken: dict[str, int] = {}
    for service in SERVICES:
        for name in service.ports:
            wanted = getattr(settings, name)
            port = wanted
            if service.name not in left:
                problem = f"No free port for {service.title}."
                next_step = f"set WORKSHOP_{name.upper()} to a port that is free"
                port = _search(settings.host, wanted, taken.values(), problem, next_step)
            if port != wanted:
                tell(f"port {wanted} is busy: {service.title} takes {port}")
            taken[name] = port
    write_whole(settings.ports_file, json.dumps(taken, indent=1).encode())
    return settings.model_copy(update=taken)
