"""What other users of the same machine can reach, and what they cannot."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from mlflow_ftp.certificate import ensure_certificate
from workplace import BIN, ROOT, TAKEN, clean_environment, environment_of, free_port, run_program, running, wait_for

from workshop import port_owners
from workshop.exports import exports_of
from workshop.settings import get_settings

RUN = "import mlflow; mlflow.start_run()"


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """An environment with its own state folder and no running servers."""
    ports = {f"WORKSHOP_{name}_PORT": str(free_port()) for name in ("FTP", "MLFLOW")}
    return clean_environment() | ports | {"WORKSHOP_ROOT": str(ROOT), "WORKSHOP_STATE": str(tmp_path / "state")}


def test_nothing_lies_in_a_folder_that_others_may_write_to(servers):
    """`make run` adds nothing to the folder for temporary files but private folders with random names."""
    folder = Path(servers.environment["TMPDIR"])

    def strange() -> list[Path]:
        private = (path.name for path in folder.glob("tmp????????") if path.is_dir() and not path.stat().st_mode & 0o77)
        return sorted({path.name for path in folder.iterdir()} - {*TAKEN, *private})

    wait_for(lambda: not strange())
    assert [path.name for path in folder.glob("*/*.py")] == ["papermill_dask.py"] * len(TAKEN)
    assert (servers.settings.state / "dvc" / "repo").is_dir()  # DVC's own default is a folder of all users


def test_cluster_refuses_who_has_no_key(servers, tmp_path):
    """Scheduler, workers and nannies accept only the key of the state folder, which only its owner can read."""
    key = servers.settings.dask_key
    assert (key.stat().st_mode & 0o777, servers.settings.state.stat().st_mode & 0o077) == (0o600, 0)
    with servers.dask_client() as client:
        workers = client.scheduler_info()["workers"]
        listeners = [client.scheduler.address, *workers, *(worker["nanny"] for worker in workers.values())]
    assert len(listeners) == 5
    for address in map(urlsplit, listeners):
        assert address.scheme == "tls"
        for certificate in (None, ensure_certificate(tmp_path, "other"), key):
            context = ssl.create_default_context(cafile=key)
            context.check_hostname = False
            if certificate:
                context.load_cert_chain(certificate)
            with socket.create_connection((address.hostname, address.port), 60) as connection:
                assert is_accepted(connection, context) == (certificate == key)


def is_accepted(connection: socket.socket, context: ssl.SSLContext) -> bool:
    """Return whether a server keeps a connection after the TLS handshake, or rejects the certificate."""
    try:
        with context.wrap_socket(connection) as stranger:
            return bool(stranger.recv(1))  # a Dask server sends first
    except (ssl.SSLError, ConnectionError):
        return False


def test_stranger_on_an_exported_port_gets_no_runs(environment, tmp_path):
    """MLflow's client sends nothing to a stranger on the port of a stopped server; an address set by hand is used."""
    with environment_of(environment):
        settings = get_settings()
        shell = environment | exports_of(settings) | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    (tmp_path / "health").touch()
    listen = [BIN / "python", "-u", "-m", "http.server", "--bind", "127.0.0.1", settings.mlflow_port]
    with running(listen, environment, tmp_path, lambda said: "Serving" in said) as stranger:
        for command in (["python", "-c", RUN], ["mlflow", "experiments", "search"], ["mlflow-gate", "history"]):
            done = run_program(BIN / command[0], *command[1:], env=shell, cwd=ROOT / "4_pipeline", exit_code=1)
            assert f"The port {settings.mlflow_port} is used by" in done.stderr
        assert set(re.findall(r'"[A-Z]+ (\S+)', stranger.log.read_text())) <= {"/health"}
        del shell["WORKSHOP_EXPORTED"]
        run_program(BIN / "python", "-c", RUN, env=shell, exit_code=None)
        assert "/experiments/" in stranger.log.read_text()


def test_socket_of_the_supervisor_is_in_the_state_folder_also_below_a_long_path(environment, tmp_path):
    """With a path over the limit for sockets, the servers start, answer and stop, and the socket is in the folder."""
    state = tmp_path / ("long" * 40) / "state"
    environment |= {"WORKSHOP_STATE": str(state)}
    try:
        run_program(BIN / "workshop", "up", "ftp", env=environment)
        assert (state / "supervisor.sock").is_socket()
        assert "running" in run_program(BIN / "workshop", "status", env=environment).stdout
    finally:
        done = run_program(BIN / "workshop", "down", env=environment)
    assert "stopped 2 processes" in done.stderr


@pytest.mark.privileged
@pytest.mark.parametrize("network", [(), ("unshare", "--net")], ids=["same network", "another network"])
def test_users_who_can_reach_the_servers_are_named(environment, monkeypatch, network):
    """A user with a process on this machine is named, but not one in another network namespace."""
    monkeypatch.setattr(port_owners, "FIRST_USER_ID", 1)  # an account of every Debian, without processes
    with (
        environment_of(environment),
        subprocess.Popen([*network, "setpriv", "--reuid=sync", "--clear-groups", "sleep", "600"]) as other,
    ):
        wait_for(lambda: psutil.Process(other.pid).name() == "sleep")
        sentence = port_owners.describe_other_users(get_settings()) or ""
        other.kill()
    # Other system accounts may have processes, such as a database.
    assert bool(re.search(r"other users of this machine: [^.]*\bsync\b.*MLflow", sentence)) is (not network)
