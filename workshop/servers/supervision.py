"""Starts, watches and stops the services through supervisor; one set of servers for one state folder."""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil

from workshop.errors import ServiceError
from workshop.servers import ports
from workshop.servers.database import ensure_database
from workshop.servers.services import SERVICES, Service, is_healthy, refuse_beyond_loopback
from workshop.servers.state import ensure_version, read_version
from workshop.settings import Settings, get_settings

logger = logging.getLogger(__name__)

MARK = "WORKSHOP_SERVED_STATE"  # in the environment of all that `up` starts, so that `down` finds every last one
START_SECONDS = 120
STOP_SECONDS = 30
LOG_LINES = 15
UNANSWERED = (OSError, HTTPException, xmlrpc.client.Error)
SOCKET_PATH_LIMIT = 100  # bytes; the kernel's limit for a unix socket is 108 (Linux) or 104 (macOS)


@dataclass(frozen=True)
class Status:
    """One service as it is now; ``reason`` says why it was given up, after it had ended again and again."""

    name: str
    address: str
    pid: int | None
    healthy: bool
    reason: str | None = None

    def as_dict(self) -> dict:
        """Return the fields as JSON-able values."""
        return asdict(self)


def status(settings: Settings | None = None) -> list[Status]:
    """Return what runs, asking every service for its health."""
    settings = settings or get_settings()
    processes = _processes(settings)
    rows = []
    for service in SERVICES:
        process = processes.get(service.name, {})
        given_up = process.get("statename") == "FATAL"
        rows.append(
            Status(
                service.name,
                service.address(settings),
                process.get("pid") or None,
                is_healthy(service, settings),
                _why_given_up(service, settings) if given_up else None,
            )
        )
    return rows


def up(tell: Callable[[str], None] = logger.info) -> Settings:
    """Start what does not run, wait until every service answers, return the settings with the ports taken.

    ``tell`` gets a line for each port that was busy and each service that answers. Called again it finds all
    running and changes nothing. Raises ServiceError naming the service that does not answer, with the last lines of
    its log.
    """
    settings = get_settings()
    refuse_beyond_loopback(settings, *(service.name for service in SERVICES))
    _check_folder(settings)
    with _only_one(settings):
        read_version(settings)  # what a newer clone has made is left alone
        with contextlib.ExitStack() as choosing:
            if not _supervisor_answers(settings):
                _clear_leftovers(settings, tell)
                ensure_version(settings)
                settings.credentials(create=True)
                choosing.enter_context(ports.only_one_chooses(tell))
                settings = ports.take(settings, tell)
                is_new = not settings.database.exists()
                if not is_new:
                    ensure_database(settings, tell)
                _start_supervisor(settings)
                if is_new:  # it takes a while, in which the other servers start
                    ensure_database(settings, tell)
            _bring_up(settings, [service for service in SERVICES if not service.comes_last], tell)
        _bring_up(settings, [service for service in SERVICES if service.comes_last], tell)
    return settings


def down(tell: Callable[[str], None] = logger.info) -> int:
    """Stop every service and all they started; return how many processes had to be ended."""
    settings = get_settings()
    if not settings.state.exists():
        return 0
    with _only_one(settings):
        running = _marked_processes(settings)
        if _supervisor_answers(settings):
            tell("stopping the servers")
            with contextlib.suppress(*UNANSWERED):
                _ask_supervisor(settings, "shutdown")
            psutil.wait_procs(running, timeout=STOP_SECONDS)
        _clear_leftovers(settings, tell)
    return len(running)


@contextlib.contextmanager
def stopped(settings: Settings) -> Iterator[None]:
    """Keep the servers of this state folder from being started meanwhile; raise ServiceError when some run."""
    _check_folder(settings)
    with _only_one(settings):
        if running := _marked_processes(settings):
            raise ServiceError(
                "The servers of this state folder run.",
                value=f"{len(running)} processes on {settings.state}",
                next_step="workshop down; or set WORKSHOP_STATE to another folder",
            )
        yield


