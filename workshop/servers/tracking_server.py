"""The tracking server's application and database; `services` defines its command.

The application runs under uvicorn, or through `mlflow server --app-name workshop` (entry point ``mlflow.app``).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event, make_url

from workshop.settings import get_settings

WRITE_LOCK, WRITE_LOCK_SECONDS = threading.Lock(), 60  # below the request timeout of MLflow's client (120 s)


def make_app() -> Any:
    """Return MLflow's application for the database in MLFLOW_BACKEND_STORE_URI and the artifact store in the settings.

    Options of `mlflow server --app-name workshop` take precedence. The FTP credentials are set only if the artifact
    store is on the workshop's FTP server.
    """
    settings = get_settings()
    # Accept this machine's names on any port, since a tunnel may use another port. The names are fnmatch patterns, so
    # [ is escaped. Other host names are rejected to prevent DNS rebinding.
    hosts = dict.fromkeys(("127.0.0.1", "localhost", "[[]::1]", settings.host))
    # MLflow's application reads this variable on import.
    os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(f"{host},{host}:*" for host in hosts)
    from mlflow.server import constants, handlers
    from mlflow.server.fastapi_app import app, flask_app

    # `mlflow server` sets these variables for its uvicorn; `up` starts uvicorn directly, which saves a process.
    address = os.environ.get(constants.BACKEND_STORE_URI_ENV_VAR) or os.environ["MLFLOW_BACKEND_STORE_URI"]
    for name, value in {
        constants.BACKEND_STORE_URI_ENV_VAR: address,
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: settings.artifacts_uri,
    }.items():
        os.environ.setdefault(name, value)
    if os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR].startswith(f"{settings.ftp_uri}/"):
        os.environ |= settings.ftp_environment()
    url = make_url(address)
    if url.drivername == "sqlite" and url.database:
        ensure_database(Path(url.database))
    serialize_writes(Engine)
    handlers.initialize_backend_stores()
    serve = flask_app.view_functions["serve"]
    flask_app.view_functions["serve"] = lambda: open_with_runs(serve())
    return app


def open_with_runs(page: Any) -> Any:
    """Add a script to MLflow's page, so that the page opens with the list of runs."""
    if page.status_code == 200:
        page.direct_passthrough = False  # load the page into memory instead of streaming its file
        head = Path(__file__).with_name("open_with_runs.html").read_bytes()
        page.data = page.data.replace(b"<head>", head, 1)
    return page


def serialize_writes(engine: Engine | type[Engine]) -> None:
    """Serialize write transactions on SQLite, whose own lock is unfair: MLflow gives up after waiting for 20 s."""

    def acquire(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        is_writer = connection.dialect.name == "sqlite" and statement.startswith(("INSERT", "UPDATE", "DELETE"))
        if is_writer and not connection.info.get("is_writing"):
            connection.info["is_writing"] = WRITE_LOCK.acquire(timeout=WRITE_LOCK_SECONDS)

    event.listen(engine, "before_cursor_execute", acquire)
    # Release the lock when a connection returns to the pool: its transaction has ended.
    event.listen(
        engine, "checkin", lambda _, record: WRITE_LOCK.release() if record.info.pop("is_writing", False) else None
    )


def ensure_database(database: Path) -> None:
    """Create the SQLite file with MLflow's tables atomically if it does not exist.

    A server killed while creating its tables would leave an unusable file. On PostgreSQL MLflow can create them itself,
    because an incomplete transaction is rolled back.
    """
    if database.exists():
        return
    import mlflow.db  # slow import (seconds)

    draft, complete = database.with_suffix(".made"), database.with_suffix(".new")
    for file in (draft, complete):
        file.unlink(missing_ok=True)
    mlflow.db.upgrade([f"sqlite:///{draft}"], standalone_mode=False)
    # Copy the tables instead of renaming the file, because MLflow keeps the draft open.
    with contextlib.closing(sqlite3.connect(draft)) as source, contextlib.closing(sqlite3.connect(complete)) as target:
        source.backup(target)
        # WAL: readers do not wait for writers. The mode is stored in the file.
        target.execute("PRAGMA journal_mode=WAL")
    draft.unlink()
    complete.replace(database)
