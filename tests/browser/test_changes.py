"""Open pages when the alias moves, when servers are down, and without data or model."""

from __future__ import annotations

import contextlib
import shutil

import pytest
from browsing import ALIAS_SECONDS, dashboard, health_of, opened
from workplace import frozen, wait_for

expect = pytest.importorskip("playwright.sync_api").expect

WEATHER = "utc_timestamp,windspeed,temperature,rad_horizontal,rad_diffuse\n2016-06-01T12:00:00Z,7,12,100,50\n"


def test_every_open_page_follows_the_alias_without_a_reload(browser, url, registry, another_version):
    """All pages show and use the other version within seconds; the user's choices stay."""
    addresses = ["/?from=2016-10-03&to=2016-10-09", "/what-if?windspeed=7.5", "/your-weather", "/model", "/data"]
    with contextlib.ExitStack() as stack:
        pages = [stack.enter_context(opened(browser, url + address)) for address in addresses]
        comparison, what_if, weather, model, _ = pages
        weather.wait_for_selector("#weather-upload input", state="attached")
        file = {"name": "mine.csv", "mimeType": "text/csv", "buffer": WEATHER.encode()}
        weather.set_input_files("#weather-upload input", file)
        expect(weather.locator("#weather-predictions .tile")).to_have_count(2)  # one hour is numbers
        parts = [
            (comparison, "#key-figures .tiles"),
            (what_if, "#what-if-answers"),
            (weather, "#weather-predictions-hint"),
            (model, "#in-production"),
        ]
        before = [page.locator(part).inner_text() for page, part in parts]
        for page in pages:
            page.evaluate("window.stillTheSamePage = true")
        registry.move(another_version)
        for page in pages:
            name = page.locator("#model-version")
            expect(name).to_have_text(f"wind_solar version {another_version}", timeout=ALIAS_SECONDS * 1000)
            expect(page.locator("#notice")).to_contain_text(f"Version {another_version} is in production")
        for (page, part), text in zip(parts, before, strict=True):
            expect(page.locator(part)).not_to_have_text(text, use_inner_text=True)
        assert all(page.evaluate("window.stillTheSamePage") for page in pages)
        expect(comparison.locator(".tiles + .hint")).to_contain_text("03 Oct 2016 to 09 Oct 2016")
        expect(what_if.locator("#slider-windspeed-value")).to_have_value("7.5")
        expect(weather.locator("#weather-predictions-hint")).to_contain_text(f"version {another_version}")
        assert [page.url for page in pages] == [url + address for address in addresses]
        what_if.get_by_label("Close").click()
        expect(what_if.locator("#notice .alert")).to_have_count(0)


def test_pages_say_what_is_missing_and_work_without_servers(servers, registry, browser, tmp_path):
    """A dashboard first without servers, then with model and data, then with the tracking server down again."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(servers.settings.pipeline / "params.yaml", tmp_path)
    version = registry.version()
    registry.remove()
    with contextlib.ExitStack() as stack:
        with frozen(servers.settings.mlflow_port):
            url, _ = stack.enter_context(dashboard(servers.environment, tmp_path, servers.tracking_uri))
            page = stack.enter_context(opened(browser, f"{url}/model"))
            message = page.locator("#message")
            expect(message).to_contain_text("does not respond")
            expect(message).to_contain_text("mlflow server")

        expect(message).to_contain_text("No model is in production yet.")
        expect(message).to_contain_text("There is no data yet. Run dvc repro")
        page.goto(f"{url}/what-if")
        expect(page.locator("#predicted-wind_GW")).to_have_text("n/a")
        page.goto(f"{url}/your-weather")
        page.wait_for_selector("#weather-upload input", state="attached")
        file = {"name": "mine.csv", "mimeType": "text/csv", "buffer": WEATHER.encode()}
        page.set_input_files("#weather-upload input", file)
        expect(page.locator("#weather-answer")).to_contain_text("No model is in production yet")

        shutil.copy(servers.settings.pipeline / "data" / "germany.parquet", data)
        registry.move(version)
        wait_for(lambda: (health := health_of(url)) and health["version"] and health["data"])
        page.goto(f"{url}/what-if")
        wind = page.locator("#predicted-wind_GW")
        with frozen(servers.settings.mlflow_port):
            expect(message).to_contain_text("does not respond")
            expect(message).to_contain_text(f"Version {version} remains in use")
            before = wind.inner_text()
            page.get_by_label("Wind speed at 10 m", exact=True).fill("9")
            expect(wind).not_to_have_text(before)
            page.get_by_role("link", name="Predicted and measured").click()
            expect(page.locator("#key-figures .tile")).to_have_count(2)
        expect(message).to_be_empty()


def test_pages_say_that_the_dashboard_is_down(url, browser):
    """While requests fail, an open page says since when; it recovers without a reload."""
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(f"{url}/what-if")
        expect(page.locator("#model-version")).to_be_visible()
        expect(page.locator("#connection")).to_be_hidden()
        context.set_offline(True)
        expect(page.locator("#connection")).to_contain_text("The dashboard has not responded since")
        context.set_offline(False)
        expect(page.locator("#connection")).to_be_hidden()
        wind = page.locator("#predicted-wind_GW")
        before = wind.inner_text()
        page.get_by_label("Wind speed at 10 m", exact=True).fill("9")
        expect(wind).not_to_have_text(before)
