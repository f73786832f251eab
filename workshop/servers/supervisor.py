"""Start, watch and stop the services through supervisor (http://supervisord.org), one for each state folder."""

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
    refuse_beyond_loopback,
    reserve_ports,
)
from workshop.settings import Settings, get_settings

START_SECONDS = 300  # of a machine under load
STOP_SECONDS = 30
LOG_LINES = 15
OPEN_FILES = 1024  # supervisor's own default, with which it does not start where `ulimit -Hn` is less
SOCKET = "supervisor.sock"  # in the state folder
UNANSWERED = (OSError, HTTPException, xmlrpc.client.Error)


@dataclass(frozen=True)
class Status:
    """One service as it is now.

    ``state``: running, started by hand (not by `up`), does not answer, given up, held by another, or stopped.
    ``reason``: the owner of its port, or why supervisor gave it up.
    """

    name: str
    address: str
    pid: int | None
    state: str
    healthy: bool
    reason: str | None = None


def status(settings: Settings) -> list[Status]:
    """Return the state of every service, after asking each for its health."""
    supervised, by_hand = processes(settings), _started_by_hand(settings)
    rows = []
    for service in SERVICES:
        process, reason = supervised.get(service.name, {}), None
        pid = by_hand.get(service.name) or process.get("pid") or None
        healthy = is_healthy(service, settings)
        state = "running" if healthy else "does not answer" if pid else "stopped"
        if service.name in by_hand:
            state = "started by hand"
        elif foreign_owner := port_owners.find_foreign_owner(settings, *service.ports_of(settings)):
            state, reason = "held by another", f"its {foreign_owner}"
        elif process.get("statename") == "FATAL":
            last = next(iter(_log_lines(service, settings)[-1:]), "no output")
            state = "given up"
            reason = f"it ended again and again: {last.strip()} (all of it: {_log_file(service, settings)})"
        rows.append(Status(service.name, service.address(settings), pid, state, healthy, reason))
    return rows


def up(report: Report, names: Sequence[str] = ()) -> Settings:
    """Start the services, or the named ones, that do not run, wait until each answers; return the settings.

    Servers that a person started by hand are left as they are. Raises ServiceError with the name of a service that
    does not answer and the end of its log, ParameterError for a name that no service has.
    """
    settings, names = get_settings(), _known(names)
    refuse_beyond_loopback(settings, *names)
    with _locked(settings):
        settings = get_settings()  # another `up` may have taken other ports meanwhile
        if processes(settings):
            _start_services(settings, report, names)
            return settings
        _end_leftovers(settings, report)
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
                # Another program took a port before our server did. Nothing uses the addresses yet.
                _end_leftovers(settings, report)
                settings = reserve_ports(settings, report, is_retry=True)
            else:
                return settings


def down(report: Report, names: Sequence[str] = ()) -> int:
    """Stop every service that `up` started, or the named ones until the next `up`; return how many processes ended.

    Servers that a person started by hand keep running. Raises ParameterError for a name that no service has.
    """
    settings, chosen = get_settings(), _known(names)
    if not settings.state.exists():
        return 0
    with _locked(settings):
        running = port_owners.marked_processes(settings.state)
        if names:
            _stop(settings, names, report)
        else:
            _end_leftovers(settings, report)
        by_hand = _started_by_hand(settings)
        for service in SERVICES:
            if service.name in by_hand and service.name in chosen:
                where = f"{service.title}: {service.address(settings)}"
                report(f"{where} was started by hand and still runs; end it there with Ctrl-C")
        return sum(not process.is_running() for process in running)


def _known(names: Sequence[str]) -> list[str]:
    """Return the names, or those of all services; raise ParameterError for a name that no service has."""
    known = [service.name for service in SERVICES]
    if unknown := [name for name in names if name not in known]:
        raise ParameterError(
            "There is no such service.",
            value=", ".join(unknown),
            expected=f"one or more of {', '.join(known)}",
            next_step="workshop status",
        )
    return list(names) or known


def _stop(settings: Settings, names: Sequence[str], report: Report) -> None:
    """Have supervisor stop some services, a client before its server, and wait for their child processes."""
    supervised = processes(settings)
    for service in reversed(SERVICES):
        if service.name in names and (pid := supervised.get(service.name, {}).get("pid")):
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            _ask(settings, "stopProcess", service.name)
            psutil.wait_procs(family, timeout=STOP_SECONDS)
            report(f"{service.title}: stopped; it was at {service.address(settings)}")


@contextlib.contextmanager
def stopped(settings: Settings) -> Iterator[None]:
    """Keep servers from being started on this state folder; raise ServiceError when some run."""
    with _locked(settings):
        if running := port_owners.marked_processes(settings.state):
            raise ServiceError(
                "The servers of this state folder run.",
                value=f"{len(running)} processes on {settings.state}",
                next_step="workshop down; or set WORKSHOP_STATE to another folder",
            )
        yield


# -- supervisor --------------------------------------------------------------------------------------------------------
def processes(settings: Settings) -> dict[str, dict]:
    """Return supervisor's information about each service, by name; nothing when supervisor does not run."""
    try:
        return {info["name"]: info for info in _ask(settings, "getAllProcessInfo")}
    except UNANSWERED:
        return {}


def _ask(settings: Settings, method: str, *arguments: object) -> Any:
    """Call a method of http://supervisord.org/api.html; raise one of UNANSWERED when no supervisor runs."""
    descriptor = os.open(settings.state, os.O_RDONLY)
    try:
        address = f"unix://{_short(settings.state, f'fd/{descriptor}')}/{SOCKET}"
        with contextlib.closing(SupervisorTransport(serverurl=address)) as transport:
            proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
            return getattr(proxy.supervisor, method)(*arguments)
    finally:
        os.close(descriptor)


