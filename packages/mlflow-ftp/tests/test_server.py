"""The FTP server: who gets in, what it shows, and what it does when clients or the disk fail."""

from __future__ import annotations

import ftplib
import inspect
import io
import itertools
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from mlflow_ftp import handlers, names
from mlflow_ftp.errors import ArtifactError
from pyftpdlib.authorizers import AuthenticationFailed
from pyftpdlib.handlers import DTPHandler, FTPHandler
from pyftpdlib.handlers.ftps.ssl import SSLConnectionMixin
from relay import ADDRESS, relaying
from servers import PASSWORD, USER, Server, required, started_server, wait_for
from trees import find_temporaries


def listing(connection: ftplib.FTP, command: str) -> list[str]:
    """Return the lines that a command lists."""
    lines: list[str] = []
    connection.retrlines(command, lines.append)
    return lines


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """One server for the tests that leave it as it was."""
    with started_server(tmp_path_factory.mktemp("ftp") / "ftp") as started:
        yield started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_ends_cleanly(tmp_path, number):
    """It ends on SIGTERM and on Ctrl-C with exit code 0, clients connected or not."""
    with started_server(tmp_path / "ftp") as started:
        connection = started.connect()
        started.process.send_signal(number)
        assert started.process.wait(timeout=5) == 0
        connection.close()
        assert "Traceback" not in started.log.read_text()


