"""The ports that the servers listen on: free ones, chosen by one clone at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from platformdirs import user_state_path

from workshop.data.files import write_whole
from workshop.errors import ServiceError
from workshop.ownership import find_holders, find_listener  # noqa: F401 - the doctor asks here
from workshop.servers.services import SERVICES
from workshop.settings import Settings, get_settings

PORTS_TRIED = 200
CLONES = user_state_path("workshop") / "clones"  # a link to the state folder of each clone of this user
TURN = ("127.0.0.1", 28785)  # a UDP port that the clone has whose turn it is
WAIT_SECONDS = 600  # a clone needs about 15 seconds; 20 people may begin at the same moment


@contextlib.contextmanager
def only_one_chooses(tell: Callable[[str], None]) -> Iterator[None]:
    """Let one clone at a time look for free ports, until its servers listen there: two would choose the same.

    It is a courtesy among all clones and users of a machine; one that hangs is passed by.
    """
    with socket.socket(type=socket.SOCK_DGRAM) as turn:  # it is given up when this process ends, however that is
        deadline, is_told = time.monotonic() + WAIT_SECONDS, False
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                turn.bind(TURN)
                break
            if not is_told:
                tell("waiting for another clone, which takes its ports just now")
            is_told = True
            time.sleep(0.3)
        yield


def find_holder(port: int) -> str:
    """Return who listens on a port, as far as the system tells."""
    holders = find_holders(get_settings(), port)
    return str(holders[port]) if holders else "another process"


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
    return _search(wanted, lambda port: is_free(host, port), "There is no free port.", "name another with --port")


def _search(wanted: int, is_usable: Callable[[int], bool], problem: str, next_step: str) -> int:
    candidates = range(wanted, min(wanted + PORTS_TRIED, 65536))
    for port in candidates:
        if is_usable(port):
            return port
    raise ServiceError(problem, value=f"{candidates.start} to {candidates.stop - 1} are all taken", next_step=next_step)


def choose(settings: Settings, tell: Callable[[str], None]) -> Settings:
    """Return the settings with a free port in place of each that is not ours; ``tell`` gets a line for each that moved.

    The ports of another clone are not free, also while none of its servers listens there.
    """
    taken: dict[str, int] = {}
    holders = find_holders(settings, *(port for service in SERVICES for port in service.ports_of(settings)))
    reserved = _ports_of_others(settings)

    def is_usable(port: int) -> bool:
        holder = holders.get(port)
        is_ours = holder is not None and holder.state == settings.state
        return is_ours or (port not in {*taken.values(), *reserved} and is_free(settings.host, port))

    for service in SERVICES:
        for name, wanted in zip(service.ports, service.ports_of(settings), strict=True):
            problem = f"No free port for {service.title}."
            port = _search(wanted, is_usable, problem, f"set WORKSHOP_{name.upper()} to a port that is free")
            if port != wanted:
                whose = holders.get(wanted) or reserved.get(wanted) or "another process"
                tell(f"port {wanted} is busy: {service.title} takes {port} ({whose})")
            taken[name] = port
    return settings.model_copy(update=taken)


def take(settings: Settings, tell: Callable[[str], None], file: Path | None = None) -> Settings:
    """Choose the ports, keep them from other clones, and write them where `settings` reads them, or to ``file``."""
    settings = choose(settings, tell)
    names = [name for service in SERVICES for name in service.ports]
    ports = {name: getattr(settings, name) for name in names}
    write_whole(file or settings.ports_file, json.dumps(ports, indent=1).encode())
    with contextlib.suppress(OSError):  # a home folder that nobody may write to
        CLONES.mkdir(parents=True, exist_ok=True)
        (CLONES / hashlib.sha256(os.fsencode(settings.state)).hexdigest()[:16]).symlink_to(settings.state)
    return settings


def hand_out(settings: Settings, tell: Callable[[str], None]) -> Settings:
    """Return the settings whose addresses a shell or a kernel may have: until the machine is restarted, they are ours.

    No other clone of this user takes the ports, also while nothing runs here.
    """
    with contextlib.suppress(OSError):  # a folder that nobody may write to
        if not settings.is_up:
            settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            return take(settings, tell, settings.kept_ports_file)
    return choose(settings, tell)


def _ports_of_others(settings: Settings) -> dict[int, str]:
    """Return the ports that this user's other clones had since the machine was started, each with its owner."""
    found: dict[int, str] = {}
    for link in CLONES.glob("*"):
        other = settings.model_copy(update={"state": link.resolve()})
        file = other.ports_file if other.is_up else other.kept_ports_file
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if not file.exists():
                link.unlink()
            elif other.state != settings.state and file.stat().st_mtime > psutil.boot_time():
                found |= dict.fromkeys(json.loads(file.read_text()).values(), f"another clone: {other.state}")
    return found
