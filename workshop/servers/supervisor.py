"""Starts, watches and stops the services through supervisor (http://supervisord.org), one for each state folder."""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import filelock
import psutil
from supervisor.xmlrpc import SupervisorTransport

from workshop import ownership
from workshop.errors import ParameterError, ServiceError
from workshop.servers import ports
from workshop.servers.services import SERVICES, Service, is_healthy, refuse_beyond_loopback
from workshop.servers.tracking_server import ensure_database
from workshop.settings import Settings, get_settings

START_SECONDS = 300  # of a machine under load
STOP_SECONDS = 30
LOG_LINES = 15
OPEN_FILES = 1024  # what supervisor asks for by itself; it does not start where `ulimit -Hn` is less
SOCKET_PATH_LIMIT = 100  # bytes; the kernel's limit for a unix socket is 108 (Linux) or 104 (macOS)
UNANSWERED = (OSError, HTTPException, xmlrpc.client.Error)

Tell = Callable[[str], None]  # gets lines about the progress


@dataclass(frozen=True)
class Status:
    """One service as it is now.

    ``by_hand``: a person started it, not `up`. ``reason``: who holds its port, or why supervisor gave it up.
    """

    name: str
    address: str
    pid: int | None
    healthy: bool
    by_hand: bool = False
    reason: str | None = None


def status(settings: Settings | None = None) -> list[Status]:
    """Return the state of every service, after asking each for its health."""
    settings = settings or get_settings()
    supervised, left = processes(settings), _started_by_hand(settings)
    rows = []
    for service in SERVICES:
        process, reason = supervised.get(service.name, {}), None
        if stranger := ownership.find_stranger(settings, *service.ports_of(settings)):
            reason = f"its port {stranger.port} is held by {stranger}"
        elif process.get("statename") == "FATAL":
            lines = [line.strip() for line in _log_lines(service, settings) if line.strip()]
            log = _log_file(service, settings)
            reason = f"it ended again and again: {lines[-1] if lines else 'without a word'} (all of it: {log})"
        by_hand = service.name in left
        pid = left[service.name].pid if by_hand else process.get("pid") or None
        healthy = by_hand or is_healthy(service, settings)
        rows.append(Status(service.name, service.address(settings), pid, healthy, by_hand, reason))
    return rows


def up(tell: Tell) -> Settings:
    """Start the services that do not run, wait until every one answers, return the settings with the ports taken.

    Servers that a person started by hand are left as they are. Raises ServiceError with the name of a service that
    does not answer and the end of its log.
    """
    settings = get_settings()
    refuse_beyond_loopback(settings, *(service.name for service in SERVICES))
    with _only_one(settings):
        settings = get_settings()  # another `up` may have taken other ports meanwhile
        is_supervised = answers(settings)
        if not is_supervised:
            _end_leftovers(settings, tell)
            _remove_stale_files(settings)
            settings.credentials(create=True)
            ensure_database(settings)
        left = _started_by_hand(settings)
        with contextlib.nullcontext() if is_supervised else ports.only_one_chooses(tell):
            if not is_supervised:
                settings = ports.take(settings, tell)
                _start_supervisor(settings, left)
            for service in SERVICES:
                if service.name in left:
                    tell(f"{service.title}: {service.address(settings)}, started by hand and left as it is")
            _bring_up(settings, [service for service in SERVICES if service.name not in left], tell)
    return settings


def down(tell: Tell) -> int:
    """Stop every service that `up` started, and their child processes; return how many processes ended."""
    settings = get_settings()
    if not settings.state.exists():
        return 0
    with _only_one(settings):
        running = ownership.marked_processes(settings.state)
        if answers(settings):
            tell("stopping the servers")
            with contextlib.suppress(*UNANSWERED):
                _ask(settings, "shutdown")
            psutil.wait_procs(running, timeout=STOP_SECONDS)
        _end_leftovers(settings, tell)
        left = _started_by_hand(settings)
        for service in SERVICES:
            if service.name in left:
                _tell_by_hand(service, settings, tell)
        if settings.is_up and not left:
            settings.ports_file.replace(settings.kept_ports_file)
        _remove_stale_files(settings)
    return len(running)


