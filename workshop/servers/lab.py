"""What JupyterLab shows besides notebooks: the pages of the running servers, and the report, each behind its own URL.

The ports are looked up at each request, since `workshop up` moves away from one that is taken; so a tile works
whenever its server was started. `server/jupyter/jupyter_server_config.py` puts this to use.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable
from html import escape
from typing import Any, ClassVar

from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.services.kernels.kernelmanager import ServerKernelManager
from jupyter_server.utils import ensure_async, url_path_join
from jupyter_server_proxy.config import LauncherEntry, ServerProcess
from jupyter_server_proxy.handlers import NamedLocalProxyHandler, RewritableResponse
from tornado import web
from tornado.httputil import HTTPHeaders

from workshop import ownership
from workshop.servers import ports
from workshop.settings import get_settings

LOOK_SECONDS = 2.0
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


# MLflow's pages begin with a view for language models, and an assistant beside it whose closing button is out of sight
# in a tab of JupyterLab. They remember in the browser what a reader chose; who chose nothing yet begins with the runs.
BEGIN_WITH_RUNS = b"""<script>
for (const [key, value] of [
  ["mlflow.workflowType_v1", '"machine_learning"'], ["mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true"]
]) localStorage.getItem(key) ?? localStorage.setItem(key, value)
</script>"""


class RunningServerHandler(NamedLocalProxyHandler):
    """Passes requests on to a server that runs already, and says what to type when it does not."""

    name: str  # the first part of its URL
    title: str
    setting: str  # which of the settings holds the port
    looked: ClassVar[dict[int, float]] = {}  # when a port's server was last found to be ours

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.proxy_base = self.name
        self.update_last_activity = False  # pages that ask again by themselves say nothing of a reader

    @property
    def port(self) -> int:
        """The port that the server has now."""
        return getattr(get_settings(), self.setting)

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

    def write_message(self, message: str | bytes, binary: bool = False) -> Awaitable[None] | None:
        """Pass a websocket's message on, unless the reader has just closed the page."""
        return super().write_message(message, binary) if self.ws_connection else None

    async def proxy(self, port: int, path: str) -> None:
        """Pass a request on; a server that is not there is answered for with a page."""
        if time.monotonic() > self.looked.get(port, 0) + LOOK_SECONDS:
            if stranger := ownership.find_stranger(get_settings(), port):
                say_absent(self, self.title, f"The port {port} is held by {stranger}.", "workshop up")
                return
            self.looked[port] = time.monotonic()
        try:
            await super().proxy(port, path)
        except (OSError, web.HTTPError) as error:
            # Nobody listens; or, as the proxy puts it, what was there closed the connection, or takes too long.
            if isinstance(error, web.HTTPError) and error.status_code not in (500, 599):
                raise
            say_absent(self, self.title, f"{self.title} does not answer on port {port}.", "workshop up")


class MLflowHandler(RunningServerHandler):
    """Shows the pages of the tracking server."""

    name, title, setting = "mlflow", "MLflow", "mlflow_port"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)

        def begin_with_runs(response: RewritableResponse, path: str) -> None:
            if path == "/":
                response.body = response.body.replace(b"<head>", b"<head>" + BEGIN_WITH_RUNS, 1)

        self.rewrite_response = begin_with_runs


class DaskHandler(RunningServerHandler):
    """Shows the pages of the scheduler."""

    # `dask/` is where the panel of Dask's extension has its own addresses.
    name, title, setting = "dask-dashboard", "Dask", "dask_dashboard_port"


class DashboardHandler(RunningServerHandler):
    """Shows the dashboard, its links to MLflow leading through JupyterLab."""

    name, title, setting = "dashboard", "Dashboard", "dashboard_port"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)

        def lead_through(response: RewritableResponse) -> None:
            if response.headers.get("Content-Type", "").startswith(("application/json", "text/html")):
                response.body = through_jupyterlab(response.body, self.base_url)

        self.rewrite_response = lead_through  # it is called by the names of its arguments; `self` is none of them


class ReportHandler(JupyterHandler):
    """Shows the report that the pipeline wrote last."""

    name, title = "report", "Report"

    @web.authenticated
    def get(self, _path: str) -> None:
        """Answer with the report, its links to MLflow leading through JupyterLab."""
        file = get_settings().pipeline / "results" / "report.html"
        if not file.exists():
            say_absent(self, self.title, "There is no report yet: the pipeline writes it.", "workshop repro")
            return
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", REPORT_POLICY)
        self.finish(through_jupyterlab(file.read_bytes(), self.base_url))


def say_absent(handler: JupyterHandler, title: str, what: str, command: str) -> None:
    """Answer with a page that says what is missing and what to type; it asks again every three seconds."""
    handler.clear()
    handler.set_status(503)
    handler.finish(ABSENT.format(title=escape(title), what=escape(what), command=escape(command)))


def through_jupyterlab(page: bytes, base_url: str) -> bytes:
    """Return a page whose links to MLflow's pages lead through JupyterLab: the reader may be on another machine."""
    there, here = get_settings().exports()["MLFLOW_TRACKING_URI"], url_path_join(base_url, "mlflow")
    for slash in ("/", "\\u002f"):  # the second is how Dash writes it into JSON
        page = page.replace(f"{there}/#".replace("/", slash).encode(), f"{here}/#".replace("/", slash).encode())
    return page


def exports() -> dict[str, str]:
    """Return the addresses for kernels and terminals; where a server runs that is not ours, that of a free port."""
    return ports.hand_out(get_settings(), lambda _: None).exports()


class Tile(ServerProcess):
    """A tile of the launcher; what it shows opens in a tab of JupyterLab."""

    def __init__(self, handler: type[RunningServerHandler | ReportHandler], path: str = "") -> None:
        icon = get_settings().jupyter / "icons" / f"{handler.name}.svg"
        entry = LauncherEntry(icon_path=str(icon))
        super().__init__(name=handler.name, launcher_entry=entry, new_browser_tab=False)
        entry.title, entry.path_info = handler.title, f"{handler.name}/{path}"  # the parent writes its own there
        self._handler = handler

    def make_proxy_handler(self) -> tuple[type[JupyterHandler], dict]:
        """Return what answers under the tile's URL, and the arguments for it."""
        return self._handler, {}


def tiles() -> dict[str, Tile]:
    """Return the tiles of the launcher by the first part of their URL."""
    shown = (
        Tile(MLflowHandler, "#/experiments"),
        Tile(DaskHandler, "status"),
        Tile(DashboardHandler),
        Tile(ReportHandler),
    )
    return {tile.name: tile for tile in shown}


class KernelManager(ServerKernelManager):
    """Starts each kernel, and starts it again, with the addresses that the servers have by then."""

    async def _async_pre_start_kernel(self, **options: Any) -> tuple[list[str], dict[str, Any]]:
        environment = (options.get("env") or os.environ) | exports()
        return await super()._async_pre_start_kernel(**options | {"env": environment})
