"""The dashboard of the running servers in a browser."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest
from browsing import Registry, health_of, opened
from workplace import wait_for

# Predicts half of the measured power, so it differs from any version in production.
ANOTHER = """
from sklearn.linear_model import LinearRegression
from forecast.table import processed
from forecast.table.features import features, targets
from forecast.learn import storage
from forecast import tracking
from forecast.problem import REGISTERED_MODEL

frame = processed.read("data/germany.parquet")
with tracking.start_run("half_of_it") as run:
    uri = storage.log_model(LinearRegression().fit(features(frame), targets(frame) / 2), frame.head())
version = tracking.connect().create_model_version(
    REGISTERED_MODEL, source=uri, run_id=run.info.run_id, model_id=uri.removeprefix("models:/")
)
print("version", version.version)
"""

BUSY_SECONDS = 60.0  # time-out on a busy machine


@pytest.fixture(scope="session", autouse=True)
def long_timeout() -> None:
    """Raise the timeout of the pages for a busy machine."""
    pytest.importorskip("playwright.sync_api").expect.set_options(timeout=BUSY_SECONDS * 1000)


@pytest.fixture
def registry(servers) -> Iterator[Registry]:
    """Yield the registry; after the test, restore the alias and wait until the dashboard follows."""
    registry = Registry(servers.tracking_uri)
    before = registry.version()
    yield registry
    registry.move(before)
    dashboard_url = servers.settings.dashboard_url
    wait_for(lambda: (health := health_of(dashboard_url)) and health["version"] == before and not health["faults"])


@pytest.fixture(scope="session")
def another_version(servers) -> str:
    """Return a registered version that is not in production and has other predictions."""
    done = servers.run(sys.executable, "-c", ANOTHER, cwd=servers.pipeline)
    assert done.returncode == 0, done.stderr
    return re.search(r"^version (\d+)$", done.stdout, re.MULTILINE).group(1)


@pytest.fixture
def url(servers) -> str:
    """Return the address of the dashboard of the running servers, once its model is loaded."""
    url = servers.settings.dashboard_url
    wait_for(lambda: (health := health_of(url)) and health["version"])
    return url


@pytest.fixture
def page(url, browser):
    """Return the dashboard's front page at desktop size; script errors fail the test."""
    with opened(browser, url) as page:
        yield page
