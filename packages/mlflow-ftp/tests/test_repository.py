"""MLflow's artifact store on the real FTP server, directly and through MLflow's own proxy."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from pathlib import Path

import programs
import psutil
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow_ftp import connections, repository
from mlflow_ftp.artifact_errors import ArtifactError, ArtifactMissing, StoreUnavailable
from mlflow_ftp.certificate import ensure_certificate
from mlflow_ftp.connections import IDLE_SECONDS
from mlflow_ftp.repository import FTPArtifactRepository
from relay import ADDRESS, relaying
from servers import PASSWORD, USER, Server, started_server, store_file
from trees import describe, find_marks, find_temporaries

# Since 3.12 MLflow responds with the status of a download's error; before, always with 500.
TELLS_STATUS = "error_codes" in inspect.getsource(ArtifactRepository.download_artifacts)


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Server]:
    """A server for all tests."""
    with started_server(tmp_path_factory.mktemp("server") / "ftp") as server:
        yield server


@pytest.fixture
def server(running, monkeypatch) -> Iterator[Server]:
    """A running server without artifacts; the environment has its credentials."""
    monkeypatch.setenv("MLFLOW_FTP_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_FTP_PASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_FTP_SERVER_CERT_PATH", str(running.folder / "127.0.0.1.pem"))
    if running.process.poll() is not None:
        running.start()
    running.log.write_text("")
    for folder in running.artifacts.iterdir():
        shutil.rmtree(folder)
    connections.close_idle()
    return running


@pytest.fixture
def file(tmp_path) -> Path:
    """A small local file."""
    path = tmp_path / "numbers.bin"
    path.write_bytes(bytes(range(256)) * 1000)
    return path


def test_entry_points_replace_the_stock_repository():
    """MLflow's registry has this package's stores for `ftp` and `ftps`, and the stock ones for other schemes."""
    points = distribution("mlflow-ftp").entry_points.select(group="mlflow.artifact_repository")
    assert sorted(points.names) == ["ftp", "ftps"]
    for scheme in points.names:
        assert type(get_artifact_repository(f"{scheme}://127.0.0.1:2121/mlflow")) is FTPArtifactRepository


def test_missing_artifact_is_an_error(server, tmp_path):
    """Downloading a missing artifact is an error that names it, and leaves no local file."""
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(MlflowException, match=r"artifact 'absent\.txt' does not exist") as caught:
        server.repository().download_artifacts("absent.txt", str(target))
    assert caught.value.get_http_status_code() == 404 or not TELLS_STATUS
    assert list(target.iterdir()) == []


def test_failed_upload_leaves_nothing(server, file):
    """If the rename fails, its temporary file is deleted and the old content stays; leftover ones are not listed."""
    store = server.repository()
    store.log_artifact(str(file), "numbers.bin")  # the name is now that of a folder
    with pytest.raises(ArtifactError, match="rejected a command"):
        store.log_artifact(str(file))
    assert find_temporaries(server.artifacts) == []
    leftover = server.artifacts / "mlflow" / "numbers.bin" / ".~numbers.bin.0123456789abcdef.part"
    leftover.write_bytes(b"half")
    (listed,) = store.list_artifacts("numbers.bin")
    assert (listed.path, listed.is_dir, listed.file_size) == ("numbers.bin/numbers.bin", False, 256_000)
    store.delete_artifacts("numbers.bin")
    assert not leftover.parent.exists()


@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_kills_during_overwrites_leave_complete_objects(server, tmp_path, kills):
    """If client or server is killed during an overwrite, either the old or the new object is there, complete."""
    rng, versions = random.Random(4), {}
    for number in range(2):
        source = tmp_path / str(number) / "model"
        source.parent.mkdir()
        source.write_bytes(rng.randbytes(30_000_000 + number))
        versions[number] = source
    store = server.repository()
    store.log_artifact(str(versions[0]))
    current, outcomes = 0, set()
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["mlflow_ftp.repository"])
    for _ in range(kills):
        source = versions[1 - current]
        before = len(find_temporaries(server.artifacts))
        client = forks.Process(target=store_file, args=(server.uri(), source))
        client.start()
        while len(find_temporaries(server.artifacts)) == before and client.is_alive():
            time.sleep(0.001)
        time.sleep(rng.random() * 0.15)
        victim = rng.choice(["client", "server"])
        if victim == "client":
            client.kill()
        else:
            server.kill()
            server.start()
        client.join()
        assert [info.path for info in store.list_artifacts()] == ["model"]
        fetched = Path(store.download_artifacts("model")).read_bytes()
        (current,) = (number for number, version in versions.items() if version.read_bytes() == fetched)
        outcomes.add((victim, versions[current] == source))
    assert len(outcomes) > 1
    server.kill()
    server.start()
    assert find_temporaries(server.artifacts) == []


@pytest.mark.parametrize("direction", ["store", "fetch"])
def test_interrupted_transfer_is_retried(server, tmp_path, direction):
    """A connection that is lost during a transfer is a retry, not an error."""
    source = tmp_path / "large"
    source.write_bytes(random.randbytes(20_000_000))
    far = server.repository(host=ADDRESS)
    with relaying([server.port, *server.passive_ports]) as relay:
        if direction == "fetch":
            server.repository().log_artifact(str(source))
        relay.cut_after = 10_000_000
        if direction == "store":
            far.log_artifact(str(source))
        fetched = Path(far.download_artifacts("large"))
        assert relay.cuts == 1
    assert fetched.read_bytes() == source.read_bytes()
    assert find_temporaries(server.artifacts) == []


def test_restart_of_the_server_is_waited_for(server, file, monkeypatch):
    """Operations are retried while the server restarts; without retries a server that is down is an error."""
    monkeypatch.setattr(repository, "PAUSES_SECONDS", (*repository.PAUSES_SECONDS, 4.0, 8.0, 16.0))
    store = server.repository()
    store.log_artifact(str(file))
    server.kill()
    with ThreadPoolExecutor(1) as pool:
        listing = pool.submit(store.list_artifacts)
        time.sleep(0.2)
        server.start()
        assert [info.path for info in listing.result()] == ["numbers.bin"]
    server.kill()
    monkeypatch.setattr(repository, "PAUSES_SECONDS", ())
    with pytest.raises(ArtifactError, match="does not respond") as caught:
        store.list_artifacts()
    assert caught.value.get_http_status_code() == 503


def test_deleting_is_recursive_and_may_be_repeated(server, file):
    """A file, a folder and the whole store are deleted; deleting a missing path does nothing."""
    store, neighbour = server.repository("1"), server.repository("2")
    neighbour.log_artifact(str(file))
    for path in (None, "a", "a/b", "a/b/100% sure"):
        store.log_artifact(str(file), path)
    for _ in range(2):
        store.delete_artifacts("a/b/100% sure/numbers.bin")
        assert store.list_artifacts("a/b/100% sure") == []
    for _ in range(2):
        store.delete_artifacts("a")
        assert [info.path for info in store.list_artifacts()] == ["numbers.bin"]
    for _ in range(2):
        store.delete_artifacts()
        assert store.list_artifacts() == []
    assert [info.path for info in neighbour.list_artifacts()] == ["numbers.bin"]


LEAD_OUT = ["../other", "a/../../other", "/etc", "a\r\nDELE b", ".~x.0123456789abcdef.part"]


@pytest.mark.parametrize("path", [*LEAD_OUT, "a" * 256, "/".join(["a"] * 102), "/".join(["a" * 200] * 8), "é" * 128])
def test_invalid_paths_are_rejected(server, file, path):
    """Paths out of the store, too long or too deep, and temporary names are rejected before anything is sent."""
    store = server.repository()
    for call in (store.list_artifacts, store.delete_artifacts, lambda name: store.log_artifact(str(file), name)):
        with pytest.raises(ArtifactError, match=r"Invalid artifact name(.|\n)*at most 100 folders deep"):
            call(path)
    assert list(server.artifacts.iterdir()) == []


def test_links_are_deleted_and_not_followed(server, file):
    """Only the link is deleted, wherever it points, also when the folder that contains it is deleted."""
    store = server.repository()
    store.log_artifact(str(file), "kept")
    kept, outside = server.artifacts / "mlflow" / "kept", server.folder / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "file").write_text("kept")
    for deleted in (["run/one", "run/two", "run/three", "run/four"], ["run"]):
        (server.artifacts / "mlflow" / "run").mkdir(exist_ok=True)
        targets = {"one": outside, "two": outside / "file", "three": kept, "four": kept / "numbers.bin"}
        for name, target in targets.items():
            (server.artifacts / "mlflow" / "run" / name).symlink_to(target)
        for path in deleted:
            store.delete_artifacts(path)
        assert store.list_artifacts("run") == []
        assert (kept / "numbers.bin").read_bytes() == file.read_bytes()
        assert (outside / "file").read_text() == "kept"


def test_connections_are_reused(server, file):
    """Thirty operations in sequence need one login; eight in parallel need at most eight more."""
    store = server.repository()
    for number in range(10):
        store.log_artifact(str(file), str(number))
        store.list_artifacts(str(number))
        store.delete_artifacts(str(number))
    assert server.log.read_text().count("logged in") == 1
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.log_artifact(str(file), f"shared/{number % 4}"), range(40)))
    assert server.log.read_text().count("logged in") <= 9
    assert [info.path for info in store.list_artifacts("shared")] == [f"shared/{number}" for number in range(4)]


@pytest.mark.parametrize("way", ["drop", "reset"])
def test_connections_that_a_firewall_has_dropped_are_replaced(server, tmp_path, file, way):
    """After idle time each operation succeeds before the time-out, whether the firewall drops or resets."""
    with relaying([server.port, *server.passive_ports]) as relay:
        store = server.repository(host=ADDRESS)
        folder = tmp_path / "many"
        folder.mkdir()
        for number in range(24):
            (folder / f"{number}").write_bytes(b"1")
        os.mkfifo(folder / "pipe")  # never ends, and is skipped
        store.log_artifacts(str(folder))
        relay.forget(way)
        time.sleep(IDLE_SECONDS + 0.2)
        for work in (
            lambda: store.log_artifact(str(file)),
            store.list_artifacts,
            lambda: store.download_artifacts("1"),
        ):
            start = time.monotonic()
            work()
            assert time.monotonic() - start < connections.TIMEOUT_SECONDS


def test_hanging_server_is_an_error_after_the_timeout(server, file, monkeypatch):
    """A server that does not respond is an error after the time-out, on new and on reused connections."""
    monkeypatch.setattr(connections, "TIMEOUT_SECONDS", 1)
    store = server.repository()
    store.log_artifact(str(file))
    server.process.send_signal(signal.SIGSTOP)
    for call in (store.list_artifacts, store.list_artifacts, lambda: store.log_artifact(str(file))):
        started = time.monotonic()
        with pytest.raises(ArtifactError, match=f"127.0.0.1:{server.port} does not respond") as caught:
            call()
        assert time.monotonic() - started < 6  # 8 without the shorter time-out
        assert caught.value.get_http_status_code() == 503
    server.process.send_signal(signal.SIGCONT)
    assert [info.path for info in store.list_artifacts()] == ["numbers.bin"]


def test_wrong_password_is_an_error_without_it(server, monkeypatch):
    """The error of a rejected login has the server, not the password; without a password it names the variables."""
    monkeypatch.setenv("MLFLOW_FTP_PASSWORD", "not the one")
    with pytest.raises(ArtifactError, match="rejected the login") as caught:
        server.repository().list_artifacts()
    assert str(server.port) in str(caught.value)
    assert "not the one" not in str(caught.value)
    monkeypatch.delenv("MLFLOW_FTP_PASSWORD")
    with pytest.raises(ArtifactError, match="MLFLOW_FTP_USERNAME and MLFLOW_FTP_PASSWORD"):
        server.repository().list_artifacts()


@pytest.mark.parametrize("user", ["me:hunter2@", "hunter2@", "me:hun/hunter2@", "me:@hunter2@"])
def test_password_in_the_uri_is_rejected(user):
    """A URI with a user or a password is rejected, and the error does not contain it."""
    with pytest.raises(ArtifactError) as caught:
        FTPArtifactRepository(f"ftp://{user}127.0.0.1:2121/mlflow")
    assert "hunter2" not in str(caught.value)


def test_ftps_is_verified_and_encrypted(server, file, monkeypatch):
    """`ftps` uses TLS and verifies the certificate."""
    store = server.repository(scheme="ftps")
    store.log_artifact(str(file), "folder")
    fetched = store.download_artifacts("folder/numbers.bin")
    assert Path(fetched).read_bytes() == file.read_bytes()
    with connections.acquire(store.address) as connection:
        assert connection.sock.version().startswith("TLS")


def test_untrusted_certificate_is_rejected(server, tmp_path, monkeypatch):
    """A server with an untrusted certificate gets neither user nor password."""
    other = ensure_certificate(tmp_path / "other", "127.0.0.1")
    monkeypatch.setenv("MLFLOW_FTP_SERVER_CERT_PATH", str(other.with_name("127.0.0.1.pem")))
    with pytest.raises(ArtifactError, match="cannot be trusted"):
        server.repository(scheme="ftps").list_artifacts()
    assert "logged in" not in server.log.read_text()


def test_server_without_tls_gets_no_password_over_ftps(server, monkeypatch):
    """`ftps` never falls back to plain FTP: without TLS on the server it fails before the login."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        received = []

        def answer() -> None:
            client, _ = other.accept()
            with client, client.makefile("rb") as lines:
                client.sendall(b"220 Ready.\r\n")
                for line in lines:
                    received.append(line)
                    client.sendall(b"500 Not understood.\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ArtifactError, match="rejected a command"):
            FTPArtifactRepository(f"ftps://127.0.0.1:{other.getsockname()[1]}/mlflow").list_artifacts()
        assert received == [b"AUTH TLS\r\n"]


def test_server_on_ipv6(tmp_path, file, monkeypatch):
    """Store and server also work over IPv6."""
    monkeypatch.setenv("MLFLOW_FTP_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_FTP_PASSWORD", PASSWORD)
    with started_server(tmp_path / "ftp", host="::1") as server:
        server.repository().log_artifact(str(file))
        assert Path(server.repository().download_artifacts("numbers.bin")).read_bytes() == file.read_bytes()


def test_errors_survive_pickling():
    """A pickled error keeps its type, its text and its status."""
    for kind in (ArtifactError, StoreUnavailable, ArtifactMissing):
        error = kind("It failed.", value=1, expected="2", next_step="try")
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.error_code) == (kind, str(error), error.error_code)


