"""Predicted and measured, in a browser: figure, tiles, weeks and periods."""

from __future__ import annotations

import re

import pytest
from browsing import Registry, opened

expect = pytest.importorskip("playwright.sync_api").expect

CAPTION = ".tiles + .hint"


def test_comparison_shows_the_model_and_a_prediction(page, servers):
    """The first view names version, score and time of the model in production, and draws it with its band."""
    version = Registry(servers.tracking_uri).version()
    expect(page.locator("#model-version")).to_have_text(f"wind_solar version {version}")
    assert re.fullmatch(r"-?[01]\.\d{3}", page.locator("#model-r2").inner_text())
    expect(page.locator("#model-since")).to_have_text(re.compile(r"\d{2} \w{3} \d{4}, \d{2}:\d{2} UTC"))
    # of both targets what was predicted and its band, and once what was measured
    expect(page.locator("#comparison-figure .legendtext")).to_have_count(5)
    expect(page.locator("#comparison-figure")).to_contain_text("wind band, 80% of hours")
    expect(page.locator("#key-figures .tile")).to_have_count(4)
    for figure in ("by-hour", "by-month"):
        expect(page.locator(f"#residuals-{figure} .legendtext")).to_have_count(2)
    expect(page.locator("#message")).to_be_empty()
    for part in ("#comparison", "footer"):
        expect(page.locator(part)).to_contain_text(re.compile("modelled", re.IGNORECASE))
    expect(page.locator("footer")).to_contain_text("Deutscher Wetterdienst")


def test_comparison_shows_the_period_that_is_asked_for(page, url):
    """Buttons and dates change figure, key figures, weeks and address; `back` brings each period back."""
    caption, first = page.locator(CAPTION), page.locator("#first-day")
    page.get_by_role("button", name="Earlier").click()
    expect(first).to_have_value("2016-12-04")
    expect(page.locator("#last-day")).to_have_value("2016-12-17")
    page.wait_for_url(f"{url}/?from=2016-12-04&to=2016-12-17")
    page.get_by_role("button", name="All", exact=True).click()
    expect(caption).to_contain_text("01 Jan 2013 to 31 Dec 2016")
    expect(page.locator("#comparison-figure")).to_contain_text("daily means")
    expect(page.locator("#comparison-weeks tbody tr")).to_have_count(53)
    first.fill("2016-10-03")
    expect(caption).to_contain_text("03 Oct 2016 to 31 Dec 2016")
    page.wait_for_url(f"{url}/?from=2016-10-03&to=2016-12-31")
    for day, text in (("2013-01-01", "01 Jan 2013"), ("2016-12-04", "04 Dec 2016"), ("2016-12-18", "18 Dec 2016")):
        page.go_back()
        expect(page.locator("#first-day")).to_have_value(day)
        expect(caption).to_contain_text(text)
    assert page.url == f"{url}/"
    page.go_forward()
    expect(caption).to_contain_text("04 Dec 2016")


def test_comparison_opens_at_the_period_of_its_address(browser, url):
    """A link with a period shows that period in the first view, its weeks lead on, and numbers are the period's."""
    with opened(browser, f"{url}/comparison?from=2016-10-03&to=2016-10-16") as page:
        expect(page.locator(CAPTION)).to_contain_text("336 of 336 hours, 03 Oct 2016 to 16 Oct 2016.")
        weeks = page.locator("#comparison-weeks tbody tr")
        expect(weeks).to_have_count(2)
        page.evaluate("window.stillTheSamePage = true")
        page.get_by_role("link", name="2016-W40").click()
        expect(page.locator(CAPTION)).to_contain_text("168 of 168 hours, 03 Oct 2016 to 09 Oct 2016.")
        page.wait_for_url(f"{url}/comparison?from=2016-10-03&to=2016-10-09")
        # the week alone has the means that it has among others
        cells = page.locator("#comparison-weeks tbody td").all_inner_texts()
        tiles = page.locator("#key-figures .tile").all_inner_texts()
        for tile, (measured, predicted, error) in zip(tiles, (cells[1:4], cells[4:]), strict=False):
            assert f"{predicted} GW" in tile
            assert f"measured {measured} GW, mean absolute error {error} GW" in tile
        assert page.evaluate("window.stillTheSamePage")
