"""Take the screenshots of the documentation, after `make run` and the notebooks of chapter 2.

Type `PYTHONPATH=4_pipeline/tests python tests/screenshot.py`.
"""

from __future__ import annotations

import io
from pathlib import Path

from browsing import chromium
from forecast.problem import EXPERIMENT
from forecast.tracking import connect
from PIL import Image
from playwright.sync_api import Browser

from workshop.settings import get_settings

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD, MODEL = ROOT / "4_pipeline" / "dashboard" / "screenshot.png", ROOT / "2_tracking" / "register.png"
RED_BOX = """([{x, y, width, height}, number]) => document.body.insertAdjacentHTML("beforeend", `<b style="
    position: fixed; left: ${x}px; top: ${y}px; width: ${width}px; height: ${height}px; outline: 3px solid #d00000;
    z-index: 9999">
    <b style="position: absolute; right: -14px; top: -14px; width: 24px; font: bold 16px/24px sans-serif;
    text-align: center; color: white; background: #d00000">${number}</b></b>`)"""


def take_dashboard(browser: Browser) -> None:
    """Take the README's screenshot of the dashboard."""
    page = browser.new_page(viewport={"width": 1280, "height": 1060})
    page.goto(get_settings().dashboard_url)
    page.wait_for_selector("#comparison-figure .main-svg")
    page.wait_for_timeout(1500)  # until the figure is drawn
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(DASHBOARD, optimize=True)


def take_model_page(browser: Browser) -> None:
    """Take MLflow's page of chapter 2's best GW model, with numbers at the buttons that register it."""
    client = connect()
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    query = "tags.chapter = '2' and tags.target = 'GW' and metrics.r2 > 0"
    [run] = client.search_runs([experiment], query, order_by=["metrics.r2 DESC"], max_results=1)
    address = f"{client.tracking_uri}/#/experiments/{experiment}/models/{run.outputs.model_outputs[0].model_id}"
    page = browser.new_page(viewport={"width": 980, "height": 560})
    page.goto(address)
    places = [page.get_by_role("button", name="Register model"), page.get_by_role("link", name="Model registry")]
    for number, place in enumerate(places, start=1):
        page.evaluate(RED_BOX, [place.bounding_box(), number])
    Image.open(io.BytesIO(page.screenshot())).quantize(64).save(MODEL, optimize=True)


if __name__ == "__main__":
    with chromium() as browser:
        for take in (take_dashboard, take_model_page):
            take(browser)
