"""The artifact server: FTP for one user, chrooted, passive only. Start it by hand with `python server/ftpserver.py`.

It takes no options: host, ports, folder, user and password come from `workshop.settings`, so from `WORKSHOP_*`
variables, `.env`, or what `workshop up` chose. Ctrl-C or SIGTERM ends it.
"""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import signal
import socket
import sys

from pyftpdlib.servers import FTPServer

from workshop.errors import ServiceError, WorkshopError
from workshop.ownership import find_holders
from workshop.servers import ftp
from workshop.servers.artifacts.names import remove_temporaries
from workshop.servers.certificates import ensure_certificate
from workshop.settings import Settings, get_settings

logger = logging.getLogger("ftpserver")
LOG_BYTES, LOGS_KEPT = 5_000_000, 3


class Server(FTPServer):
    """The listening socket; MLflow's proxy, all of it on one address, stays far below these limits."""

    max_cons = 512
    max_cons_per_ip = 256


def make_server(settings: Settings) -> FTPServer:
    """Return the server, listening on its port; raise ServiceError when it cannot have the port."""
    os.umask(0o077)
    settings.artifacts.mkdir(parents=True, exist_ok=True, mode=0o700)
    user, password = settings.credentials(create=True)
    ftp.Handler.authorizer = ftp.HashedAuthorizer(user, password.get_secret_value(), str(settings.artifacts))
    ftp.Handler.passive_ports = settings.ftp_passive_ports
    ftp.Handler.least_free = settings.ftp_least_free
    ftp.Handler.certfile = str(ensure_certificate(settings))
    ftp.Handler.tls_control_required = ftp.Handler.tls_data_required = settings.ftp_requires_tls
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.create_server((settings.host, settings.ftp_port), family=family)
    except OSError as error:
        address = f"{settings.host}:{settings.ftp_port}"
        what = f"The FTP server cannot listen on {address}: {error.strerror or error}."
        if error.errno == errno.EADDRINUSE:
            holder = find_holders(settings, settings.ftp_port).get(settings.ftp_port, "another process")
            what = f"The FTP port {address} is held by {holder}; end that, or set WORKSHOP_FTP_PORT to a free port."
        raise ServiceError(what) from None
    return Server(listener, ftp.Handler)


def set_up_logs(settings: Settings) -> None:
    """Log what happens to stderr, which the supervisor keeps, and each transfer to a file that stays small."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    settings.logs.mkdir(parents=True, exist_ok=True)
    log = logging.handlers.RotatingFileHandler(settings.transfers_log, maxBytes=LOG_BYTES, backupCount=LOGS_KEPT)
    log.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    ftp.transfers.addHandler(log)
    ftp.transfers.propagate = False


def main() -> int:
    """Serve until a signal comes; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        settings = get_settings()
        set_up_logs(settings)
        server = make_server(settings)
    except WorkshopError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    # Only now: who has the port is the only server of this folder.
    if left := remove_temporaries(settings.artifacts):
        logger.info("Removed what interrupted uploads had left: %d files.", left)
    sys.stdout.write(f"FTP server ready: {settings.ftp_uri}, files in {settings.artifacts}\n")
    sys.stdout.flush()
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