def test_busy_port_is_an_error_in_words(tmp_path, server):
    """A second server on the port ends with exit code 1 and one sentence that names port and next step."""
    environment = os.environ | server.environment | {"MLFLOW_FTP_FOLDER": str(tmp_path)}
    second = subprocess.run(
        [sys.executable, "-m", "mlflow_ftp.server"],
        env=environment, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert second.stdout == ""
    assert len(second.stderr.splitlines()) == 1
    assert f"127.0.0.1:{server.port}" in second.stderr
    assert "MLFLOW_FTP_PORT" in second.stderr


def test_options_are_documented_with_their_variables():
    """`--help` names each option, its default, and the variable that sets it."""
    command = [Path(sys.executable).with_name("mlflow-ftp-server"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in ("FOLDER", "HOST", "PORT", "PASSIVE_PORTS", "TLS", "LEAST_FREE", "USERNAME", "PASSWORD", "CREDENTIALS"):
        assert f"MLFLOW_FTP_{name}" in text
    assert "127.0.0.1" in text


def test_one_user_gets_in_and_no_other(server):
    """The right user and password are let in; a wrong password, a wrong user and anonymous are not."""
    for pair in [(USER, "wrong"), (USER, ""), ("someone", PASSWORD), ("anonymous", "me@example.org")]:
        with pytest.raises(ftplib.error_perm, match="530"):
            server.connect(*pair)
        server.connect().close()  # after which wrong passwords are forgiven


def test_active_mode_is_refused(server):
    """PORT and EPRT, with which a client points the server at an address, are not understood."""
    connection = server.connect()
    for command in ("PORT 127,0,0,1,0,22", "EPRT |1|127.0.0.1|22|"):
        with pytest.raises(ftplib.error_perm, match="500"):
            connection.sendcmd(command)
    assert "EPRT" not in connection.sendcmd("FEAT")
    connection.close()


def test_passive_ports_lie_in_the_fixed_range(server):
    """Each data connection is offered on a port of the range in the settings."""
    connection = server.connect()
    offered = {int(re.search(r"\|\|\|(\d+)\|", connection.sendcmd("EPSV"))[1]) for _ in range(20)}
    assert offered <= set(server.passive_ports)
    connection.close()


def test_client_stays_in_its_folder(server):
    """No path leads out of the served folder."""
    outside = server.artifacts.parent / "outside.txt"
    outside.write_text("secret")
    connection = server.connect()
    connection.cwd("..")
    assert connection.pwd() == "/"
    for path in ("../outside.txt", "/../outside.txt", str(outside)):
        with pytest.raises(ftplib.error_perm, match="550"):
            connection.retrbinary(f"RETR {path}", bytes)
    connection.close()


def test_user_has_full_rights_and_files_are_private(server):
    """The user makes, renames and deletes; what is stored can be read by its owner alone."""
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


def test_banner_names_no_software(server):
    """The greeting tells nothing about program or version."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        assert connection.recv(200) == b"220 Ready.\r\n"


def test_a_hundred_connections_from_one_address_are_served(server):
    """MLflow's proxy, whose connections all come from loopback, does not run into the limit."""
    with ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(100)]
        assert all(connection.pwd() == "/" for connection in connections)


def test_password_is_neither_logged_nor_shown(server):
    """The password is neither in the log nor in the command line."""
    server.connect().close()
    log = server.log.read_text()
    assert "logged in" in log
    assert PASSWORD not in log
    assert PASSWORD not in " ".join(psutil.Process(server.process.pid).cmdline())


def test_password_is_generated_when_none_is_set(tmp_path, monkeypatch):
    """Without a password the server makes one, in a netrc file of mode 0600 from which a client reads it."""
    with started_server(tmp_path / "ftp", username="", password="") as server:
        credentials = tmp_path / "ftp" / "credentials"
        assert credentials.stat().st_mode & 0o777 == 0o600
        monkeypatch.setenv("MLFLOW_FTP_CREDENTIALS", str(credentials))
        server.repository().log_artifact(str(credentials))
        assert [info.path for info in server.repository(host="localhost").list_artifacts()] == ["credentials"]
        first = credentials.read_text()
        server.kill()
        server.start()
        assert credentials.read_text() == first


def test_private_names_of_pyftpdlib_exist():
    """What `handlers.py` uses of pyftpdlib beyond its documentation is still there."""
    private = {
        DTPHandler: ("_resp", "transfer_finished", "receive", "file_obj", "cmd_channel"),
        SSLConnectionMixin: ("_error",),
        FTPHandler: ("_restart_position",),
    }
    for kind, needed in private.items():
        code = inspect.getsource(kind)
        lost = [name for name in needed if f"self.{name}" not in code]
        assert not lost, f"pyftpdlib's {kind.__name__} has lost {lost}: mlflow_ftp.handlers needs another way"
    assert "raise _FileReadWriteError(err) from err" in inspect.getsource(DTPHandler.handle_read)


# -- against guessing, crowding and a full disk -----------------------------------------------------------------
def guess(port: int, source: str, password: str = "wrong") -> str:
    """Log in from another address of loopback; return the server's last answer."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0))
    with connection, connection.makefile("rwb") as stream:
        for command in (f"USER {USER}", f"PASS {password}"):
            stream.readline()
            stream.write(f"{command}\r\n".encode())
            stream.flush()
        return stream.readline().decode()


def test_guessing_is_answered_more_and_more_slowly(tmp_path):
    """Fifty connections of one address guess for ten seconds: at most ten are answered, and a right login at once."""
    with started_server(tmp_path / "state") as server:
        answered, over = [], threading.Event()

        def guess_on() -> None:
            while not over.is_set():
                with suppress(OSError):
                    answered.append(guess(server.port, "127.0.0.9"))

        threads = [threading.Thread(target=guess_on, daemon=True) for _ in range(50)]
        for thread in threads:
            thread.start()
        time.sleep(5)
        began = time.monotonic()
        server.connect().close()
        assert time.monotonic() - began < 1
        time.sleep(5)
        over.set()
        refused = [answer for answer in answered if answer.startswith("530")]
        assert 1 <= len(refused) <= 10
        assert PASSWORD not in "".join(answered)


def test_other_machines_wait_for_any_password(monkeypatch, tmp_path):
    """From an address beyond loopback no password is taken until the last wrong one was answered."""
    now = [1000.0]
    monkeypatch.setattr(handlers.time, "monotonic", lambda: now[0])
    authorizer = handlers.OneUser(USER, PASSWORD, str(tmp_path))

    def delay(address: str, password: str = "wrong") -> float:
        guest = SimpleNamespace(remote_ip=address, auth_failed_timeout=0.0)
        with suppress(AuthenticationFailed):
            authorizer.validate_authentication(USER, password, guest)
        return guest.auth_failed_timeout

    assert [delay("192.0.2.1") for _ in range(3)] == [1, 3, 7]
    assert delay("192.0.2.1", PASSWORD) == 7
    assert delay("192.0.2.2", PASSWORD) == 0
    delay("127.0.0.1")
    assert delay("127.0.0.1", PASSWORD) == 0
    now[0] += 7
    assert delay("192.0.2.1", PASSWORD) == 0
    assert delay("192.0.2.1") == 1
    now[0] += handlers.FORGOTTEN_SECONDS + 40
    delay("192.0.2.2")
    assert delay("192.0.2.1") == 1


def test_wrong_password_of_a_closed_connection_disturbs_nobody(tmp_path):
    """A connection is closed before its wrong password is answered: the one that took its place goes on."""
    with started_server(tmp_path / "ftp") as server, ExitStack() as stack:
        for number in range(handlers.MOST_GUESTS + 2):
            address = ("127.0.0.1", server.port)
            guest = stack.enter_context(socket.create_connection(address, source_address=("127.0.0.9", 0)))
            assert guest.recv(100) == b"220 Ready.\r\n"
            if number < 2:  # which are answered after one second and three, and closed for the last two guests
                guest.sendall(f"USER {USER}\r\nPASS wrong\r\n".encode())
                guest.recv(100)
        user = stack.enter_context(server.connect())
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            assert user.pwd() == "/"
            time.sleep(0.1)


def test_six_hundred_idle_connections_keep_nobody_out(server):
    """Of those that do not log in only the latest few are kept: a real login takes less than a second."""
    with ExitStack() as stack:
        for _ in range(600):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
        began = time.monotonic()
        connection = server.connect()
        assert time.monotonic() - began < 1
        assert connection.pwd() == "/"
        connection.close()


@pytest.mark.soak
def test_connection_that_does_not_log_in_is_closed(tmp_path):
    """After twenty seconds without a word; one that has logged in may think for longer."""
    with started_server(tmp_path / "state") as server, server.connect() as logged_in:
        with socket.create_connection(("127.0.0.1", server.port), timeout=25) as idle:
            began = time.monotonic()
            text = b""
            while block := idle.recv(1000):
                text += block
            assert b"421" in text
            assert 15 < time.monotonic() - began < 23
        assert logged_in.pwd() == "/"


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """Give a folder a file system of its own."""
    required("root, for a file system of its own,", os.geteuid() == 0 and sys.platform == "linux")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("least_free", ["1", "20000000"])
@pytest.mark.parametrize("scheme", ["ftp", "ftps"])
def test_full_disk_is_told_at_once(tmp_path, monkeypatch, scheme, least_free):
    """A disk that fills amid an upload is answered 426 with the reason; the store says so, and leaves nothing."""
    large = tmp_path / "large"
    large.write_bytes(os.urandom(60_000_000))
    state = tmp_path / "state"
    monkeypatch.setenv("MLFLOW_FTP_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_FTP_PASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_FTP_SERVER_CERT_PATH", str(state / "127.0.0.1.pem"))
    with small_disk(state, 48), started_server(state, least_free=least_free) as server:
        store = server.repository(scheme=scheme)
        began = time.monotonic()
        with pytest.raises(ArtifactError, match=r"no room left[^\0]*426 No space left on device"):
            store.log_artifact(str(large))
        assert time.monotonic() - began < 5
        assert store.list_artifacts() == []
        assert [path for path in server.artifacts.rglob("*") if path.is_file()] == []


def test_disk_is_never_filled(tmp_path):
    """A file that finds no room is refused with 552; one that takes the last of it is cut off, and is gone."""
    state = tmp_path / "state"
    with small_disk(state, 64), started_server(state, least_free="20000000") as server:
        connection = server.connect()
        connection.storbinary("STOR /small", io.BytesIO(bytes(1_000_000)))
        with pytest.raises((ftplib.error_temp, ConnectionError)):
            connection.storbinary("STOR /large", io.BytesIO(bytes(60_000_000)))
        connection.close()
        with server.connect() as another:
            assert another.nlst("/") == ["small"]
            another.storbinary("STOR /medium", io.BytesIO(bytes(35_000_000)))
            another.storbinary("STOR /medium2", io.BytesIO(bytes(13_000_000)))
            with pytest.raises(ftplib.error_perm, match="552"):
                another.storbinary("STOR /more", io.BytesIO(b"1"))
            another.delete("/medium")
            another.storbinary("STOR /more", io.BytesIO(b"1"))


# -- whole or not at all, for clients that are not ours ----------------------------------------------------------
def curl(server: Server, *options: str) -> list[str]:
    """Return a curl command that logs in at the top of the server, with `options` before the address's last part."""
    *options, path = options
    address = f"ftp://127.0.0.1:{server.port}/{path}"
    return ["curl", "-sS", "-k", "-u", f"{USER}:{PASSWORD}", *options, address]


def lftp(server: Server, commands: str) -> list[str]:
    """Return an lftp command that logs in and does `commands`."""
    settings = "set net:max-retries 1; set ssl:verify-certificate no; set ftp:ssl-protect-data yes"
    login = f"open -u {USER},'{PASSWORD}' ftp://127.0.0.1:{server.port}"
    return ["lftp", "-c", f"{settings}; {login}; {commands}"]


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A local file that takes a while to send."""
    path = tmp_path_factory.mktemp("large") / "large"
    path.write_bytes(os.urandom(20_000_000))
    return path


@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("client", ["curl", "lftp"])
def test_killed_upload_leaves_what_was_there(server, large, client, is_secure):
    """curl and lftp, killed or interrupted amid an upload, leave the old file whole, or none; no part is listed."""
    required(client, shutil.which(client))
    (server.artifacts / "old").write_bytes(b"old and good")
    limit = "2000000"  # bytes a second
    commands = {
        "curl": lambda name: curl(server, "--limit-rate", limit, "-T", str(large), *["--ssl-reqd"] * is_secure, name),
        "lftp": lambda name: lftp(
            server,
            f"set ftp:ssl-{'force' if is_secure else 'allow'} {str(is_secure).lower()}; "
            f"set net:limit-rate {limit}; put {large} -o {name}",
        ),
    }
    for name, number in itertools.product(("old", "new"), (signal.SIGKILL, signal.SIGINT)):
        with subprocess.Popen(commands[client](name), stderr=subprocess.DEVNULL) as process:
            wait_for(lambda: any(path.stat().st_size > 1_000_000 for path in find_temporaries(server.artifacts)))
            with server.connect() as another:
                assert another.nlst() == ["old"]
                assert [line.split()[-1] for line in listing(another, "LIST -a")] == ["old"]
                assert [name for name, _ in another.mlsd()] == ["old"]
            process.send_signal(number)
        wait_for(lambda: not find_temporaries(server.artifacts))
        assert {path.name: path.read_bytes() for path in server.artifacts.iterdir()} == {"old": b"old and good"}
    (server.artifacts / "old").unlink()


@pytest.mark.parametrize("client", ["curl", "lftp"])
def test_upload_whose_connection_is_cut_is_not_kept(server, large, client):
    """A data connection that breaks is no end of a file: curl is refused, lftp sends all of it again."""
    required(client, shutil.which(client))
    with relaying([server.port, *server.passive_ports]) as relay:
        relay.cut_after = 10_000_000
        command = {
            "curl": curl(server, "-T", str(large), "cut"),
            "lftp": lftp(
                server,
                f"set ftp:ssl-allow no; set net:max-retries 3; set net:reconnect-interval-base 1; put {large} -o cut",
            ),
        }[client]
        done = subprocess.run([word.replace("127.0.0.1", ADDRESS) for word in command], check=False, timeout=60)
        assert relay.cuts == 1
    stored = server.artifacts / "cut"
    assert (done.returncode == 0) == stored.exists() == (client == "lftp")
    if stored.exists():
        assert stored.read_bytes() == large.read_bytes()
        stored.unlink()
    wait_for(lambda: not find_temporaries(server.artifacts))


def test_appending_is_refused_and_lftp_starts_again(server, large):
    """What would change a file in place (APPE, REST, STOU) is refused; lftp's `put -c` then sends the file whole."""
    part = large.read_bytes()[:1_000_000]
    stored = server.artifacts / "part"
    stored.write_bytes(part)
    with server.connect() as connection:
        for command, rest in (("APPE part", None), ("STOR part", 10)):
            with pytest.raises(ftplib.error_perm, match="550 A file is stored whole"):
                connection.storbinary(command, io.BytesIO(b"more"), rest=rest)
        with pytest.raises(ftplib.error_perm, match="500"):
            connection.storbinary("STOU", io.BytesIO(b"more"))
    required("curl", shutil.which("curl"))
    assert subprocess.run(curl(server, "-C", "-", "-T", str(large), "part"), check=False).returncode != 0
    assert stored.read_bytes() == part
    required("lftp", shutil.which("lftp"))
    subprocess.run(lftp(server, f"set ftp:ssl-allow no; put -c {large} -o part"), check=True)
    assert stored.read_bytes() == large.read_bytes()
    stored.unlink()


def test_folder_with_a_part_of_an_upload_is_empty(server):
    """A folder in which only a part of an upload lies looks empty, and can be removed when the part does not grow."""
    folder = server.artifacts / "folder"
    folder.mkdir()
    part = folder / names.new_temporary("left")
    part.touch()
    with server.connect() as connection:
        assert connection.nlst("folder") == []
        with pytest.raises(ftplib.error_perm, match="not empty"):
            connection.rmd("folder")
        os.utime(part, (0, 0))
        connection.rmd("folder")
    assert not folder.exists()


def test_transfers_are_logged(server):
    """Each file that came or went has a line in the transfer log: who, what, how much, whether whole."""
    connection = server.connect()
    connection.storbinary("STOR /logged file", io.BytesIO(b"12345"))
    connection.retrbinary("RETR /logged file", bytes)
    connection.delete("/logged file")
    connection.close()
    log = server.transfers
    assert re.search(r"127\.0\.0\.1 STOR /logged file 5 bytes [\d.]+ s whole", log)
    assert re.search(r"127\.0\.0\.1 RETR /logged file 5 bytes [\d.]+ s whole", log)


def test_server_that_requires_tls_takes_no_password_without(tmp_path):
    """Plain logins are refused; over TLS, with the certificate checked, the user gets in."""
    with started_server(tmp_path / "state", tls="true") as server:
        with pytest.raises(ftplib.error_perm, match="TLS required"):
            server.connect()
        context = ssl.create_default_context(cafile=tmp_path / "state" / "127.0.0.1.pem")
        with ftplib.FTP_TLS(context=context) as connection:
            connection.connect("127.0.0.1", server.port, timeout=10)
            connection.login(USER, PASSWORD)
            connection.prot_p()
            connection.storbinary("STOR /file", io.BytesIO(b"content"))
            assert connection.nlst("/") == ["file"]
    for file in (tmp_path / "state").glob("*.pem"):
        assert file.stat().st_mode & 0o777 == 0o600