# -- supervisor ----------------------------------------------------------------------------------------------------
def _socket_file(settings: Settings) -> Path:
    inside = settings.state / "supervisor.sock"
    if len(os.fsencode(inside)) <= SOCKET_PATH_LIMIT:
        return inside
    digest = hashlib.sha256(os.fsencode(settings.state)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"workshop-{os.getuid()}-{digest}.sock"


def _configuration(settings: Settings) -> configparser.RawConfigParser:
    """Return supervisor's configuration: one program a service, each ended with all of its process group."""

    def literal(value: object) -> str:
        return str(value).replace("%", "%%")  # supervisor expands %(here)s and the like

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
    }
    for service in SERVICES:
        waits = service.comes_last or service.name == "mlflow"  # which needs its database
        variables = service.environment | service.secrets(settings)
        configuration[f"program:{service.name}"] = {
            "command": literal(shlex.join(service.command(settings))),
            "environment": literal(",".join(f'{name}="{value}"' for name, value in variables.items())),
            "stdout_logfile": literal(_log_file(service, settings)),
            "redirect_stderr": "true",
            "autostart": str(not waits).lower(),
            "autorestart": "true",
            "startsecs": "1",
            "startretries": "5",
            "stopwaitsecs": "10",
            "stopasgroup": "true",
            "killasgroup": "true",
        }
    return configuration


def _start_supervisor(settings: Settings) -> None:
    file = settings.state / "supervisord.conf"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as output:
        os.fchmod(output.fileno(), 0o600)  # it may have been there
        _configuration(settings).write(output)
    environment = os.environ | settings.exports()
    environment |= {"WORKSHOP_ROOT": str(settings.root), "WORKSHOP_STATE": str(settings.state)}
    environment[MARK] = str(settings.state)
    started = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(file)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if started.returncode:
        raise ServiceError(
            "The supervisor did not start.",
            value=(started.stderr or started.stdout).strip()[-500:],
            next_step=f"see {settings.logs / 'supervisord.log'}, then `workshop down` and `workshop up`",
        )


def _ask_supervisor(settings: Settings, method: str, *arguments: object) -> Any:
    """Call one of http://supervisord.org/api.html; raise UNANSWERED errors when there is no supervisor."""
    from supervisor.xmlrpc import SupervisorTransport

    transport = SupervisorTransport(serverurl=f"unix://{_socket_file(settings)}")
    with contextlib.closing(transport):
        return getattr(xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor, method)(
            *arguments
        )


def _supervisor_answers(settings: Settings) -> bool:
    try:
        return _ask_supervisor(settings, "getState")["statename"] == "RUNNING"
    except UNANSWERED:
        return False


def _processes(settings: Settings) -> dict[str, dict]:
    try:
        return {info["name"]: info for info in _ask_supervisor(settings, "getAllProcessInfo")}
    except UNANSWERED:
        return {}


def _bring_up(settings: Settings, services: list[Service], tell: Callable[[str], None]) -> None:
    """Start services that wait for others, and those that ended too often: somebody asks for them again."""
    processes = _processes(settings)
    for service in services:
        if processes[service.name]["statename"] in ("FATAL", "EXITED", "STOPPED"):
            _ask_supervisor(settings, "startProcess", service.name, False)  # False: health is waited for here
    _wait_until_healthy(settings, services, tell)


def _wait_until_healthy(settings: Settings, services: list[Service], tell: Callable[[str], None]) -> None:
    began = time.monotonic()
    waiting = list(services)
    while waiting:
        for service in list(waiting):
            if is_healthy(service, settings):
                waiting.remove(service)
                tell(f"{service.title}: {service.address(settings)}")
        if not waiting:
            return
        processes = _processes(settings)
        for service in waiting:
            if processes.get(service.name, {}).get("statename") == "FATAL":
                raise _not_healthy(service, settings, "it ended again and again")
        if time.monotonic() - began > START_SECONDS:
            raise _not_healthy(waiting[0], settings, f"no answer within {START_SECONDS} s")
        time.sleep(0.3)


