"""Backups: made of servers that are written to, restored elsewhere, compared; and what is wrong with some of them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from mlflow import MlflowClient
from mlflow_ftp import names
from workplace import BIN, clean_environment, environment_of, free_passive_range, free_port, required

from workshop.errors import BackupError, ServiceError, WorkshopError
from workshop.ownership import MARK
from workshop.servers import backup
from workshop.servers.backup import back_up
from workshop.servers.database import ensure_database
from workshop.servers.restore import restore
from workshop.servers.services import SERVICES, is_healthy
from workshop.settings import PRODUCTION, REGISTERED_MODEL, STATE_VERSION, Settings, get_settings

WRITERS = 3


# -- real servers, which are written to ----------------------------------------------------------------------------
@contextlib.contextmanager
def serving(state: Path) -> Iterator[dict[str, str]]:
    """Start the FTP and the tracking server on a state folder as `workshop up` does; yield their environment."""
    environment = clean_environment() | {
        "WORKSHOP_STATE": str(state),
        "WORKSHOP_FTP_PORT": str(free_port()),
        "WORKSHOP_MLFLOW_PORT": str(free_port()),
        "WORKSHOP_FTP_PASSIVE_FIRST": str(free_passive_range()),
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    with environment_of(environment):
        settings = get_settings()
        settings.credentials(create=True)
        ensure_database(settings, print)
        services = [service for service in SERVICES if service.name in ("ftp", "mlflow")]
        with contextlib.ExitStack() as stack:
            for service in services:
                log = stack.enter_context((state / f"{service.name}.log").open("w"))
                process = subprocess.Popen(
                    service.command(settings), env=environment | service.environment, stdout=log, stderr=log
                )
                stack.callback(end, process)
            deadline = time.monotonic() + 120
            while not all(is_healthy(service, settings) for service in services):
                assert time.monotonic() < deadline, (state / "mlflow.log").read_text()
                time.sleep(0.2)
            yield environment


def end(process: subprocess.Popen) -> None:
    """Kill a server with all it started."""
    tree = psutil.Process(process.pid)
    for one in [*tree.children(recursive=True), tree]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def write_runs(uri: str, folder: Path, stop: threading.Event, number: int = 10**6) -> None:
    """Log runs until told to stop: what a run's artifacts are is in its parameters; it is ended when all are there."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("written").experiment_id
    for count in range(number):
        if stop.is_set():
            return
        run = client.create_run(experiment).info.run_id
        made = folder / run
        (made / "inner").mkdir(parents=True)
        for name, size in (("small.txt", 200), ("inner/large.bin", 300_000), ("inner/ünï two", 0)):
            (made / name).write_bytes(os.urandom(size))
        for step in range(3):
            client.log_metric(run, "loss", 1 / (count + step + 1), step=step)
        client.log_artifacts(run, str(made), "files")
        for file in files_of(made):
            client.log_param(run, f"sha256/{len(file)}", f"{sha256(made / file)} {file}")
        client.log_text(run, f"{run} {count}", f"replaced/{threading.current_thread().name}.txt")
        client.set_terminated(run)


def sha256(file: Path) -> str:
    """Return the sha256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def files_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file below a folder."""
    return {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def rows_of(database: Path) -> dict[str, Counter]:
    """Return the rows of each table of a database."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: Counter(connection.execute(f'SELECT * FROM "{table}"')) for table in tables}


def finished_runs(database: Path) -> int:
    """Return how many runs of a database have ended."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'").fetchone()[0]


def workshop(*words: object, **options) -> subprocess.CompletedProcess:
    """Run the command line in this process's environment."""
    return subprocess.run(
        [BIN / "workshop", *map(str, words)], capture_output=True, text=True, check=False, timeout=120, **options
    )


def elsewhere(settings: Settings, state: Path) -> Settings:
    """Return the settings with another state folder."""
    return settings.model_copy(update={"state": state})


