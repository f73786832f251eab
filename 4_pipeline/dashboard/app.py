"""The Dash application, its server and its command line."""

from __future__ import annotations

import logging
import logging.config
import os
import re
from pathlib import Path

import click
import waitress
import yaml
from dash import ClientsideFunction, Dash, Input, Output, State, no_update
from dash.exceptions import PreventUpdate
from forecast import tracking
from forecast.terms.errors import ServiceError
from forecast.terms.parameters import project
from waitress.server import BaseWSGIServer
from werkzeug.middleware.proxy_fix import ProxyFix

from . import address, api, layout, pages, security
from .follower import Follower
from .hosts import LOOPBACK, is_loopback

THREADS = 16
MAX_CONNECTIONS = 1000  # browsers keep connections open; waitress's default limit is 100
FROM_ROOT = re.compile(r'"(?:/|\\u002f)')  # the start of a root-relative URL, in HTML or embedded JSON


class Dashboard(Dash):
    """A Dash application that works behind any path prefix; it reads the prefix from each request."""

    def interpolate_index(self, **parts: str) -> str:
        """Return the page with the prefix added to the URLs of scripts, styles and callbacks."""
        return FROM_ROOT.sub(f'"{address.link("/")}', super().interpolate_index(**parts))


def make_app(follower: Follower) -> Dash:
    """Return the Dash application, whose pages load nothing from other hosts.

    No callback waits for MLflow.
    """
    app = Dashboard(
        __name__,
        title=layout.TITLE,
        update_title=None,
        compress=True,  # plotly.js is 5 MB
        prevent_initial_callbacks=True,
        suppress_callback_exceptions=True,  # most callbacks belong to pages that are not shown
        index_string=layout.INDEX,
        assets_ignore="theme.js",  # `layout.INDEX` loads this file itself, before the first paint
    )
    app.layout = lambda: layout.whole_page(follower.now, address.of_referrer())
    security.protect(app, pages.PATHS)
    api.register(app.server, follower)
    app.server.before_request(follower.on_request)
    app.server.wsgi_app = ProxyFix(app.server.wsgi_app, x_for=0, x_proto=0, x_prefix=1)  # see `address.prefix`
    _register_frame(app, follower)
    for page in pages.PAGES:
        if hasattr(page, "register"):
            page.register(app, follower)
        else:
            refresh = app.callback(Output(f"content-{page.PATH[1:]}", "children"), Input("revision", "data"))
            refresh(lambda _revision, page=page: page.page(follower.now, {}))
    return app


def _register_frame(app: Dash, follower: Follower) -> None:
    @app.callback(
        Output("navigation", "children"),
        Output("shown", "data"),
        Output("page", "children"),
        Input("requested", "data"),
    )
    def show_page(requested: object) -> tuple:
        """Show the page at the requested URL without a reload."""
        links, title, content = layout.view(follower.now, *address.parse(requested))
        return links, [requested, title], content

    @app.callback(
        Output("revision", "data"),
        Output("version", "data"),
        *(Output(part, "children") for part in ("model", "message", "attribution", "notice")),
        Input("clock", "n_intervals"),
        State("revision", "data"),
        State("version", "data"),
    )
    def follow(_ticks: int, revision: object, before: object) -> tuple:
        """Update the header and the banners for a new snapshot; its `revision` triggers the pages' callbacks."""
        snapshot = follower.now
        if snapshot.revision == revision:
            raise PreventUpdate
        version, notice = layout.version(snapshot), no_update
        if snapshot.champion and isinstance(before, str) and before != version:
            notice = layout.notice(snapshot.champion.production, before)
        changed = layout.model(snapshot), layout.message(snapshot), layout.attribution(snapshot), notice
        return snapshot.revision, version or no_update, *changed

    app.clientside_callback(
        ClientsideFunction("address", "name_window"), Input("shown", "data"), prevent_initial_call=False
    )


def _listen(follower: Follower, host: str, port: int) -> BaseWSGIServer:
    try:
        # Waitress serves from a single process, so all users share one cache.
        server = make_app(follower).server
        limits = {"connection_limit": MAX_CONNECTIONS, "max_request_body_size": security.MAX_BODY_BYTES}
        return waitress.create_server(server, host=host, port=port, threads=THREADS, ident=None, **limits)
    except OSError as error:
        raise ServiceError(
            "The dashboard cannot listen on this address.",
            value=f"{host}:{port}: {error.strerror}",
            expected="a free port",
            next_step="python -m dashboard --port ANOTHER",
        ) from None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="forecast")
@click.option("--host", default="127.0.0.1", show_default=True, help="The loopback address to listen on.")
@click.option("--port", default=8050, show_default=True, type=click.IntRange(1, 65535), help="The port to listen on.")
@click.option("--log-config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML logging config.")
def main(host: str, port: int, log_config: Path | None) -> None:
    """Serve a dashboard of this folder's pipeline: the data, the model in production and its predictions.

    \b
    Example:  python -m dashboard --port 8051
    Behind a proxy:  DASHBOARD_ALLOWED_HOSTS=dash.company.lan,other.lan python -m dashboard
    """
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # hide the warning about each queued request
    # Detect a hung server or a replaced database within seconds. MLflow need not retry: the dashboard polls again.
    os.environ |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    os.environ["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"
    if log_config:
        logging.config.dictConfig(yaml.safe_load(log_config.read_text(encoding="utf-8")))
    else:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if not is_loopback(host):
        raise ServiceError(
            "The dashboard would be reachable from other machines without a password.",
            value=f"--host {host}",
            expected=" or ".join(LOOPBACK),
            next_step=f"to use it from another machine, open a tunnel: ssh -L {port}:127.0.0.1:{port} HOST",
        )
    if tracking.tracking_uri().startswith("sqlite:"):
        logging.getLogger(__name__).info(tracking.NO_SERVER)
    follower = Follower(project() / "data" / "germany.parquet")
    server = _listen(follower, host, port)
    follower.start()
    logging.getLogger(__name__).info("serving on http://%s:%s", host, port)
    server.run()
