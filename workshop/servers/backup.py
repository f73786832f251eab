"""A backup of what the servers keep: one tar file with the tracking database and the artifacts, made while they run.

The database is copied first. The artifacts that it names were stored before, and the store replaces an artifact by
renaming alone, so each is copied whole.
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

Hashes = dict[str, str]  # the sha256 of each file, by its name in the tar file


def back_up(file: Path, settings: Settings) -> Hashes:
    """Write database and artifacts to a new ``file``, complete or not at all; return what it holds.

    Raises ServiceError when there is nothing to back up, when the file exists, when an artifact is not what was stored,
    or when the disk fails.
    """
    if not (settings.database_uri or settings.database.exists()):
        raise ServiceError(
            "There is nothing to back up.",
            value=f"no database in {settings.state}",
            next_step="workshop up; or set WORKSHOP_STATE to another folder",
        )
    if file.exists():
        raise ServiceError("The file exists already.", value=file, next_step="name another file, or move it away")
    # In the same folder, so that the complete file only needs its name; readable for its owner alone.
    with (
        _disk_errors("The backup could not be made.", file.absolute().parent),
        tempfile.TemporaryDirectory(prefix=".workshop-backup-", dir=file.absolute().parent) as name,
    ):
        folder = Path(name)
        snapshot, manifest, temporary = folder / _database_name(settings), folder / MANIFEST, folder / "backup.tar"
        if settings.database_uri:
            _run("pg_dump", "--format=custom", f"--file={snapshot}", settings=settings)
        else:
            _copy_database(settings.database, snapshot)
        temporary.touch(mode=0o600)
        with tarfile.open(temporary, "w") as tar:
            tar.add(snapshot, snapshot.name)
            hashes = {snapshot.name: pooch.file_hash(snapshot)} | _add_artifacts(tar, settings.artifacts)
            manifest.write_text(json.dumps({"files": hashes}, indent=1))
            tar.add(manifest, MANIFEST)  # the last member: a file that was cut off has none
        temporary.replace(file)
    return hashes


def restore(file: Path, settings: Settings) -> Hashes:
    """Bring a backup back into a state folder without database and artifacts, complete or not at all; return its files.

    A backup of SQLite can also be brought into PostgreSQL: from laptop to team. Raises ServiceError when servers of
    that folder run, when it is not empty, when the backup is damaged, when the versions of MLflow differ, or when the
    disk fails.
    """
    with supervisor.stopped(settings), _disk_errors("The backup could not be restored.", settings.state):
        _require_empty(settings)
        with tempfile.TemporaryDirectory(prefix="restore-", dir=settings.state) as name:
            folder = Path(name)
            kinds = (DUMP, DATABASE) if settings.database_uri else (DATABASE,)
            hashes = _extract(file, folder, kinds)
            if DUMP in hashes:  # an error when the database is not empty
                options = "--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"
                _run("pg_restore", *options, str(folder / DUMP), settings=settings)
            elif settings.database_uri:
                _load(folder / DATABASE, settings)
            (folder / ARTIFACTS).replace(settings.artifacts)
            if not settings.database_uri:
                (folder / DATABASE).replace(settings.database)  # last: a folder with a database is a state
    return hashes


def _database_name(settings: Settings) -> str:
    return DUMP if settings.database_uri else DATABASE


@contextlib.contextmanager
def _disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Raise ServiceError in place of the errors of the disk on which ``folder`` is."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        next_step = f"look at the disk of {folder}, and who may write there"
        raise ServiceError(what, value=error, next_step=next_step) from None


def _run(program: str, *options: str, settings: Settings) -> None:
    """Run a client program of PostgreSQL on the tracking database; raise ServiceError when it is missing or fails."""
    address = database_address(settings).replace("+psycopg", "", 1)
    command = ["env", "LC_ALL=C", program, *options, f"--dbname={address}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(
            f"`{program}` failed.",
            value=done.stderr.strip()[-1000:],
            expected="PostgreSQL's client programs on the PATH, not older than the server; to restore, no tables",
            next_step="fix the cause (programs: apt-get install postgresql-client), then repeat the command",
        )


def _copy_database(source: Path, target: Path) -> None:
    """Copy a consistent state of a database, its write-ahead log included; raise ServiceError when it is damaged."""
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as copy:
        old.backup(copy)
        (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise ServiceError(
            "The tracking database is damaged.",
            value=f"{source}: {verdict}",
            next_step="restore an earlier backup; `sqlite3 FILE .recover` saves what can be read",
        )


def _load(source: Path, settings: Settings) -> None:
    """Copy the rows of an SQLite database into PostgreSQL, whose tables MLflow makes; leave it empty at any error."""
    import sqlalchemy as sql

    address = database_address(settings)
    old, new, tables = sql.create_engine(f"sqlite:///{source}"), sql.create_engine(address), sql.MetaData()
    revision = sql.text("SELECT version_num FROM alembic_version")
    try:
        if names := sql.inspect(new).get_table_names():
            raise ServiceError(
                "A backup can only be restored into an empty database.",
                value=f"a table {names[0]!r} already exists",
                next_step="name another database in WORKSHOP_DATABASE_URI",
            )
        try:
            upgrade = ["mlflow", "db", "upgrade", address]  # with a file in place of the password
            subprocess.run(upgrade, check=True, capture_output=True, text=True)
            tables.reflect(new)
            with old.connect() as reader, new.begin() as writer:
                if (theirs := reader.scalar(revision)) != (ours := writer.scalar(revision)):
                    raise ServiceError(
                        "The backup was made with another version of MLflow.",
                        value=f"revision {theirs} of the tables",
                        expected=f"{ours}, of the MLflow that is installed here",
                        next_step="install one version there and here, then `workshop up` and `workshop backup` there",
                    )
                for table in reversed(tables.sorted_tables):  # what MLflow writes into new tables
                    writer.execute(table.delete())
                for table in tables.sorted_tables:
                    _copy_rows(table, reader, writer)
        except BaseException:
            tables.reflect(new)
            tables.drop_all(new)
            raise
    except (sql.exc.SQLAlchemyError, subprocess.CalledProcessError) as error:
        raise ServiceError(
            "The rows could not be copied.",
            value=(getattr(error, "stderr", "") or str(error)).strip()[-1000:],
            next_step="fix the cause, then repeat the command; nothing was restored",
        ) from None
    finally:
        old.dispose()
        new.dispose()


def _copy_rows(table: sqlalchemy.Table, reader: sqlalchemy.Connection, writer: sqlalchemy.Connection) -> None:
    """Copy the rows of a table of PostgreSQL from the one of that name in SQLite, which keeps yes and no as numbers."""
    from sqlalchemy import column, func, select
    from sqlalchemy import table as named

    columns = [column(each.name, each.type.as_generic()) for each in table.columns]
    rows = reader.execute(select(*columns).select_from(named(table.name))).mappings()
    for some in rows.partitions(10_000):
        writer.execute(table.insert(), [dict(row) for row in some])
    for each in table.columns:
        if "nextval(" in str(getattr(each.server_default, "arg", "")):  # the next number that is given
            sequence = func.pg_get_serial_sequence(f'"{table.name}"', each.name)
            writer.execute(select(func.setval(sequence, func.coalesce(func.max(each), 0) + 1, False)))


def _add_artifacts(tar: tarfile.TarFile, artifacts: Path) -> Hashes:
    """Append the artifacts, without parts of uploads; return their hashes."""
    tar.add(artifacts, ARTIFACTS, recursive=False)
    hashes: Hashes = {}
    for path in sorted(artifacts.rglob("*")):
        relative = path.relative_to(artifacts)
        if path.is_file() and not path.is_symlink() and not any(map(names.is_own, relative.parts)):
            name = f"{ARTIFACTS}/{relative.as_posix()}"
            with contextlib.suppress(FileNotFoundError):  # deleted since the folder was listed
                hashes[name] = _add_artifact(tar, path, name)
    return hashes


def _add_artifact(tar: tarfile.TarFile, path: Path, name: str) -> str:
    """Append an artifact and the mark that confirms its content (its sha256, in a name beside it); return the sha256.

    An artifact that is replaced meanwhile has another mark soon, so one without a mark of its content is read again.
    """
    for _ in range(ATTEMPTS):
        with path.open("rb") as source:
            sha256 = hashlib.file_digest(source, "sha256").hexdigest()
            mark = path.with_name(names.mark_of(path.name, sha256))
            # Other programs store artifacts without any mark.
            if mark.is_dir() or not any(path.parent.glob(f"{names.mark_prefix(path.name)}*")):
                source.seek(0)
                tar.addfile(tar.gettarinfo(arcname=name, fileobj=source), source)
                if mark.is_dir():
                    tar.add(mark, name.removesuffix(path.name) + mark.name, recursive=False)
                return sha256
        time.sleep(PAUSE_SECONDS)
    raise ServiceError(
        "An artifact is not what was stored.",
        value=f"{path}: sha256 {sha256}",
        expected="the sha256 in the name of one of its marks (`.~...sha256` beside it)",
        next_step="store it again, or remove it, then make the backup again",
    )


def _require_empty(settings: Settings) -> None:
    # A journal that a killed server left would be played into the database that takes its place.
    existing = sorted(settings.state.glob(f"{settings.database.name}*"))
    if settings.artifacts.exists() and any(settings.artifacts.iterdir()):
        existing.append(settings.artifacts)
    if existing:
        raise ServiceError(
            "A backup is restored into an empty state folder alone.",
            value=f"{existing[0]} exists",
            expected="neither a database nor artifacts",
            next_step="set WORKSHOP_STATE to another folder; or `workshop down`, and move it away",
        )


def _extract(file: Path, folder: Path, databases: Sequence[str]) -> Hashes:
    """Write the files of a backup below a folder; raise ServiceError unless they are those of its manifest, and one of
    them such a database.
    """
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                place = (folder / member.name).resolve()
                if not (member.isfile() or member.isdir()) or not place.is_relative_to(folder.resolve()):
                    raise ValueError(f"it holds {member.name!r}, which is no file or folder of a backup")
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2, Debian 12's, has none
            tar.extractall(folder)  # noqa: S202 - each member was looked at
        files = [path for path in folder.rglob("*") if path.is_file()]
        hashes = {path.relative_to(folder).as_posix(): pooch.file_hash(path) for path in files}
        del hashes[MANIFEST]
        expected = json.loads((folder / MANIFEST).read_text())["files"]
        if different := dict(hashes.items() ^ expected.items()):
            raise ValueError(f"{len(different)} files differ from its manifest, such as {min(different)!r}")
        if not hashes.keys() & set(databases) or not (folder / ARTIFACTS).is_dir():
            raise ValueError(f"it lacks {' and '.join(databases)}, or {ARTIFACTS}")
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ServiceError(
            f"The file {file} is not a complete backup.",
            value=f"{type(error).__name__}: {error}",
            expected="a file as `workshop backup` made it, from the same kind of database (WORKSHOP_DATABASE_URI)",
            next_step="copy it here again, or take another backup; nothing was restored",
        ) from None
    return hashes
