"""`workshop up` and `workshop backup` with Debian's PostgreSQL, by one setting; the password is not leaked."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from workplace import BIN, Servers, clean_environment, free_port, new_workplace, processes_of, required, run_program

PASSWORD = r"pass:wörd@/%\ 7"
PROGRAMS = next((file.parent for file in Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)


@dataclass
class Database:
    """A PostgreSQL server that requires a password."""

    port: int

    def uri(self, name: str) -> str:
        """Return the setting for a database."""
        return f"postgresql+psycopg://mlflow:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{name}"

    def ask(self, database: str, question: str) -> str:
        """Return psql's output for a query of the superuser."""
        command = ["psql", "--host=127.0.0.1", f"--port={self.port}", "--username=super", "-Atc", question, database]
        return run_program(*command, env=os.environ | {"PGPASSWORD": PASSWORD}).stdout.strip()


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Iterator[Database]:
    """A server that listens only on loopback, run by another user if this one is root."""
    required("PostgreSQL's server (Debian: postgresql)", PROGRAMS)
    folder, port = Path(tempfile.mkdtemp()), free_port()
    (folder / "password").write_text(PASSWORD)
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if as_user:
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres", "postgres")

    def run(program: str, *options: str) -> None:
        subprocess.run(
            [*as_user, PROGRAMS / program, "-D", folder / "data", *options], cwd=folder, check=True, capture_output=True
        )

    run("initdb", "--username=super", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256", "--encoding=UTF8")
    listen = f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    run("pg_ctl", "start", "--wait", "--timeout=300", f"--log={folder / 'log'}", f"--options={listen}")
    try:
        database = Database(port)
        database.ask("postgres", f"CREATE ROLE mlflow LOGIN PASSWORD '{PASSWORD}'")
        yield database
    finally:
        run("pg_ctl", "stop", "--mode=fast", "--timeout=300")
        shutil.rmtree(folder)


@contextlib.contextmanager
def up(folder: Path, uri: str | None = None) -> Iterator[Servers]:
    """Yield a clone whose servers `workshop up` has started on a database, or on SQLite."""
    root, environment = new_workplace(folder)
    database = {"WORKSHOP_DATABASE_URI": uri} if uri else {}
    place = Servers(root, environment | database)
    try:
        type_workshop(place, "up", "ftp", "mlflow")
        yield place
    finally:
        place.run(BIN / "workshop", "down")
        assert not processes_of(root)


def type_workshop(place: Servers, *words: object) -> str:
    """Run `workshop ...`, assert that it succeeds, and return its output."""
    done = place.run(BIN / "workshop", *words)
    return done.stdout + done.stderr


def assert_secret(place: Servers, *texts: str) -> None:
    """Assert that only the password file, private to its owner, contains the password."""
    settings = place.settings
    assert (settings.state / "pgpass").stat().st_mode & 0o777 == 0o600
    for word in (PASSWORD, quote(PASSWORD, safe=""), "pass:w", r"pass\:w"):
        for file in settings.state.rglob("*"):
            if file.is_file() and file.name != "pgpass":
                assert word.encode() not in file.read_bytes(), file
        for process in processes_of(place.root):
            with contextlib.suppress(psutil.Error):
                assert word not in " ".join(process.cmdline()) + str(process.environ())
        assert not [text for text in texts if word in text]


def test_postgresql_by_one_setting(database, tmp_path):
    """Servers store runs in PostgreSQL, are restored into an empty database, and do not leak the password."""
    for name in ("first", "second"):
        database.ask("postgres", f"CREATE DATABASE {name} OWNER mlflow")
    with up(tmp_path / "first", database.uri("first")) as place:
        client = MlflowClient(place.settings.tracking_uri)
        run = client.create_run("0").info.run_id
        client.log_text(run, "content", "file.txt")
        client.create_registered_model("kept")
        assert database.ask("first", f"SELECT count(*) FROM runs WHERE run_uuid = '{run}'") == "1"
        assert not place.settings.database.exists()
        commands = ["status"], ["config"], ["backup", tmp_path / "kept.tar"]
        assert_secret(place, *(type_workshop(place, *words) for words in commands))
        assert PASSWORD.encode() not in (tmp_path / "kept.tar").read_bytes()
        environment = place.environment | {"WORKSHOP_STATE": str(tmp_path / "other")}
        del environment["WORKSHOP_DATABASE_URI"]
        command = [BIN / "workshop", "backup", "--restore", tmp_path / "kept.tar"]
        assert "lacks a database (mlflow.db) or" in place.run(*command, env=environment, exit_code=1).stderr
        assert not (tmp_path / "other" / "artifacts").exists()

    root, environment = new_workplace(tmp_path / "second")
    place = Servers(root, environment | {"WORKSHOP_DATABASE_URI": database.uri("second")})
    type_workshop(place, "backup", "--restore", tmp_path / "kept.tar")
    assert database.ask("second", "SELECT run_uuid FROM runs") == run
    assert database.ask("second", "SELECT name FROM registered_models") == "kept"
    assert [file.read_text() for file in place.settings.artifacts.rglob("file.txt")] == ["content"]


def test_backup_of_sqlite_is_restored_into_postgresql(database, tmp_path):
    """From laptop to team: runs, registry, artifacts and history are the same, and new ones get new ids.

    The tables of another version of MLflow are refused, and an error leaves the database empty.
    """
    for name in ("team", "other"):
        database.ask("postgres", f"CREATE DATABASE {name} OWNER mlflow")
    with up(tmp_path / "laptop") as place:
        client = MlflowClient(place.settings.tracking_uri)
        experiment = client.create_experiment("Ünï")
        run = client.create_run(experiment, tags={"a": "b"}).info.run_id
        for step, value in enumerate((0.1, float("nan"), float("inf"))):
            client.log_metric(run, "score", value, step=step)
        client.log_param(run, "empty", "")
        client.log_text(run, "content", "file.txt")
        client.create_registered_model("kept", tags={"mlflow_gate.move.1": "{}"})
        client.create_model_version("kept", f"runs:/{run}/file.txt", run)
        client.set_registered_model_alias("kept", "production", "1")
        client.delete_run(client.create_run(experiment).info.run_id)
        type_workshop(place, "backup", tmp_path / "laptop.tar")
        before = contents(client)
    with contextlib.closing(sqlite3.connect(place.settings.database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'another'")
    type_workshop(place, "backup", tmp_path / "another.tar")

    root, environment = new_workplace(tmp_path / "other")
    other = Servers(root, environment | {"WORKSHOP_DATABASE_URI": database.uri("other")})
    done = other.run(BIN / "workshop", "backup", "--restore", tmp_path / "another.tar", exit_code=1)
    assert "another version of MLflow" in done.stderr
    assert "revision another" in done.stderr
    assert database.ask("other", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == "0"
    printed = type_workshop(other, "backup", "--restore", tmp_path / "laptop.tar")
    done = other.run(BIN / "workshop", "backup", "--restore", tmp_path / "laptop.tar", exit_code=1)
    assert "artifacts exists" in done.stderr
    with up(tmp_path / "team", database.uri("team")) as place:  # MLflow has created its tables
        environment = place.environment | {"WORKSHOP_STATE": str(tmp_path / "state")}
        command = [BIN / "workshop", "backup", "--restore", tmp_path / "laptop.tar"]
        assert "already exists" in place.run(*command, env=environment, exit_code=1).stderr
    type_workshop(other, "up", "ftp", "mlflow")
    try:
        assert_secret(other, printed, done.stderr)
        client = MlflowClient(other.settings.tracking_uri)
        assert contents(client) == before
        assert Path(client.download_artifacts(run, "file.txt", tmp_path)).read_text() == "content"
        assert int(client.create_experiment("next")) > int(experiment)
    finally:
        type_workshop(other, "down")
    # As in `server/team/README.md`, into the tables that the team's server has created.
    sql = str(tmp_path / "mlflow.sql")
    run_program("pg_dump", "--clean", "--if-exists", "-f", sql, database.uri("other").replace("+psycopg", ""))
    database.ask("team", f"\\i {sql}")
    assert database.ask("team", "SELECT count(*) FROM runs") == "2"
    assert database.ask("team", "SELECT tableowner FROM pg_tables WHERE tablename = 'runs'") == "mlflow"


def contents(client: MlflowClient) -> list:
    """Return the runs and the registry of a tracking server."""
    experiments = client.search_experiments()
    runs = client.search_runs([each.experiment_id for each in experiments], run_view_type=ViewType.ALL)
    versions = client.search_model_versions()
    scores = [repr(client.get_metric_history(run.info.run_id, "score")) for run in runs]
    models = client.search_registered_models()
    return [*map(repr, experiments), *map(repr, runs), *scores, *map(repr, versions), *map(repr, models)]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("7@", "8@", "password authentication failed"),
        ("%40%2F", "@/", "write @ in a password as %40"),
        ("+psycopg", "", "postgresql+psycopg://"),
        ("/postgres", "/none", 'database "none" does not exist'),
    ],
)
def test_invalid_address_is_explained(database, tmp_path, old, new, words):
    """A wrong or ambiguous password, a missing driver or database: the error names the problem, not the password."""
    uri = database.uri("postgres")
    assert old in uri
    uri = uri.replace(old, new)
    environment = clean_environment() | {"WORKSHOP_STATE": str(tmp_path), "WORKSHOP_DATABASE_URI": uri}
    done = run_program(BIN / "workshop", "up", env=environment, exit_code=1)
    assert words in done.stderr
    assert "WORKSHOP_DATABASE_URI" in done.stderr
    assert not [part for part in ("pass:w", "pass%3A", "Traceback") if part in done.stderr]
