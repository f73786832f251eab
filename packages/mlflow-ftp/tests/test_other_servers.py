"""The artifact store on other FTP servers: Debian's vsftpd and ProFTPD, and plain pyftpdlib."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow_ftp import connections
from mlflow_ftp.artifact_errors import ArtifactError, StoreFull
from mlflow_ftp.repository import FTPArtifactRepository
from programs import free_port, required, wait_for
from servers import exchange_folder
from trees import ODD_NAMES, describe, find_marks, find_temporaries

USER, PASSWORD = "keeper", "correct horse battery"
VSFTPD = shutil.which("vsftpd") or shutil.which("vsftpd", path="/opt/vsftpd/usr/sbin")
PROFTPD = shutil.which("proftpd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

VSFTPD_SETTINGS = """
listen=YES
listen_address=127.0.0.1
listen_port={port}
background=NO
anonymous_enable=YES
no_anon_password=YES
ftp_username=daemon
anon_root={files}
write_enable=YES
anon_upload_enable=YES
anon_mkdir_write_enable=YES
anon_other_write_enable=YES
anon_world_readable_only=NO
anon_umask=022
secure_chroot_dir={folder}/empty
seccomp_sandbox=NO
isolate=NO
isolate_network=NO
xferlog_enable=NO
utf8_filesystem=YES
"""
PROFTPD_SETTINGS = """
ServerName "files"
ServerType standalone
Port {port}
DefaultAddress 127.0.0.1
UseIPv6 off
User nobody
Group nogroup
AuthOrder mod_auth_file.c
AuthUserFile {folder}/users
RequireValidShell off
DefaultRoot {files}
PidFile {folder}/pid
ScoreboardFile {folder}/scoreboard
DelayTable none
SystemLog {folder}/log
TransferLog none
WtmpLog off
AllowOverwrite on
AllowStoreRestart on
AllowRetrieveRestart on
ListOptions "-a"
"""


def vsftpd_command(folder: Path, files: Path, port: int) -> list[str]:
    """Return the command for vsftpd, with the anonymous user: others would have to be users of the machine."""
    settings = folder / "vsftpd.conf"
    (folder / "empty").mkdir()
    settings.write_text(VSFTPD_SETTINGS.format(port=port, files=files, folder=folder).lstrip())
    return [VSFTPD, str(settings)]


def proftpd_command(folder: Path, files: Path, port: int) -> list[str]:
    """Return the command for ProFTPD, with a virtual user."""
    settings, users = folder / "proftpd.conf", folder / "users"
    settings.write_text(PROFTPD_SETTINGS.format(port=port, files=files, folder=folder))
    hashed = subprocess.run(["openssl", "passwd", "-6", PASSWORD], capture_output=True, text=True, check=True).stdout
    users.write_text(f"{USER}:{hashed.strip()}:65534:65534::{files}:/bin/false\n")
    users.chmod(0o600)
    return [PROFTPD, "--nodaemon", "--config", str(settings)]


def pyftpdlib_command(folder: Path, files: Path, port: int) -> list[str]:
    """Return the command for pyftpdlib's own server."""
    options = ["-i", "127.0.0.1", "-p", str(port), "-d", str(files), "-u", USER, "-P", PASSWORD, "-w"]
    return [sys.executable, "-W", "ignore", "-m", "pyftpdlib", *options]


SIMPLE = {
    "without MLSD and PASV": ["MLSD", "MLST", "PASV"],
    "whose options give nothing": ["MLSD", "options", "no-such"],
    "with whole paths": ["MLSD", "LIST", "options", "paths"],
    "with lists of its own": ["MLSD", "options", "odd"],
    "on Windows": ["MLSD", "windows"],
    "without SIZE": ["SIZE"],
    "without MLSD and SIZE": ["MLSD", "SIZE", "options", "files"],
    "that reads one command at a time": ["sync"],
    "that replaces no file": ["replace"],
    "that renames no hidden file": ["rename"],
}


def simple_command(folder: Path, files: Path, port: int, lacks: list[str]) -> list[str]:
    """Return the command for a server without some features."""
    program = Path(__file__).with_name("simple_server.py")
    return [sys.executable, "-W", "ignore", str(program), str(port), str(files), USER, PASSWORD, *lacks]