@pytest.fixture(scope="module")
def mlflow_folder(tmp_path_factory) -> Path:
    """The folder of the MLflow server's database and log."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def tracking_uri(running, mlflow_folder) -> Iterator[str]:
    """An MLflow server that stores its artifacts on the FTP server."""
    login = {"MLFLOW_FTP_USERNAME": USER, "MLFLOW_FTP_PASSWORD": PASSWORD}
    with programs.tracking_server(mlflow_folder, running.uri(), **login) as (uri, _):
        yield uri


@pytest.mark.xdist_group("mlflow")
def test_proxied_client_needs_no_password(server, tracking_uri, mlflow_folder, file, tmp_path, monkeypatch):
    """Through MLflow's server a client without credentials logs, lists, downloads and deletes; no password leaks."""
    monkeypatch.delenv("MLFLOW_FTP_PASSWORD")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client = MlflowClient(tracking_uri)
    run = client.create_run(client.create_experiment("proxied"))
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "two words ünï.txt").write_text("words")
    client.log_artifact(run.info.run_id, str(file))
    client.log_artifacts(run.info.run_id, str(folder), "folder")
    assert [info.path for info in client.list_artifacts(run.info.run_id)] == ["folder", "numbers.bin"]

    fetched = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert (fetched / "numbers.bin").read_bytes() == file.read_bytes()
    assert describe(fetched / "folder") == describe(folder)
    stored = [path.name for path in server.artifacts.rglob("*") if path.is_file()]
    assert sorted(stored) == ["numbers.bin", "two words ünï.txt"]

    query = {"run_id": run.info.run_id}
    answers = [
        requests.get(f"{tracking_uri}/api/2.0/mlflow/{call}", params=query, timeout=10).text
        for call in ("runs/get", "artifacts/list")
    ]
    answers.append(requests.get(f"{tracking_uri}/api/2.0/mlflow-artifacts/artifacts/absent", timeout=10).text)
    assert "RESOURCE_DOES_NOT_EXIST" in answers[-1] or not TELLS_STATUS
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert any("mlflow" in line and str(server.port) in line for line in lines)
    log = (mlflow_folder / "log").read_text()
    for text in (run.info.artifact_uri, *answers, *lines, log, server.log.read_text()):
        assert PASSWORD not in text

    get_artifact_repository(run.info.artifact_uri).delete_artifacts("folder")
    assert [info.path for info in client.list_artifacts(run.info.run_id)] == ["numbers.bin"]
    assert [path.name for path in server.artifacts.rglob("*") if path.is_file()] == ["numbers.bin"]