def register_model(hours) -> None:
    """Train two models and put the second into production."""
    import mlflow
    from sklearn.linear_model import LinearRegression

    from workshop.data.schema import FEATURES, TARGETS
    from workshop.models.loading import log_model
    from workshop.models.tracking import connect, start_run

    client = connect()
    client.create_registered_model(REGISTERED_MODEL, tags={"of": "the model"})
    for times in (1, 2):
        model = LinearRegression().fit(hours[FEATURES], hours[TARGETS] * times)
        with start_run("train_linreg") as run, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # MLflow compares columns in a way that pandas gives up
            mlflow.log_metric("r2", times / 3)
            uri = log_model(model, hours)
        version = client.create_model_version(
            REGISTERED_MODEL,
            uri,
            run.info.run_id,
            tags={"why": f"test {times}"},
            model_id=uri.removeprefix("models:/"),
        )
    client.set_registered_model_alias(REGISTERED_MODEL, PRODUCTION, version.version)


@pytest.fixture(scope="module")
def hours():
    """A few hours of weather and power."""
    import pandas as pd

    from workshop.data.schema import FEATURES, TARGETS

    rows = [[3.0 + n, 10.0 + n % 3, 50.0 * n, 30.0 * n, 2.0 * n, 1.0 + n] for n in range(8)]
    return pd.DataFrame(rows, columns=[*FEATURES, *TARGETS])


