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

# Since 3.12 MLflow gives a download the status of its errors; before, always 500.
TELLS_STATUS = "error_codes" in inspect.getsource(ArtifactRepository.download_artifacts)


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Server]:
    """A server for all tests."""
    with started_server(tmp_path_factory.mktemp("server") / "ftp") as server:
        yield server


@pytest.fixture
def server(running, monkeypatch) -> Iterator[Server]:
    """A running server without artifacts, and an environment in which its stores can log in."""
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
    """MLflow's registry gives our stores for `ftp` and `ftps`; the package changes no other scheme."""
    points = distribution("mlflow-ftp").entry_points.select(group="mlflow.artifact_repository")
    assert sorted(points.names) == ["ftp", "ftps"]
    for scheme in points.names:
        assert type(get_artifact_repository(f"{scheme}://127.0.0.1:2121/mlflow")) is FTPArtifactRepository


def test_missing_artifact_is_an_error(server, tmp_path):
    """To fetch what is not there fails, names it, and leaves no local file."""
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(MlflowException, match=r"artifact 'absent\.txt' does not exist") as caught:
        server.repository().download_artifacts("absent.txt", str(target))
    assert caught.value.get_http_status_code() == 404 or not TELLS_STATUS
    assert list(target.iterdir()) == []


def test_failed_upload_leaves_nothing(server, file):
    """When the last step is refused, the temporary file goes and what was there stays; others' parts are not listed."""
    store = server.repository()
    store.log_artifact(str(file), "numbers.bin")  # the name is now a folder's
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
def test_kills_amid_overwrites_leave_whole_objects(server, tmp_path, kills):
    """Client or server is killed at a random moment of an overwrite: the old object is there, or the new one, whole."""
    dice, versions = random.Random(4), {}
    for number in range(2):
        source = tmp_path / str(number) / "model"
        source.parent.mkdir()
        source.write_bytes(dice.randbytes(30_000_000 + number))
        versions[number] = source
    store = server.repository()
    store.log_artifact(str(versions[0]))
    here, seen = 0, set()
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["mlflow_ftp.repository"])
    for _ in range(kills):
        source = versions[1 - here]
        before = len(find_temporaries(server.artifacts))
        client = forks.Process(target=store_file, args=(server.uri(), source))
        client.start()
        while len(find_temporaries(server.artifacts)) == before and client.is_alive():
            time.sleep(0.001)
        time.sleep(dice.random() * 0.15)
        victim = dice.choice(["client", "server"])
        if victim == "client":
            client.kill()
        else:
            server.kill()
            server.start()
        client.join()
        assert [info.path for info in store.list_artifacts()] == ["model"]
        fetched = Path(store.download_artifacts("model")).read_bytes()
        (here,) = (number for number, version in versions.items() if version.read_bytes() == fetched)
        seen.add((victim, versions[here] == source))
    assert len(seen) > 1
    server.kill()
    server.start()
    assert find_temporaries(server.artifacts) == []


@pytest.mark.parametrize("direction", ["store", "fetch"])
def test_transfer_that_is_cut_is_made_again(server, tmp_path, direction):
    """A connection that is cut amid a file costs another attempt, and no error."""
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


def test_server_that_restarts_is_waited_for(server, file, monkeypatch):
    """A server that is back soon costs its clients only that; on a busy machine a start takes longer than 2 s."""
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
    """A file, a folder and the whole store are deleted; again, and for what never was, nothing happens."""
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
def test_names_that_lead_out_or_are_too_long_are_refused(server, file, path):
    """Paths out of the store, too long or too deep, and temporary names are refused before anything is sent."""
    store = server.repository()
    for call in (store.list_artifacts, store.delete_artifacts, lambda name: store.log_artifact(str(file), name)):
        with pytest.raises(ArtifactError, match=r"Invalid artifact name(.|\n)*at most 100 folders deep"):
            call(path)
    assert list(server.artifacts.iterdir()) == []


def test_links_are_deleted_and_not_followed(server, file):
    """Of an artifact that is a link, in the store or out of it, the link goes, also with the folder that it is in."""
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


def test_connections_are_kept(server, file):
    """Thirty operations one after the other take one login; eight in parallel take at most eight more."""
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
    """After idle time, each operation succeeds before a time-out, whether packets are lost or answered with a reset."""
    with relaying([server.port, *server.passive_ports]) as relay:
        store = server.repository(host=ADDRESS)
        folder = tmp_path / "many"
        folder.mkdir()
        for number in range(24):
            (folder / f"{number}").write_bytes(b"1")
        os.mkfifo(folder / "pipe")  # has no end, and is left out
        store.log_artifacts(str(folder))
        relay.forget(way)
        time.sleep(IDLE_SECONDS + 0.2)
        for work in (
            lambda: store.log_artifact(str(file)),
            store.list_artifacts,
            lambda: store.download_artifacts("1"),
        ):
            began = time.monotonic()
            work()
            assert time.monotonic() - began < connections.TIMEOUT_SECONDS


def test_frozen_server_is_an_error_in_time(server, file, monkeypatch):
    """A server that accepts and says nothing is named when the time-out is over, on new and on kept connections."""
    monkeypatch.setattr(connections, "TIMEOUT_SECONDS", 1)
    store = server.repository()
    store.log_artifact(str(file))
    server.process.send_signal(signal.SIGSTOP)
    for call in (store.list_artifacts, store.list_artifacts, lambda: store.log_artifact(str(file))):
        started = time.monotonic()
        with pytest.raises(ArtifactError, match=f"127.0.0.1:{server.port} does not respond") as caught:
            call()
        assert time.monotonic() - started < 6  # of 8, without the shorter time-out
        assert caught.value.get_http_status_code() == 503
    server.process.send_signal(signal.SIGCONT)
    assert [info.path for info in store.list_artifacts()] == ["numbers.bin"]


