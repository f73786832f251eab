"""The tracking database: made whole or not at all, and brought to the schema of the MLflow that is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

from workshop.errors import ServiceError
from workshop.servers.services import program
from workshop.settings import Settings

REVISION = re.compile(r"^(down_)?revision\s*(?::[^=]*)?=\s*['\"](\w+)['\"]", re.MULTILINE)


def ensure_database(settings: Settings, tell: Callable[[str], None]) -> None:
    """Make the SQLite database, or upgrade that of an older MLflow, keeping a copy; raise ServiceError when it cannot.

    A database server (`WORKSHOP_DATABASE_URI`) is MLflow's own business: it makes its tables there, and says itself
    what to type when they are old.
    """
    if settings.database_uri is not None:
        return
    new = settings.database.with_suffix(".new")
    new.unlink(missing_ok=True)
    if not settings.database.exists():
        if left := [file for file in journals(settings.database) if file.exists()]:
            raise ServiceError(
                "There is the journal of a database that is gone; a new one would take it for its own.",
                value=", ".join(map(str, left)),
                expected="the journal beside its database, or neither",
                next_step=f"bring {settings.database} back; or, if nothing of it is wanted, remove the journal",
            )
        _bring_up_to_date(settings, new)
        new.replace(settings.database)
        return
    found, known, latest = find_revision(settings.database), *_revisions()
    if found in (None, latest):
        return
    if found not in known:
        raise ServiceError(
            "The tracking database was made by a newer MLflow than the one that is installed.",
            value=f"{settings.database}: schema {found}",
            expected=f"schema {latest}, or an older one",
            next_step="git pull, then make run; or set WORKSHOP_STATE to another folder",
        )
    kept = settings.database.with_name(f"{settings.database.name}.before-{latest}")
    tell(f"upgrading the tracking database; as it was, it is kept as {kept.name}")
    copy_database(settings.database, new)
    _bring_up_to_date(settings, new)
    kept.unlink(missing_ok=True)
    os.link(settings.database, kept)
    new.replace(settings.database)


def journals(database: Path) -> list[Path]:
    """Return the files in which SQLite keeps what is not yet in the database itself (https://sqlite.org/tempfiles.html)."""
    return [database.with_name(f"{database.name}{end}") for end in ("-wal", "-shm", "-journal")]


def _bring_up_to_date(settings: Settings, new: Path) -> None:
    """Let MLflow make, or upgrade, the tables of a database that nobody uses yet.

    A server that is killed while it does so leaves a database that no server can open any more.
    """
    made = subprocess.run(
        [program("mlflow"), "db", "upgrade", f"sqlite:///{new}"],
        env=os.environ | settings.exports(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise ServiceError(
            "The tracking database could not be made.",
            value=made.stderr.strip()[-1000:],
            next_step=f"look at the disk of {settings.state}, then `workshop up`",
        )
    with contextlib.closing(sqlite3.connect(new)) as connection:
        # Readers do not wait for writers; the mode stays with the file.
        connection.execute("PRAGMA journal_mode=WAL")


def copy_database(source: Path, target: Path) -> None:
    """Copy a database as it is at one moment, with what its log still holds."""
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as copy:
        old.backup(copy)


def find_revision(database: Path) -> str | None:
    """Return the revision of a database's schema; None when it has none, and MLflow itself will say what it thinks."""
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return None
    return row[0] if row else None


def _revisions() -> tuple[set[str], str]:
    """Return the schema's revisions that the installed MLflow knows, and the latest one.

    Read from its migrations (https://alembic.sqlalchemy.org/en/latest/tutorial.html#create-a-migration-script), for
    loading them takes as long as importing MLflow.
    """
    folder = Path(importlib.util.find_spec("mlflow").origin).parent / "store" / "db_migrations" / "versions"
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for file in folder.glob("*.py"):
        for down, revision in REVISION.findall(file.read_text(encoding="utf-8")):
            found[bool(down)].add(revision)
    (latest,) = found[False] - found[True]
    return found[False], latest
