"""The dashboard: `python 4_pipeline/dashboard/app.py` serves it on the address that the settings name."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

import address
import answers
import api
import callbacks
import guard
import layout
import metrics
import pages
from dash import Dash
from serving import Serving

from workshop.errors import ServiceError, WorkshopError
from workshop.servers.services import refuse_beyond_loopback
from workshop.settings import Settings, get_settings

THREADS = 16
FROM_ROOT = re.compile(r'"(?:/|\\u002f)')  # how an address of this server begins in the page, and in its JSON
MOST_CONNECTIONS = 1000  # waitress lets all above 100 wait until others have left, and browsers stay


class Dashboard(Dash):
    """A Dash application that may be seen under any prefix: each request says under which."""

    def interpolate_index(self, **parts: str) -> str:
        """Return the page with the addresses of its scripts, its styles and its callbacks under the prefix."""
        return FROM_ROOT.sub(f'"{address.link("/")}', super().interpolate_index(**parts))


def make_app(serving: Serving) -> Dash:
    """Return the Dash application; everything that the page needs comes from this machine."""
    app = Dashboard(
        __name__,
        assets_folder=str(Path(__file__).resolve().parent / "assets"),
        serve_locally=True,
        title=layout.TITLE,
        update_title=None,
        suppress_callback_exceptions=True,  # of all pages only one is there
        index_string=layout.INDEX,
        assets_ignore="theme.js",  # `layout.INDEX` has it, before anything is drawn
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.layout = lambda: layout.whole(serving.now, address.asked())
    callbacks.register(app, serving)
    metrics.count(app.server, serving)  # first: what is refused is counted, too
    guard.protect(app, app.server, pages.PATHS)
    answers.keep(app, app.server, serving)
    api.register(app.server, serving)
    app.server.wsgi_app = address.believe_proxy(app.server.wsgi_app)
    return app


def serve(settings: Settings) -> None:
    """Follow the registry and serve the page until the process is ended; raise ServiceError when the port is taken."""
    refuse_beyond_loopback(settings, "dashboard")
    serving = Serving(settings.pipeline / "data" / "germany.parquet")
    server = listen(make_app(serving), settings.host, settings.dashboard_port)
    serving.start()
    logging.getLogger(__name__).info("serving on %s", settings.dashboard_url)
    server.run()


def listen(app: Dash, host: str, port: int):
    """Return a server that listens, to be `run`: one process, as what takes time is computed once for all readers.

    It refuses a body that says it is too large before reading it. Raises ServiceError when the port is taken.
    """
    import waitress

    try:
        return waitress.create_server(
            app.server,
            host=host,
            port=port,
            threads=THREADS,
            connection_limit=MOST_CONNECTIONS,
            ident=None,
            max_request_body_size=guard.LARGEST_BODY_BYTES,
        )
    except OSError as error:
        raise ServiceError(
            "The dashboard cannot listen on its address.",
            value=f"{host}:{port}: {error.strerror}",
            expected="a free port",
            next_step="workshop status; or another WORKSHOP_DASHBOARD_PORT",
        ) from None


def main() -> None:
    """Serve as the settings say; a foreseeable failure is told in words, with exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # The log is read by people: no line for each reader who waits a moment.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    # A server that is frozen is noticed in seconds; the follower tries again by itself.
    os.environ |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    try:
        serve(get_settings())
    except WorkshopError as error:
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
