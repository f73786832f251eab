"""The FTP server as the workshop starts it, `server/ftpserver.py`, and the tracking server on top."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from workplace import ROOT, clean_environment, environment_of, free_passive_range, free_port

from workshop.exports import exports_of
from workshop.settings import get_settings

SCRIPT = ROOT / "server" / "ftpserver.py"


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Settings with free ports and a temporary state folder."""
    return clean_environment() | {
        "WORKSHOP_STATE": str(tmp_path / "state"),
        "WORKSHOP_FTP_PORT": str(free_port()),
        "WORKSHOP_FTP_PASSIVE_FIRST": str(free_passive_range()),
        "WORKSHOP_MLFLOW_PORT": str(free_port()),
    }


@contextmanager
def started(environment: dict[str, str], cwd: Path = ROOT, script: str = str(SCRIPT)) -> Iterator[subprocess.Popen]:
    """Start the server, wait for its ready line, and stop it after the block."""
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
    """Started from either folder, it creates all its files in the state folder; signals end it with exit code 0."""
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
    assert f"Passive ports: {passive} to {passive + 39}." in (tmp_path / "state.log").read_text()


def test_artifact_is_sent_by_tls_if_the_server_requires_it(environment, tmp_path):
    """With WORKSHOP_FTP_TLS, the settings give clients the certificate and an `ftps` address, as beyond loopback."""
    with environment_of(clean_environment() | {"WORKSHOP_HOST": "0.0.0.0"}):
        assert get_settings().artifacts_uri.startswith("ftps://")
    environment = environment | {"WORKSHOP_FTP_TLS": "true"}
    with started(environment), environment_of(environment):
        settings = get_settings()
        os.environ |= exports_of(settings) | settings.ftp_environment()
        assert settings.artifacts_uri.startswith("ftps://")
        (tmp_path / "file").write_bytes(b"content")
        get_artifact_repository(settings.artifacts_uri).log_artifact(str(tmp_path / "file"))
        assert [file.read_bytes() for file in settings.artifacts.rglob("file")] == [b"content"]