PRIVILEGED = [pytest.param(name, marks=pytest.mark.privileged) for name in ("vsftpd", "proftpd")]


@pytest.fixture(params=[*PRIVILEGED, "pyftpdlib", *SIMPLE])
def other(request, monkeypatch) -> Iterator[tuple[Path, str]]:
    """The folder and the URI of a running server."""
    required(request.param, {"vsftpd": VSFTPD, "proftpd": PROFTPD}.get(request.param, True))
    with running(request.param, SIMPLE.get(request.param, []), monkeypatch) as place:
        yield place


@contextlib.contextmanager
def running(name: str, lacks: list[str], monkeypatch, settings: str = "") -> Iterator[tuple[Path, str]]:
    """Run a server with additional settings; yield its folder and its URI."""
    # Not below pytest's folders, which other users may not enter.
    folder = Path("/tmp") / f"other-ftp-{os.getpid()}-{name.replace(' ', '-')}"
    files, port = folder / "files", free_port()
    (files / "store").mkdir(parents=True)
    is_vsftpd = name == "vsftpd"
    if name in ("vsftpd", "proftpd"):
        shutil.chown(files / "store", "daemon" if is_vsftpd else "nobody")  # not its parent: vsftpd forbids that
    user = "anonymous" if is_vsftpd else USER
    monkeypatch.setenv("MLFLOW_FTP_USERNAME", user)
    monkeypatch.setenv("MLFLOW_FTP_PASSWORD", PASSWORD)
    commands = {"vsftpd": vsftpd_command, "proftpd": proftpd_command, "pyftpdlib": pyftpdlib_command}
    simple = functools.partial(simple_command, lacks=lacks)
    command = commands.get(name, simple)(folder, files, port)
    if settings:
        with Path(command[-1]).open("a") as file:
            file.write(f"{settings}\n")
    with (folder / "out").open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            wait_for(lambda: process.poll() or socket.create_connection(("127.0.0.1", port), timeout=1).close() is None)
            assert process.poll() is None, (folder / "out").read_text()
            yield files, f"ftp://127.0.0.1:{port}/store"
        finally:
            process.terminate()
    shutil.rmtree(folder)


def test_other_server_keeps_a_tree(other, tmp_path, request):
    """Odd names and empty files are stored, listed, downloaded and deleted as on mlflow-ftp's server."""
    files, uri = other
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    kind = request.node.callspec.params["other"]
    names = set(ODD_NAMES) - ({"*?"} if kind == "proftpd" else set())  # ProFTPD treats it as a pattern
    for name in names:
        (source / "deep" / name).mkdir(parents=True)
        (source / "deep" / name / name).write_text(name)
    (source / "empty file").touch()
    (source / "large").write_bytes(os.urandom(3_000_000))
    store = FTPArtifactRepository(uri)
    store.log_artifacts(str(source), "tree")
    has_sizes = {"MLSD", "SIZE"} - set(SIMPLE.get(kind, []))
    assert {info.path: info.file_size for info in store.list_artifacts("tree") if not info.is_dir} == {
        "tree/empty file": 0 if has_sizes else None,
        "tree/large": 3_000_000 if has_sizes else None,
    }
    assert {Path(info.path).name for info in store.list_artifacts("tree/deep")} == names
    assert describe(Path(store.download_artifacts("tree", str(target)))) == describe(source)
    store.delete_artifacts("tree")
    assert store.list_artifacts() == []
    assert list((files / "store").iterdir()) == []


def test_other_server_detects_damage(other, tmp_path, caplog):
    """Overwriting is complete; a byte changed on disk is an error, and a file without a checksum a warning."""
    files, uri = other
    store, model = FTPArtifactRepository(uri), tmp_path / "model"
    for content in (b"old", b"new and longer"):
        model.write_bytes(content)
        store.log_artifact(str(model))
        assert Path(store.download_artifacts("model")).read_bytes() == content
    assert find_temporaries(files) == []
    assert len(find_marks(files)) == 2
    (tmp_path / "target").mkdir()
    for content in (b"now and longer", b"new"):
        (files / "store" / "model").write_bytes(content)
        with pytest.raises(MlflowException, match="is damaged"):
            store.download_artifacts("model", str(tmp_path / "target"))
    assert list((tmp_path / "target").iterdir()) == []
    for _ in range(2):
        store.delete_artifacts("model")
    assert find_marks(files) == []
    (files / "store" / "theirs").write_bytes(b"by hand")
    assert [(info.path, info.is_dir) for info in store.list_artifacts()] == [("theirs", False)]
    assert Path(store.download_artifacts("theirs")).read_bytes() == b"by hand"
    assert "another program stored it" in caplog.text
    assert store.list_artifacts("nothing") == store.list_artifacts("theirs") == []


