"""Start, monitor and stop the services with supervisor (http://supervisord.org), one instance per state folder."""

from __future__ import annotations

import configparser
import contextlib
import os
import resource
import shlex
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import filelock
import psutil
from forecast.terms.errors import ParameterError, ServiceError
from supervisor.xmlrpc import SupervisorTransport

from workshop import port_owners
from workshop.exports import exports_of
from workshop.servers.services import (
    SERVICES,
    Report,
    Service,
    check_database,
    choose_ports,
    environment_of,
    is_free,
    is_healthy,
    owners_of,
    require_loopback,
    reserve_ports,
)
from workshop.settings import Settings, get_settings

START_SECONDS = 300  # long enough for a machine under load
STOP_SECONDS = 30
LOG_LINES = 15
MIN_FILE_DESCRIPTORS = 1024  # supervisor's default; lowered to `ulimit -Hn` if necessary
SOCKET = "supervisor.sock"  # in the state folder
CONNECTION_ERRORS = (OSError, HTTPException, xmlrpc.client.Error)


@dataclass(frozen=True)
class Status:
    """The current status of a service.

    ``state``: running, started by hand (not by `up`), does not respond, failed, port in use, or stopped.
    ``reason``: which process uses the service's port, or why supervisor stopped restarting the service.
    """

    name: str
    address: str
    pid: int | None
    state: str
    healthy: bool
    reason: str | None = None


def status(settings: Settings) -> list[Status]:
    """Check the health of every service and return its status."""
    supervised, by_hand = processes(settings), _started_by_hand(settings)
    rows = []
    for service in SERVICES:
        process, reason = supervised.get(service.name, {}), None
        pid = by_hand.get(service.name) or process.get("pid") or None
        healthy = is_healthy(service, settings)
        state = "running" if healthy else "does not respond" if pid else "stopped"
        if service.name in by_hand:
            state = "started by hand"
        elif foreign_owner := port_owners.find_foreign_owner(settings, *service.ports_of(settings)):
            state, reason = "port in use", f"{foreign_owner}"
        elif process.get("statename") == "FATAL":
            last = next(iter(_log_lines(service, settings)[-1:]), "no output")
            state = "failed"
            reason = f"it exited repeatedly: {last.strip()} (full log: {_log_file(service, settings)})"
        rows.append(Status(service.name, service.address(settings), pid, state, healthy, reason))
    return rows


def up(report: Report, names: Sequence[str] = ()) -> Settings:
    """Start all services or the named ones, wait until each one responds, and return the settings.

    Servers started by hand are left running. Raises ServiceError with the end of the log if a service does not respond,
    ParameterError for an unknown name.
    """
    settings, names = get_settings(), _validate_names(names)
    require_loopback(settings, *names)
    with _locked(settings):
        settings = get_settings()  # another `up` may have changed the ports before this one got the lock
        if processes(settings):
            _start_services(settings, report, names)
            return settings
        _stop_all(settings, report)
        settings.credentials(create=True)
        check_database(settings)
        settings = reserve_ports(settings, report)
        while True:
            _start_supervisor(settings)
            try:
                _start_services(settings, report, names)
            except ServiceError:
                if choose_ports(settings, lambda _: None) == settings:
                    raise
                # Another program took one of the ports first. No client has the addresses yet, so choose other ports.
                _stop_all(settings, report)
                settings = reserve_ports(settings, report, is_retry=True)
            else:
                return settings


def down(report: Report, names: Sequence[str] = ()) -> int:
    """Stop all services or the named ones, and return the number of stopped processes.

    Servers started by hand keep running. Raises ParameterError for an unknown name.
    """
    settings, chosen = get_settings(), _validate_names(names)
    if not settings.state.exists():
        return 0
    with _locked(settings):
        running = port_owners.marked_processes(settings.state)
        if names:
            _stop(settings, names, report)
        else:
            _stop_all(settings, report)
        by_hand = _started_by_hand(settings)
        for service in SERVICES:
            if service.name in by_hand and service.name in chosen:
                server = f"{service.title}: {service.address(settings)}"
                report(f"{server} was started by hand and is still running; stop it with Ctrl-C in its terminal")
        return sum(not process.is_running() for process in running)


def _validate_names(names: Sequence[str]) -> list[str]:
    """Return ``names``, or all service names if it is empty; raise ParameterError for an unknown name."""
    known = [service.name for service in SERVICES]
    if unknown := [name for name in names if name not in known]:
        raise ParameterError(
            "There is no service with this name.",
            value=", ".join(unknown),
            expected=f"one or more of {', '.join(known)}",
            next_step="workshop status",
        )
    return list(names) or known


