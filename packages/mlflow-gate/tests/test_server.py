"""The tracking server is asked as MLflow's own client asks: TLS, credentials, time-outs and retries."""

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
def answering(status: int, keys: Path | None = None):
    """Answer each request with an HTTP status, by TLS if a folder with a certificate is given; yield the port."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(status)

        def log_message(self, *_words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Answer) as server:
        if keys:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(keys / "cert", keys / "key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def by_tls(tmp_path, monkeypatch):
    """Name a server by TLS in MLFLOW_TRACKING_URI; return the file of its certificate."""
    words = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=ours -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(f"{words} -keyout key -out cert".split(), cwd=tmp_path, check=True, capture_output=True)
    with answering(200, tmp_path) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://127.0.0.1:{port}")
        yield str(tmp_path / "cert")


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # which MLFLOW_TRACKING_INSECURE_TLS asks for
@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_INSECURE_TLS"])
def test_server_behind_tls_is_asked_as_mlflow_asks(by_tls, monkeypatch, variable):
    """What lets MLflow's own client through lets the gate through."""
    monkeypatch.setenv(variable, by_tls if variable.endswith("PATH") else "true")
    assert connect().tracking_uri.startswith("https://")


def test_certificate_that_is_not_trusted_is_named(by_tls, monkeypatch, capsys):
    """An error of TLS is called one, with the variable that names the certificate."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SystemExit):
        main(["status", "models"])
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in capsys.readouterr().err


@pytest.mark.parametrize("status", [401, 404, 502])
def test_answers_that_refuse_are_explained(monkeypatch, status):
    """401 names the variables of the credentials; what is no MLflow server is named with its answer."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(status) as port, pytest.raises(ServerError) as caught:
        connect(f"http://me:secret@127.0.0.1:{port}")
    words = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if status == 401 else "MLFLOW_TRACKING_URI"
    assert words in str(caught.value)
    assert f"HTTP {status}" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_slow_answer_is_an_answer(tracking):
    """A busy server that needs some seconds is waited for, as MLflow's own client waits."""
    os.killpg(tracking.process.pid, signal.SIGSTOP)
    threading.Timer(4, os.killpg, (tracking.process.pid, signal.SIGCONT)).start()
    assert connect().tracking_uri == tracking.uri
