"""The supervisor (http://supervisord.org) of one state folder: its configuration, its start, and what it is asked."""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import xmlrpc.client
from http.client import HTTPException
from pathlib import Path
from typing import Any

from workshop.errors import ServiceError
from workshop.ownership import MARK
from workshop.servers.services import SERVICES, Service
from workshop.settings import Settings

OPEN_FILES = 1024  # what supervisor asks for by itself; it does not start where `ulimit -Hn` is less
UNANSWERED = (OSError, HTTPException, xmlrpc.client.Error)
SOCKET_PATH_LIMIT = 100  # bytes; the kernel's limit for a unix socket is 108 (Linux) or 104 (macOS)


def log_file(service: Service, settings: Settings) -> Path:
    """Return where a service's words go."""
    return settings.logs / f"{service.name}.log"


def socket_file(settings: Settings) -> Path:
    """Return the socket that the supervisor answers on, elsewhere when the state folder's path is too long for one."""
    inside = settings.state / "supervisor.sock"
    if len(os.fsencode(inside)) <= SOCKET_PATH_LIMIT:
        return inside
    digest = hashlib.sha256(os.fsencode(settings.state)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"workshop-{os.getuid()}-{digest}.sock"


def _configuration(settings: Settings, left: frozenset[str]) -> configparser.RawConfigParser:
    """Return supervisor's configuration: one program a service, each ended with all of its process group.

    Those that are ``left`` to the person who started them by hand are not started with it.
    """

    def literal(value: object) -> str:
        return str(value).replace("%", "%%")  # supervisor expands %(here)s and the like

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    configuration = configparser.RawConfigParser()
    configuration["unix_http_server"] = {"file": literal(socket_file(settings)), "chmod": "0600"}
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
        waits = service.comes_last or service.name in {"mlflow", *left}  # MLflow needs its database
        variables = service.environment | service.secrets(settings)
        configuration[f"program:{service.name}"] = {
            "command": literal(shlex.join(service.command(settings))),
            "environment": literal(",".join(f'{name}="{value}"' for name, value in variables.items())),
            "stdout_logfile": literal(log_file(service, settings)),
            "redirect_stderr": "true",
            "autostart": str(not waits).lower(),
            "autorestart": "true",
            "startsecs": "30",  # MLflow finds out after 20 seconds that it cannot have its port
            "startretries": "5",
            "stopwaitsecs": "10",
            "stopasgroup": "true",
            "killasgroup": "true",
        }
    return configuration


def start(settings: Settings, left: frozenset[str] = frozenset()) -> None:
    """Start it, and with it the services that wait for none; see `_configuration` for those that are ``left``."""
    file = settings.state / "supervisord.conf"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as output:
        os.fchmod(output.fileno(), 0o600)  # it may have been there
        _configuration(settings, left).write(output)
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


def ask(settings: Settings, method: str, *arguments: object) -> Any:
    """Call one of http://supervisord.org/api.html; raise UNANSWERED errors when there is no supervisor."""
    from supervisor.xmlrpc import SupervisorTransport

    transport = SupervisorTransport(serverurl=f"unix://{socket_file(settings)}")
    with contextlib.closing(transport):
        return getattr(xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor, method)(
            *arguments
        )


def answers(settings: Settings) -> bool:
    """Tell whether it runs."""
    try:
        return ask(settings, "getState")["statename"] == "RUNNING"
    except UNANSWERED:
        return False


def processes(settings: Settings) -> dict[str, dict]:
    """Return what it says of each service, by name; nothing when it does not run."""
    try:
        return {info["name"]: info for info in ask(settings, "getAllProcessInfo")}
    except UNANSWERED:
        return {}
