"""The application and the database of the tracking server; `services` has its command.

uvicorn serves the application; `mlflow server --app-name workshop` does so, too (entry point ``mlflow.app``).
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

WRITER, WRITER_SECONDS = threading.Lock(), 60  # MLflow's client waits for an answer for 120 s


def make_app() -> Any:
    """Return MLflow's application for the database of MLFLOW_BACKEND_STORE_URI and the artifact store of the settings.

    Where `mlflow server --app-name workshop` says others, they have priority. The password of the FTP server is for
    the store of the settings alone.
    """
    settings = get_settings()
    # Names of this machine on any port, since a tunnel may have another. Patterns, in which [ is special. A page of
    # another site whose name was made to resolve to this machine (DNS rebinding) gets no answer.
    hosts = dict.fromkeys(("127.0.0.1", "localhost", "[[]::1]", settings.host))
    # MLflow's application reads it when it is imported.
    os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(f"{host},{host}:*" for host in hosts)
    from mlflow.server import constants, handlers
    from mlflow.server.fastapi_app import app, flask_app

    # What `mlflow server` hands on to the uvicorn that it starts; it would stay beside it, with all its imports.
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
    queue_writers(Engine)
    handlers.initialize_backend_stores()
    serve = flask_app.view_functions["serve"]
    flask_app.view_functions["serve"] = lambda: open_with_runs(serve())
    return app


def open_with_runs(page: Any) -> Any:
    """Let MLflow's page, as its application answers it, open with the runs."""
    if page.status_code == 200:
        page.direct_passthrough = False  # it is sent from a file
        head = Path(__file__).with_name("open_with_runs.html").read_bytes()
        page.data = page.data.replace(b"<head>", head, 1)
    return page


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


def ensure_database(database: Path) -> None:
    """Make MLflow's tables in an SQLite file, if there is none, completely or not at all.

    A server that is killed while it makes its tables leaves a file that no server can open. PostgreSQL undoes what was
    not completed, so there MLflow makes them.
    """
    if database.exists():
        return
    import mlflow.db  # takes seconds

    made, whole = database.with_suffix(".made"), database.with_suffix(".new")
    for file in (made, whole):
        file.unlink(missing_ok=True)
    mlflow.db.upgrade([f"sqlite:///{made}"], standalone_mode=False)
    # MLflow keeps its file open.
    with contextlib.closing(sqlite3.connect(made)) as source, contextlib.closing(sqlite3.connect(whole)) as target:
        source.backup(target)
        # Readers do not wait for writers; the mode stays with the file.
        target.execute("PRAGMA journal_mode=WAL")
    made.unlink()
    whole.replace(database)
