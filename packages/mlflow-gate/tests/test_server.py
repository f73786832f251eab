"""Requests to the tracking server follow MLflow's client: TLS, credentials, time-outs and retries."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from mlflow_gate import ServerError, connect
from mlflow_gate.cli import main
from programs import free_port


@contextlib.contextmanager
def responding(status: int, keys: Path | None = None):
    """Respond to each request with an HTTP status, over TLS if a folder with a certificate is given; yield the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(status)

        def log_message(self, *_args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Handler) as server:
        if keys:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(keys / "cert", keys / "key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def tls_server(tmp_path, monkeypatch):
    """Set MLFLOW_TRACKING_URI to a TLS server; return the file of its certificate."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=ours -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(f"{command} -keyout key -out cert".split(), cwd=tmp_path, check=True, capture_output=True)
    with responding(200, tmp_path) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://127.0.0.1:{port}")
        yield str(tmp_path / "cert")


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # intended with MLFLOW_TRACKING_INSECURE_TLS
@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_INSECURE_TLS"])
def test_tls_settings_of_mlflow_are_used(tls_server, monkeypatch, variable):
    """The variables that let MLflow's client connect let the gate connect."""
    monkeypatch.setenv(variable, tls_server if variable.endswith("PATH") else "true")
    assert connect().tracking_uri.startswith("https://")


def test_untrusted_certificate_is_an_error(tls_server, monkeypatch, capsys):
    """A TLS error names the variable for the certificate."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SystemExit):
        main(["status", "models"])
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in capsys.readouterr().err


@pytest.mark.parametrize("status", [401, 404, 502])
def test_http_errors_are_explained(monkeypatch, status):
    """401 names the variables for credentials; other errors suggest that MLFLOW_TRACKING_URI is no MLflow server."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with responding(status) as port, pytest.raises(ServerError) as caught:
        connect(f"http://me:secret@127.0.0.1:{port}")
    words = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if status == 401 else "MLFLOW_TRACKING_URI"
    assert words in str(caught.value)
    assert f"HTTP {status}" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_slow_server_is_waited_for(tracking):
    """A server that takes some seconds to respond is no error, as with MLflow's client."""
    os.killpg(tracking.process.pid, signal.SIGSTOP)
    threading.Timer(4, os.killpg, (tracking.process.pid, signal.SIGCONT)).start()
    assert connect().tracking_uri == tracking.uri
