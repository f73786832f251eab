"""The page `What if` in a browser: sliders, predictions, and addresses with the sliders' values."""

from __future__ import annotations

import io
import re

import pytest
from browsing import opened
from forecast.table.schema import TARGETS
from PIL import Image

expect = pytest.importorskip("playwright.sync_api").expect


def test_what_if_follows_a_slider(browser, url):
    """More wind by keyboard changes wind power immediately, then the curves and the address; `back` leaves the page."""
    with opened(browser, url) as page:
        page.get_by_role("link", name="What if").click()
        wind, curves = page.locator("#predicted-wind_GW"), page.locator("#what-if-curves .scatterlayer path.js-line")
        expect(curves).to_have_count(12)
        assert all(re.fullmatch(r"-?\d+\.\d{2}", page.locator(f"#predicted-{name}").inner_text()) for name in TARGETS)
        before, drawn = wind.inner_text(), curves.nth(2).get_attribute("d")
        slider = page.get_by_label("Wind speed at 10 m", exact=True)
        slider.focus()
        for _ in range(20):
            slider.press("ArrowRight")
        typed = page.get_by_label("Wind speed at 10 m, m/s")
        expect(typed).to_have_value("7")
        expect(wind).not_to_have_text(before)
        page.wait_for_url(f"{url}/what-if?windspeed=7")
        expect(curves.nth(2)).not_to_have_attribute("d", drawn)
        typed.fill("12.5")
        typed.press("Enter")
        expect(slider).to_have_value("12.5")
        page.wait_for_url(f"{url}/what-if?windspeed=12.5")
        page.get_by_role("button", name="Winter storm").click()
        expect(page.locator("#slider-day-value")).to_have_text("15 Jan 2016")
        page.get_by_role("button", name="Reset").click()
        expect(typed).to_have_value("5")
        expect(wind).to_have_text(before)
        page.go_back()
        expect(page.locator("#comparison-figure")).to_be_visible()
        assert page.url == f"{url}/"


def test_what_if_opens_at_the_hour_of_its_address(browser, url):
    """A link with values sets the sliders; values are clipped to the range, and invalid ones ignored."""
    query = "windspeed=7.5&temperature=-99&rad_horizontal=much&hour=nan&day=1&year=2015&__class__=x"
    with opened(browser, f"{url}/what-if?{query}") as page:
        for name, value in (("windspeed", "7.5"), ("temperature", "-20"), ("rad_horizontal", "250")):
            expect(page.locator(f"#slider-{name}-value")).to_have_value(value)
        expect(page.locator("#slider-temperature-range")).to_have_text("outside the training range")
        track = Image.open(io.BytesIO(page.locator("#slider-temperature").screenshot())).convert("RGB")
        colours = [track.getpixel((track.width * percent // 100, track.height // 2)) for percent in (10, 50, 95)]
        assert colours[0] == colours[2] != colours[1]  # -14, 10 and 37 °C
        page.wait_for_url(f"{url}/what-if?windspeed=7.5&temperature=-20&day=1&year=2015")
