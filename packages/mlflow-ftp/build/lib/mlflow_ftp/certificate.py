"""The server's certificate, signed by itself: clients that do not know it otherwise are given its file."""

from __future__ import annotations

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAYS = 3650
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def ensure_certificate(folder: Path, host: str) -> Path:
    """Return the file with key and certificate for a host, mode 0600, made when it is not there.

    `<host>.pem` beside it, without the key, is for clients.
    """
    file, client_file = folder / f"{host}-key.pem", folder / f"{host}.pem"
    if file.exists() and client_file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mlflow-ftp")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(map(_name, dict.fromkeys((*LOOPBACK, host)))), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    pem, pkcs8, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    write_privately(client_file, certificate)
    write_privately(file, key.private_bytes(pem, pkcs8, plain) + certificate)
    return file


def write_privately(file: Path, content: bytes) -> None:
    """Write a file that nobody else may read, whole or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
        opened.write(content)
    temporary.replace(file)


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
