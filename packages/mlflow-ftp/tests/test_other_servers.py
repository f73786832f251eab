"""The artifact store on FTP servers that are not ours: vsftpd and ProFTPD, as Debian has them, and bare pyftpdlib."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow_ftp.repository import FTPArtifactRepository
from servers import free_port, required
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
    """Return how to start vsftpd, whose user is the anonymous one: others would have to be the machine's."""
    settings = folder / "vsftpd.conf"
    (folder / "empty").mkdir()
    settings.write_text(VSFTPD_SETTINGS.format(port=port, files=files, folder=folder).lstrip())
    return [VSFTPD, str(settings)]


def proftpd_command(folder: Path, files: Path, port: int) -> list[str]:
    """Return how to start ProFTPD, with a user of its own."""
    settings, users = folder / "proftpd.conf", folder / "users"
    settings.write_text(PROFTPD_SETTINGS.format(port=port, files=files, folder=folder))
    hashed = subprocess.run(["openssl", "passwd", "-6", PASSWORD], capture_output=True, text=True, check=True).stdout
    users.write_text(f"{USER}:{hashed.strip()}:65534:65534::{files}:/bin/false\n")
    users.chmod(0o600)
    return [PROFTPD, "--nodaemon", "--config", str(settings)]


def pyftpdlib_command(folder: Path, files: Path, port: int) -> list[str]:
    """Return how to start pyftpdlib as it is."""
    options = ["-i", "127.0.0.1", "-p", str(port), "-d", str(files), "-u", USER, "-P", PASSWORD, "-w"]
    return [sys.executable, "-W", "ignore", "-m", "pyftpdlib", *options]


SIMPLE = {
    "without MLSD": ["MLSD", "MLST"],
    "whose options are names": ["MLSD", "options"],
    "whose options give nothing": ["MLSD", "options", "no-such"],
    "with whole paths": ["MLSD", "LIST", "options", "paths"],
    "with lists of its own": ["MLSD", "options", "odd"],
    "on Windows": ["MLSD", "windows"],
    "without SIZE": ["SIZE"],
    "without MLSD and SIZE": ["MLSD", "SIZE", "options", "files"],
    "without SIZE and clear lists": ["MLSD", "SIZE", "odd"],
}


def simple_command(folder: Path, files: Path, port: int, lacks: list[str]) -> list[str]:
    """Return how to start a server that lacks something."""
    program = Path(__file__).with_name("simple_server.py")
    return [sys.executable, "-W", "ignore", str(program), str(port), str(files), USER, PASSWORD, *lacks]


PRIVILEGED = [pytest.param(name, marks=pytest.mark.privileged) for name in ("vsftpd", "proftpd")]


@pytest.fixture(params=[*PRIVILEGED, "pyftpdlib", *SIMPLE])
def other(request, monkeypatch) -> Iterator[tuple[Path, str]]:
    """The folder and the address of a server that runs."""
    required(request.param, {"vsftpd": VSFTPD, "proftpd": PROFTPD}.get(request.param, True))
    with running(request.param, SIMPLE.get(request.param, []), monkeypatch) as place:
        yield place


@contextlib.contextmanager
def running(name: str, lacks: list[str], monkeypatch) -> Iterator[tuple[Path, str]]:
    """Run a server; yield its folder and its address."""
    # Not below pytest's own folders, which nobody else may enter.
    folder = Path("/tmp") / f"other-ftp-{os.getpid()}-{name.replace(' ', '-')}"
    files, port = folder / "files", free_port()
    (files / "store").mkdir(parents=True)
    is_vsftpd = name == "vsftpd"
    if name in ("vsftpd", "proftpd"):
        shutil.chown(files / "store", "daemon" if is_vsftpd else "nobody")  # not above it: vsftpd does not allow that
    user = "anonymous" if is_vsftpd else USER
    monkeypatch.setenv("MLFLOW_FTP_USERNAME", user)
    monkeypatch.setenv("MLFLOW_FTP_PASSWORD", PASSWORD)
    commands = {"vsftpd": vsftpd_command, "proftpd": proftpd_command, "pyftpdlib": pyftpdlib_command}
    simple = functools.partial(simple_command, lacks=lacks)
    command = commands.get(name, simple)(folder, files, port)
    with (folder / "out").open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, (folder / "out").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield files, f"ftp://127.0.0.1:{port}/store"
        finally:
            process.terminate()
    shutil.rmtree(folder)