def stop(names: Sequence[str], tell: Tell) -> int:
    """Stop the named services alone, until the next `up`; return how many processes ended.

    Raises ParameterError for a name that no service has.
    """
    known = [service.name for service in SERVICES]
    if unknown := [name for name in names if name not in known]:
        raise ParameterError(
            "There is no such service.",
            value=", ".join(unknown),
            expected=f"one or more of {', '.join(known)}",
            next_step="workshop status",
        )
    settings, ended = get_settings(), 0
    if not settings.state.exists():
        return 0
    with _only_one(settings):
        supervised, left = processes(settings), _started_by_hand(settings)
        for service in reversed(SERVICES):  # a client before its server
            if service.name not in names:
                continue
            if pid := supervised.get(service.name, {}).get("pid"):
                family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
                _ask(settings, "stopProcess", service.name)
                psutil.wait_procs(family, timeout=STOP_SECONDS)
                tell(f"{service.title}: stopped; it was at {service.address(settings)}")
                ended += len(family)
            elif service.name in left:
                _tell_by_hand(service, settings, tell)
            else:
                tell(f"{service.title}: does not run")
    return ended


@contextlib.contextmanager
def stopped(settings: Settings) -> Iterator[None]:
    """Keep servers from being started on this state folder; raise ServiceError when some run."""
    with _only_one(settings):
        if running := ownership.marked_processes(settings.state):
            raise ServiceError(
                "The servers of this state folder run.",
                value=f"{len(running)} processes on {settings.state}",
                next_step="workshop down; or set WORKSHOP_STATE to another folder",
            )
        yield


# -- supervisor --------------------------------------------------------------------------------------------------------
def answers(settings: Settings) -> bool:
    """Return whether the supervisor of this state folder runs."""
    try:
        return _ask(settings, "getState")["statename"] == "RUNNING"
    except UNANSWERED:
        return False


def processes(settings: Settings) -> dict[str, dict]:
    """Return supervisor's information about each service, by name; nothing when supervisor does not run."""
    try:
        return {info["name"]: info for info in _ask(settings, "getAllProcessInfo")}
    except UNANSWERED:
        return {}


def _ask(settings: Settings, method: str, *arguments: object) -> Any:
    """Call a method of http://supervisord.org/api.html; raise one of UNANSWERED when no supervisor runs."""
    with contextlib.closing(SupervisorTransport(serverurl=f"unix://{_socket_file(settings)}")) as transport:
        proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
        return getattr(proxy.supervisor, method)(*arguments)


