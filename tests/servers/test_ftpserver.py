"""The FTP server as a person starts it: `server/ftpserver.py`, on free ports and in a temporary folder."""

from __future__ import annotations

import ftplib
import importlib.util
import io
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "server" / "ftpserver.py"
USER, PASSWORD = "tester", "correct horse battery"


@dataclass
class Started:
    """A running server: its process, port, folder and log."""

    process: subprocess.Popen
    port: int
    passive_ports: range
    artifacts: Path
    log: Path

    def connect(self, user: str = USER, password: str = PASSWORD) -> ftplib.FTP:
        """Return a connection that is logged in."""
        connection = ftplib.FTP()
        connection.connect("127.0.0.1", self.port, timeout=10)
        try:
            connection.login(user, password)
        except ftplib.Error:
            connection.close()
            raise
        return connection


def find_free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def started_server(state: Path, cwd: Path = ROOT, script: str = str(SCRIPT)) -> Iterator[Started]:
    """Start the server, wait for its ready line, and end it."""
    port, passive_first = find_free_port(), random.randrange(20_000, 30_000)
    environment = os.environ | {
        "WORKSHOP_STATE": str(state),
        "WORKSHOP_FTP_PORT": str(port),
        "WORKSHOP_FTP_PASSIVE_FIRST": str(passive_first),
        "WORKSHOP_FTP_USER": USER,
        "WORKSHOP_FTP_PASSWORD": PASSWORD,
    }
    log = state.with_suffix(".log")
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, script], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    with process:
        try:
            assert f"ftp://127.0.0.1:{port}" in process.stdout.readline(), log.read_text()
            yield Started(process, port, range(passive_first, passive_first + 40), state / "artifacts", log)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Started]:
    """One server for the tests that leave it as it was."""
    with started_server(tmp_path_factory.mktemp("ftp") / "state") as started:
        yield started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("cwd", "script"), [(ROOT, "server/ftpserver.py"), (ROOT / "server", "ftpserver.py")])
def test_server_ends_cleanly(tmp_path, cwd, script, number):
    """Started from either folder, it ends on SIGTERM and on Ctrl-C with exit code 0, clients connected or not."""
    with started_server(tmp_path / "state", cwd, script) as started:
        connection = started.connect()
        started.process.send_signal(number)
        assert started.process.wait(timeout=5) == 0
        connection.close()
        assert "Traceback" not in started.log.read_text()


def test_busy_port_is_named_with_its_holder(tmp_path, server):
    """A second server on the port ends with exit code 1 and one sentence that names port and holder."""
    environment = os.environ | {"WORKSHOP_STATE": str(tmp_path), "WORKSHOP_FTP_PORT": str(server.port)}
    second = subprocess.run(
        [sys.executable, SCRIPT], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )
    assert second.returncode == 1
    assert second.stdout == ""
    assert len(second.stderr.splitlines()) == 1
    assert f"127.0.0.1:{server.port}" in second.stderr
    if sys.platform == "linux":
        assert f"process {server.process.pid}" in second.stderr


def test_one_user_gets_in_and_no_other(server):
    """The right user and password are let in; a wrong password, a wrong user and anonymous are not."""
    server.connect().close()
    wrong = [(USER, "wrong"), (USER, ""), ("someone", PASSWORD), ("anonymous", "me@example.org")]

    def refuse(pair):
        with pytest.raises(ftplib.error_perm, match="530"):
            server.connect(*pair)

    with ThreadPoolExecutor(len(wrong)) as pool:
        list(pool.map(refuse, wrong))


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


@pytest.mark.filterwarnings("ignore:The asyn(core|chat) module:DeprecationWarning")  # pyftpdlib's, before Python 3.12
def test_password_is_kept_as_a_hash(tmp_path):
    """The authorizer lets the password in without holding it."""
    specification = importlib.util.spec_from_file_location("ftpserver", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    authorizer = module.HashedAuthorizer(USER, PASSWORD, str(tmp_path))
    assert PASSWORD not in repr(vars(authorizer))
    authorizer.validate_authentication(USER, PASSWORD, None)


def test_password_is_generated_when_none_is_set(tmp_path):
    """Without a password in the settings the server makes one, in a file of mode 0600, before it is ready."""
    hidden = {"WORKSHOP_FTP_USER", "WORKSHOP_FTP_PASSWORD"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"WORKSHOP_STATE": str(tmp_path / "state"), "WORKSHOP_FTP_PORT": str(find_free_port())}
    with subprocess.Popen(
        [sys.executable, SCRIPT], env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        process.stdout.readline()
        process.terminate()
        assert process.wait(timeout=5) == 0
    assert (tmp_path / "state" / "credentials.json").stat().st_mode & 0o777 == 0o600
