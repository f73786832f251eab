"""Helpers for tests of the dashboard's pages: opened pages, the alias, and faults in the console."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator

from dashboard import pages
from forecast.problem import REGISTERED_MODEL
from forecast.tracking import PRODUCTION
from mlflow import MlflowClient
from places import dashboard, health_of  # noqa: F401 - with the rest
from playwright.sync_api import Browser, sync_playwright
from workplace import required

PAGES = dict(zip(["/", *pages.PATHS[2:]], (page.TITLE for page in pages.PAGES), strict=True))
ALIAS_SECONDS = 20.0  # from a move of the alias to all open pages; 5 s on an idle machine
FAULT = re.compile("Error|Content Security Policy")  # in the browser's console
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
        """Remove the alias."""
        self._client.delete_registered_model_alias(REGISTERED_MODEL, PRODUCTION)


@contextlib.contextmanager
def chromium(*options: str) -> Iterator[Browser]:
    """Run headless Chromium until the block ends."""
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    required("Chromium", program)
    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", *options]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, url: str, width: int = 1280, height: int = 900, **options):
    """Open a page of the dashboard; fail at the end after a script error or a response with status 500 or above."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    page.add_init_script(WATCH)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if FAULT.search(message.text) else None)
    page.on("response", lambda response: faults.append(response.url) if response.status >= 500 else None)
    try:
        page.goto(url)
        page.wait_for_selector("#page section", timeout=30_000)
        yield page
    finally:
        context.close()
    assert not faults, faults
