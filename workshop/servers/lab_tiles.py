"""JupyterLab launcher tiles for the servers' pages (proxied) and the report, each with its own URL.

Ports are read at each request, since `workshop up` may change them. `server/jupyter/jupyter_server_config.py` uses this
module.
"""

from __future__ import annotations

import subprocess
import time
from html import escape
from typing import Any, ClassVar

from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.utils import ensure_async, url_path_join
from jupyter_server_proxy.config import LauncherEntry, ServerProcess
from jupyter_server_proxy.handlers import NamedLocalProxyHandler, RewritableResponse
from tornado import web
from tornado.httputil import HTTPHeaders

from workshop import port_owners
from workshop.exports import exports_of
from workshop.settings import get_settings

CHECK_SECONDS = 2.0
# Blocks scripts: the report needs none, and an injected one would have the rights of JupyterLab's pages.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; frame-ancestors 'self'"
PROBLEM_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta http-equiv="refresh" content="3"><title>{title}</title></head>
<body style="font: 16px/1.5 system-ui, sans-serif; max-width: 38rem; margin: 3rem auto; padding: 0 1rem">
<h1>{title}</h1><p>{problem}</p>
<p>Open a terminal (File > New > Terminal) and type <code>{command}</code>. This page then reloads by itself.</p></body>
</html>"""


class RunningServerHandler(NamedLocalProxyHandler):
    """Proxy to a server; if the server is down, show a page with the command that starts it."""

    name: str  # the first segment of the URL's path
    title: str
    setting: str  # the Settings field that contains the port
    services: tuple[str, ...]  # the services that `workshop up` starts for this page
    last_checks: ClassVar[dict[int, float]] = {}  # port -> time at which the server was last verified as ours
    starts: ClassVar[dict[str, subprocess.Popen]] = {}  # tile name -> its `workshop up` process

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.proxy_base = self.name
        self.update_last_activity = False  # pages that reload by themselves must not count as user activity
        self.rewrite_response = lambda response, path: self.rewrite(response, path)  # arguments are matched by name

    @property
    def port(self) -> int:
        """The server's current port."""
        return getattr(get_settings(), self.setting)

    def rewrite(self, response: RewritableResponse, path: str) -> None:
        """Change a response before it is sent to the browser; does nothing unless overridden."""

    async def prepare(self) -> None:
        """Reject cross-site requests, which would look to the server like requests from this machine."""
        await ensure_async(super().prepare())
        if self.request.method not in ("GET", "HEAD", "OPTIONS") and not self.check_origin():
            raise web.HTTPError(403, "The request was blocked because it comes from a page on another site.")

    def proxy_request_headers(self) -> HTTPHeaders:
        """Return the headers with the server's own address as Host and Origin, since it may reject the browser's."""
        headers = self.request.headers.copy()
        headers["Host"] = f"127.0.0.1:{self.port}"
        headers["Accept-Encoding"] = "identity"  # `rewrite` needs plain text
        if "Origin" in headers:
            headers["Origin"] = f"http://127.0.0.1:{self.port}"
        return headers

    async def proxy(self, port: int, path: str) -> None:
        """Forward a request; show an error page if the server is down or belongs to another clone."""
        if time.monotonic() > self.last_checks.get(port, 0) + CHECK_SECONDS:
            if foreign_owner := port_owners.find_foreign_owner(get_settings(), port):
                show_problem(self, self.title, f"The {foreign_owner}.", "workshop up")
                return
            self.last_checks[port] = time.monotonic()
        try:
            await super().proxy(port, path)
        except (OSError, web.HTTPError) as error:
            # Either the port is closed (OSError), or the proxy reports a closed connection or a timeout (500, 599).
            if isinstance(error, web.HTTPError) and error.status_code not in (500, 599):
                raise
            # Start the server only when a user navigates to the page: an open page that polls must not restart it.
            if self.request.headers.get("Sec-Fetch-Mode") == "navigate":
                show_problem(self, self.title, f"{self.title} is starting. If this page does not change:", self.start())
            else:
                show_problem(self, self.title, f"{self.title} does not respond on port {port}.", "workshop up")

    def start(self) -> str:
        """Start the server unless it is already starting; return the command as text."""
        command = ["workshop", "up", *self.services]
        if self.name not in self.starts or self.starts[self.name].poll() is not None:
            self.starts[self.name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return " ".join(command)


class MLflowHandler(RunningServerHandler):
    """Proxy to the tracking server."""

    name, title, setting, services = "mlflow", "MLflow", "mlflow_port", ("mlflow",)


class DaskHandler(RunningServerHandler):
    """Proxy to the scheduler's dashboard."""

    # Not `dask`: Dask's JupyterLab extension uses that URL.
    name, title, setting = "dask-dashboard", "Dask", "dask_dashboard_port"
    services = ("dask-scheduler", "dask-workers")


class DashboardHandler(RunningServerHandler):
    """Proxy to the dashboard, whose links to MLflow it rewrites to go through JupyterLab."""

    name, title, setting, services = "dashboard", "Dashboard", "dashboard_port", ("mlflow", "dashboard")

    def rewrite(self, response: RewritableResponse, path: str) -> None:  # noqa: ARG002
        """Rewrite links to MLflow to go through JupyterLab."""
        if response.headers.get("Content-Type", "").startswith(("application/json", "text/html")):
            response.body = through_jupyterlab(response.body, self.base_url)


class ReportHandler(JupyterHandler):
    """Handler that serves the pipeline's latest report."""

    name, title = "report", "Report"

    @web.authenticated
    def get(self, _path: str) -> None:
        """Send the report, with its MLflow links rewritten to go through JupyterLab's proxy."""
        file = get_settings().pipeline / "results" / "report.html"
        if not file.exists():
            show_problem(self, self.title, "The pipeline has not written a report yet.", "workshop repro")
            return
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", REPORT_POLICY)
        self.finish(through_jupyterlab(file.read_bytes(), self.base_url))


def show_problem(handler: JupyterHandler, title: str, problem: str, command: str) -> None:
    """Send a page that states the problem and the command to type, and reloads every three seconds."""
    handler.clear()
    handler.set_status(503)
    handler.finish(PROBLEM_PAGE.format(title=escape(title), problem=escape(problem), command=escape(command)))


def through_jupyterlab(page: bytes, base_url: str) -> bytes:
    """Rewrite a page's links to MLflow to go through JupyterLab, since the browser may be on another machine."""
    direct, proxied = exports_of(get_settings())["MLFLOW_TRACKING_URI"], url_path_join(base_url, "mlflow")
    for slash in ("/", "\\u002f"):  # Dash escapes slashes in JSON
        old, new = (f"{address}/#".replace("/", slash).encode() for address in (direct, proxied))
        page = page.replace(old, new)
    return page


class Tile(ServerProcess):
    """A launcher tile that opens in a JupyterLab tab."""

    def __init__(self, handler: type[RunningServerHandler | ReportHandler], path: str = "") -> None:
        icon = get_settings().jupyter / "icons" / f"{handler.name}.svg"
        entry = LauncherEntry(icon_path=str(icon), category="Workshop")
        super().__init__(name=handler.name, launcher_entry=entry, new_browser_tab=False)
        entry.title, entry.path_info = handler.title, f"{handler.name}/{path}"  # override the values of the base class
        self._handler = handler

    def make_proxy_handler(self) -> tuple[type[JupyterHandler], dict]:
        """Return the handler for the tile's URL, and its arguments."""
        return self._handler, {}


def tiles() -> dict[str, Tile]:
    """Return the launcher tiles, keyed by the first part of their URL."""
    paths = {MLflowHandler: "#/experiments", DaskHandler: "status", DashboardHandler: "", ReportHandler: ""}
    return {handler.name: Tile(handler, path) for handler, path in paths.items()}
