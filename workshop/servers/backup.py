"""Back up the tracking database and the artifacts into one tar file while the servers run, and restore them.

The database is copied first, so all artifacts that it refers to exist when they are copied. The artifact store
replaces files by renaming, so no artifact is copied half-written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pooch
from forecast.terms.errors import ServiceError
from mlflow_ftp import names

from workshop.servers import supervisor
from workshop.servers.services import database_address
from workshop.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy

MANIFEST, DATABASE, DUMP, ARTIFACTS = "manifest.json", "mlflow.db", "mlflow.dump", "artifacts"
ATTEMPTS, PAUSE_SECONDS = 10, 0.2

Hashes = dict[str, str]  # name in the tar file -> sha256


def back_up(file: Path, settings: Settings) -> Hashes:
    """Write the database and artifacts atomically to a new tar ``file``; return the sha256 of each member.

    Raises ServiceError if there is no database, if the file exists, if an artifact is damaged, or on disk errors.
    """
    if not (settings.database_uri or settings.database.exists()):
        raise ServiceError(
            "There is nothing to back up.",
            value=f"no database in {settings.state}",
            next_step="type `workshop up`, or set WORKSHOP_STATE to the folder to back up",
        )
    if file.exists():
        step = "choose another file name, or move the existing file"
        raise ServiceError("The backup file already exists.", value=file, next_step=step)
    # Write into a private temporary folder beside ``file``, then rename: ``file`` is never an incomplete backup.
    with (
        _disk_errors("The backup could not be made.", file.absolute().parent),
        tempfile.TemporaryDirectory(prefix=".workshop-backup-", dir=file.absolute().parent) as name,
    ):
        folder = Path(name)
        snapshot, manifest, temporary = folder / _database_name(settings), folder / MANIFEST, folder / "backup.tar"
        if settings.database_uri:
            _run_postgres_client("pg_dump", "--format=custom", f"--file={snapshot}", settings=settings)
        else:
            _copy_database(settings.database, snapshot)
        temporary.touch(mode=0o600)
        with tarfile.open(temporary, "w") as tar:
            tar.add(snapshot, snapshot.name)
            hashes = {snapshot.name: pooch.file_hash(snapshot)} | _add_artifacts(tar, settings.artifacts)
            manifest.write_text(json.dumps({"files": hashes}, indent=1))
            tar.add(manifest, MANIFEST)  # added last, so a truncated file has no manifest
        temporary.replace(file)
    return hashes


def restore(file: Path, settings: Settings) -> Hashes:
    """Restore a backup atomically into a state folder without a database or artifacts; return the files' hashes.

    An SQLite backup can also be restored into PostgreSQL (from a laptop to a team's server). Raises ServiceError if
    the folder is not empty or its servers are running, if the backup is damaged, if the MLflow versions differ, or on
    disk errors.
    """
    with supervisor.stopped(settings), _disk_errors("The backup could not be restored.", settings.state):
        _require_empty(settings)
        with tempfile.TemporaryDirectory(prefix="restore-", dir=settings.state) as name:
            folder = Path(name)
            databases = (DUMP, DATABASE) if settings.database_uri else (DATABASE,)
            hashes = _extract(file, folder, databases)
            if DUMP in hashes:  # fails if the database is not empty
                options = "--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"
                _run_postgres_client("pg_restore", *options, str(folder / DUMP), settings=settings)
            elif settings.database_uri:
                _copy_to_postgres(folder / DATABASE, settings)
            (folder / ARTIFACTS).replace(settings.artifacts)
            if not settings.database_uri:
                (folder / DATABASE).replace(settings.database)  # last, because the database marks a complete restore
    return hashes


def _database_name(settings: Settings) -> str:
    return DUMP if settings.database_uri else DATABASE


@contextlib.contextmanager
def _disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Convert disk errors to a ServiceError whose message contains ``folder``."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        next_step = f"check the free space and the permissions of {folder}, then repeat the command"
        raise ServiceError(what, value=error, next_step=next_step) from None


def _run_postgres_client(program: str, *options: str, settings: Settings) -> None:
    """Run a PostgreSQL client program on the tracking database; raise ServiceError if it is missing or fails."""
    address = database_address(settings).replace("+psycopg", "", 1)
    command = ["env", "LC_ALL=C", program, *options, f"--dbname={address}"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode:
        raise ServiceError(
            f"`{program}` failed.",
            value=completed.stderr.strip()[-1000:],
            expected="PostgreSQL clients on PATH, at least as new as the server; for a restore, an empty database",
            next_step="fix the cause (to install clients: apt-get install postgresql-client), then repeat the command",
        )


def _copy_database(source: Path, target: Path) -> None:
    """Copy a consistent snapshot of a database, including its WAL; raise ServiceError if the database is damaged."""
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as copy:
        old.backup(copy)
        (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise ServiceError(
            "The tracking database is damaged.",
            value=f"{source}: {verdict}",
            next_step="restore an earlier backup, or save the readable rows with `sqlite3 FILE .recover`",
        )


def _copy_to_postgres(source: Path, settings: Settings) -> None:
    """Create MLflow's tables in PostgreSQL and copy the rows from SQLite; drop the tables on any error."""
    import sqlalchemy as sql

    address = database_address(settings)
    old, new, tables = sql.create_engine(f"sqlite:///{source}"), sql.create_engine(address), sql.MetaData()
    revision = sql.text("SELECT version_num FROM alembic_version")
    try:
        if names := sql.inspect(new).get_table_names():
            found, step = f"the table {names[0]!r} already exists", "set WORKSHOP_DATABASE_URI to another database"
            raise ServiceError("A backup can only be restored into an empty database.", value=found, next_step=step)
        try:
            upgrade = ["mlflow", "db", "upgrade", address]  # contains a password file's path, not the password
            subprocess.run(upgrade, check=True, capture_output=True, text=True)
            tables.reflect(new)
            with old.connect() as reader, new.begin() as writer:
                if (saved := reader.scalar(revision)) != (installed := writer.scalar(revision)):
                    raise ServiceError(
                        "The backup was made with another version of MLflow.",
                        value=f"schema revision {saved}",
                        expected=f"schema revision {installed} of the MLflow version installed here",
                        next_step="install the same version of MLflow on both machines; "
                        "then, on the original machine, type `workshop up` and repeat the backup",
                    )
                for table in reversed(tables.sorted_tables):  # MLflow's default rows, which would conflict
                    writer.execute(table.delete())
                for table in tables.sorted_tables:
                    _copy_rows(table, reader, writer)
        except BaseException:
            tables.reflect(new)
            tables.drop_all(new)
            raise
    except (sql.exc.SQLAlchemyError, subprocess.CalledProcessError) as error:
        raise ServiceError(
            "The rows could not be copied into PostgreSQL; nothing was restored.",
            value=(getattr(error, "stderr", "") or str(error)).strip()[-1000:],
            next_step="fix the cause, then repeat the command",
        ) from None
    finally:
        old.dispose()
        new.dispose()


def _copy_rows(table: sqlalchemy.Table, reader: sqlalchemy.Connection, writer: sqlalchemy.Connection) -> None:
    """Copy the rows of a table from SQLite to PostgreSQL; generic column types turn SQLite's 0 and 1 into booleans."""
    from sqlalchemy import column, func, select
    from sqlalchemy import table as named

    columns = [column(each.name, each.type.as_generic()) for each in table.columns]
    rows = reader.execute(select(*columns).select_from(named(table.name))).mappings()
    for batch in rows.partitions(10_000):
        writer.execute(table.insert(), [dict(row) for row in batch])
    for each in table.columns:
        if "nextval(" in str(getattr(each.server_default, "arg", "")):  # continue the id sequence after the last row
            sequence = func.pg_get_serial_sequence(f'"{table.name}"', each.name)
            writer.execute(select(func.setval(sequence, func.coalesce(func.max(each), 0) + 1, False)))


def _add_artifacts(tar: tarfile.TarFile, artifacts: Path) -> Hashes:
    """Append the artifacts to the tar file, except unfinished uploads; return their hashes."""
    tar.add(artifacts, ARTIFACTS, recursive=False)
    hashes: Hashes = {}
    for path in sorted(artifacts.rglob("*")):
        relative = path.relative_to(artifacts)
        if path.is_file() and not path.is_symlink() and not any(map(names.is_own, relative.parts)):
            name = f"{ARTIFACTS}/{relative.as_posix()}"
            with contextlib.suppress(FileNotFoundError):  # the artifact was deleted after the folder was listed
                hashes[name] = _add_artifact(tar, path, name)
    return hashes


def _add_artifact(tar: tarfile.TarFile, path: Path, name: str) -> str:
    """Append an artifact and its mark (the folder beside it whose name contains its sha256); return the sha256.

    If the mark does not match, the artifact is probably being replaced, so it is read again.
    """
    for _ in range(ATTEMPTS):
        with path.open("rb") as source:
            sha256 = hashlib.file_digest(source, "sha256").hexdigest()
            mark = path.with_name(names.mark_of(path.name, sha256))
            # Artifacts stored by other programs have no mark.
            if mark.is_dir() or not any(path.parent.glob(f"{names.mark_prefix(path.name)}*")):
                source.seek(0)
                tar.addfile(tar.gettarinfo(arcname=name, fileobj=source), source)
                if mark.is_dir():
                    tar.add(mark, name.removesuffix(path.name) + mark.name, recursive=False)
                return sha256
        time.sleep(PAUSE_SECONDS)
    raise ServiceError(
        "An artifact is damaged: its content does not match its recorded sha256.",
        value=f"{path}: sha256 {sha256}",
        expected="the sha256 in the name of its mark (the folder `.~...sha256` beside the file)",
        next_step="log the artifact again or remove it, then repeat the backup",
    )


def _require_empty(settings: Settings) -> None:
    # Journal files left by a killed server count, too: SQLite would apply them to the restored database.
    existing = sorted(settings.state.glob(f"{settings.database.name}*"))
    if settings.artifacts.exists() and any(settings.artifacts.iterdir()):
        existing.append(settings.artifacts)
    if existing:
        raise ServiceError(
            "A backup can only be restored into an empty state folder.",
            value=f"{existing[0]} exists",
            expected="a state folder without a database or artifacts",
            next_step="set WORKSHOP_STATE to another folder; or type `workshop down` and move the old files elsewhere",
        )


def _extract(file: Path, folder: Path, databases: Sequence[str]) -> Hashes:
    """Extract a backup; raise ServiceError unless its files match the manifest and include one of ``databases``."""
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                place = (folder / member.name).resolve()
                if not (member.isfile() or member.isdir()) or not place.is_relative_to(folder.resolve()):
                    raise ValueError(f"the archive contains {member.name!r}, which does not belong in a backup")
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # missing in Python 3.11.2 (Debian 12)
            tar.extractall(folder)  # noqa: S202 - all members were checked
        files = [path for path in folder.rglob("*") if path.is_file()]
        hashes = {path.relative_to(folder).as_posix(): pooch.file_hash(path) for path in files}
        del hashes[MANIFEST]
        expected = json.loads((folder / MANIFEST).read_text())["files"]
        if different := dict(hashes.items() ^ expected.items()):
            raise ValueError(f"{len(different)} files differ from the manifest, such as {min(different)!r}")
        if not hashes.keys() & set(databases) or not (folder / ARTIFACTS).is_dir():
            raise ValueError(f"the archive lacks a database ({' or '.join(databases)}) or the folder {ARTIFACTS}")
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ServiceError(
            f"The file {file} is not a complete backup.",
            value=f"{type(error).__name__}: {error}",
            expected="an unmodified file from `workshop backup`; a PostgreSQL backup also needs WORKSHOP_DATABASE_URI",
            next_step="copy the file again, or use another backup; nothing was restored",
        ) from None
    return hashes
