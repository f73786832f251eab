"""The pages on the model and on the data, in a browser: their content and their links."""

from __future__ import annotations

from urllib.parse import urlsplit

import pandas as pd
import pytest
from browsing import opened
from forecast.govern.gate import KINDS
from forecast.table import processed

expect = pytest.importorskip("playwright.sync_api").expect


@pytest.fixture
def model(browser, url):
    """Return the page on the model, once its record has been read."""
    with opened(browser, f"{url}/model") as page:
        expect(page.locator(".chain li")).to_have_count(len(KINDS))
        yield page


def test_model_page_says_which_model_is_in_production_and_why(model, servers):
    """The page shows reason, scores, the gate's rules, the importance of inputs, and predecessors."""
    facts = model.locator("#in-production")
    for words in ("Why", "R², solar", "nominal coverage of 80%"):
        expect(facts).to_contain_text(words)
    rules = model.locator("#gate tbody tr")
    expect(rules.filter(has_text="time to predict one hour (ms)")).to_contain_text("at most 500✓ passed")
    expect(rules.filter(has_text="✗")).to_have_count(0)
    expect(model.locator("#importance")).to_contain_text("Wind speed")
    expect(model.locator("#responses")).to_contain_text("mean prediction, GW")
    expect(model.locator(".moves tbody tr").filter(has_text="promoted")).not_to_have_count(0)


def test_model_page_draws_the_lineage(model, servers):
    """The chain leads from data to production, in order, with the facts recorded by the run."""
    kinds = [text.casefold() for text in model.locator(".chain .eyebrow").all_inner_texts()]
    assert kinds == ["run in mlflow" if kind == "run" else kind for kind in KINDS]
    chain = model.locator(".chain")
    expect(chain).to_contain_text("train_gradient_boosting")
    expect(chain.get_by_text("sha256")).not_to_be_visible()
    chain.locator("li", has_text="sha256").locator("summary").click()
    expect(chain.get_by_text("sha256")).to_be_visible()
    expect(chain.locator(".unknown")).to_have_count(0)
    commit = chain.locator("li").nth(1).locator(".name").inner_text()
    assert servers.run("git", "cat-file", "-t", commit).stdout.strip() == "commit"


def test_link_of_the_notebook_shows_its_page(model):
    """One click shows the executed notebook in MLflow, without other hosts, in about 2 MB."""
    requests = []
    model.context.on("request", lambda request: requests.append(request))
    with model.expect_popup() as opened_page:
        model.locator(".chain li", has_text="sha256").get_by_role("link").click()
    notebook = opened_page.value.frame_locator(".mlflow-html-iframe")
    expect(notebook.get_by_role("heading", level=1)).to_contain_text("Train: gradient boosting")
    expect(notebook.locator(".main-svg").first).to_be_visible()
    expect(notebook.get_by_text("How predictions respond to each input")).to_be_visible()
    assert {urlsplit(request.url).hostname for request in requests} <= {"127.0.0.1", None}  # None: data and blob URLs
    (page,) = (request for request in requests if "/get-artifact" in request.url)
    assert 1_000_000 < len(model.request.get(page.url).body()) < 2_200_000


def test_data_page_counts_missing_hours(browser, url, servers):
    """Missing hours by month add up to those of the table; source and licence are shown."""
    frame = processed.read(servers.settings.pipeline / "data" / "germany.parquet")
    whole = pd.date_range(frame["utc_timestamp"].iloc[0], frame["utc_timestamp"].iloc[-1], freq="h")
    with opened(browser, f"{url}/data") as page:
        expect(page.locator("#hours-hint")).to_contain_text(f"{len(frame):,} of {len(whole):,} hours")
        squares = page.locator("#missing .heatmaplayer text")
        expect(squares).to_have_count(48)
        assert sum(map(int, squares.all_text_contents())) == len(whole) - len(frame)
        for words in ("modelled", "Deutscher Wetterdienst", "licence"):
            expect(page.locator("#source")).to_contain_text(words)
