"""The page `Predicted and measured` in a browser: figure, tiles, weeks and periods."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from browsing import Registry, opened

expect = pytest.importorskip("playwright.sync_api").expect

CAPTION = ".tiles + .hint"


def test_comparison_shows_the_model_and_a_prediction(page, servers):
    """The first view shows version, score and promotion time of the model in production, and its predictions."""
    version = Registry(servers.tracking_uri).version()
    expect(page.locator("#model-version")).to_have_text(f"wind_solar version {version}")
    assert re.fullmatch(r"-?[01]\.\d{3}", page.locator("#model-r2").inner_text())
    expect(page.locator("#model-since")).to_have_text(re.compile(r"\d{2} \w{3} \d{4}, \d{2}:\d{2} UTC"))
    # predicted and band of both targets, and measured once
    expect(page.locator("#comparison-figure .legendtext")).to_have_count(5)
    expect(page.locator("#comparison-figure")).to_contain_text("wind band, 80% of hours")
    expect(page.locator("#key-figures .tile")).to_have_count(2)
    expect(page.locator("#key-figures .summary")).to_contain_text(re.compile("too (low|high).*the band covers"))
    expect(page.locator("#residuals-by-hour .legendtext")).to_have_count(2)
    expect(page.locator("#residuals-by-month")).not_to_be_visible()
    expect(page.locator("#message")).to_be_empty()
    for part in ("#comparison", "footer"):
        expect(page.locator(part)).to_contain_text(re.compile("modelled", re.IGNORECASE))
    expect(page.locator("footer")).to_contain_text("Deutscher Wetterdienst")


def test_comparison_shows_the_requested_period(page, url):
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
    expect(page.locator("#residuals-by-month .legendtext")).to_have_count(2)
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
    page.get_by_role("link", name="Model", exact=True).click()
    expect(page.locator("#in-production")).to_be_visible()
    bodies = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
    page.get_by_role("link", name="Predicted and measured").click()
    expect(caption).to_contain_text("04 Dec 2016")
    page.wait_for_timeout(1000)  # for unexpected requests
    asked = [body["changedPropIds"] for body in bodies]
    assert [each for each in asked if each != ["clock.n_intervals"]] == [["requested.data"]]


def test_late_response_does_not_replace_another_period(page):
    """After going back before a period was drawn, the page shows the period of its address."""
    slowly = "await new Promise((go) => setTimeout(go, 2000 * /comparison-answer/.test(request[1]?.body)))"
    answered = f"const answer = await ask(...request); {slowly}; return answer"
    page.evaluate(f"() => {{ const ask = fetch; fetch = async (...request) => {{ {answered} }} }}")
    page.get_by_role("button", name="Earlier").click()
    page.wait_for_url(re.compile("from=2016-12-04"))
    page.go_back()
    page.wait_for_timeout(4000)
    assert "18 Dec 2016" in page.locator(CAPTION).inner_text()


def test_comparison_follows_the_mouse_and_can_be_downloaded(page, url):
    """Dragging across the figure or the strip sets the period; picture and table are downloads."""
    last = page.locator("#last-day")
    expect(page.get_by_role("button", name="2 weeks")).to_have_class(re.compile("active"))
    expect(page.get_by_role("button", name="Later")).to_be_disabled()
    draw(page, "#comparison-figure", 0.3, 0.6)
    expect(last).not_to_have_value("2016-12-31")
    draw(page, "#overview", 0.4, 0.42)
    expect(last).to_have_value(re.compile("2014-0[6-9]"))
    expect(page.locator("#comparison-figure .x2tick").first).to_contain_text("2014")
    expect(page.get_by_role("button", name="2 weeks")).not_to_have_class(re.compile("active"))
    page.get_by_label("Time zone of the figure").select_option("Time in Germany")
    expect(page.locator("#comparison-figure")).to_contain_text("Europe/Berlin")
    page.wait_for_url(re.compile("from=2014"))
    page.locator("#comparison-weeks tbody tr").first.hover()
    expect(page.locator("#comparison-figure .shapelayer path")).to_have_count(1)
    page.locator("#comparison-figure .nsewdrag").first.hover(force=True)
    expect(page.locator("#comparison-figure .shapelayer path")).to_have_count(0)
    expect(page.locator("#comparison-weeks tr.hovered")).to_have_count(1)
    with page.expect_download() as table:
        page.get_by_role("button", name="Table").click()
    hours = pd.read_csv(table.value.path(), parse_dates=["utc_timestamp"])
    assert str(hours["utc_timestamp"].iloc[-1].date()) == last.input_value()
    assert (hours["wind_GW_low"] <= hours["wind_GW_high"]).all()
    assert hours["wind_GW_measured"].notna().all()
    with page.expect_download() as picture:
        page.get_by_role("button", name="Picture").click()
    assert picture.value.path().read_bytes().startswith(b"\x89PNG")
    page.locator("#comparison-figure .nsewdrag").first.dblclick(force=True)
    expect(last).to_have_value("2016-12-31")


def test_comparison_explains_how_a_period_was_adjusted(browser, url):
    """A note names the parts of an address that cannot be shown."""
    with opened(browser, f"{url}/comparison?from=2000-01-08&to=2000-01-01") as page:
        expect(page.locator("#comparison-adjustment")).to_contain_text("were swapped. The data cover 01 Jan 2013")
        page.goto(f"{url}/comparison?from=yesterday&to=2016-01-01")
        expect(page.locator("#comparison-adjustment")).to_contain_text("“yesterday” is not a date")


def draw(page, figure, start, end):
    """Drag the mouse across a part of a figure's width."""
    page.locator(f"{figure} .main-svg").first.wait_for()
    page.locator(f"{figure} .main-svg").first.scroll_into_view_if_needed()
    place = page.locator(f"{figure} .nsewdrag").first.bounding_box()
    height = place["y"] + place["height"] / 2
    page.mouse.move(place["x"] + start * place["width"], height)
    page.mouse.down()
    page.mouse.move(place["x"] + end * place["width"], height, steps=5)
    page.mouse.up()


def test_comparison_opens_at_the_period_of_its_address(browser, url):
    """A link with a period shows that period in the first view, with its numbers and links to its weeks."""
    with opened(browser, f"{url}/comparison?from=2016-10-03&to=2016-10-16") as page:
        expect(page.locator(CAPTION)).to_contain_text("336 of 336 hours, 03 Oct 2016 to 16 Oct 2016.")
        weeks = page.locator("#comparison-weeks tbody tr")
        expect(weeks).to_have_count(2)
        page.evaluate("window.stillTheSamePage = true")
        page.get_by_role("link", name="2016-W40").click()
        expect(page.locator(CAPTION)).to_contain_text("168 of 168 hours, 03 Oct 2016 to 09 Oct 2016.")
        page.wait_for_url(f"{url}/comparison?from=2016-10-03&to=2016-10-09")
        # the means of a single week are those in the table of weeks
        cells = page.locator("#comparison-weeks tbody td").all_inner_texts()
        tiles = page.locator("#key-figures .tile").all_inner_texts()
        for tile, (measured, predicted, error) in zip(tiles, (cells[:3], cells[3:]), strict=True):
            assert f"measured mean {measured} GW" in tile
            percent = float(error.removesuffix(" %").replace("\N{MINUS SIGN}", "-"))
            assert percent == pytest.approx(100 * (float(predicted) / float(measured) - 1), abs=1)
        assert page.evaluate("window.stillTheSamePage")