def _short(folder: Path, link: str) -> Path:
    """Return a path of ``folder``, which a process also has as ``link``, that is short enough for a socket (Linux)."""
    return Path("/proc/self", link) if sys.platform == "linux" else folder


def _start_supervisor(settings: Settings) -> None:
    """Start supervisor; the services are started later, by request."""
    file = settings.state / "supervisord.conf"
    with file.open("w") as output:
        _configuration(settings).write(output)
    variables = {"WORKSHOP_ROOT": settings.root, "WORKSHOP_STATE": settings.state, port_owners.MARK: settings.state}
    environment = os.environ | exports_of(settings) | {name: str(path) for name, path in variables.items()}
    environment.pop("WORKSHOP_DATABASE_URI", None)  # its password is for the tracking server alone
    done = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(file)],
        env=environment,
        cwd=settings.state,
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


def _configuration(settings: Settings) -> configparser.RawConfigParser:
    def literal(value: object) -> str:
        return str(value).replace("%", "%%")  # supervisor expands %(here)s and the like

    configuration = configparser.RawConfigParser()
    configuration["unix_http_server"] = {"file": literal(_short(settings.state, "cwd") / SOCKET), "chmod": "0600"}
    configuration["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    configuration["supervisord"] = {
        "logfile": literal(settings.logs / "supervisord.log"),
        "pidfile": literal(settings.pid_file),
        "childlogdir": literal(settings.logs),
        "directory": literal(settings.state),
        "umask": "077",
        "minfds": str(min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])),
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
            # A service that ends within so many seconds of its start, `startretries` (3) times more, is given up.
            "startsecs": "30",
            "stopwaitsecs": "10",
            "stopasgroup": "true",
            "killasgroup": "true",
        }
    return configuration


def _umask() -> int:
    """Return the umask of this process; it can be read only by setting another one."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


# -- health ------------------------------------------------------------------------------------------------------------
def _start_services(settings: Settings, report: Report, names: Sequence[str]) -> None:
    """Start the named services that do not run, except those that a person started by hand; wait until all answer."""
    supervised, by_hand = processes(settings), _started_by_hand(settings)
    waiting, starting = [], []
    for service in (each for each in SERVICES if each.name in names):
        if service.name in by_hand:
            report(f"{service.title}: {service.address(settings)}, started by hand and left as it is")
            continue
        waiting.append(service)
        if supervised[service.name]["statename"] in ("FATAL", "EXITED", "STOPPED"):
            with contextlib.suppress(xmlrpc.client.Fault):  # a program that cannot start is reported below
                _ask(settings, "startProcess", service.name, False)  # False: health is waited for here
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
        # Ports that are taken already: of one that is opened meanwhile the system may not report the process.
        port_owners.require_own(settings, *[port for port in ports if not is_free(settings.host, port)])
        supervised = processes(settings)
        for service in waiting:
            if supervised.get(service.name, {}).get("statename") == "FATAL":
                raise _not_healthy(service, settings, "it ended again and again")
        if time.monotonic() > deadline:
            raise _not_healthy(waiting[0], settings, f"no answer within {START_SECONDS} s")
        time.sleep(0.3)


def _not_healthy(service: Service, settings: Settings, why: str) -> ServiceError:
    last = "\n".join(_log_lines(service, settings)[-LOG_LINES:])
    return ServiceError(
        f"{service.title} does not answer: {why}.",
        value=f"{service.address(settings)}; the end of its log:\n{last}",
        next_step="fix the cause, then `workshop down` and `workshop up`; "
        f"the whole log is {_log_file(service, settings)}",
    )


def _log_file(service: Service, settings: Settings) -> Path:
    return settings.logs / f"{service.name}.log"


def _log_lines(service: Service, settings: Settings) -> list[str]:
    """Return the log of a service without empty lines; nothing when it has none."""
    try:
        return list(filter(str.strip, _log_file(service, settings).read_text(errors="replace").splitlines()))
    except OSError:
        return []


def _started_by_hand(settings: Settings) -> dict[str, int]:
    """Return, by a service's name, the pid of the server that a person started on this state folder, if it answers."""
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
    """Make the state folder and hold its lock: `up`, `down` and restoring a backup take turns."""
    lock = filelock.FileLock(settings.state / "supervisor.lock", timeout=START_SECONDS + STOP_SECONDS)
    try:
        settings.state.mkdir(parents=True, exist_ok=True)
        settings.state.chmod(0o700)
        settings.logs.mkdir(exist_ok=True)
        lock.acquire()
    except OSError as error:  # filelock's Timeout is one
        raise ServiceError(
            "The state folder cannot be used.",
            value=f"{settings.state} ({error.strerror or error})",
            expected="a folder that you may write to, and no other `workshop up`, `down` or `backup` in it",
            next_step="wait for the other command; or set WORKSHOP_STATE to another folder",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _end_leftovers(settings: Settings, report: Report) -> None:
    """Have supervisor stop the servers, end the processes that an earlier one left behind, and remove its files."""
    if processes(settings):
        report("stopping the servers")
        with contextlib.suppress(*UNANSWERED):
            _ask(settings, "shutdown")
        psutil.wait_procs(port_owners.marked_processes(settings.state), timeout=STOP_SECONDS)
    if leftovers := port_owners.marked_processes(settings.state):
        report(f"ending {len(leftovers)} processes that an earlier start left behind")
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in leftovers:
            with contextlib.suppress(psutil.Error):
                end(process)
        _, leftovers = psutil.wait_procs(leftovers, timeout=5)
    for file in (settings.state / SOCKET, settings.pid_file):
        file.unlink(missing_ok=True)
