"""What tests of the dashboard's pages share: opened pages, further dashboards, the alias, and a server that fails."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import requests
from workplace import ROOT, answer_of, free_port, running

DASHBOARD = ROOT / "4_pipeline" / "dashboard" / "app.py"
PAGES = {
    "/": "Predicted and measured", "/what-if": "What if", "/your-weather": "Your weather", "/model": "Model",
    "/data": "Data",
}  # fmt: skip
ALIAS_SECONDS = 20.0  # from the alias's move to every open page; 5 s on a quiet machine
FAULT = re.compile("Error|Content Security Policy")  # in what a browser's console says
# Notes how far things jump without a reader's doing, and when the first view and the first figure are there.
WATCH = """
window.shifted = 0
new PerformanceObserver(list => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifted += entry.value
}).observe({type: 'layout-shift', buffered: true})
new MutationObserver(() => {
  if (!window.firstView && document.querySelector('#page section')) window.firstView = performance.now()
}).observe(document, {childList: true, subtree: true})
"""


class Registry:
    """The alias `production`, read and moved through MLflow's REST interface as any client would."""

    def __init__(self, tracking_uri: str) -> None:
        self._url = f"{tracking_uri}/api/2.0/mlflow/registered-models/alias"

    def version(self) -> str:
        """Return the version that the alias points at."""
        answer = requests.get(self._url, params={"name": "wind_solar", "alias": "production"}, timeout=30)
        answer.raise_for_status()
        return answer.json()["model_version"]["version"]

    def move(self, version: str) -> None:
        """Point the alias at a version."""
        body = {"name": "wind_solar", "alias": "production", "version": version}
        requests.post(self._url, json=body, timeout=30).raise_for_status()

    def remove(self) -> None:
        """Take the alias away."""
        body = {"name": "wind_solar", "alias": "production"}
        requests.delete(self._url, json=body, timeout=30).raise_for_status()


@contextlib.contextmanager
def opened(browser, url: str, width: int = 1280, height: int = 900, **options):
    """Open a page of the dashboard; at the end no script has failed and no request was answered 500 or above."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    page.add_init_script(WATCH)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if FAULT.search(said.text) else None)
    page.on("response", lambda answer: faults.append(answer.url) if answer.status >= 500 else None)
    try:
        page.goto(url)
        page.wait_for_selector("#page section", timeout=30_000)
        yield page
    finally:
        context.close()
    assert not faults


@contextlib.contextmanager
def dashboard(environment: dict[str, str], root: Path, tracking_uri: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run a dashboard of the repository ``root`` on a free port until the block ends; yield address and process."""
    url = f"http://127.0.0.1:{free_port()}"
    places = {
        "WORKSHOP_ROOT": str(root),
        "WORKSHOP_STATE": str(root / "state"),
        "WORKSHOP_DASHBOARD_PORT": url.rpartition(":")[2],
        "MLFLOW_TRACKING_URI": tracking_uri,
    }
    with running([sys.executable, DASHBOARD], environment | places, root, lambda _: health_of(url)) as program:
        yield url, program.process


def health_of(url: str) -> dict | None:
    """Return what a dashboard says of itself, once it answers."""
    answer = answer_of(f"{url}/health")
    return answer and answer.json()


class Forwarder:
    """A port that leads to another; ``cut`` closes each connection at once, as a dead server would."""

    def __init__(self, target_port: int) -> None:
        self.cut = False
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                if outer.cut:
                    return
                with socket.create_connection(("127.0.0.1", target_port)) as target:
                    back = threading.Thread(target=outer._copy, args=(target, self.request), daemon=True)
                    back.start()
                    outer._copy(self.request, target)
                    back.join()

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        source.settimeout(0.2)
        while not self.cut:
            try:
                data = source.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if not data:
                break
            with contextlib.suppress(OSError):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.cut = True
        self._server.shutdown()
        self._server.server_close()
