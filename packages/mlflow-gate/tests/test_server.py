"""The tracking server is asked as MLflow's own client asks: TLS, credentials, time-outs and retries."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mlflow_gate import Registry, ServerError, connect
from mlflow_gate.cli import main
from servers import free_port


def write_certificate(folder: Path) -> Path:
    """Write a self-signed certificate for 127.0.0.1, with its key, to a file."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / "certificate.pem"
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return file


@contextlib.contextmanager
def in_front_of(port: int, certificate: Path | None = None, delay: float = 0.0):
    """Forward connections to a server, by TLS with a certificate, the first one after so many seconds; yield a port."""
    listener = socket.create_server(("127.0.0.1", free_port()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if certificate else None
    if context:
        context.load_cert_chain(certificate)

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def answer(plain: socket.socket, wait: float) -> None:
        time.sleep(wait)
        with contextlib.suppress(OSError), plain, socket.create_connection(("127.0.0.1", port)) as server:
            client = context.wrap_socket(plain, server_side=True) if context else plain
            back = threading.Thread(target=copy, args=(server, client), daemon=True)
            back.start()
            copy(client, server)
            back.join()
            client.close()

    def accept() -> None:
        wait = delay
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0], wait), daemon=True).start()
                wait = 0.0

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def uri_by_tls(tracking, tmp_path):
    """Return the address of the tracking server by TLS, and the file of its certificate."""
    certificate = write_certificate(tmp_path)
    with in_front_of(tracking.port, certificate) as port:
        yield f"https://127.0.0.1:{port}", certificate


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # which MLFLOW_TRACKING_INSECURE_TLS asks for
@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_INSECURE_TLS"])
def test_server_behind_tls_is_asked_as_mlflow_asks(uri_by_tls, monkeypatch, variable, name):
    """What lets MLflow's own client through lets the gate through."""
    uri, certificate = uri_by_tls
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv(variable, str(certificate) if variable.endswith("PATH") else "true")
    assert str(Registry(name).status()) == f"{name}: nothing is in production"


def test_certificate_that_is_not_trusted_is_named(uri_by_tls, monkeypatch, capsys):
    """An error of TLS is called one, with the variable that names the certificate."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri_by_tls[0])
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SystemExit):
        main(["status", "models"])
    printed = capsys.readouterr().err
    assert "its TLS certificate is not trusted" in printed
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in printed


@pytest.mark.parametrize("status", [401, 404, 502])
def test_answers_that_refuse_are_explained(monkeypatch, status):
    """401 names the variables of the credentials; what is no MLflow server is named with its answer."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(status)

        def log_message(self, *_words):
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ServerError) as caught:
            connect(f"http://me:secret@127.0.0.1:{server.server_port}")
        server.shutdown()
    words = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if status == 401 else "MLFLOW_TRACKING_URI"
    assert words in str(caught.value)
    assert f"HTTP {status}" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_slow_answer_is_an_answer(tracking):
    """A busy server that needs some seconds is waited for, as MLflow's own client waits."""
    with in_front_of(tracking.port, delay=4) as port:
        assert connect(f"http://127.0.0.1:{port}").tracking_uri.endswith(str(port))


def test_dead_server_is_an_error_within_seconds(monkeypatch):
    """A server that does not answer is a ServerError after two more tries, and says the address without a password."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(ServerError, match="does not answer") as caught:
        Registry("models").production()
    assert 3 < time.monotonic() - began < 30
    assert "secret" not in str(caught.value)
