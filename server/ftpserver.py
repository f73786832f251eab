"""The artifact server: FTP for one user, chrooted, passive mode only. `python server/ftpserver.py` starts it by hand.

It has no options: host, ports, folder, user and password come from `workshop.settings` (`WORKSHOP_*` variables, `.env`,
and the ports chosen by `workshop up`). Ctrl-C or SIGTERM stops it.
"""

from __future__ import annotations

import errno
import logging
import logging.config
import sys
from logging.handlers import RotatingFileHandler

import yaml
from forecast.terms.errors import PipelineError, ServiceError
from mlflow_ftp.certificate import ensure_certificate
from mlflow_ftp.server import Server, serve

from workshop.port_owners import Owner, find_owners
from workshop.settings import Settings, get_settings


def make_server(settings: Settings) -> Server:
    """Return a server that listens on its port; raise ServiceError if it cannot, e.g. because the port is in use."""
    user, password = settings.credentials(create=True)
    try:
        return Server(
            settings.artifacts,
            (user, password.get_secret_value()),
            ensure_certificate(settings.certificate.parent, settings.host),
            host=settings.host,
            port=settings.ftp_port,
            passive_ports=settings.ftp_passive_ports,
            tls=settings.ftp_requires_tls,
        )
    except OSError as error:
        address = f"{settings.host}:{settings.ftp_port}"
        what = f"The FTP server cannot listen on {address}: {error.strerror or error}."
        if error.errno == errno.EADDRINUSE:
            owner = find_owners(settings, settings.ftp_port).get(settings.ftp_port, Owner(settings.ftp_port))
            what = f"The FTP server cannot listen: {owner}; stop that process, or set WORKSHOP_FTP_PORT to a free port."
        raise ServiceError(what) from None


def main() -> int:
    """Serve until a signal arrives; return the exit code."""
    try:
        settings = get_settings()
        settings.logs.mkdir(parents=True, exist_ok=True)
        file = RotatingFileHandler(settings.transfers_log, maxBytes=5_000_000, backupCount=3)
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        if settings.logging_file:
            logging.config.dictConfig(yaml.safe_load(settings.logging_file.read_text(encoding="utf-8")))
        else:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        logging.getLogger().addHandler(file)
        serve(make_server(settings))
    except PipelineError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