def test_other_server_keeps_a_tree(other, tmp_path, request):
    """Odd names and empty files are stored, listed, fetched and deleted as on our own server."""
    files, uri = other
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    # ProFTPD takes the signs of a pattern for one, whatever is asked.
    for name in set(ODD_NAMES) - {"*?"}:
        (source / "deep" / name).mkdir(parents=True)
        (source / "deep" / name / name).write_text(name)
    (source / "empty file").touch()
    (source / "large").write_bytes(os.urandom(3_000_000))
    store = FTPArtifactRepository(uri)
    store.log_artifacts(str(source), "tree")
    has_sizes = {"MLSD", "SIZE"} - set(SIMPLE.get(request.node.callspec.params["other"], []))
    assert {info.path: info.file_size for info in store.list_artifacts("tree") if not info.is_dir} == {
        "tree/empty file": 0 if has_sizes else None,
        "tree/large": 3_000_000 if has_sizes else None,
    }
    assert {Path(info.path).name for info in store.list_artifacts("tree/deep")} == set(ODD_NAMES) - {"*?"}
    assert describe(Path(store.download_artifacts("tree", str(target)))) == describe(source)
    store.delete_artifacts("tree")
    assert store.list_artifacts() == []
    assert list((files / "store").iterdir()) == []


def test_other_server_keeps_what_is_whole(other, tmp_path):
    """Overwriting leaves the new whole object and its mark; a byte that changes on the server's disk is noticed."""
    files, uri = other
    store, model = FTPArtifactRepository(uri), tmp_path / "model"
    for content in (b"old", b"new and longer"):
        model.write_bytes(content)
        store.log_artifact(str(model))
        assert Path(store.download_artifacts("model")).read_bytes() == content
    assert find_temporaries(files) == []
    assert len(find_marks(files)) == 2
    (files / "store" / "model").write_bytes(b"now and longer")
    with pytest.raises(MlflowException, match="is not what was stored"):
        store.download_artifacts("model")
    for _ in range(2):
        store.delete_artifacts("model")
    assert find_marks(files) == []


def test_server_that_hides_marks_has_no_silent_damage(monkeypatch, tmp_path):
    """Where names with a dot are not listed, artifacts come back; damage, and marks that keep a folder, are errors."""
    model = tmp_path / "model"
    model.write_bytes(b"weights")
    for lacks in (["hidden"], ["MLSD", "hidden", "options"]):
        with running("hiding", lacks, monkeypatch) as (files, uri):
            store = FTPArtifactRepository(uri)
            store.log_artifact(str(model), "run")
            assert Path(store.download_artifacts("run/model")).read_bytes() == b"weights"
            (files / "store" / "run" / "model").write_bytes(b"Weights")
            with pytest.raises(MlflowException, match="does not list hidden names"):
                store.download_artifacts("run/model")
            with pytest.raises(MlflowException, match="refused"):
                store.delete_artifacts("run")


def test_server_without_lists_is_an_error_in_words(monkeypatch, tmp_path):
    """A folder whose lists are refused is not taken for an empty one: neither by a list nor when it is deleted."""
    model = tmp_path / "model"
    model.write_bytes(b"weights")
    with running("mute", ["MLSD", "names"], monkeypatch) as (_, uri):
        store = FTPArtifactRepository(uri)
        store.log_artifact(str(model), "run")
        assert Path(store.download_artifacts("run/model")).read_bytes() == b"weights"
        for work in (store.list_artifacts, store.delete_artifacts):
            with pytest.raises(MlflowException, match=r"lists of the folder .* cannot be read"):
                work("run")


def test_artifact_of_another_program_is_fetched_from_a_simple_server(other, caplog):
    """A file that another program has put there is fetched with a warning; a missing folder has an empty list."""
    files, uri = other
    (files / "store" / "theirs").write_bytes(b"by hand")
    store = FTPArtifactRepository(uri)
    assert [(info.path, info.is_dir) for info in store.list_artifacts()] == [("theirs", False)]
    assert Path(store.download_artifacts("theirs")).read_bytes() == b"by hand"
    assert "stored by another program" in caplog.text
    assert store.list_artifacts("nothing") == []
    assert [path.name for path in (files / "store").iterdir()] == ["theirs"]
