"""Takes the README's picture of the running dashboard: `python tests/screenshot.py`, after `make run`."""

from __future__ import annotations

import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from workshop.settings import get_settings

PICTURE = Path(__file__).resolve().parent.parent / "4_pipeline" / "dashboard" / "screenshot.png"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]

if __name__ == "__main__":
    with sync_playwright() as playwright:
        program = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 1060})
        page.goto(get_settings().dashboard_url)
        page.wait_for_selector("#comparison-figure .main-svg")
        page.wait_for_timeout(1500)  # the figure's first drawing
        page.screenshot(path=PICTURE)
        browser.close()
    print(PICTURE)