def _stop(settings: Settings, names: Sequence[str], report: Report) -> None:
    """Stop the named services, clients before servers, and wait for their child processes."""
    supervised = processes(settings)
    for service in reversed(SERVICES):
        if service.name in names and (pid := supervised.get(service.name, {}).get("pid")):
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            _call(settings, "stopProcess", service.name)
            psutil.wait_procs(family, timeout=STOP_SECONDS)
            report(f"{service.title}: stopped (it was at {service.address(settings)})")


@contextlib.contextmanager
def stopped(settings: Settings) -> Iterator[None]:
    """Keep this state folder's servers from starting within the context; raise ServiceError if any are running."""
    with _locked(settings):
        if running := port_owners.marked_processes(settings.state):
            raise ServiceError(
                "The servers of this state folder are running.",
                value=f"{len(running)} processes using {settings.state}",
                next_step="type `workshop down`, or set WORKSHOP_STATE to another folder",
            )
        yield


# -- supervisor --------------------------------------------------------------------------------------------------------
def processes(settings: Settings) -> dict[str, dict]:
    """Return supervisor's process information by service name; empty if supervisor is not running."""
    try:
        return {info["name"]: info for info in _call(settings, "getAllProcessInfo")}
    except CONNECTION_ERRORS:
        return {}


def _call(settings: Settings, method: str, *arguments: object) -> Any:
    """Call supervisor's API (supervisord.org/api.html); raise one of CONNECTION_ERRORS if supervisor is down."""
    descriptor = os.open(settings.state, os.O_RDONLY)
    try:
        address = f"unix://{_short_path(settings.state, f'fd/{descriptor}')}/{SOCKET}"
        with contextlib.closing(SupervisorTransport(serverurl=address)) as transport:
            proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
            return getattr(proxy.supervisor, method)(*arguments)
    finally:
        os.close(descriptor)


def _short_path(folder: Path, link: str) -> Path:
    """Return a short path to ``folder`` through /proc (Linux), because a Unix socket's path is limited to 108 bytes."""
    return Path("/proc/self", link) if sys.platform == "linux" else folder


def _start_supervisor(settings: Settings) -> None:
    """Start supervisor, but none of the services."""
    file = settings.state / "supervisord.conf"
    with file.open("w") as output:
        _configuration(settings).write(output)
    folders = {"WORKSHOP_ROOT": str(settings.root), "WORKSHOP_STATE": str(settings.state)}
    environment = os.environ | exports_of(settings) | folders | {port_owners.STATE_VARIABLE: str(settings.state)}
    environment.pop("WORKSHOP_DATABASE_URI", None)  # only the tracking server may have the password
    completed = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(file)],
        env=environment,
        cwd=settings.state,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if completed.returncode:
        raise ServiceError(
            "Supervisor did not start.",
            value=(completed.stderr or completed.stdout).strip()[-500:],
            next_step=f"read {settings.logs / 'supervisord.log'}, then type `workshop down` and `workshop up`",
        )


def _configuration(settings: Settings) -> configparser.RawConfigParser:
    def literal(value: object) -> str:
        return str(value).replace("%", "%%")  # supervisor expands expressions such as %(here)s

    configuration = configparser.RawConfigParser()
    configuration["unix_http_server"] = {"file": literal(_short_path(settings.state, "cwd") / SOCKET), "chmod": "0600"}
    configuration["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    configuration["supervisord"] = {
        "logfile": literal(settings.logs / "supervisord.log"),
        "pidfile": literal(settings.pid_file),
        "childlogdir": literal(settings.logs),
        "directory": literal(settings.state),
        "umask": "077",
        "minfds": str(min(MIN_FILE_DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1])),
    }
    for service in SERVICES:
        variables = environment_of(service, settings)
        configuration[f"program:{service.name}"] = {
            "command": literal(shlex.join(service.command(settings))),
            "directory": literal(settings.root / service.folder if service.folder else settings.state),
            "environment": literal(",".join(f'{name}="{value}"' for name, value in variables.items())),
            "stdout_logfile": literal(_log_file(service, settings)),
            "redirect_stderr": "true",
            "umask": "077" if service.private else f"{_umask():03o}",
            "autostart": "false",
            "autorestart": "true",
            # If a service exits sooner than this, supervisor restarts it at most `startretries` (3) times.
            "startsecs": "30",
            "stopwaitsecs": "10",
            "stopasgroup": "true",
            "killasgroup": "true",
        }
    return configuration


