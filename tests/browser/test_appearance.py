"""Appearance and accessibility: phones, dark mode, keyboard, screen readers, and no layout shift."""

from __future__ import annotations

import contextlib

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import PAGES, opened

expect = pytest.importorskip("playwright.sync_api").expect

MAX_SHIFT = 0.1  # https://web.dev/articles/cls
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.mark.parametrize(("mode", "width"), [("light", 1280), ("dark", 390)])
def test_pages_are_accessible_fit_the_screen_and_do_not_jump(browser, url, mode, width):
    """No serious or critical finding of axe, nothing wider than the screen, and almost no layout shift, on any page."""
    grave = {}
    with opened(browser, url, width, color_scheme=mode) as page:
        for path in [*PAGES, "/nowhere"]:
            page.goto(url + path)
            expect(page.locator("#page section").first).to_be_visible()
            with contextlib.suppress(Exception):
                page.wait_for_selector(".js-plotly-plot .main-svg", timeout=3000 if path in ("/", "/data") else 1000)
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            assert page.evaluate("window.shifted") < MAX_SHIFT, path
            findings = Axe().run(page).response["violations"]
            findings = [finding for finding in findings if finding["impact"] in ("serious", "critical")]
            grave |= {(path, finding["id"]): [node["html"] for node in finding["nodes"]] for finding in findings}
    assert grave == {}


def test_theme_follows_the_system_until_the_user_chooses_one(browser, url):
    """The button changes the theme of page and figures, and a reload keeps it."""
    with opened(browser, url, color_scheme="light") as page:
        ink = "getComputedStyle(document.querySelector('#comparison-figure .legendtext')).fill"
        page.wait_for_selector("#comparison-figure .legendtext")
        light = page.evaluate(BACKGROUND), page.evaluate(ink)
        page.emulate_media(color_scheme="dark")
        expect(page.locator("html")).to_have_attribute("data-bs-theme", "dark")
        dark = page.evaluate(BACKGROUND), page.evaluate(ink)
        assert light[0] != dark[0]
        assert light[1] != dark[1]
        page.get_by_role("button", name="Light").click()
        expect(page.locator("html")).to_have_attribute("data-bs-theme", "light")
        assert (page.evaluate(BACKGROUND), page.evaluate(ink)) == light
        page.reload()
        page.wait_for_selector("#comparison-figure .legendtext")
        assert (page.evaluate(BACKGROUND), page.evaluate(ink)) == light


def test_pages_are_reached_by_links_keyboard_and_history(browser, url):
    """Each link changes page, title and address without a reload; back and forward follow."""
    with opened(browser, url) as page:
        page.evaluate("window.stillTheSamePage = true")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        page.keyboard.press("Tab")
        for path, title in list(PAGES.items())[1:]:
            page.get_by_role("link", name=title, exact=True).press("Enter")
            expect(page).to_have_title(f"{title} · Solar and wind power")
            expect(page.locator("nav [aria-current=page]")).to_have_text(title)
            assert page.url == url + path
        *_, before, last = PAGES.values()
        page.go_back()
        expect(page).to_have_title(f"{before} · Solar and wind power")
        page.go_forward()
        expect(page).to_have_title(f"{last} · Solar and wind power")
        assert page.evaluate("window.stillTheSamePage")


def test_table_of_weeks_fits_a_phone(browser, url):
    """No column is cut off: each week's measured mean and its error are on the screen."""
    with opened(browser, f"{url}/comparison?from=2016-12-01&to=2016-12-31", width=390) as page:
        table = page.locator(".scroll:has(.weeks)").first
        table.wait_for()
        assert table.evaluate("frame => frame.scrollWidth <= frame.clientWidth")
        assert table.locator("tbody tr").first.inner_text().count("%") == 2


def test_date_fields_show_the_focus(browser, url):
    """A focused field has an outline, like each button."""
    with opened(browser, url) as page:
        for name in ("#first-day", "#zone", "#earlier"):
            page.locator(name).focus()
            page.keyboard.press("Shift")
            style = "field => getComputedStyle(field).outlineStyle + getComputedStyle(field).outlineWidth"
            assert page.locator(name).evaluate(style) == "solid3px", name


def test_page_without_javascript_names_alternatives(browser, url):
    """The page names what works without JavaScript: the API and, with a link, the report."""
    with contextlib.closing(browser.new_context(java_script_enabled=False)) as context:
        page = context.new_page()
        page.goto(url)
        assert "The API (POST /predict)" in page.locator("noscript").inner_text()
        page.get_by_role("link", name="report").click()
        expect(page.get_by_role("link", name="Dashboard")).to_be_visible()
