"""An FTP server for one user, chrooted, passive only: `mlflow-ftp-server`, or `python -m mlflow_ftp.server`."""

from __future__ import annotations

import logging
import logging.handlers
import netrc
import os
import secrets
import signal
import socket
import sys
from pathlib import Path

import click
from pyftpdlib.servers import FTPServer

from mlflow_ftp.certificate import LOOPBACK, ensure_certificate, write_privately
from mlflow_ftp.handlers import Handler, OneUser, transfers
from mlflow_ftp.names import remove_temporaries

__all__ = ["Server", "ensure_certificate", "log_transfers", "main", "serve"]

LOG_BYTES, LOGS_KEPT = 5_000_000, 3

logger = logging.getLogger(__name__)


class Server(FTPServer):
    """The listening socket and the folder that it serves; raises OSError when it cannot have the port.

    A tracking server, all of it on one address, stays far below the limits.
    """

    max_cons = 512
    max_cons_per_ip = 256

    def __init__(
        self,
        artifacts: Path,
        credentials: tuple[str, str],
        certificate: Path,
        *,
        host: str,
        port: int,
        tls: bool,
        **settings: object,  # `passive_ports` and `least_free`, as in Handler
    ) -> None:
        os.umask(0o077)
        self.artifacts = artifacts
        artifacts.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings |= {"tls_control_required": tls, "tls_data_required": tls, "certfile": str(certificate)}
        settings["authorizer"] = OneUser(*credentials, str(artifacts))
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__(socket.create_server((host, port), family=family), type("Handler", (Handler,), settings))
        self.uri = f"{'ftps' if tls else 'ftp'}://{f'[{host}]' if ':' in host else host}:{port}"


def serve(server: Server) -> None:
    """Serve until SIGINT or SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    # Only now: who has the port is the only server of this folder.
    if left := remove_temporaries(server.artifacts):
        logger.info("Removed what interrupted uploads had left: %d files.", left)
    sys.stdout.write(f"FTP server ready: {server.uri}, files in {server.artifacts}\n")
    sys.stdout.flush()
    server.serve_forever()


def log_transfers(file: Path) -> None:
    """Log what happens to stderr, and each transfer to a file that stays small."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    file.parent.mkdir(parents=True, exist_ok=True)
    log = logging.handlers.RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=LOGS_KEPT)
    log.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    transfers.addHandler(log)
    transfers.propagate = False


def ensure_credentials(file: Path, host: str) -> tuple[str, str]:
    """Return the environment's user and password, else those of a netrc file, mode 0600, made when it is not there."""
    user, password = os.environ.get("MLFLOW_FTP_USERNAME") or "mlflow", os.environ.get("MLFLOW_FTP_PASSWORD")
    if password:
        return user, password
    if not file.exists():
        password = secrets.token_urlsafe(24)
        lines = [f"machine {name} login {user} password {password}\n" for name in dict.fromkeys((host, *LOOPBACK))]
        write_privately(file, "".join(lines).encode())
    found = netrc.netrc(file).authenticators(host)
    if found is None:
        raise click.ClickException(f"{file} has no entry for {host}: add one, or remove the file to have it made again")
    return found[0], found[2]


def _ports(_context, _option, value: str) -> range:
    """Read `60100-60139`."""
    first, _, last = value.partition("-")
    try:
        return range(int(first), int(last) + 1)
    except ValueError:
        raise click.BadParameter("expected FIRST-LAST, such as 60100-60139") from None


def _option(name: str, default: object, words: str, **more: object):
    return click.option(name, default=default, help=words, show_envvar=True, **more)


@click.command(context_settings={"auto_envvar_prefix": "MLFLOW_FTP", "show_default": True})
@_option(
    "--folder",
    "mlflow-ftp",
    "Folder of the artifacts, the generated credentials and certificate, and the log of transfers.",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
)
@_option("--host", "127.0.0.1", "Address to listen on; beyond loopback with TLS.")
@_option("--port", 2121, "Port for commands.")
@_option("--passive-ports", "60100-60139", "Ports for data connections.", callback=_ports)
@_option("--tls/--no-tls", None, "Take no password without TLS.  [default: beyond loopback]")
@_option("--least-free", Handler.least_free, "Bytes of the disk that stay free.")
def main(folder: Path, host: str, port: int, passive_ports: range, tls: bool | None, least_free: int) -> None:
    """Serve a folder by FTP to one user, chrooted, passive only, with explicit TLS.

    User and password are MLFLOW_FTP_USERNAME and MLFLOW_FTP_PASSWORD. Without them they are generated, into the file
    `credentials` of the folder, which only its owner can read. Clients find them there by MLFLOW_FTP_CREDENTIALS, and
    its certificate, `HOST.pem`, by MLFLOW_FTP_SERVER_CERT_PATH.

    Example: mlflow-ftp-server --folder /srv/mlflow --host 0.0.0.0
    """
    tls = host not in LOOPBACK if tls is None else tls
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        log_transfers(folder / "transfers.log")
        credentials = ensure_credentials(folder / "credentials", host)
        certificate = ensure_certificate(folder, host)
        server = Server(
            folder / "artifacts",
            credentials,
            certificate,
            host=host,
            port=port,
            passive_ports=passive_ports,
            tls=tls,
            least_free=least_free,
        )
    except (OSError, netrc.NetrcParseError) as error:
        what = f"The FTP server cannot start on {host}:{port} in {folder}: {getattr(error, 'strerror', None) or error}"
        raise click.ClickException(f"{what}. Set MLFLOW_FTP_PORT, or MLFLOW_FTP_FOLDER.") from None
    serve(server)


if __name__ == "__main__":
    main()
