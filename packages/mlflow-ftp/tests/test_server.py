"""The FTP server: logins, rights, and behaviour when clients or the disk fail."""

from __future__ import annotations

import contextlib
import ftplib
import io
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow_ftp.artifact_errors import ArtifactError
from programs import required, small_disk, wait_for
from servers import PASSWORD, USER, Server, started_server


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """One server for the tests that leave it unchanged."""
    with started_server(tmp_path_factory.mktemp("ftp") / "ftp") as started:
        yield started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_ends_cleanly(tmp_path, number):
    """The server exits with code 0 on SIGTERM and Ctrl-C, with clients connected or not."""
    with started_server(tmp_path / "ftp") as started:
        connection = started.connect()
        started.process.send_signal(number)
        assert started.process.wait(timeout=5) == 0
        connection.close()
        assert "Traceback" not in started.log.read_text()


def test_busy_port_is_an_error(tmp_path, server):
    """A second server on the port exits with code 1; the message names the port and the next step."""
    environment = os.environ | server.environment | {"MLFLOW_FTP_FOLDER": str(tmp_path)}
    second = subprocess.run(
        [sys.executable, "-m", "mlflow_ftp.server"],
        env=environment, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert (second.returncode, second.stdout) == (1, "")
    assert len(second.stderr.splitlines()) == 1
    assert all(words in second.stderr for words in (f"127.0.0.1:{server.port}", "MLFLOW_FTP_PORT"))


def test_options_are_documented_with_their_variables():
    """`--help` names each option, its default, and the variable that sets it."""
    program = Path(sys.executable).with_name("mlflow-ftp-server")
    text = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    for name in ("FOLDER", "HOST", "PORT", "PASSIVE_PORTS", "USERNAME", "PASSWORD"):
        assert f"MLFLOW_FTP_{name}" in text
    assert "127.0.0.1" in text
    wrong = subprocess.run([program, "--passive-ports", "2", "1"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr.splitlines()[-1].count("2 1")) == (2, 1)


def test_password_guessing_is_slowed_down(tmp_path):
    """On 100 connections less than one guess per second is answered; a correct login still succeeds meanwhile."""
    with started_server(tmp_path / "ftp") as guessed, ExitStack() as stack:
        start = time.monotonic()
        guesses = [stack.enter_context(socket.create_connection(("127.0.0.1", guessed.port))) for _ in range(100)]
        for guess in guesses:
            guess.sendall(f"USER {USER}\r\nPASS wrong\r\n".encode())
        answered = []
        while len(answered) < 3:
            readable = select.select(guesses, [], [], 20)[0]
            answered += [time.monotonic() - start for guess in readable if b"530" in guess.recv(1000)]
            guessed.connect().close()
        assert answered[1] > 3
        assert answered[2] > 7


def test_link_out_of_the_folder_can_be_deleted(server):
    """DELE removes the link, not its target; neither a link nor a path leads out of the folder."""
    outside = server.artifacts.parent / "elsewhere"
    outside.mkdir()
    (outside / "file").write_text("kept")
    with server.connect() as connection:
        for name, target in {"file": outside / "file", "folder": outside, "nowhere": outside / "gone"}.items():
            (server.artifacts / name).symlink_to(target)
            for command in ("RETR", "CWD", "SIZE", "RNFR"):
                with pytest.raises(ftplib.error_perm, match="550"):
                    connection.voidcmd(f"{command} {name}")
        for path in ("folder/file", "/", "../elsewhere/file", str(outside / "file")):
            for command in ("DELE", "RETR"):
                with pytest.raises(ftplib.error_perm, match="550"):
                    connection.voidcmd(f"{command} {path}")
        for name in ("file", "folder", "nowhere"):
            connection.delete(name)
            assert not (server.artifacts / name).is_symlink()
    assert (outside / "file").read_text() == "kept"


def test_user_has_full_rights_and_files_are_private(server):
    """The user can create, rename and delete; stored files can be read only by their owner."""
    with pytest.raises(ftplib.error_perm, match="530"):
        server.connect("anonymous", PASSWORD)
    connection = server.connect()
    connection.mkd("/folder")
    connection.storbinary("STOR /folder/one", io.BytesIO(b"1"))
    connection.rename("/folder/one", "/folder/two")
    stored = server.artifacts / "folder" / "two"
    assert stored.read_bytes() == b"1"
    assert [path.stat().st_mode & 0o777 for path in (server.artifacts, stored.parent, stored)] == [0o700, 0o700, 0o600]
    connection.delete("/folder/two")
    connection.rmd("/folder")
    connection.close()


def test_aborted_transfer_does_not_end_another(server):
    """An event of a closed data connection is not taken for one of the next, which reuses its file descriptor."""
    (server.artifacts / "whole").write_bytes(b"whole")
    with contextlib.closing(server.connect()) as one, contextlib.closing(server.connect()) as other:
        addresses = one.makepasv(), other.makepasv()
        server.process.send_signal(signal.SIGSTOP)
        one.putcmd("ABOR")
        with socket.create_connection(addresses[1], timeout=5) as data, socket.create_connection(addresses[0]):
            server.process.send_signal(signal.SIGCONT)
            one.voidresp()
            other.putcmd("RETR whole")
            assert data.recv(10) == b"whole"
    (server.artifacts / "whole").unlink()


@pytest.mark.privileged
@pytest.mark.parametrize("size", [60_000_000, 1000], ids=["amid", "at the end"])
@pytest.mark.parametrize("scheme", ["ftp", "ftps"])
def test_full_disk_is_reported_at_once(tmp_path, monkeypatch, scheme, size):
    """If the disk fills up during an upload or its last bytes, the reply is 426 and nothing of the artifact stays."""
    large = tmp_path / "large"
    large.write_bytes(os.urandom(size))
    state = tmp_path / "state"
    monkeypatch.setenv("MLFLOW_FTP_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_FTP_PASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_FTP_SERVER_CERT_PATH", str(state / "127.0.0.1.pem"))
    with small_disk(state, "48m"), started_server(state) as server:
        if size < 48_000_000:  # fits into a buffer, which is written at the end of the upload
            with contextlib.suppress(OSError), (state / "ballast").open("wb", buffering=0) as ballast:
                while ballast.write(bytes(4096)):
                    pass
        store = server.repository(scheme=scheme)
        start = time.monotonic()
        with pytest.raises(ArtifactError, match=r"no space left[^\0]*426 No space left on device"):
            store.log_artifact(str(large))
        assert time.monotonic() - start < 30
        assert store.list_artifacts() == []
        assert [path for path in server.artifacts.rglob("*") if path.is_file()] == []


def test_server_that_requires_tls_rejects_plain_logins(tmp_path):
    """Plain logins are rejected; over TLS with a verified certificate the login succeeds."""
    with started_server(tmp_path / "state", host="127.0.0.2") as server:
        with pytest.raises(ftplib.error_perm, match="TLS required"):
            server.connect()
        context = ssl.create_default_context(cafile=tmp_path / "state" / "127.0.0.2.pem")
        with ftplib.FTP_TLS(context=context) as connection:
            connection.connect("127.0.0.2", server.port, timeout=10)
            connection.login(USER, PASSWORD)
            connection.prot_p()
            connection.storbinary("STOR /file", io.BytesIO(b"content"))
            assert connection.nlst("/") == ["file"]


# -- complete or not at all, for other clients than the store ------------------------------------------------------
def curl(server: Server, *options: str) -> list[str]:
    """Return a curl command that logs in; `options` come before the last part of the URL."""
    *options, path = options
    address = f"ftp://127.0.0.1:{server.port}/{path}"
    return ["curl", "-sS", "-k", "-u", f"{USER}:{PASSWORD}", *options, address]


def lftp(server: Server, commands: str) -> list[str]:
    """Return an lftp command that logs in and runs `commands`."""
    settings = "set net:max-retries 1; set ssl:verify-certificate no; set ftp:ssl-protect-data yes"
    login = f"open -u {USER},'{PASSWORD}' ftp://127.0.0.1:{server.port}"
    return ["lftp", "-c", f"{settings}; {login}; {commands}"]


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A local file that takes a while to send."""
    path = tmp_path_factory.mktemp("large") / "large"
    path.write_bytes(os.urandom(20_000_000))
    return path


@pytest.mark.parametrize("options", [[], ["--ssl-reqd"]], ids=["plain", "tls"])
def test_killed_upload_leaves_the_old_file(server, large, options):
    """A client that is killed during an upload leaves the old file, or none."""
    required("curl", shutil.which("curl"))
    (server.artifacts / "old").write_bytes(b"old and good")
    for name in ("old", "new"):
        command = curl(server, "--limit-rate", "2000000", "-T", str(large), *options, name)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            wait_for(lambda: any(part.stat().st_size > 1_000_000 for part in server.artifacts.glob(".~*.part")))
            process.kill()
        wait_for(lambda: not list(server.artifacts.glob(".~*.part")))
        assert {path.name: path.read_bytes() for path in server.artifacts.iterdir()} == {"old": b"old and good"}
    (server.artifacts / "old").unlink()


@pytest.mark.parametrize("client", ["curl", "lftp"])
def test_complete_upload_replaces_the_old_file(server, large, client):
    """Appending is rejected; lftp's `put -c` and a plain upload send the complete file."""
    required(client, shutil.which(client))
    stored = server.artifacts / "part"
    stored.write_bytes(large.read_bytes()[:1_000_000])
    with (
        server.connect() as connection,
        pytest.raises(ftplib.error_perm, match="550 Partial uploads are not supported"),
    ):
        connection.storbinary("APPE part", io.BytesIO(b"more"))
    command = {"curl": curl(server, "-T", str(large), "part"), "lftp": lftp(server, f"put -c {large} -o part")}[client]
    subprocess.run(command, check=True, timeout=60)
    assert stored.read_bytes() == large.read_bytes()
    stored.unlink()


# Simulates a disk that takes seconds to write.
SLOW_FSYNC = """
import os, time
from mlflow_ftp.server import main
fsync = os.fsync
os.fsync = lambda number: (time.sleep(3), fsync(number))
main()
"""


def test_slow_disk_holds_up_only_the_client_that_uploads(tmp_path):
    """While an upload is written to disk, other clients are served; the reply comes once the file is complete."""
    with started_server(tmp_path / "files") as server:
        server.kill()
        server.start("-c", SLOW_FSYNC)
        with server.connect() as writer, server.connect() as reader, ThreadPoolExecutor() as pool:
            start = time.monotonic()
            upload = pool.submit(writer.storbinary, "STOR file", io.BytesIO(b"whole"))
            wait_for(lambda: list(server.artifacts.glob(".~*.part")))
            replies = 0
            while not upload.done():
                assert reader.nlst() is not None
                replies += 1
                assert not (server.artifacts / "file").exists() or time.monotonic() - start >= 3
                time.sleep(0.05)
            assert upload.result().startswith("226")
            assert replies > 2
            assert time.monotonic() - start >= 3
            assert (server.artifacts / "file").read_bytes() == b"whole"
            client = server.connect()
            with contextlib.suppress(OSError), client.transfercmd("STOR gone") as data:
                data.sendall(b"part")
            client.close()
            assert reader.nlst() is not None
        wait_for(lambda: not list(server.artifacts.glob(".~*.part")))
        assert not (server.artifacts / "gone").exists()
