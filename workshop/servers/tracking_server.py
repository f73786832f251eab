"""The application and the database of the tracking server; `services` has its command.

`mlflow server --app-name workshop` serves the application (entry point ``mlflow.app``).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from typing import Any

import psutil
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from workshop.errors import ServiceError
from workshop.servers.services import database_address, program
from workshop.settings import Settings, get_settings

PR_SET_PDEATHSIG = 1  # linux/prctl.h
WRITER, WRITER_SECONDS = threading.Lock(), 60  # MLflow's client waits for an answer for 120 s


def make_app() -> Any:
    """Return MLflow's application; its artifact store gets the password for the FTP server of the settings alone."""
    # MLflow's application reads the environment when it is imported.
    from mlflow.server import ARTIFACTS_DESTINATION_ENV_VAR
    from mlflow.server.fastapi_app import app

    if sys.platform == "linux":  # die with `mlflow server`, which started this process, and leave it the port
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = psutil.Process().parent()
    if parent is None or not any("mlflow" in word or "uvicorn" in word for word in parent.cmdline()):
        sys.exit("The `mlflow server` that started this process has ended.")
    queue_writers(Engine)
    settings = get_settings()
    if os.environ.get(ARTIFACTS_DESTINATION_ENV_VAR, "").startswith(f"{settings.ftp_uri}/"):
        os.environ |= settings.ftp_environment()
    return app


def queue_writers(engine: Engine | type[Engine]) -> None:
    """Let one transaction at a time write to SQLite: SQLite's own lock is unfair, and MLflow waits only 20 s for it."""

    def acquire(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        is_writer = connection.dialect.name == "sqlite" and statement.startswith(("INSERT", "UPDATE", "DELETE"))
        if is_writer and not connection.info.get("is_writing"):
            connection.info["is_writing"] = WRITER.acquire(timeout=WRITER_SECONDS)

    event.listen(engine, "before_cursor_execute", acquire)
    # The connection goes back to the pool: its transaction is over.
    event.listen(
        engine, "checkin", lambda _, record: WRITER.release() if record.info.pop("is_writing", False) else None
    )


def ensure_database(settings: Settings) -> None:
    """Make the tracking database if there is none, complete or not at all; raise ServiceError when that fails.

    A server that is killed while it makes its tables leaves an SQLite file that no server can open. PostgreSQL undoes
    what was not completed, so there MLflow's server makes them.
    """
    if settings.database_uri:
        try:
            create_engine(database_address(settings), connect_args={"connect_timeout": 10}).connect().close()
        except SQLAlchemyError as error:
            raise ServiceError(
                "The tracking database does not answer.",
                value=str(error).splitlines()[0],
                next_step="correct WORKSHOP_DATABASE_URI in the environment or in `.env`, or start the database",
            ) from None
        return
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
