"""Backups of busy servers are restored elsewhere and compared; damaged backups are rejected."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from pathlib import Path

import pooch
import pytest
from forecast.problem import REGISTERED_MODEL
from forecast.terms.errors import ServiceError
from forecast.tracking import PRODUCTION
from mlflow import MlflowClient
from mlflow_ftp import names
from workplace import BIN, clean_environment, run_program

from workshop.port_owners import STATE_VARIABLE
from workshop.servers import backup
from workshop.servers.backup import back_up, restore
from workshop.settings import Settings


def state_at(folder: Path) -> Settings:
    """Return settings with a state folder."""
    return Settings().model_copy(update={"state": folder})


def files_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file below a folder."""
    return {file.relative_to(folder).as_posix(): pooch.file_hash(file) for file in folder.rglob("*") if file.is_file()}


def rows_of(database: Path) -> dict[str, Counter]:
    """Return the rows of each table of a database."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: Counter(connection.execute(f'SELECT * FROM "{table}"')) for table in tables}


def workshop(*words: object, **options) -> subprocess.CompletedProcess:
    """Run the command line."""
    return run_program(BIN / "workshop", *words, timeout=120, exit_code=None, **options)


# -- busy servers --------------------------------------------------------------------------------------------------
def write_runs(uri: str, experiment: str, folder: Path, over: threading.Event) -> None:
    """Log runs until the event is set; the parameters of a run are the hashes of its artifacts."""
    client = MlflowClient(uri)
    while not over.is_set():
        run = client.create_run(experiment).info.run_id
        (folder / run / "inner").mkdir(parents=True)
        for name, size in (("small", 200), ("inner/large", 300_000), ("inner/ünï two", 0)):
            (folder / run / name).write_bytes(os.urandom(size))
        client.log_artifacts(run, str(folder / run), "files")
        for number, (name, sha256) in enumerate(files_of(folder / run).items()):
            client.log_param(run, f"sha256 {number}", f"{sha256} {name}")
        client.log_text(run, run, "replaced.txt")
        client.set_terminated(run)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow's, with its database
def test_backup_of_busy_servers_is_consistent(servers, tmp_path):
    """Every finished run has its artifacts as logged, the registry is complete, and no secret is included."""
    experiment = MlflowClient(servers.tracking_uri).create_experiment("backed up")
    over, before = threading.Event(), rows_of(servers.settings.database)
    arguments = servers.tracking_uri, experiment, tmp_path, over
    writers = [threading.Thread(target=write_runs, args=arguments) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        done = servers.run(BIN / "workshop", "backup", tmp_path / "busy.tar")
    finally:
        over.set()
        for writer in writers:
            writer.join()
    assert done.stdout == f"{tmp_path / 'busy.tar'}\n"
    assert (tmp_path / "busy.tar").stat().st_mode & 0o777 == 0o600
    assert servers.settings.credentials()[1].get_secret_value().encode() not in (tmp_path / "busy.tar").read_bytes()

    environment = clean_environment() | {"WORKSHOP_STATE": str(tmp_path / "state")}
    done = workshop("backup", "--restore", tmp_path / "busy.tar", env=environment)
    assert done.returncode == 0, done.stderr
    restored = state_at(tmp_path / "state")
    assert restored.state.stat().st_mode & 0o077 == 0
    rows = rows_of(restored.database)
    for table in ("metrics", "params", "registered_models", "model_versions", "registered_model_aliases"):
        assert before[table] <= rows[table]
    client = MlflowClient(f"sqlite:///{restored.database}")
    assert client.get_model_version_by_alias(REGISTERED_MODEL, PRODUCTION).version
    stored = restored.artifacts / "mlflow"
    for run in client.search_runs([experiment], "status = 'FINISHED'"):
        folder = stored / run.info.artifact_uri.removeprefix("mlflow-artifacts:/").lstrip("/") / "files"
        assert files_of(folder) == dict(reversed(value.split(" ", 1)) for value in run.data.params.values())
    assert files_of(servers.settings.artifacts).items() >= files_of(restored.artifacts).items()
    assert {path.name for path in stored.rglob(".~*.sha256")} == {
        names.mark_of(path.name, pooch.file_hash(path)) for path in stored.rglob("*") if path.is_file()
    }


# -- a small state folder ------------------------------------------------------------------------------------------
@pytest.fixture
def small(tmp_path) -> Settings:
    """A state folder with a database, an artifact with its mark, one without, and an unfinished upload."""
    settings = state_at(tmp_path / "state")
    folder = settings.artifacts / "mlflow" / "a folder"
    folder.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(settings.database)) as database:
        database.execute("CREATE TABLE runs (name)")
        database.executemany("INSERT INTO runs VALUES (?)", [(str(n) * 100,) for n in range(1000)])
        database.commit()
    store(folder / "model", b"weights")
    (folder / "foreign").write_bytes(b"no mark")
    (folder / names.new_temporary("model")).write_bytes(b"half of it")
    (settings.artifacts / "empty").mkdir()
    (settings.state / "credentials.json").write_text("secret")
    return settings


def store(file: Path, content: bytes) -> None:
    """Write an artifact and its mark as the store does."""
    file.write_bytes(content)
    file.with_name(names.mark_of(file.name, pooch.file_hash(file))).mkdir()


@pytest.fixture
def tar(small, tmp_path) -> Path:
    """A backup of the small state folder."""
    back_up(tmp_path / "small.tar", small)
    return tmp_path / "small.tar"


@pytest.fixture
def empty(tmp_path) -> Settings:
    """An empty state folder to restore into, with the FTP server's folder."""
    settings = state_at(tmp_path / "empty")
    settings.artifacts.mkdir(parents=True)
    return settings