@pytest.mark.xdist_group("mlflow")
def test_gc_frees_the_disk(server, tracking_uri, mlflow_folder, tmp_path, monkeypatch):
    """`mlflow gc` deletes the artifacts of deleted runs, and nothing else."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    client = MlflowClient(tracking_uri)
    experiment = client.create_experiment("gc")
    kept, *deleted = [client.create_run(experiment).info.run_id for _ in range(4)]
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for number in range(10):
        (tmp_path / "folder" / "inner" / str(number)).write_bytes(bytes(100_000))
    for run in (kept, *deleted):
        client.log_artifacts(run, str(tmp_path / "folder"))
    for run in deleted:
        client.delete_run(run)
    done = subprocess.run(
        [Path(sys.executable).with_name("mlflow"), "gc", "--backend-store-uri", f"sqlite:///{mlflow_folder}/mlflow.db"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sum(path.stat().st_size for path in server.artifacts.rglob("*") if path.is_file()) == 1_000_000
    assert len(client.list_artifacts(kept, "inner")) == 10
    assert [folder.name for folder in (server.artifacts / "mlflow" / experiment).iterdir()] == [kept]
    assert find_marks(server.artifacts / "mlflow" / experiment / kept)
    assert len(find_marks(server.artifacts)) == 10


@pytest.mark.xdist_group("mlflow")
@pytest.mark.skipif(not TELLS_STATUS, reason="before MLflow 3.12 its clients repeat each download that fails")
def test_damaged_artifact_is_not_retried_through_the_proxy(server, tracking_uri, file, tmp_path, monkeypatch):
    """MLflow's client gets the reason at once, instead of retrying a damaged artifact for minutes."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    store = get_artifact_repository("mlflow-artifacts:/damaged")
    store.log_artifact(str(file))
    (server.artifacts / "mlflow" / "damaged" / "numbers.bin").write_bytes(b"\1" * 256_000)
    start = time.monotonic()
    with pytest.raises(MlflowException, match=r"409 .*'damaged/numbers.bin' is damaged"):
        store.download_artifacts("numbers.bin", str(tmp_path))
    assert time.monotonic() - start < 60
