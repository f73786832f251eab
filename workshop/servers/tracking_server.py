"""The tracking server: MLflow's own, with the database and the arguments that the settings ask for.

`mlflow server --app-name workshop` serves MLflow's application with the password of the FTP server (entry point
``mlflow.app``); this module, run as a program, becomes that command.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sqlite3
import subprocess
import sys
from typing import NoReturn

from workshop.errors import ServiceError, WorkshopError
from workshop.ownership import find_holders
from workshop.servers.services import is_free, program
from workshop.settings import Settings, get_settings

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PARENT = "WORKSHOP_TRACKING_SERVER_PID"


def make_app():
    """Return MLflow's application; its artifact store gets the password for the FTP server of the settings alone."""
    # MLflow's application reads the environment when it is imported.
    from mlflow.server import ARTIFACTS_DESTINATION_ENV_VAR
    from mlflow.server.fastapi_app import app

    if sys.platform == "linux":  # die with `mlflow server`, which started this process, and leave it the port
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        sys.exit("the process that started this server has ended")
    settings = get_settings()
    if os.environ.get(ARTIFACTS_DESTINATION_ENV_VAR, "").startswith(f"{settings.ftp_uri}/"):
        os.environ |= settings.ftp_environment()
    return app


def ensure_database(settings: Settings) -> None:
    """Make the tracking database if there is none, complete or not at all; raise ServiceError when that fails.

    A server that is killed while it makes its tables leaves a database that no server can open.
    """
    if settings.database.exists():
        return
    new = settings.database.with_suffix(".new")
    new.unlink(missing_ok=True)
    done = subprocess.run(
        [program("mlflow"), "db", "upgrade", f"sqlite:///{new}"],
        env=os.environ | settings.exports(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ServiceError(
            "The tracking database could not be made.",
            value=done.stderr.strip()[-1000:],
            next_step=f"look at the disk of {settings.state}, then `workshop up`",
        )
    with contextlib.closing(sqlite3.connect(new)) as connection:
        # Readers do not wait for writers; the mode stays with the file.
        connection.execute("PRAGMA journal_mode=WAL")
    new.replace(settings.database)


def command(settings: Settings) -> list[str]:
    """Return the command line of `mlflow server`."""
    # Names of this machine on any port, since a tunnel may have another. Patterns, in which [ is special. A page of
    # another site whose name was made to resolve to this machine (DNS rebinding) gets no answer.
    hosts = dict.fromkeys(("127.0.0.1", "localhost", "[[]::1]", settings.host))
    return [
        program("mlflow"),
        "server",
        *("--host", settings.host, "--port", str(settings.mlflow_port)),
        *("--backend-store-uri", f"sqlite:///{settings.database}"),
        *("--artifacts-destination", settings.artifacts_uri),
        # More server processes would share one SQLite file and add 40 ms to each kept-alive request.
        *("--workers", "1"),
        *("--app-name", "workshop"),
        *("--allowed-hosts", ",".join(f"{host},{host}:*" for host in hosts)),
    ]


def main() -> NoReturn:
    """Become `mlflow server`; exit with 1 when its port is taken, which MLflow notices late and reports with 0."""
    try:
        settings = get_settings()
        if not is_free(settings.host, settings.mlflow_port):
            holders = find_holders(settings, settings.mlflow_port)
            raise ServiceError(
                f"The tracking server cannot listen on {settings.host}:{settings.mlflow_port}.",
                value=f"held by {holders.get(settings.mlflow_port, 'another process')}",
                next_step="end that, or set WORKSHOP_MLFLOW_PORT to a free port",
            )
    except WorkshopError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    arguments = command(settings)
    os.execve(arguments[0], arguments, os.environ | {PARENT: str(os.getpid())})  # noqa: S606


if __name__ == "__main__":
    main()