def _umask() -> int:
    """Return this process's umask, which can only be read by setting another one."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


# -- health ------------------------------------------------------------------------------------------------------------
def _start_services(settings: Settings, report: Report, names: Sequence[str]) -> None:
    """Start the named services that are down, except those started by hand, and wait until all respond."""
    supervised, by_hand = processes(settings), _started_by_hand(settings)
    waiting, starting = [], []
    for service in (each for each in SERVICES if each.name in names):
        if service.name in by_hand:
            report(f"{service.title}: {service.address(settings)} (started by hand)")
            continue
        waiting.append(service)
        if supervised[service.name]["statename"] in ("FATAL", "EXITED", "STOPPED"):
            with contextlib.suppress(xmlrpc.client.Fault):  # a failed start is reported below
                _call(settings, "startProcess", service.name, False)  # False: do not wait; the loop below waits
            starting.append(service.title)
    if starting:
        report(f"waiting for {', '.join(starting)}")
    deadline = time.monotonic() + START_SECONDS
    while True:
        for service in list(waiting):
            if is_healthy(service, settings):
                waiting.remove(service)
                report(f"{service.title}: {service.address(settings)}")
        if not waiting:
            return
        ports = [port for service in waiting for port in service.ports_of(settings)]
        # Skip ports that are still free: if a server opens one now, the system may not report its process yet.
        port_owners.require_own(settings, *[port for port in ports if not is_free(settings.host, port)])
        supervised = processes(settings)
        for service in waiting:
            if supervised.get(service.name, {}).get("statename") == "FATAL":
                raise _health_error(service, settings, "it exited repeatedly")
        if time.monotonic() > deadline:
            raise _health_error(waiting[0], settings, f"no response within {START_SECONDS} s")
        time.sleep(0.3)


def _health_error(service: Service, settings: Settings, why: str) -> ServiceError:
    last = "\n".join(_log_lines(service, settings)[-LOG_LINES:])
    return ServiceError(
        f"{service.title} does not respond: {why}.",
        value=f"{service.address(settings)}; the end of the service's log:\n{last}",
        next_step=f"fix the cause, then type `workshop down` and `workshop up`; log: {_log_file(service, settings)}",
    )


def _log_file(service: Service, settings: Settings) -> Path:
    return settings.logs / f"{service.name}.log"


def _log_lines(service: Service, settings: Settings) -> list[str]:
    """Return the non-empty lines of a service's log, or [] if there is no log."""
    try:
        return list(filter(str.strip, _log_file(service, settings).read_text(errors="replace").splitlines()))
    except OSError:
        return []


def _started_by_hand(settings: Settings) -> dict[str, int]:
    """Return the pids of this state folder's healthy servers that were started by hand, keyed by service name."""
    owners, pids = owners_of(settings), {}
    for service in SERVICES:
        owner = owners.get(next(iter(service.ports_of(settings)), 0))
        if owner is None or owner.process is None or not owner.by_hand or owner.state != settings.state:
            continue
        if is_healthy(service, settings):
            pids[service.name] = owner.process.pid
    return pids


# -- the state folder --------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """Create the state folder and hold its lock, so that only one `up`, `down` or restore runs at a time."""
    lock = filelock.FileLock(settings.state / "supervisor.lock", timeout=START_SECONDS + STOP_SECONDS)
    try:
        settings.state.mkdir(parents=True, exist_ok=True)
        settings.state.chmod(0o700)
        settings.logs.mkdir(exist_ok=True)
        lock.acquire()
    except OSError as error:  # filelock.Timeout is an OSError
        raise ServiceError(
            "The state folder is not writable, or another command is using it.",
            value=f"{settings.state} ({error.strerror or error})",
            expected="a writable folder that no other `workshop up`, `down` or `backup --restore` is using",
            next_step="wait until the other command has finished, or set WORKSHOP_STATE to another folder",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _stop_all(settings: Settings, report: Report) -> None:
    """Shut supervisor down, terminate processes left over from an earlier start, and remove its socket and pid file."""
    if processes(settings):
        report("stopping this clone's servers")
        with contextlib.suppress(*CONNECTION_ERRORS):
            _call(settings, "shutdown")
        psutil.wait_procs(port_owners.marked_processes(settings.state), timeout=STOP_SECONDS)
    if leftovers := port_owners.marked_processes(settings.state):
        report(f"terminating {len(leftovers)} processes left over from an earlier start")
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in leftovers:
            with contextlib.suppress(psutil.Error):
                end(process)
        _, leftovers = psutil.wait_procs(leftovers, timeout=5)
    for file in (settings.state / SOCKET, settings.pid_file):
        file.unlink(missing_ok=True)
