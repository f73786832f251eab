"""What tests of the dashboard's pages share: opened pages, further dashboards, the alias, and a server that fails."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from forecast.problem import REGISTERED_MODEL
from forecast.tracking import PRODUCTION
from mlflow import MlflowClient
from playwright.sync_api import Browser, sync_playwright
from workplace import ROOT, answer_of, free_port, required, running

PAGES = {
    "/": "Predicted and measured", "/over-time": "Over time", "/what-if": "What if", "/your-weather": "Your weather",
    "/model": "Model", "/data": "Data",
}  # fmt: skip
ALIAS_SECONDS = 20.0  # from the alias's move to every open page; 5 s on a quiet machine
FAULT = re.compile("Error|Content Security Policy")  # in what a browser's console says
# Notes how far things jump without a reader's doing.
WATCH = """
window.shifted = 0
new PerformanceObserver(list => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifted += entry.value
}).observe({type: 'layout-shift', buffered: true})
"""


class Registry:
    """The alias `production`, which a test reads and moves."""

    def __init__(self, tracking_uri: str) -> None:
        self._client = MlflowClient(tracking_uri)

    def version(self) -> str:
        """Return the version that the alias points at."""
        return str(self._client.get_model_version_by_alias(REGISTERED_MODEL, PRODUCTION).version)

    def move(self, version: str) -> None:
        """Point the alias at a version."""
        self._client.set_registered_model_alias(REGISTERED_MODEL, PRODUCTION, version)

    def remove(self) -> None:
        """Take the alias away."""
        self._client.delete_registered_model_alias(REGISTERED_MODEL, PRODUCTION)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run headless Chromium until the block ends."""
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    required("Chromium", program)
    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


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
        # Not the folder of its `dvc.yaml`, whose data it would show.
        "PYTHONPATH": f"{ROOT / '4_pipeline'}{os.pathsep}{environment.get('PYTHONPATH', '')}",
    }
    command = [sys.executable, "-m", "dashboard"]
    with running(command, environment | places, root, lambda _: health_of(url)) as program:
        yield url, program.process


def health_of(url: str) -> dict | None:
    """Return what a dashboard says of itself, once it answers."""
    answer = answer_of(f"{url}/health")
    return answer and answer.json()