@pytest.fixture(scope="module")
def source(tmp_path_factory, hours) -> Iterator[SimpleNamespace]:
    """Servers with a model in production, a backup made while writers were at work, and one made when all was quiet."""
    folder = tmp_path_factory.mktemp("source")
    state = folder / "state"
    state.mkdir(mode=0o700)
    with serving(state) as environment, environment_of(environment):
        settings = get_settings()
        register_model(hours)
        store_id = workshop("tracking-store", folder / "store.json")
        assert store_id.returncode == 0, store_id.stderr
        MlflowClient(settings.tracking_uri).create_experiment("written")
        write_runs(settings.tracking_uri, folder / "first", threading.Event(), 2)
        before = rows_of(settings.database)
        (settings.artifacts / "mlflow" / names.new_temporary("model.bin")).write_bytes(b"half of it")
        (settings.artifacts / "mlflow" / "empty folder").mkdir()

        stop, others = threading.Event(), finished_runs(settings.database) - 2
        writers = [
            threading.Thread(target=write_runs, args=(settings.tracking_uri, folder / f"{n}", stop))
            for n in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        while finished_runs(settings.database) < 8:
            time.sleep(0.1)
        counts = [0, 0]
        while counts[0] == counts[1]:  # a machine may be so fast that nothing happens meanwhile
            assert all(writer.is_alive() for writer in writers)
            (folder / "busy.tar").unlink(missing_ok=True)
            counts[0] = finished_runs(settings.database)
            busy = workshop("backup", folder / "busy.tar")
            counts[1] = finished_runs(settings.database)
        while finished_runs(settings.database) < counts[-1] + WRITERS:
            assert all(writer.is_alive() for writer in writers)
            time.sleep(0.1)
        stop.set()
        for writer in writers:
            writer.join()
        quiet = workshop("backup", cwd=folder)
        yield SimpleNamespace(
            folder=folder, settings=settings, before=before, counts=counts, others=others, busy=busy, quiet=quiet,
            quiet_file=folder / quiet.stdout.strip(),
        )  # fmt: skip


@pytest.fixture(scope="module")
def restored(source, tmp_path_factory) -> Settings:
    """The quiet backup in a state folder of its own."""
    settings = elsewhere(source.settings, tmp_path_factory.mktemp("restored") / "state")
    environment = clean_environment() | {"WORKSHOP_STATE": str(settings.state)}
    done = workshop("restore", source.quiet_file, env=environment)
    assert done.returncode == 0, done.stderr
    return settings


def test_backup_of_busy_servers_holds_all_that_its_database_names(source, tmp_path):
    """Every run that has ended in it has each of its artifacts, as it was logged; nothing that was there is missing."""
    assert source.busy.returncode == 0, source.busy.stderr
    settings = elsewhere(source.settings, tmp_path / "state")
    restore(source.folder / "busy.tar", settings)
    assert source.counts[0] <= finished_runs(settings.database) <= source.counts[1]
    compared = 0
    with contextlib.closing(sqlite3.connect(settings.database)) as connection:
        query = (
            "SELECT value, artifact_uri FROM params JOIN runs USING (run_uuid) "
            "WHERE status = 'FINISHED' AND key LIKE 'sha256/%'"
        )
        for value, uri in connection.execute(query):
            digest, _, name = value.partition(" ")
            inside = uri.removeprefix("mlflow-artifacts:/").lstrip("/")
            assert sha256(settings.artifacts / "mlflow" / inside / "files" / name) == digest
            compared += 1
    assert compared == 3 * (finished_runs(settings.database) - source.others)
    rows, now = rows_of(settings.database), rows_of(source.settings.database)
    for table, old in source.before.items():
        assert old <= rows[table]
    for table in ("metrics", "params", "registered_models", "model_versions"):  # nothing is ever removed from these
        assert rows[table] <= now[table]


def test_restored_state_equals_the_one_that_was_backed_up(source, restored):
    """Row by row and hash by hash; only parts of uploads are missing, and each artifact has its mark."""
    assert rows_of(restored.database) == rows_of(source.settings.database)
    here, there = files_of(restored.artifacts), files_of(source.settings.artifacts)
    (part,) = there.keys() - here.keys()
    assert names.TEMPORARY.fullmatch(Path(part).name)
    assert here == {name: digest for name, digest in there.items() if name != part}
    assert len(here) > 40
    for name, digest in here.items():
        file = restored.artifacts / name
        assert file.with_name(names.mark_of(file.name, digest)).is_dir()
    assert (restored.artifacts / "mlflow" / "empty folder").is_dir()
    assert restored.version_file.read_text() == f"{STATE_VERSION}\n"


def test_backup_holds_no_secret_and_is_its_owners_alone(source, restored):
    """Database, artifacts and their list, nothing else; nobody else may read it, or what comes of it."""
    assert source.quiet_file.stat().st_mode & 0o777 == 0o600
    assert source.quiet_file.name.startswith("workshop-backup-2")
    with tarfile.open(source.quiet_file) as tar:
        members = tar.getnames()
    assert {name.split("/")[0] for name in members} == {"mlflow.db", "artifacts", "manifest.json"}
    assert members[-1] == "manifest.json"
    password = source.settings.credentials()[1].get_secret_value().encode()
    assert password not in source.quiet_file.read_bytes()
    for path in [restored.state, *restored.state.rglob("*")]:
        if path.name not in ("logs", "supervision.lock"):
            assert path == restored.version_file or path.stat().st_mode & 0o077 == 0, path
    assert restored.state.stat().st_mode & 0o077 == 0


def test_restored_servers_answer_as_before(source, restored, hours, tmp_path):
    """Production, versions, tags, runs and the store's identity are equal; the model predicts the same."""
    there = tell_all(source.settings, hours, tmp_path / "there")
    with serving(restored.state) as environment, environment_of(environment):
        here = tell_all(get_settings(), hours, tmp_path / "here")
    assert here == there
    assert here["production"].version == "2"
    assert json.loads((tmp_path / "here.json").read_text()) == json.loads((source.folder / "store.json").read_text())


def tell_all(settings: Settings, hours, target: Path) -> dict[str, object]:
    """Return what a tracking server says of its registry and its runs, with what its model predicts."""
    from workshop.models.loading import load
    from workshop.models.registry import production

    with environment_of(os.environ | {"MLFLOW_TRACKING_URI": settings.tracking_uri}):
        serves = production()
        client = MlflowClient(settings.tracking_uri)
        experiments = sorted(experiment.experiment_id for experiment in client.search_experiments())
        runs = list(client.search_runs(experiments, max_results=1000))
        last = next(run for run in runs if "sha256/9" in run.data.params)
        downloaded = client.download_artifacts(last.info.run_id, "files", str(mkdir(target)))
        assert workshop("tracking-store", target.with_suffix(".json")).returncode == 0
        return {
            "production": serves and type(serves)(**serves.as_dict() | {"run_url": ""}),
            "versions": sorted(
                (v.version, v.source, v.run_id, v.status, v.creation_timestamp, str(v.tags), str(v.aliases))
                for v in client.search_model_versions()
            ),
            "model tags": client.get_registered_model(REGISTERED_MODEL).tags,
            "runs": {run.info.run_id: str(run) for run in runs},
            "losses": str(client.get_metric_history(last.info.run_id, "loss")),
            "files": files_of(Path(downloaded)),
            "predicted": load(serves.model_uri).predict(hours).to_csv(),
        }


def mkdir(folder: Path) -> Path:
    """Make a folder and return it."""
    folder.mkdir()
    return folder


# -- a small state, without servers --------------------------------------------------------------------------------
def put(settings: Settings, name: str, content: bytes) -> Path:
    """Store an artifact as the store does: its mark first, then the whole of it under its name."""
    file = settings.artifacts / "mlflow" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(names.new_temporary(file.name))
    temporary.write_bytes(content)
    file.with_name(names.mark_of(file.name, hashlib.sha256(content).hexdigest())).mkdir(exist_ok=True)
    temporary.replace(file)
    return file


@pytest.fixture
def small(tmp_path, monkeypatch) -> Settings:
    """Settings with a small state: a database with a row, some artifacts, one of them by another program."""
    monkeypatch.setattr(backup, "PAUSE_SECONDS", 0.001)
    with environment_of(clean_environment() | {"WORKSHOP_STATE": str(tmp_path / "state")}):
        settings = get_settings()
    settings.state.mkdir()
    with contextlib.closing(sqlite3.connect(settings.database)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('0123456789ab')")
        connection.commit()
    for n in range(3):
        put(settings, f"{n}/model.bin", bytes([n]) * 3000)
    put(settings, "0/" + "long" * 40, b"a long name")
    (settings.artifacts / "by another program").write_bytes(b"without a mark")
    return settings


@pytest.fixture
def file(small, tmp_path) -> Path:
    """A backup of it."""
    back_up(tmp_path / "backup.tar", small, print)
    return tmp_path / "backup.tar"


@pytest.fixture
def empty(small, tmp_path) -> Settings:
    """An empty place to restore to."""
    return elsewhere(small, tmp_path / "empty")


def contents(settings: Settings) -> tuple:
    """Return what a state folder holds: the database's rows, each artifact and each folder."""
    folders = {path.relative_to(settings.artifacts) for path in settings.artifacts.rglob("*") if path.is_dir()}
    return rows_of(settings.database), files_of(settings.artifacts), folders


def assert_empty(settings: Settings) -> None:
    """Nothing of a backup may be there."""
    left = [path.name for path in settings.state.rglob("*")] if settings.state.exists() else []
    assert set(left) <= {"logs", "supervision.lock"}


def test_small_state_comes_back_as_it_was(small, file, empty):
    """Also what another program stored, without a mark, and over a folder that the FTP server has made."""
    empty.artifacts.mkdir(parents=True)
    restore(file, empty)
    assert contents(empty) == contents(small)
    assert (empty.artifacts / "by another program").stat().st_mtime == pytest.approx(
        (small.artifacts / "by another program").stat().st_mtime, abs=1
    )


# -- what happens while a backup is made ---------------------------------------------------------------------------
def meanwhile(do: Callable[[], object], at: int = 1) -> Callable[[int, int], None]:
    """Return a progress that does something once when that many bytes of artifacts are read: the database is first."""
    calls = itertools.count()

    def progress(done: int, total: int) -> None:
        if next(calls) == at:
            do()

    return progress


def test_artifact_replaced_while_it_is_copied_is_whole(small, tmp_path, empty):
    """Its mark is gone with it: it is copied again, and only the new content is in the backup."""
    path = small.artifacts / "mlflow" / "1" / "model.bin"

    def replace() -> None:
        for mark in path.parent.glob(".~*.sha256"):
            mark.rmdir()
        put(small, "1/model.bin", b"new" * 500)

    def progress(done: int, total: int) -> None:
        if path.stat().st_size == 3000 and done > total - 5000:
            replace()

    back_up(tmp_path / "backup.tar", small, print, progress)
    assert path.read_bytes() == b"new" * 500
    restore(tmp_path / "backup.tar", empty)
    assert contents(empty) == contents(small)


def test_artifact_stored_again_while_it_is_copied_is_not_taken_for_damaged(small, tmp_path, empty, monkeypatch):
    """The store makes the mark of a content that it knows anew: for a moment it is not there."""
    (mark,) = (small.artifacts / "mlflow" / "1").glob(".~*.sha256")
    monkeypatch.setattr(backup.time, "sleep", lambda _: mark.mkdir())
    back_up(tmp_path / "backup.tar", small, print, meanwhile(mark.rmdir))
    restore(tmp_path / "backup.tar", empty)
    assert contents(empty) == contents(small)


def test_artifacts_deleted_meanwhile_are_left_out(small, tmp_path, empty):
    """A file, or a folder, that is gone when its turn comes is no error."""
    import shutil

    back_up(tmp_path / "backup.tar", small, print, meanwhile(lambda: shutil.rmtree(small.artifacts / "mlflow" / "2")))
    restore(tmp_path / "backup.tar", empty)
    assert files_of(empty.artifacts) == files_of(small.artifacts)


def test_file_that_another_program_writes_all_the_while_is_named(small, tmp_path):
    """It is tried again for a while, then the backup is given up, and nothing is left."""
    file = small.artifacts / "by another program"

    def grow(*_) -> None:
        with file.open("ab") as output:
            output.write(b"more")

    with pytest.raises(BackupError, match="changed all the while") as caught:
        back_up(tmp_path / "backup.tar", small, print, grow)
    assert str(file) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_file_that_becomes_shorter_meanwhile_is_copied_anew(small, tmp_path, empty):
    """The tar file, whose entry had begun with the old size, is sound."""
    file = small.artifacts / "by another program"
    file.write_bytes(os.urandom(3 * backup.BLOCK_BYTES))
    cut = meanwhile(lambda: os.truncate(file, 10), at=2)
    back_up(tmp_path / "backup.tar", small, print, lambda done, total: cut(done, total) if done > 20_000 else None)
    restore(tmp_path / "backup.tar", empty)
    assert contents(empty) == contents(small)
    assert (empty.artifacts / "by another program").stat().st_size == 10


def test_artifact_that_the_disk_has_changed_is_named(small, tmp_path):
    """One byte is another: no backup is made that would pass the change on."""
    path = small.artifacts / "mlflow" / "1" / "model.bin"
    with path.open("r+b") as output:
        output.write(b"!")
    with pytest.raises(BackupError, match="not what was stored") as caught:
        back_up(tmp_path / "backup.tar", small, print)
    assert str(path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_no_artifact_is_overlooked_that_is_replaced_while_its_folder_is_listed(monkeypatch):
    """On tmpfs one listing lacks such files."""
    shared = Path("/dev/shm")
    required("a tmpfs at /dev/shm", os.access(shared, os.W_OK))
    import tempfile

    with tempfile.TemporaryDirectory(dir=shared) as folder:
        file_names = {f"artifact-{n:04d}" for n in range(1000)}
        for name in file_names:
            Path(folder, name).touch()
        program = "import os, itertools\nfor n in itertools.count(): open('.t', 'w').close(); "
        program += "os.replace('.t', f'artifact-{n % 1000:04d}')"
        replacer = subprocess.Popen([sys.executable, "-c", program], cwd=folder)
        try:
            time.sleep(0.3)
            alone = [file_names - {path.name for path in Path(folder).iterdir()} for _ in range(100)]
            found = [file_names - {entry.name for entry in backup._scan(Path(folder))} for _ in range(100)]
        finally:
            replacer.kill()
            replacer.wait()
    assert not any(found), f"{sum(map(bool, found))} of 100 (without a second listing {sum(map(bool, alone))})"


# -- what cannot be backed up --------------------------------------------------------------------------------------
def test_no_file_is_overwritten(small, file):
    """The one that is there stays as it is."""
    before = sha256(file)
    with pytest.raises(BackupError, match="is there already") as caught:
        back_up(file, small, print)
    assert str(file) in str(caught.value)
    assert sha256(file) == before


def test_nothing_to_back_up_is_told(empty, tmp_path):
    """A state folder without a database: which folder, and what to type."""
    with pytest.raises(BackupError, match="nothing to back up") as caught:
        back_up(tmp_path / "backup.tar", empty, print)
    assert str(empty.state) in str(caught.value)


def test_database_server_is_backed_up_by_its_own_means(small, tmp_path):
    """With WORKSHOP_DATABASE_URI: pg_dump is named, the password is not; neither backup nor restore is made."""
    for words in (["backup", tmp_path / "new.tar"], ["restore", __file__]):
        environment = clean_environment() | {"WORKSHOP_STATE": str(small.state)}
        environment["WORKSHOP_DATABASE_URI"] = "postgresql+psycopg://keeper:not-for-others@localhost/tracking"
        done = workshop(*words, env=environment)
        assert done.returncode == 1
        assert "WORKSHOP_DATABASE_URI" in done.stderr
        assert ("pg_dump" in done.stderr) == (words[0] == "backup")
        assert "not-for-others" not in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "new.tar").exists()


def test_damaged_database_is_not_backed_up(small, tmp_path):
    """A page that makes no sense: told in words, no file."""
    with contextlib.closing(sqlite3.connect(small.database)) as connection:
        connection.execute("CREATE TABLE many (text TEXT)")
        connection.executemany("INSERT INTO many VALUES (?)", [("x" * 500,)] * 200)
        connection.commit()
    with small.database.open("r+b") as output:
        output.seek(4 * 4096)
        output.write(b"\xff" * 4096)
    with pytest.raises(BackupError) as caught:
        back_up(tmp_path / "backup.tar", small, print)
    assert "database" in str(caught.value)
    assert not (tmp_path / "backup.tar").exists()


def test_links_among_the_artifacts_are_told_and_left_out(small, tmp_path, empty):
    """The store makes none."""
    (small.artifacts / "link").symlink_to("/etc/passwd")
    (small.artifacts / "folder link").symlink_to("/etc")
    told: list[str] = []
    back_up(tmp_path / "backup.tar", small, told.append)
    assert len(told) == 2
    assert str(small.artifacts / "link") in told[1]
    restore(tmp_path / "backup.tar", empty)
    assert files_of(empty.artifacts).keys() == {name for name in files_of(small.artifacts) if "link" not in name}


def test_name_that_is_no_text_is_told(small, tmp_path):
    """Bytes that are not UTF-8."""
    (small.artifacts / "\udcff").touch()
    with pytest.raises(BackupError, match="not UTF-8"):
        back_up(tmp_path / "backup.tar", small, print)


@pytest.mark.parametrize("limit", [2_000, 30_000])
def test_full_disk_leaves_no_half_backup(small, tmp_path, limit):
    """No room for the database, or for the artifacts: exit 1, words, no file."""
    done = workshop(
        "backup",
        tmp_path / "backup.tar",
        env=clean_environment() | {"WORKSHOP_STATE": str(small.state)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert "could not be made" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_backup_leaves_nothing(small, tmp_path, number):
    """Ctrl-C, or a signal to end: no part of a file stays beside the name that it would have had."""
    with (small.artifacts / "by another program").open("wb") as output:
        output.truncate(2_000_000_000)  # of holes, which take no room
    environment = clean_environment() | {"WORKSHOP_STATE": str(small.state)}
    command = [BIN / "workshop", "backup", tmp_path / "backup.tar"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as making:
        while not list(tmp_path.glob(".workshop-backup-*/backup.tar")):
            assert making.poll() is None
            time.sleep(0.01)
        making.send_signal(number)
        _, said = making.communicate(timeout=30)
    assert making.returncode in (1, 128 + number)
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


# -- what cannot be restored ---------------------------------------------------------------------------------------
def rewrite(file: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    """Write a backup anew with other members."""
    with tarfile.open(file) as tar:
        members = [(m, tar.extractfile(m).read() if m.isreg() else b"") for m in tar.getmembers()]
    change(members)
    with tarfile.open(file, "w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    """Return a member of a tar file."""
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def insert(*made: tarfile.TarInfo) -> Callable:
    """Return a change that puts members before the list of contents."""
    return lambda members: members.__setitem__(slice(-1, -1), [(one, b"") for one in made])


def edit_list(**changes) -> Callable:
    """Return a change of the list of contents."""

    def change(members: list) -> None:
        members[-1] = (members[-1][0], json.dumps(json.loads(members[-1][1]) | changes).encode())

    return change


def drop(name: str) -> Callable:
    """Return a change that leaves a member out."""
    return lambda members: members.__delitem__(next(n for n, (one, _) in enumerate(members) if one.name.endswith(name)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (insert(member("artifacts/surplus")), "1 entries differ, the first: 'artifacts/surplus' is surplus"),
        (insert(member("mlflow.db")), "the first: 'mlflow.db' is surplus"),
        (drop("1/model.bin"), "the first: 'artifacts/mlflow/1/model.bin' is missing"),
        (drop("manifest.json"), "does not end with its list of contents"),
        (insert(member("../outside")), "'../outside' has no place in a backup"),
        (insert(member("artifacts/../../outside")), "has no place"),
        (insert(member("/tmp/outside")), "has no place"),
        (insert(member("credentials.json")), "has no place"),
        (insert(member("artifacts/link", tarfile.SYMTYPE, "/etc")), "no regular file or folder"),
        (insert(member("artifacts/hard", tarfile.LNKTYPE, "mlflow.db")), "no regular file or folder"),
        (insert(member("artifacts/device", tarfile.CHRTYPE)), "no regular file or folder"),
        (insert(member("artifacts/pipe", tarfile.FIFOTYPE)), "no regular file or folder"),
        (edit_list(state_version=STATE_VERSION + 1, files="of another kind"), "newer version of the workshop"),
        (edit_list(state_version=0), "no whole backup"),
        (edit_list(files={}), "is surplus"),
        (edit_list(files="none"), "no whole backup"),
        (lambda members: members.__setitem__(-1, (members[-1][0], b"no JSON")), "no whole backup"),
        (lambda members: members.__setitem__(slice(-1), []), "is missing"),
    ],
)  # fmt: skip
def test_wrong_backup_is_refused(file, empty, tmp_path, change, words):
    """Too much, too little, out of place, of another time: said in words, and nothing is left or written elsewhere."""
    rewrite(file, change)
    around = set(tmp_path.iterdir())
    with pytest.raises(BackupError) as caught:
        restore(file, empty)
    assert words in str(caught.value)
    assert "  next: " in str(caught.value)
    assert_empty(empty)
    assert set(tmp_path.iterdir()) - around <= {empty.state}


def test_changed_files_are_counted_and_the_first_is_named(file, empty):
    """A list of contents that says otherwise of two files."""

    def change(members: list) -> None:
        for n, (one, content) in enumerate(members):
            if one.name.endswith(("0/model.bin", "2/model.bin")):
                members[n] = (one, b"!" + content[1:])

    rewrite(file, change)
    with pytest.raises(BackupError) as caught:
        restore(file, empty)
    assert "2 entries differ" in str(caught.value)
    assert "'artifacts/mlflow/0/model.bin' is changed" in str(caught.value)
    assert_empty(empty)


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b" + bytes(1000), bytes(20_000)])
def test_what_is_no_backup_is_refused(tmp_path, empty, content):
    """Any other file."""
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(BackupError, match="no whole backup"):
        restore(tmp_path / "other", empty)
    assert_empty(empty)


def test_cut_backup_is_refused_wherever_it_is_cut(file, empty):
    """In a header, in a file, between the two: nothing is restored unless all is there."""
    whole = file.read_bytes()
    end = whole.rindex(b"}") + 1  # what comes after it means nothing
    for length in [*range(0, end, 512), *range(100, end, 1777), end - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(BackupError):
            restore(file, empty)
        assert_empty(empty)


def test_flipped_bits_are_noticed_wherever_they_are(small, file, empty, tmp_path):
    """A file is refused in words, or, where the bit had no meaning, all that is restored is as it was."""
    whole = file.read_bytes()
    refused = 0
    for place in range(7, len(whole), 397):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        target = elsewhere(empty, tmp_path / "flipped" / str(place))
        try:
            restore(file, target)
        except WorkshopError:
            assert_empty(target)
            refused += 1
        else:
            assert contents(target) == contents(small), f"byte {place} was flipped"
    assert refused > 20


def test_place_that_is_not_empty_is_refused(file, small, empty):
    """A database, or artifacts: which of them, and what to do; they stay as they are."""
    before = contents(small)
    with pytest.raises(BackupError, match="empty state folder") as caught:
        restore(file, small)
    assert str(small.database) in str(caught.value)
    assert "WORKSHOP_STATE" in str(caught.value)
    assert contents(small) == before
    journal = empty.database.with_name(f"{empty.database.name}-wal")
    journal.parent.mkdir(exist_ok=True)
    journal.touch()  # of a server that was killed; SQLite would play it into the database that is restored
    with pytest.raises(BackupError, match="empty state folder") as caught:
        restore(file, empty)
    assert str(journal) in str(caught.value)
    journal.unlink()
    put(empty, "run/file", b"mine")
    with pytest.raises(BackupError, match="empty state folder") as caught:
        restore(file, empty)
    assert str(empty.artifacts) in str(caught.value)
    assert list(files_of(empty.state).values()) == [hashlib.sha256(b"mine").hexdigest()]


def test_servers_that_run_are_not_restored_under(file, empty):
    """Any process that `workshop up` started for this folder is in the way."""
    waiting = [sys.executable, "-c", "print(flush=True); input()"]
    environment = os.environ | {MARK: str(empty.state)}
    with subprocess.Popen(waiting, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        server.stdout.readline()
        with pytest.raises(ServiceError, match="servers of this state folder run") as caught:
            restore(file, empty)
        server.stdin.close()
    assert "workshop down" in str(caught.value)
    assert_empty(empty)
    restore(file, empty)


def test_full_disk_leaves_no_half_state(small, file, empty):
    """A restore that cannot write: exit 1, words, an empty place."""
    done = workshop(
        "restore",
        file,
        env=clean_environment() | {"WORKSHOP_STATE": str(empty.state)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000)),
    )
    assert done.returncode == 1
    assert "could not be restored" in done.stderr
    assert "Traceback" not in done.stderr
    assert_empty(empty)


def test_restore_that_fails_at_its_last_step_takes_back_the_others(file, empty, monkeypatch):
    """The database cannot get its name: artifacts and version lose theirs again."""
    replace = Path.replace

    def fail(path: Path, target: Path) -> Path:
        if Path(target) == empty.database:
            raise OSError(5, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(BackupError, match="Input/output error"):
        restore(file, empty)
    assert_empty(empty)
    monkeypatch.setattr(Path, "replace", replace)
    restore(file, empty)


def test_what_a_killed_restore_left_is_no_hindrance(small, file, empty):
    """It lies under a name of its own, which the next one clears away."""
    (empty.state / "restore.new" / "artifacts").mkdir(parents=True)
    restore(file, empty)
    assert contents(empty) == contents(small)
    assert not (empty.state / "restore.new").exists()