def _log_file(service: Service, settings: Settings) -> Path:
    return settings.logs / f"{service.name}.log"


def _log_lines(service: Service, settings: Settings) -> list[str] | None:
    """Return what a service has said; None when it has no log."""
    try:
        return _log_file(service, settings).read_text(errors="replace").splitlines()
    except OSError:
        return None


def _why_given_up(service: Service, settings: Settings) -> str:
    """Return the last words of a service that ended again and again."""
    lines = [line.strip() for line in _log_lines(service, settings) or [] if line.strip()]
    last = lines[-1] if lines else "without a word"
    return f"it ended again and again: {last} (all of it: {_log_file(service, settings)})"


def _not_healthy(service: Service, settings: Settings, why: str) -> ServiceError:
    lines = _log_lines(service, settings)
    last = "(no log)" if lines is None else "\n".join(lines[-LOG_LINES:])
    return ServiceError(
        f"{service.title} does not answer: {why}.",
        value=f"{service.address(settings)}; the end of its log:\n{last}",
        next_step="mend the cause, then `workshop down` and `workshop up`; "
        f"the whole log is {_log_file(service, settings)}",
    )


# -- what was left behind ------------------------------------------------------------------------------------------
def _check_folder(settings: Settings) -> None:
    try:
        settings.state.mkdir(parents=True, exist_ok=True)
        settings.state.chmod(0o700)
        settings.logs.mkdir(exist_ok=True)
    except OSError as error:
        raise ServiceError(
            "The state folder cannot be used.",
            value=f"{settings.state} ({error.strerror})",
            expected="a folder that you may write to",
            next_step="set WORKSHOP_STATE to another folder",
        ) from None


@contextlib.contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold the state folder's lock: `up`, `down` and `restore` from two shells take turns."""
    import filelock

    try:
        with filelock.FileLock(settings.state / "supervision.lock", timeout=START_SECONDS + STOP_SECONDS):
            yield
    except filelock.Timeout:
        raise ServiceError(
            "Another `workshop up`, `down` or `restore` is at work on this state folder.",
            value=settings.state,
            next_step="wait for it, then try again",
        ) from None


def _marked_processes(settings: Settings) -> list[psutil.Process]:
    """Return the processes that an `up` for this state folder started, and their descendants; not this one."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in own and process.environ().get(MARK) == str(settings.state):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _clear_leftovers(settings: Settings, tell: Callable[[str], None]) -> None:
    """End what an earlier supervisor left running and remove its stale files; refuse to share the database."""
    orphans = _marked_processes(settings)
    if orphans:
        tell(f"ending {len(orphans)} processes that an earlier start left behind")
        for process in orphans:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, stubborn = psutil.wait_procs(orphans, timeout=5)
        for process in stubborn:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(stubborn, timeout=5)
    if holder := _database_holder(settings):
        raise ServiceError(
            "Another server has the tracking database open; two on one database would lose runs.",
            value=f"process {holder.pid}: {' '.join(holder.cmdline())[:120]}",
            expected=f"nobody holds {settings.database}",
            next_step=f"stop it (Ctrl-C where it was started, or `kill {holder.pid}`), then try again",
        )
    for file in (_socket_file(settings), settings.state / "supervisord.pid", settings.ports_file):
        file.unlink(missing_ok=True)
    shutil.rmtree(settings.state / "dask", ignore_errors=True)


def _database_holder(settings: Settings) -> psutil.Process | None:
    """Return a process, started by hand say, that has this state folder's database open."""
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(file.path == str(settings.database) for file in process.open_files()):
                return process
        except (psutil.Error, OSError):
            continue
    return None
