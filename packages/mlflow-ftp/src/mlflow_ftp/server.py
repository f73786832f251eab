"""A single-user FTP server, chrooted, in passive mode only: `mlflow-ftp-server`, or `python -m mlflow_ftp.server`."""

from __future__ import annotations

import functools
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

import click
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import TLS_FTPHandler
from pyftpdlib.servers import FTPServer

from mlflow_ftp.certificate import LOOPBACK, ensure_certificate
from mlflow_ftp.compat import TransferHandler
from mlflow_ftp.names import remove_temporaries
from mlflow_ftp.uploads import WholeFiles

logger = logging.getLogger(__name__)


class Handler(TLS_FTPHandler):
    """A control connection whose banner does not reveal the software."""

    banner = "Ready."
    unicode_errors = "surrogateescape"  # preserve names on disk that are not UTF-8
    timeout = 60  # seconds without a command until the server disconnects; the store then reconnects
    dtp_handler = TransferHandler
    abstracted_fs = WholeFiles
    # Disable active mode (PORT, EPRT), which could connect to any address, and STOU, which exposes incomplete files.
    proto_cmds = {  # noqa: RUF012 - as in pyftpdlib
        name: rule for name, rule in TLS_FTPHandler.proto_cmds.items() if name not in {"PORT", "EPRT", "STOU"}
    }
    proto_cmds["DELE"] = proto_cmds["DELE"] | {"perm": None}  # skip pyftpdlib's check; `WholeFiles.remove` has its own

    def handle_auth_failed(self, msg: str, password: str) -> None:
        """Reply to a failed login after 1 s or more, and at least 2 to 5 s after the address's previous such reply."""
        now = time.monotonic()
        wait = max(1, self.next_answers.get(self.remote_ip, 0) - now)
        if wait >= self.timeout:
            self.del_channel()  # disconnect without a reply
        else:
            self.next_answers[self.remote_ip] = now + wait + min(wait + 1, 5)  # the store waits 8 s for a reply
            self.auth_failed_timeout = wait
            super().handle_auth_failed(msg, password)


class Server(FTPServer):
    """The listening server and its folder; raises OSError if the port is in use.

    The connection limits are far above what a tracking server needs.
    """

    max_cons = 512
    max_cons_per_ip = 128

    def __init__(
        self, artifacts: Path, credentials: tuple[str, str], certificate: Path, *,
        host: str, port: int, tls: bool, passive_ports: range,
    ) -> None:  # fmt: skip
        os.umask(0o077)
        self.artifacts = artifacts
        artifacts.mkdir(parents=True, exist_ok=True, mode=0o700)
        authorizer = DummyAuthorizer()
        authorizer.add_user(*credentials, str(artifacts), perm="elradfmwMT")
        settings = {"certfile": str(certificate), "passive_ports": passive_ports, "authorizer": authorizer}
        encryption = {"tls_control_required": tls, "tls_data_required": tls}
        # next_answers: for each client address, the earliest time of the next reply to a failed login.
        handler = type("Handler", (Handler,), settings | encryption | {"next_answers": {}})
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__(socket.create_server((host, port), family=family), handler)
        self.uri = f"{'ftps' if tls else 'ftp'}://{f'[{host}]' if ':' in host else host}:{port}"


def serve(server: Server) -> None:
    """Serve until SIGINT or SIGTERM, and log logins and transfers to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    # This is safe: the process that holds the port is the folder's only server, and no upload has started yet.
    if count := remove_temporaries(server.artifacts):
        logger.info("Removed %d files of interrupted uploads.", count)
    ports = server.handler.passive_ports
    logger.info("Passive ports: %d to %d.", ports[0], ports[-1])
    click.echo(f"FTP server ready: {server.uri}, files in {server.artifacts}")
    # Wake every 0.5 s: a signal just before a wait is handled only after it. (`serve_forever` delays scheduled calls.)
    server.ioloop.call_every(0.5, lambda: None)
    wait = 0.0
    try:
        while True:
            wait = server.ioloop.loop(wait, blocking=False)
    finally:
        server.close_all()


FOLDER = click.Path(path_type=Path, file_okay=False, resolve_path=True)
_option = functools.partial(click.option, show_envvar=True)
SETTINGS = {"auto_envvar_prefix": "MLFLOW_FTP", "show_default": True, "help_option_names": ["-h", "--help"]}


@click.command(context_settings=SETTINGS)
@click.version_option(package_name="mlflow-ftp")
@_option("--folder", default="mlflow-ftp", help="Folder for artifacts and the generated certificate.", type=FOLDER)
@_option("--host", default="127.0.0.1", help="Address to listen on; logins require TLS, except on loopback.")
@_option("--port", default=2121, help="Port for commands.")
@_option("--passive-ports", default=(60100, 60139), help="First and last port for data connections.", nargs=2, type=int)
def main(folder: Path, host: str, port: int, passive_ports: tuple[int, int]) -> None:
    """Serve a folder to a single user over FTP: chrooted, in passive mode only, with explicit TLS.

    The user and the password come from MLFLOW_FTP_USERNAME and MLFLOW_FTP_PASSWORD. On clients, set
    MLFLOW_FTP_SERVER_CERT_PATH to a copy of the server's certificate, `HOST.pem` in the folder.

    \b
    Example:  mlflow-ftp-server --folder /srv/mlflow --host 0.0.0.0
    """
    first, last = passive_ports
    if not (ports := range(first, last + 1)):
        raise click.UsageError(f"The passive ports {first} {last} are in the wrong order: put the lower port first.")
    credentials = os.environ.get("MLFLOW_FTP_USERNAME", ""), os.environ.get("MLFLOW_FTP_PASSWORD", "")
    if not all(credentials):
        raise click.UsageError("Set the variables MLFLOW_FTP_USERNAME and MLFLOW_FTP_PASSWORD.")
    try:
        certificate = ensure_certificate(folder, host)
        artifacts = folder / "artifacts"
        server = Server(
            artifacts, credentials, certificate, host=host, port=port, tls=host not in LOOPBACK, passive_ports=ports
        )
    except OSError as error:
        what = f"The FTP server cannot start on {host}:{port} in {folder}: {error.strerror or error}"
        raise click.ClickException(f"{what}. Change MLFLOW_FTP_PORT or MLFLOW_FTP_FOLDER.") from None
    serve(server)


if __name__ == "__main__":
    main()
