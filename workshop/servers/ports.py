"""The ports that the servers listen on: free ones, and after that this clone's own until the machine restarts."""

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
from workshop.ownership import find_holders
from workshop.servers.services import SERVICES
from workshop.settings import Settings

PORTS_TRIED = 200
TURN = ("127.0.0.1", 28785)  # a UDP port, held by the clone that is choosing
WAIT_SECONDS = 600  # a clone needs about 15 seconds; 20 people may begin at the same moment


@contextlib.contextmanager
def only_one_chooses(tell: Callable[[str], None]) -> Iterator[None]:
    """Let one clone of the machine at a time look for free ports, until its servers listen on them.

    Two would choose the same. A clone that hangs is not waited for any longer than WAIT_SECONDS.
    """
    with socket.socket(type=socket.SOCK_DGRAM) as turn:  # closed when this process ends, in whichever way
        deadline, is_waiting = time.monotonic() + WAIT_SECONDS, False
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                turn.bind(TURN)
                break
            if not is_waiting:
                tell("waiting for another clone, which is choosing its ports")
            is_waiting = True
            time.sleep(0.3)
        yield


def is_free(host: str, port: int) -> bool:
    """Return whether a server could listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As servers do it: a port in TIME_WAIT is free, one that a server listens on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((host, port))
            return True
    return False


def first_free(wanted: int, is_usable: Callable[[int], bool], next_step: str) -> int:
    """Return the wanted port, or the first usable one above it; raise ServiceError when there is none."""
    candidates = range(wanted, min(wanted + PORTS_TRIED, 65536))
    for port in filter(is_usable, candidates):
        return port
    raise ServiceError("No port is free.", value=f"{wanted} to {candidates[-1]} are all taken", next_step=next_step)


def choose(settings: Settings, tell: Callable[[str], None]) -> Settings:
    """Return the settings with a free port in place of each that is not ours; ``tell`` gets a line for each change.

    The ports of other clones of this user are not free, even while none of their servers runs.
    """
    taken: dict[str, int] = {}
    holders = find_holders(settings, *(port for service in SERVICES for port in service.ports_of(settings)))
    reserved = _ports_of_other_clones(settings)

    def is_usable(port: int) -> bool:
        if port in holders and holders[port].state == settings.state:
            return True
        return port not in {*taken.values(), *reserved} and is_free(settings.host, port)

    for service in SERVICES:
        for name, wanted in zip(service.ports, service.ports_of(settings), strict=True):
            next_step = f"set WORKSHOP_{name.upper()} to a port that is free for {service.title}"
            taken[name] = first_free(wanted, is_usable, next_step)
            if taken[name] != wanted:
                holder = holders.get(wanted) or reserved.get(wanted) or "another process"
                tell(f"port {wanted} is busy: {service.title} takes {taken[name]} ({holder})")
    return settings.model_copy(update=taken)


def take(settings: Settings, tell: Callable[[str], None], file: Path | None = None) -> Settings:
    """Choose the ports, reserve them for this clone, and write them where `settings` reads them, or to ``file``."""
    settings = choose(settings, tell)
    chosen = {name: getattr(settings, name) for service in SERVICES for name in service.ports}
    write_whole(file or settings.ports_file, json.dumps(chosen, indent=1).encode())
    with contextlib.suppress(OSError):  # a home folder that cannot be written
        link = _clones() / hashlib.sha256(os.fsencode(settings.state)).hexdigest()[:16]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(settings.state)
    return settings


def hand_out(settings: Settings, tell: Callable[[str], None]) -> Settings:
    """Return the settings whose addresses a shell or a kernel may keep, also before the servers have started."""
    with contextlib.suppress(OSError):  # a folder that cannot be written
        if not settings.is_up:
            settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            return take(settings, tell, settings.kept_ports_file)
    return choose(settings, tell)


def _clones() -> Path:
    """Return the folder with a link to the state folder of each clone of this user."""
    return user_state_path("workshop") / "clones"


def _ports_of_other_clones(settings: Settings) -> dict[int, str]:
    """Return the ports that this user's other clones took since the machine started, each with its owner."""
    reserved: dict[int, str] = {}
    for link in _clones().glob("*"):
        other = settings.model_copy(update={"state": link.resolve()})
        if other.state == settings.state:
            continue
        for file in (other.ports_file, other.kept_ports_file):  # in this order: `down` renames the one to the other
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if file.stat().st_mtime > psutil.boot_time():
                    owner = f"another clone: {other.state}"
                    reserved |= dict.fromkeys(json.loads(file.read_text()).values(), owner)
                    break
    return reserved
