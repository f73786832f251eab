"""The server's self-signed certificate."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAYS = 3650
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def ensure_certificate(folder: Path, host: str) -> Path:
    """Return the file with a host's key and certificate, created if missing; clients need a copy of `<host>.pem`."""
    file, client_file = folder / f"{host}-key.pem", folder / f"{host}.pem"
    if not file.exists():
        client_file.unlink(missing_ok=True)  # the leftover certificate belongs to another key
        _make(file, host)
    if not client_file.exists():
        _, begin, rest = file.read_bytes().partition(b"-----BEGIN CERTIFICATE")
        client_file.write_bytes(begin + rest)
    return file


def _make(file: Path, host: str) -> None:
    """Write the key and the certificate atomically; the first of two concurrent writers wins."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name.from_rfc4514_string("CN=mlflow-ftp")
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # tolerate slow clocks
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(map(_name, dict.fromkeys((*LOOPBACK, host)))), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    pem, pkcs8, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    with tempfile.NamedTemporaryFile(dir=file.parent) as temporary:  # mode 0600
        temporary.write(key.private_bytes(pem, pkcs8, plain) + certificate)
        temporary.flush()
        with contextlib.suppress(FileExistsError):
            os.link(temporary.name, file)


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
