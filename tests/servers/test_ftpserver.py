"""The FTP server as the workshop starts it, `server/ftpserver.py`, and the tracking server on top."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow_ftp.repository import ProxiedArtifactRepository
from workplace import ROOT, answer_of, clean_environment, environment_of, free_passive_range, free_port, running

from workshop.servers.services import SERVICES
from workshop.settings import get_settings

SCRIPT = ROOT / "server" / "ftpserver.py"


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """The settings of servers on free ports, with their state in a temporary folder."""
    return clean_environment() | {
        "WORKSHOP_STATE": str(tmp_path / "state"),
        "WORKSHOP_FTP_PORT": str(free_port()),
        "WORKSHOP_FTP_PASSIVE_FIRST": str(free_passive_range()),
        "WORKSHOP_MLFLOW_PORT": str(free_port()),
    }


@contextmanager
def started(environment: dict[str, str], cwd: Path = ROOT, script: str = str(SCRIPT)) -> Iterator[subprocess.Popen]:
    """Start the server, wait for its ready line, and end it."""
    log = Path(environment["WORKSHOP_STATE"]).with_suffix(".log")
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, script], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    with process:
        try:
            assert f":{environment['WORKSHOP_FTP_PORT']}" in process.stdout.readline(), log.read_text()
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("cwd", "script", "number"),
    [(ROOT, "server/ftpserver.py", signal.SIGTERM), (ROOT / "server", "ftpserver.py", signal.SIGINT)],
)
def test_server_takes_the_settings_and_ends_cleanly(tmp_path, environment, cwd, script, number):
    """Started from either folder, it makes all that it needs in the state folder; signals end it with exit code 0."""
    with started(environment, cwd, script) as process:
        with socket.create_connection(("127.0.0.1", int(environment["WORKSHOP_FTP_PORT"])), timeout=10) as client:
            assert client.recv(100) == b"220 Ready.\r\n"
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
    state = tmp_path / "state"
    assert (state / "credentials.json").stat().st_mode & 0o777 == 0o600
    assert {path.name for path in state.iterdir()} == {"artifacts", "credentials.json", "logs", "tls"}
    assert (state / "tls" / "127.0.0.1.pem").exists()
    assert (state / "logs" / "transfers.log").exists()
    passive = int(environment["WORKSHOP_FTP_PASSIVE_FIRST"])
    assert f"passive ports: {passive}->{passive + 39}" in (tmp_path / "state.log").read_text()


def test_busy_port_is_named_with_its_holder(tmp_path, environment):
    """A second server on the port ends with exit code 1 and one sentence that names port and holder."""
    with started(environment) as first:
        second = subprocess.run(
            [sys.executable, SCRIPT],
            env=environment | {"WORKSHOP_STATE": str(tmp_path / "second")},
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert second.returncode == 1
    assert second.stdout == ""
    assert len(second.stderr.splitlines()) == 1
    assert f"127.0.0.1:{environment['WORKSHOP_FTP_PORT']}" in second.stderr
    if sys.platform == "linux":
        assert f"process {first.pid}" in second.stderr


def test_server_beyond_loopback_demands_tls(monkeypatch):
    """Where others can reach the server, it takes no password in the clear, and MLflow's address is `ftps`."""
    monkeypatch.setenv("WORKSHOP_HOST", "0.0.0.0")
    assert get_settings().artifacts_uri.startswith("ftps://")
    monkeypatch.setenv("WORKSHOP_HOST", "127.0.0.1")
    assert get_settings().artifacts_uri.startswith("ftp://")


@pytest.fixture
def tracking_uri(environment, new_database) -> Iterator[str]:
    """Both servers, started by hand, with TLS between them; the address of the tracking server."""
    environment = environment | {"WORKSHOP_FTP_TLS": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    uri = f"http://127.0.0.1:{environment['WORKSHOP_MLFLOW_PORT']}"
    with environment_of(environment):
        settings = get_settings()
        (service,) = (service for service in SERVICES if service.name == "mlflow")
    settings.state.mkdir()
    shutil.copy(new_database, settings.database)
    with (
        started(environment),
        running(service.command(settings), environment, ROOT, lambda _: answer_of(f"{uri}/health")) as server,
        environment_of(environment),
    ):
        Path(environment["WORKSHOP_STATE"]).with_name("mlflow.log").symlink_to(server.log)
        yield uri


def test_folder_goes_through_the_proxy_as_it_is(tracking_uri, tmp_path):
    """Several files at once, in folders whose names begin with a dot: each lies where it belongs; no password shows."""
    source = tmp_path / "source"
    contents = {
        name: os.urandom(100) for name in ("x", ".hidden/x", "hidden/x", "d..e/e.f/x", "d/.x", *map(str, range(30)))
    }
    for name, content in contents.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    for top in (None, "inner/deep"):
        store = get_artifact_repository(f"mlflow-artifacts:/dots-{bool(top)}", tracking_uri)
        assert isinstance(store, ProxiedArtifactRepository)
        store.log_artifacts(str(source), top)
        (tmp_path / f"fetched-{top is None}").mkdir()
        fetched = Path(store.download_artifacts(top or "", str(tmp_path / f"fetched-{top is None}")))
        assert {name: (fetched / name).read_bytes() for name in contents} == contents
    assert len(re.findall(" STOR .* completed=1", get_settings().transfers_log.read_text())) == 2 * len(contents)
    password = get_settings().credentials()[1].get_secret_value()
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    for text in (*lines, (tmp_path / "mlflow.log").read_text(), (tmp_path / "state.log").read_text()):
        assert password not in text