def test_small_state_comes_back_as_it_was(small, tar, empty):
    """Database and artifacts are restored with their marks, but no unfinished upload and no file of the machine.

    The manifest lists every file: it is the last member of the tar file, and readable without this program.
    """
    restore(tar, empty)
    assert rows_of(empty.database) == rows_of(small.database)
    (part,) = (name for name in files_of(small.artifacts) if names.is_temporary(Path(name).name))
    assert files_of(empty.artifacts) == {n: digest for n, digest in files_of(small.artifacts).items() if n != part}
    assert len(list(empty.artifacts.rglob(".~*.sha256"))) == 1
    assert not empty.credentials_file.exists()
    with tarfile.open(tar) as archive:
        members = archive.getnames()
        files = json.load(archive.extractfile(members[-1]))["files"]
    assert members[-1] == "manifest.json"
    assert set(files) == {"mlflow.db", "artifacts/mlflow/a folder/model", "artifacts/mlflow/a folder/foreign"}


def test_damaged_files_are_not_backed_up(small, tmp_path, monkeypatch):
    """A changed byte of an artifact or a corrupt database is an error that names the file; no backup is written."""
    monkeypatch.setattr(backup, "PAUSE_SECONDS", 0)
    file = small.artifacts / "mlflow" / "a folder" / "model"
    file.write_bytes(b"weightz")
    with pytest.raises(ServiceError, match="content does not match its recorded sha256") as caught:
        back_up(tmp_path / "new.tar", small)
    assert str(file) in str(caught.value)
    with small.database.open("r+b") as database:
        database.seek(4096 * 3)
        database.write(b"\xff" * 4096)
    with pytest.raises(ServiceError, match="database is damaged"):
        back_up(tmp_path / "new.tar", small)
    assert not (tmp_path / "new.tar").exists()


def test_backup_needs_a_new_file_and_a_database(small, tar, empty, tmp_path):
    """An existing file is not overwritten; a state folder without a database is an error."""
    content = tar.read_bytes()
    with pytest.raises(ServiceError, match="already exists"):
        back_up(tar, small)
    assert tar.read_bytes() == content
    with pytest.raises(ServiceError, match=f"no database in {empty.state}"):
        back_up(tmp_path / "new.tar", empty)


# -- rejected backups ----------------------------------------------------------------------------------------------
def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    """Return a member of a tar file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b""


def without(end: str):
    """Return a function that removes the member whose name has this ending."""
    return lambda members: [each for each in members if not each[0].name.endswith(end)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("model"), "files differ from the manifest"),
        (without("manifest.json"), "manifest.json"),
        (lambda members: [(info, content.replace(b"weights", b"weightz")) for info, content in members], "differ from"),
        (lambda members: [member("artifacts/more"), *members], "artifacts/more"),
        (lambda members: [member("../outside"), *members], "not a complete backup"),
        (lambda members: [member("/outside"), *members], "not a complete backup"),
        (lambda members: [member("artifacts/x", tarfile.SYMTYPE, "/etc"), *members], "not a complete backup"),
        (lambda members: [member("artifacts/x", tarfile.LNKTYPE, "mlflow.db"), *members], "not a complete backup"),
        (lambda members: [member("artifacts/x", tarfile.FIFOTYPE), *members], "not a complete backup"),
        (lambda members: [*members, member("manifest.json")], "not a complete backup"),
    ],
)
def test_wrong_backup_is_refused(tar, empty, tmp_path, change, words):
    """Additional, missing, changed or misplaced members: an error with a message, and no file is left."""
    with tarfile.open(tar) as old:
        members = [(each, old.extractfile(each).read() if each.isreg() else b"") for each in old]
    with tarfile.open(tar, "w") as new:
        for info, content in change(members):
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))
    with pytest.raises(ServiceError, match="not a complete backup") as caught:
        restore(tar, empty)
    assert words in str(caught.value)
    assert not files_of(empty.artifacts)
    assert not empty.database.exists()
    assert not (tmp_path / "outside").exists()
    assert not list(empty.state.glob("restore-*"))


def test_truncated_backup_is_refused(tar, empty):
    """Wherever the file is truncated, nothing is restored."""
    content = tar.read_bytes()
    for part in (0, 0.3, 0.9, 0.99):
        tar.write_bytes(content[: int(len(content.rstrip(b"\0")) * part)])
        with pytest.raises(ServiceError, match="not a complete backup"):
            restore(tar, empty)
        assert not empty.database.exists()


@pytest.mark.parametrize("name", ["mlflow.db", "mlflow.db-wal", "artifacts/x"])
def test_place_that_is_not_empty_is_refused(tar, empty, name):
    """An existing database, journal or artifact is named and kept."""
    (empty.state / name).write_text("of somebody")
    with pytest.raises(ServiceError, match="empty state folder") as caught:
        restore(tar, empty)
    assert str(empty.state / name.split("/")[0]) in str(caught.value)
    assert (empty.state / name).read_text() == "of somebody"


def test_running_servers_prevent_a_restore(tar, empty):
    """Any process that `workshop up` started for the folder prevents a restore."""
    sleeping = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"]
    environment = os.environ | {STATE_VARIABLE: str(empty.state)}
    with subprocess.Popen(sleeping, env=environment, stdout=subprocess.PIPE) as server:
        server.stdout.readline()
        with pytest.raises(ServiceError, match="servers of this state folder are running"):
            restore(tar, empty)
        server.kill()
