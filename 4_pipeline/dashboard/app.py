"""The dashboard: `python 4_pipeline/dashboard/app.py` serves it on the address that the settings name."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

import address
import api
import callbacks
import layout
import pages
import security
import waitress
from dash import Dash
from serving import Follower

from workshop.errors import ServiceError, WorkshopError
from workshop.servers.services import configure_logging, refuse_beyond_loopback
from workshop.settings import Settings, get_settings

THREADS = 64
MOST_CONNECTIONS = 1000  # browsers keep theirs open, and waitress lets only 100 in by default
FROM_ROOT = re.compile(r'"(?:/|\\u002f)')  # how an address of this server begins in the page, and in its JSON


class Dashboard(Dash):
    """A Dash application that may be seen under any prefix: each request says under which."""

    def interpolate_index(self, **parts: str) -> str:
        """Return the page with the addresses of its scripts, its styles and its callbacks under the prefix."""
        return FROM_ROOT.sub(f'"{address.link("/")}', super().interpolate_index(**parts))


def make_app(serving: Follower) -> Dash:
    """Return the Dash application; everything that the page needs comes from this machine."""
    app = Dashboard(
        __name__,
        assets_folder=str(Path(__file__).resolve().parent / "assets"),
        serve_locally=True,
        title=layout.TITLE,
        update_title=None,
        suppress_callback_exceptions=True,  # only one of the pages is shown
        on_error=security.report_failure,
        index_string=layout.INDEX,
        assets_ignore="theme.js",  # `layout.INDEX` loads it, before anything is drawn
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.layout = lambda: layout.whole_page(serving.now, address.of_referrer())
    callbacks.register(app, serving)
    security.protect(app, pages.PATHS)
    api.register(app.server, serving)
    app.server.wsgi_app = address.accept_proxy(app.server.wsgi_app)
    return app


def serve(settings: Settings) -> None:
    """Follow the registry and serve the page until the process is ended; raise ServiceError when the port is taken."""
    refuse_beyond_loopback(settings, "dashboard")
    serving = Follower(settings.pipeline / "data" / "germany.parquet")
    try:
        # One process: what takes time is computed once for all readers.
        server = waitress.create_server(
            make_app(serving).server,
            host=settings.host,
            port=settings.dashboard_port,
            threads=THREADS,
            connection_limit=MOST_CONNECTIONS,
            ident=None,
            max_request_body_size=security.LARGEST_BODY_BYTES,
        )
    except OSError as error:
        raise ServiceError(
            "The dashboard cannot listen on its address.",
            value=f"{settings.host}:{settings.dashboard_port}: {error.strerror}",
            expected="a free port",
            next_step="workshop status; or another WORKSHOP_DASHBOARD_PORT",
        ) from None
    serving.start()
    logging.getLogger(__name__).info("serving on %s", settings.dashboard_url)
    server.run()


def main() -> None:
    """Serve as the settings say; print a foreseeable failure and exit with 1."""
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it has a line for each reader who waits a moment
    # A frozen server is noticed within seconds; the dashboard tries again by itself.
    os.environ |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    try:
        settings = get_settings()
        configure_logging(settings, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        serve(settings)
    except WorkshopError as error:
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