@pytest.mark.parametrize(
    ("lacks", "words"),
    [(["hidden"], "does not list hidden"), (["MLSD", "names"], "listing of the folder .* cannot be")],
)
def test_server_that_hides_names_has_no_silent_damage(monkeypatch, tmp_path, lacks, words):
    """Without listings or hidden names artifacts are still downloaded; damage and failed deletions are errors."""
    model = tmp_path / "model"
    model.write_bytes(b"weights")
    with running("hiding", lacks, monkeypatch) as (files, uri):
        store = FTPArtifactRepository(uri)
        store.log_artifact(str(model), "run")
        assert Path(store.download_artifacts("run/model")).read_bytes() == b"weights"
        (files / "store" / "run" / "model").write_bytes(b"Weights")
        with pytest.raises(MlflowException, match=words):
            store.download_artifacts("run/model")
        with pytest.raises(MlflowException, match=f"rejected|{words}"):
            store.delete_artifacts("run")


LIMITS = [
    pytest.param("proftpd", "MaxClientsPerUser 3", marks=pytest.mark.privileged),
    pytest.param("vsftpd", "max_per_ip=3", marks=pytest.mark.privileged),
    ("logins", ""),
]


@pytest.fixture
def many(tmp_path) -> Path:
    """A folder of 26 files."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(26):
        (folder / f"{number:02}").write_text(f"{number}" * 1000)
    return folder


@pytest.mark.parametrize(("name", "settings"), LIMITS)
def test_server_with_three_connections_serves_processes_in_parallel(name, settings, many, tmp_path, monkeypatch):
    """Three processes store, list, download and delete folders in parallel, one of them with idle connections."""
    expected = [f"{number:02}" for number in range(26)], {file.read_bytes() for file in many.iterdir()}
    required(name, {"vsftpd": VSFTPD, "proftpd": PROFTPD}.get(name, True))
    spawn = multiprocessing.get_context("spawn")
    with running(name, [name], monkeypatch, settings) as (_, uri), ProcessPoolExecutor(2, spawn) as pool:
        others = [pool.submit(exchange_folder, f"{uri}/{word}", many, tmp_path / word) for word in ("one", "two")]
        for word in ("three", "four"):
            assert exchange_folder(f"{uri}/{word}", many, tmp_path / word) == expected
        assert [other.result() for other in others] == [expected] * 2


def test_server_without_a_free_connection_is_an_error_with_the_limit(monkeypatch, many):
    """While other programs use all connections an upload waits; then the error names the limit, not the password."""
    monkeypatch.setattr(connections, "FULL_SECONDS", 1)
    with running("full", ["logins"], monkeypatch) as (_, uri):
        store, address = FTPArtifactRepository(uri), connections.parse(uri)[0]
        with contextlib.ExitStack() as others:
            for _ in range(3):
                others.callback(connections._connect(address).close)
            with pytest.raises(StoreFull, match="has reached its client limit") as caught:
                store.log_artifacts(str(many))
            assert "password" not in str(caught.value)
            assert caught.value.get_http_status_code() == 503
            with monkeypatch.context() as patch:
                patch.setenv("MLFLOW_FTP_PASSWORD", "not the one")
                with pytest.raises(ArtifactError, match="rejected the login"):
                    store.list_artifacts()
        store.log_artifacts(str(many))
        assert len(store.list_artifacts()) == 26


def test_idle_connections_are_closed(monkeypatch):
    """An idle process closes its connections after a few seconds, so that others can use them."""
    with running("idle", ["logins"], monkeypatch) as (_, uri):
        store = FTPArtifactRepository(uri)
        store.list_artifacts()
        (kept,) = connections._pools[store.address].idle
        wait_for(lambda: kept.sock is None)
        assert not connections._pools[store.address].idle


@pytest.mark.parametrize("code", ["421", "530"])
def test_session_that_the_server_ends_is_reopened(monkeypatch, tmp_path, code):
    """If the server ends sessions during operations, files are still stored, listed, downloaded and deleted."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for number in range(5):
        (source / f"{number}").write_bytes(os.urandom(1_000_000))
    with running("ending", [code], monkeypatch) as (files, uri):
        store = FTPArtifactRepository(uri)
        for file in source.iterdir():
            store.log_artifact(str(file))
            assert [info.path for info in store.list_artifacts()] == sorted(
                path.name for path in (files / "store").iterdir() if path.is_file()
            )
        assert describe(Path(store.download_artifacts("", str(target)))) == describe(source)
        for file in source.iterdir():
            store.delete_artifacts(file.name)
        assert list((files / "store").iterdir()) == []


