"""What JupyterLab shows besides notebooks: the pages of the running servers, and the report, each behind its own URL.

The ports are looked up at each request, since `workshop up` moves away from one that is taken; so a tile works
whenever its server was started. `server/jupyter/jupyter_server_config.py` puts this to use.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.services.kernels.kernelmanager import ServerKernelManager
from jupyter_server.utils import ensure_async, url_path_join
from jupyter_server_proxy.config import LauncherEntry, ServerProcess
from jupyter_server_proxy.handlers import NamedLocalProxyHandler
from tornado import web
from tornado.httputil import HTTPHeaders

from workshop.settings import Settings, get_settings

CONFIGURATION = Path("server") / "jupyter"
# The report is a page without scripts, and none that got into it would run with the rights of JupyterLab's pages.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; frame-ancestors 'self'"
ABSENT = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta http-equiv="refresh" content="3"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 38rem; margin: 3rem auto; padding: 0 1rem; color: #222 }}
code {{ background: #eee; padding: .1rem .4rem; border-radius: 3px }}
</style></head>
<body><h1>{title}</h1><p>{what}</p>
<p>Open a terminal (File, New, Terminal) and type <code>{command}</code>. This page then goes on by itself.</p></body>
</html>"""


class RunningServerHandler(NamedLocalProxyHandler):
    """Passes requests on to a server that runs already, and says what to type when it does not."""

    title = ""
    find_port: Callable[[Settings], int]

    @property
    def port(self) -> int:
        """The port that the server has now."""
        return type(self).find_port(get_settings())

    async def prepare(self) -> None:
        """Refuse what another site's page sends: the server itself would see this machine as the sender."""
        await ensure_async(super().prepare())
        if self.request.method not in ("GET", "HEAD", "OPTIONS") and not self.check_origin():
            raise web.HTTPError(403, "This request comes from a page of another site.")

    def proxy_request_headers(self) -> HTTPHeaders:
        """Address the server by the name that it knows, whatever the name of the machine is for the browser."""
        headers, own = self.request.headers.copy(), f"127.0.0.1:{self.port}"
        headers["Host"] = own
        if "Origin" in headers:
            headers["Origin"] = f"http://{own}"
        return headers

    async def proxy(self, port: int, path: str) -> None:
        """Pass a request on; a server that is not there is answered for with a page."""
        try:
            await super().proxy(port, path)
        except web.HTTPError as error:
            if error.status_code not in (500, 599):  # what the proxy makes of a connection that fails
                raise
            say_absent(self, self.title, f"It does not answer at {self.title}'s port, {port}.", "workshop up")


class ReportHandler(JupyterHandler):
    """Shows the report that the pipeline wrote last."""

    @web.authenticated
    def get(self, _path: str) -> None:
        """Answer with the report, its links to MLflow leading through JupyterLab."""
        settings = get_settings()
        file = settings.pipeline / "results" / "report.html"
        if not file.exists():
            say_absent(self, "Report", "There is no report yet: the pipeline writes it.", "workshop repro")
            return
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", REPORT_POLICY)
        self.finish(through_jupyterlab(file.read_bytes(), settings, self.base_url))


def say_absent(handler: JupyterHandler, title: str, what: str, command: str) -> None:
    """Answer with a page that says what is missing and what to type; it asks again every three seconds."""
    handler.clear()
    handler.set_status(503)
    handler.finish(ABSENT.format(title=escape(title), what=escape(what), command=escape(command)))


def through_jupyterlab(page: bytes, settings: Settings, base_url: str) -> bytes:
    """Return a page whose links to MLflow's pages lead through JupyterLab: the reader may be on another machine."""
    tracking_uri = settings.exports()["MLFLOW_TRACKING_URI"]
    return page.replace(f"{tracking_uri}/#".encode(), f"{url_path_join(base_url, 'mlflow')}/#".encode())


class Tile(ServerProcess):
    """A tile of the launcher; ``find_port`` says where its server is, and is None for the report."""

    def __init__(
        self, name: str, title: str, find_port: Callable[[Settings], int] | None = None, path: str = "", **options: Any
    ) -> None:
        icon = get_settings().root / CONFIGURATION / "icons" / f"{name}.svg"
        entry = LauncherEntry(icon_path=str(icon))
        super().__init__(name=name, launcher_entry=entry, new_browser_tab=False, **options)
        entry.title, entry.path_info = title, f"{name}/{path}"  # the parent class writes its own there
        self._find_port = find_port

    def make_proxy_handler(self) -> tuple[type, dict]:
        """Return what answers under the tile's URL."""
        if self._find_port is None:
            return ReportHandler, {}
        return super().make_proxy_handler()

    def get_proxy_base_class(self) -> tuple[type, dict]:
        """Return the handler with this tile's title and port."""
        own = {"title": self.launcher_entry.title, "find_port": staticmethod(self._find_port)}
        return type("Handler", (RunningServerHandler,), own), {}

    def get_proxy_attributes(self) -> dict:
        """Return what jupyter-server-proxy sets on each handler: all but what the handler finds out by itself."""
        return {name: value for name, value in super().get_proxy_attributes().items() if name != "port"}


def tiles() -> dict[str, Tile]:
    """Return the tiles of the launcher by the first part of their URL, in their order."""

    def lead_through(response, request) -> None:
        base_url = request.path.partition("dashboard/")[0]
        response.body = through_jupyterlab(response.body, get_settings(), base_url)

    return {
        tile.name: tile
        for tile in (
            Tile("mlflow", "MLflow", lambda settings: settings.mlflow_port, "#/experiments"),
            # `dask/` is where the panel of Dask's extension has its own addresses.
            Tile("dask-dashboard", "Dask", lambda settings: settings.dask_dashboard_port, "status"),
            Tile("dashboard", "Dashboard", lambda settings: settings.dashboard_port, rewrite_response=lead_through),
            Tile("report", "Report"),
        )
    }


class KernelManager(ServerKernelManager):
    """Starts each kernel, and starts it again, with the addresses that the servers have by then."""

    async def _async_pre_start_kernel(self, **options: Any) -> tuple[list[str], dict[str, Any]]:
        environment = (options.get("env") or os.environ) | get_settings().exports()
        return await super()._async_pre_start_kernel(**options | {"env": environment})