def _socket_file(settings: Settings) -> Path:
    """Return supervisor's socket, which is elsewhere when the path of the state folder is too long for one."""
    inside = settings.state / "supervisor.sock"
    if len(os.fsencode(inside)) <= SOCKET_PATH_LIMIT:
        return inside
    digest = hashlib.sha256(os.fsencode(settings.state)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"workshop-{os.getuid()}-{digest}.sock"


def _start_supervisor(settings: Settings, left: dict[str, psutil.Process]) -> None:
    """Start supervisor, and with it all services but those that are ``left`` to the person who started them."""
    file = settings.state / "supervisord.conf"
    with file.open("w") as output:
        _configuration(settings, left).write(output)
    variables = {"WORKSHOP_ROOT": settings.root, "WORKSHOP_STATE": settings.state, ownership.MARK: settings.state}
    done = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(file)],
        env=os.environ | settings.exports() | {name: str(path) for name, path in variables.items()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ServiceError(
            "The supervisor did not start.",
            value=(done.stderr or done.stdout).strip()[-500:],
            next_step=f"see {settings.logs / 'supervisord.log'}, then `workshop down` and `workshop up`",
        )


def _configuration(settings: Settings, left: dict[str, psutil.Process]) -> configparser.RawConfigParser:
    def literal(value: object) -> str:
        return str(value).replace("%", "%%")  # supervisor expands %(here)s and the like

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    configuration = configparser.RawConfigParser()
    configuration["unix_http_server"] = {"file": literal(_socket_file(settings)), "chmod": "0600"}
    configuration["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    configuration["supervisord"] = {
        "logfile": literal(settings.logs / "supervisord.log"),
        "pidfile": literal(settings.state / "supervisord.pid"),
        "childlogdir": literal(settings.logs),
        "directory": literal(settings.state),
        "umask": "077",
        "minfds": str(min(OPEN_FILES, most if most != resource.RLIM_INFINITY else OPEN_FILES)),
    }
    for service in SERVICES:
        configuration[f"program:{service.name}"] = {
            "command": literal(shlex.join(service.command(settings))),
            "environment": literal(",".join(f'{name}="{value}"' for name, value in service.environment.items())),
            "stdout_logfile": literal(_log_file(service, settings)),
            "redirect_stderr": "true",
            "autostart": str(service.name not in left).lower(),
            "autorestart": "true",
            "startsecs": "30",  # MLflow finds out after 20 seconds that it cannot have its port
            "startretries": "5",
            "stopwaitsecs": "10",
            "stopasgroup": "true",
            "killasgroup": "true",
        }
    return configuration


# -- health ------------------------------------------------------------------------------------------------------------
def _bring_up(settings: Settings, services: list[Service], tell: Tell) -> None:
    """Start the services that were stopped or given up, and wait until all answer."""
    states = processes(settings)
    for service in services:
        if states[service.name]["statename"] in ("FATAL", "EXITED", "STOPPED"):
            _ask(settings, "startProcess", service.name, False)  # False: health is waited for here
    deadline, waiting = time.monotonic() + START_SECONDS, list(services)
    while True:
        for service in list(waiting):
            if is_healthy(service, settings):
                waiting.remove(service)
                tell(f"{service.title}: {service.address(settings)}")
        if not waiting:
            return
        wanted = [port for service in waiting for port in service.ports_of(settings)]
        # Ports that are taken already: of one that is opened meanwhile the system may not tell the process.
        ownership.require_own(settings, *[port for port in wanted if not ports.is_free(settings.host, port)])
        states = processes(settings)
        for service in waiting:
            if states.get(service.name, {}).get("statename") == "FATAL":
                raise _not_healthy(service, settings, "it ended again and again")
        if time.monotonic() > deadline:
            raise _not_healthy(waiting[0], settings, f"no answer within {START_SECONDS} s")
        time.sleep(0.3)


def _not_healthy(service: Service, settings: Settings, why: str) -> ServiceError:
    last = "\n".join(_log_lines(service, settings)[-LOG_LINES:])
    return ServiceError(
        f"{service.title} does not answer: {why}.",
        value=f"{service.address(settings)}; the end of its log:\n{last}",
        next_step="mend the cause, then `workshop down` and `workshop up`; "
        f"the whole log is {_log_file(service, settings)}",
    )


def _log_file(service: Service, settings: Settings) -> Path:
    return settings.logs / f"{service.name}.log"


def _log_lines(service: Service, settings: Settings) -> list[str]:
    """Return the log of a service; nothing when it has none."""
    try:
        return _log_file(service, settings).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _started_by_hand(settings: Settings) -> dict[str, psutil.Process]:
    """Return, by a service's name, the process that a person started for it on this state folder and that answers."""
    holders = ownership.find_holders(settings, *(port for service in SERVICES for port in service.ports_of(settings)))
    left = {}
    for service in SERVICES:
        holder = holders.get(next(iter(service.ports_of(settings)), 0))
        if holder and holder.by_hand and holder.state == settings.state and is_healthy(service, settings):
            left[service.name] = holder.process
    return left


def _tell_by_hand(service: Service, settings: Settings, tell: Tell) -> None:
    tell(f"{service.title}: {service.address(settings)} was started by hand and still runs; end it there with Ctrl-C")


# -- the state folder --------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Make the state folder and hold its lock: `up`, `down` and restoring a backup take turns."""
    lock = filelock.FileLock(settings.state / "supervisor.lock", timeout=START_SECONDS + STOP_SECONDS)
    try:
        settings.state.mkdir(parents=True, exist_ok=True)
        settings.state.chmod(0o700)
        settings.logs.mkdir(exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise ServiceError(
            "Another `workshop up`, `down` or `backup` is at work on this state folder.",
            value=settings.state,
            next_step="wait for it, then try again",
        ) from None
    except OSError as error:
        raise ServiceError(
            "The state folder cannot be used.",
            value=f"{settings.state} ({error.strerror})",
            expected="a folder that you may write to",
            next_step="set WORKSHOP_STATE to another folder",
        ) from None
    with lock:
        lock.release()  # `with` holds it now
        yield


def _end_leftovers(settings: Settings, tell: Tell) -> None:
    """End the processes that an earlier supervisor left behind."""
    leftovers = ownership.marked_processes(settings.state)
    if not leftovers:
        return
    tell(f"ending {len(leftovers)} processes that an earlier start left behind")
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in leftovers:
            with contextlib.suppress(psutil.Error):
                end(process)
        _, leftovers = psutil.wait_procs(leftovers, timeout=5)


def _remove_stale_files(settings: Settings) -> None:
    """Remove the files of an earlier supervisor."""
    for file in (_socket_file(settings), settings.state / "supervisord.pid"):
        file.unlink(missing_ok=True)
    shutil.rmtree(settings.state / "dask", ignore_errors=True)