@pytest.mark.parametrize(("lacks", "words"), [("dots", "553 Prohibited"), ("quota", "no space left(.|\n)*552")])
@pytest.mark.parametrize("path", [None, "a/b"])
def test_server_that_creates_no_folder_stores_nothing(monkeypatch, many, lacks, words, path):
    """A server that rejects hidden names or folders is an error with its reply; no artifact is stored."""
    with running("refusing", [lacks], monkeypatch) as (files, uri):
        with pytest.raises(ArtifactError, match=words):
            FTPArtifactRepository(uri).log_artifact(str(many / "00"), path)
        assert [file for file in (files / "store").rglob("*") if file.is_file()] == []


def test_server_that_replaces_no_file_keeps_the_old_one(monkeypatch, tmp_path):
    """An upload that cannot be renamed leaves the old file, even if that had been moved away."""
    model = tmp_path / "model"
    model.write_bytes(b"old")
    with running("replacing", ["replace", "scan"], monkeypatch) as (files, uri):
        store = FTPArtifactRepository(uri)
        store.log_artifact(str(model))
        model.write_bytes(b"virus")
        with pytest.raises(ArtifactError, match="550 Virus"):
            store.log_artifact(str(model))
        assert Path(store.download_artifacts("model")).read_bytes() == b"old"
        assert find_temporaries(files) == []


@pytest.mark.parametrize("name", [pytest.param("proftpd", marks=pytest.mark.privileged), "LIST"])
def test_names_that_are_not_utf8_are_downloaded_and_deleted(monkeypatch, tmp_path, name):
    """Greeting, errors and names may be Latin-1: a folder with such names is listed, downloaded and deleted."""
    required(name, PROFTPD if name == "proftpd" else True)
    lacks = ["utf-8", "MLSD", "LIST"] if name == "LIST" else []
    welcome = 'AccessGrantMsg "Willkommen f\\374r dich"' if name == "proftpd" else ""
    with running(name, lacks, monkeypatch, welcome) as (files, uri):
        folder = files / "store" / os.fsdecode(b"M\xfcll")
        folder.mkdir()
        folder.chmod(0o777)
        (folder / os.fsdecode(b"ol\xe9 \xc3\xa9.txt")).write_bytes(b"coffee")
        store = FTPArtifactRepository(uri)
        (listed,) = store.list_artifacts()
        listed.path.encode()  # no surrogates
        assert listed.path == r"M\xfcll"
        fetched = Path(store.download_artifacts(listed.path, str(tmp_path)))
        assert [(file.name, file.read_bytes()) for file in fetched.iterdir()] == [(r"ol\xe9 é.txt", b"coffee")]
        with pytest.raises(MlflowException, match="does not exist in"):
            store.download_artifacts(f"{listed.path}/missing")
        (tmp_path / "new").write_bytes(b"stored")
        store.log_artifact(str(tmp_path / "new"), listed.path)
        assert (folder / "new").read_bytes() == b"stored"
        store.delete_artifacts(rf"{listed.path}/ol\xe9 é.txt")
        assert [path.name for path in folder.iterdir() if path.name[0] != "."] == ["new"]
        store.delete_artifacts(listed.path)
        assert list((files / "store").iterdir()) == []
