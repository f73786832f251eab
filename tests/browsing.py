"""What tests of the dashboard's pages share: opened pages, further dashboards, the alias, and a server that fails."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
import requests
from workplace import ROOT, free_port

DASHBOARD = ROOT / "4_pipeline" / "dashboard" / "app.py"
PAGES = {
    "/": "Predicted and measured", "/what-if": "What if", "/your-weather": "Your weather", "/model": "Model",
    "/data": "Data",
}  # fmt: skip
ALIAS_SECONDS = 5.0  # from the alias's move to every open page
FAULT = re.compile("Error|Content Security Policy")  # in what a browser's console says
START_SECONDS = 90.0  # of a dashboard's process, model loaded, on a busy machine
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
def dashboard(environment: dict[str, str], root: Path, tracking_uri: str) -> Iterator[str]:
    """Run a second dashboard on a free port, of the repository ``root``; give its address, end it afterwards."""
    port = free_port()
    places = {
        "WORKSHOP_ROOT": str(root),
        "WORKSHOP_STATE": str(root / "state"),
        "WORKSHOP_DASHBOARD_PORT": str(port),
        "MLFLOW_TRACKING_URI": tracking_uri,
    }
    log = root / "dashboard.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(DASHBOARD)], env=environment | places, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_for(f"http://127.0.0.1:{port}", lambda health: health["status"] == "ok")
        yield f"http://127.0.0.1:{port}"
    except BaseException:
        sys.stderr.write(log.read_text())
        raise
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, wanted: Callable[[dict], object]) -> None:
    """Wait until what the dashboard's health says is as wanted."""
    deadline = time.monotonic() + START_SECONDS
    health = None
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            health = requests.get(f"{url}/health", timeout=5).json()
            if wanted(health):
                return
        time.sleep(0.2)
    pytest.fail(f"{url}/health says {health} after {START_SECONDS:g} s")


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
