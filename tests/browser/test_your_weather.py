"""The page `Your inputs` in a browser: uploads, their predictions as figure and download, and rejected files."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest
import requests
from browsing import opened

expect = pytest.importorskip("playwright.sync_api").expect

INPUT = "#weather-upload input"
HEADER = "utc_timestamp,windspeed,temperature,rad_horizontal,rad_diffuse\n"


@pytest.fixture
def weather(browser, url):
    """Return the page, ready for an upload."""
    with opened(browser, f"{url}/your-weather") as page:
        page.wait_for_selector(INPUT, state="attached")
        yield page


def upload(page, content: bytes, name: str = "mine.csv") -> None:
    """Upload a file as a user does."""
    page.set_input_files(INPUT, {"name": name, "mimeType": "text/csv", "buffer": content})


def test_your_weather_is_predicted_and_can_be_downloaded(weather, url):
    """The example file gives a figure and a CSV whose numbers are those of /predict."""
    with weather.expect_download() as example:
        weather.get_by_role("link", name="Download an example file").click()
    content = example.value.path().read_bytes()
    upload(weather, content, "example.csv")
    expect(weather.locator("#weather-figure .main-svg").first).to_be_visible()
    expect(weather.locator("#weather-predictions-hint")).to_contain_text("72 hours, predicted by wind_solar version")
    expect(weather.locator("#weather-status")).to_contain_text("72 hours, predicted by wind_solar version")
    assert weather.locator("#weather-answer").evaluate("part => part.closest('[aria-live], [role=status]')") is None
    with weather.expect_download() as predicted:
        weather.get_by_role("button", name="Download the predictions").click()
    table = pd.read_csv(predicted.value.path())
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    numbers = [{key: value if key == "utc_timestamp" else float(value) for key, value in row.items()} for row in rows]
    answer = requests.post(f"{url}/predict", json={"rows": numbers}, timeout=30).json()
    assert set(table["model"]) == {f"wind_solar/{answer['model']['version']}"}
    assert table["wind_predicted_GW"].tolist() == pytest.approx([row["wind_GW"] for row in answer["rows"]], abs=1e-3)
    assert table["utc_timestamp"].tolist() == [row["utc_timestamp"] for row in rows]


def test_your_weather_names_the_errors_of_a_file(weather):
    """An invalid file gives an error with line, column and what is allowed; a valid file after it is predicted."""
    upload(weather, (HEADER + "2016-06-01T12:00:00Z,x,12,100,50\n").encode(), "broken.csv")
    fault = weather.locator("#weather-fault")
    expect(fault).to_contain_text("No predictions for broken.csv.")
    expect(fault).to_contain_text("line 2, column windspeed")
    expect(weather.get_by_role("button", name="Download the predictions")).to_have_count(0)
    more = HEADER.replace("\n", ",station\n") + "2016-06-01T12:00:00Z,3,12,100,50,7\n"
    upload(weather, more.encode())
    expect(weather.locator("#weather-predictions-hint")).to_contain_text("mine.csv: 1 hour,")
    expect(weather.locator("#weather-predictions-hint")).to_contain_text("Unused columns: station.")
    expect(fault).to_have_count(0)
    weather.get_by_role("button", name="Try the example").click()
    expect(weather.locator("#weather-predictions-hint")).to_contain_text("The example: 72 hours,")


def test_your_weather_does_not_upload_large_files(weather, tmp_path):
    """A file of 50 MB gives a message and is not sent."""
    sent = []
    weather.on("request", lambda request: sent.append(len(request.post_data_buffer or b"")))
    huge = tmp_path / "huge.csv"
    huge.write_bytes(b"x" * 50_000_000)
    weather.set_input_files(INPUT, huge)
    expect(weather.locator("#weather-error")).to_contain_text("huge.csv was not uploaded: it has 50.0 MB")
    weather.wait_for_timeout(300)
    assert max(sent, default=0) < 10_000
    upload(weather, (HEADER + "2016-06-01T12:00:00Z,3,12,100,50\n").encode())
    expect(weather.locator("#weather-error")).to_be_empty()