def test_wrong_password_is_an_error_without_it(server, monkeypatch):
    """The error of a refused login names the server, and not the password; without one it names the variables."""
    monkeypatch.setenv("MLFLOW_FTP_PASSWORD", "not the one")
    with pytest.raises(ArtifactError, match="rejected the login") as caught:
        server.repository().list_artifacts()
    assert str(server.port) in str(caught.value)
    assert "not the one" not in str(caught.value)
    monkeypatch.delenv("MLFLOW_FTP_PASSWORD")
    with pytest.raises(ArtifactError, match="MLFLOW_FTP_USERNAME and MLFLOW_FTP_PASSWORD"):
        server.repository().list_artifacts()


@pytest.mark.parametrize("user", ["me:hunter2@", "hunter2@", "me:hun/hunter2@", "me:@hunter2@"])
def test_password_in_the_address_is_refused(user):
    """An address with a user or a password in it is refused, and the error does not repeat it."""
    with pytest.raises(ArtifactError) as caught:
        FTPArtifactRepository(f"ftp://{user}127.0.0.1:2121/mlflow")
    assert "hunter2" not in str(caught.value)


def test_secure_address_is_checked_and_encrypted(server, file, monkeypatch):
    """`ftps` goes over TLS, with the certificate checked."""
    store = server.repository(scheme="ftps")
    store.log_artifact(str(file), "folder")
    fetched = store.download_artifacts("folder/numbers.bin")
    assert Path(fetched).read_bytes() == file.read_bytes()
    with connections.acquire(store.address) as connection:
        assert connection.sock.version().startswith("TLS")


def test_unknown_certificate_is_refused(server, tmp_path, monkeypatch):
    """A server whose certificate is not the one that is trusted gets neither user nor password."""
    other = ensure_certificate(tmp_path / "other", "127.0.0.1")
    monkeypatch.setenv("MLFLOW_FTP_SERVER_CERT_PATH", str(other.with_name("127.0.0.1.pem")))
    with pytest.raises(ArtifactError, match="cannot be trusted"):
        server.repository(scheme="ftps").list_artifacts()
    assert "logged in" not in server.log.read_text()


def test_server_without_tls_gets_no_password_over_ftps(server, monkeypatch):
    """A secure address never falls back to plain: a server that knows no TLS is refused before the login."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        heard = []

        def answer() -> None:
            client, _ = other.accept()
            with client, client.makefile("rb") as lines:
                client.sendall(b"220 Ready.\r\n")
                for line in lines:
                    heard.append(line)
                    client.sendall(b"500 Not understood.\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ArtifactError, match="rejected a command"):
            FTPArtifactRepository(f"ftps://127.0.0.1:{other.getsockname()[1]}/mlflow").list_artifacts()
        assert heard == [b"AUTH TLS\r\n"]


def test_server_on_ipv6(tmp_path, file, monkeypatch):
    """The store and the server speak IPv6 as well."""
    monkeypatch.setenv("MLFLOW_FTP_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_FTP_PASSWORD", PASSWORD)
    with started_server(tmp_path / "ftp", host="::1") as server:
        server.repository().log_artifact(str(file))
        assert Path(server.repository().download_artifacts("numbers.bin")).read_bytes() == file.read_bytes()


def test_errors_survive_pickling():
    """An error that crosses a process border keeps its kind, its text and its status."""
    for kind in (ArtifactError, StoreUnavailable, ArtifactMissing):
        error = kind("It failed.", value=1, expected="2", next_step="try")
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.error_code) == (kind, str(error), error.error_code)


@pytest.fixture(scope="module")
def mlflow_folder(tmp_path_factory) -> Path:
    """Where the MLflow server keeps its database and log."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def tracking_uri(running, mlflow_folder) -> Iterator[str]:
    """A real MLflow server that keeps its artifacts on the FTP server."""
    login = {"MLFLOW_FTP_USERNAME": USER, "MLFLOW_FTP_PASSWORD": PASSWORD}
    with programs.tracking_server(mlflow_folder, running.uri(), **login) as (uri, _):
        yield uri


@pytest.mark.xdist_group("mlflow")
def test_proxied_client_needs_and_sees_no_password(server, tracking_uri, mlflow_folder, file, tmp_path, monkeypatch):
    """Through MLflow's server a client without credentials logs, lists, fetches and deletes; no password anywhere."""
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
    """`mlflow gc` ends well and frees what deleted runs had stored, and nothing else."""
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
def test_damaged_artifact_is_told_once_through_the_proxy(server, tracking_uri, file, tmp_path, monkeypatch):
    """MLflow's client, which repeats what may pass for minutes, is told immediately why an artifact is damaged."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    store = get_artifact_repository("mlflow-artifacts:/damaged")
    store.log_artifact(str(file))
    (server.artifacts / "mlflow" / "damaged" / "numbers.bin").write_bytes(b"\1" * 256_000)
    began = time.monotonic()
    with pytest.raises(MlflowException, match=r"409 .*'damaged/numbers.bin' is damaged"):
        store.download_artifacts("numbers.bin", str(tmp_path))
    assert time.monotonic() - began < 60
