"""What people see in a browser: the dashboard, on real servers, in headless Chromium."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
import requests
from workplace import free_port, what_if

expect = pytest.importorskip("playwright.sync_api").expect

DASHBOARD = Path(__file__).parent.parent / "4_pipeline" / "dashboard" / "app.py"
ALIAS_SECONDS = 10.0  # from the alias's move to the open page
START_SECONDS = 90.0  # of a dashboard's process, model loaded, on a busy machine

# Half of what the data says: whatever is in production, this version predicts something else.
ANOTHER = """
from sklearn.linear_model import LinearRegression
from workshop.data import schema
from workshop.data.features import features, targets
from workshop.models import loading, tracking
from workshop.settings import REGISTERED_MODEL, get_settings

frame = schema.read(get_settings().pipeline / "data" / "germany.parquet")
with tracking.start_run("half_of_it") as run:
    uri = loading.log_model(LinearRegression().fit(features(frame), targets(frame) / 2), frame.head())
version = tracking.connect().create_model_version(
    REGISTERED_MODEL, source=uri, run_id=run.info.run_id, model_id=uri.removeprefix("models:/")
)
print("version", version.version)
"""


class Registry:
    """The alias `production`, read and moved through MLflow's REST interface as any client would."""

    def __init__(self, tracking_uri: str) -> None:
        self._url = f"{tracking_uri}/api/2.0/mlflow/registered-models/alias"

    def version(self) -> str:
        """Return the version that the alias points at."""
        answer = requests.get(self._url, params={"name": "wind_solar", "alias": "production"}, timeout=30)
        answer.raise_for_status()
        return answer.json()["model_version"]["version"]

    def move(self, version: str) -> None:
        """Point the alias at a version."""
        body = {"name": "wind_solar", "alias": "production", "version": version}
        requests.post(self._url, json=body, timeout=30).raise_for_status()

    def remove(self) -> None:
        """Take the alias away."""
        body = {"name": "wind_solar", "alias": "production"}
        requests.delete(self._url, json=body, timeout=30).raise_for_status()


@pytest.fixture
def registry(promoted) -> Iterator[Registry]:
    """Return the registry; when the test ends the alias points where it did before, and the dashboard knows."""
    registry = Registry(promoted.tracking_uri)
    before = registry.version()
    yield registry
    registry.move(before)
    wait_for(promoted.settings.dashboard_url, lambda health: health["version"] == before and not health["troubles"])


@pytest.fixture(scope="session")
def another_version(promoted) -> str:
    """Return a version that is registered but not in production, and predicts something else."""
    done = promoted.run(sys.executable, "-c", ANOTHER)
    assert done.returncode == 0, done.stderr
    return re.search(r"^version (\d+)$", done.stdout, re.MULTILINE).group(1)


@pytest.fixture
def page(promoted, browser):
    """Return the dashboard of the running servers at desktop size, its model loaded; script errors fail the test."""
    wait_for(promoted.settings.dashboard_url, lambda health: health["version"])
    with opened(browser, promoted.settings.dashboard_url) as page:
        yield page


@contextlib.contextmanager
def opened(browser, url: str, width: int = 1280, height: int = 900):
    """Open a page of the dashboard; at the end no script has failed and no request was answered 500 or above."""
    page = browser.new_page(viewport={"width": width, "height": height})
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("response", lambda answer: faults.append(answer.url) if answer.status >= 500 else None)
    try:
        page.goto(url)
        expect(page.locator("#model-version")).to_be_visible(timeout=30_000)
        yield page
    finally:
        page.close()
    assert not faults


@contextlib.contextmanager
def dashboard(environment: dict[str, str], root: Path, tracking_uri: str) -> Iterator[str]:
    """Run a second dashboard on a free port, of the repository ``root``; give its address, end it afterwards."""
    port = free_port()
    places = {
        "WORKSHOP_ROOT": str(root),
        "WORKSHOP_STATE": str(root / "state"),
        "WORKSHOP_DASHBOARD_PORT": str(port),
        "MLFLOW_TRACKING_URI": tracking_uri,
    }
    log = root / "dashboard.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(DASHBOARD)], env=environment | places, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_for(f"http://127.0.0.1:{port}", lambda health: health["status"] == "ok")
        yield f"http://127.0.0.1:{port}"
    except BaseException:
        sys.stderr.write(log.read_text())
        raise
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, wanted: Callable[[dict], object]) -> None:
    """Wait until what the dashboard's health says is as wanted."""
    deadline = time.monotonic() + START_SECONDS
    health = None
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            health = requests.get(f"{url}/health", timeout=5).json()
            if wanted(health):
                return
        time.sleep(0.2)
    pytest.fail(f"{url}/health says {health} after {START_SECONDS:g} s")


def numbers(page) -> tuple[str, str]:
    """Return what the what-if panel says: solar and wind, in GW."""
    return page.locator("#what-if-solar").inner_text(), page.locator("#what-if-wind").inner_text()


# -- the page ---------------------------------------------------------------------------------------------------------
def test_dashboard_shows_the_model_and_a_prediction(page, registry):
    """The first view names version, score and period of the model in production, and predicts in GW."""
    expect(page.locator("#model-version")).to_have_text(f"wind_solar version {registry.version()}")
    assert re.fullmatch(r"-?[01]\.\d{3}", page.locator("#model-r2").inner_text())
    expect(page.locator("#model-since")).to_have_text(re.compile(r"\d{2} \w{3} \d{4}, \d{2}:\d{2} UTC"))
    assert all(re.fullmatch(r"-?\d+\.\d{2}", number) for number in numbers(page))
    # of both targets what was predicted and its band, and once what was measured
    expect(page.locator("#outlook-figure .legendtext")).to_have_count(5)
    expect(page.locator("#outlook-figure")).to_contain_text("wind band, 80% of hours")
    expect(page.locator("#outlook-key-figures tbody tr")).to_have_count(2)
    expect(page.locator("#message")).to_be_empty()


def test_dashboard_says_that_its_data_is_modelled(page):
    """Near the figure and in the footer stands that the sample is modelled, with its source."""
    expect(page.locator("#outlook")).to_contain_text("modelled")
    expect(page.locator("footer")).to_contain_text(re.compile("modelled", re.IGNORECASE))
    expect(page.locator("footer")).to_contain_text("Deutscher Wetterdienst")


def test_dashboard_links_to_the_run_in_mlflow(page):
    """The model's link opens the page of its run in MLflow."""
    link = page.locator("#model-run-link")
    run_id = link.get_attribute("href").rsplit("/", 1)[1]
    with page.expect_popup() as popup:
        link.click()
    try:
        expect(popup.value.get_by_text(run_id).first).to_be_visible(timeout=60_000)
    finally:
        popup.value.close()


def test_dashboard_answers_to_a_slider(page):
    """More wind by keyboard changes wind power at once, and the value beside the slider says how much."""
    _, wind = numbers(page)
    slider = page.get_by_label("Wind speed at 10 m")
    slider.focus()
    for _ in range(20):
        slider.press("ArrowRight")
    expect(page.locator("#what-if-windspeed-value")).to_have_text("7.0 m/s")
    expect(page.locator("#what-if-wind")).not_to_have_text(wind)


def test_dashboard_shows_the_period_that_is_asked_for(page):
    """A preset changes dates, key figures and figure; `earlier` moves the period by its length."""
    caption = page.locator("#outlook-key-figures caption")
    latest = caption.inner_text()
    page.get_by_role("button", name="Earlier").click()
    expect(caption).not_to_have_text(latest)
    expect(page.locator("#outlook-first-day")).to_have_value("4 Dec 2016")
    expect(page.locator("#outlook-last-day")).to_have_value("17 Dec 2016")
    page.get_by_role("button", name="All", exact=True).click()
    expect(caption).to_contain_text("01 Jan 2013 to 31 Dec 2016")
    expect(page.locator("#outlook-figure")).to_contain_text("daily means")


def test_dashboard_follows_the_alias_without_a_reload(page, registry, another_version):
    """Within ten seconds of the alias's move an open page names the other version and predicts with it."""
    before, name = numbers(page), page.locator("#model-version")
    table = page.locator("#outlook-key-figures").inner_text()
    page.evaluate("window.stillTheSamePage = true")
    registry.move(another_version)
    expect(name).to_have_text(f"wind_solar version {another_version}", timeout=ALIAS_SECONDS * 1000)
    expect(page.locator("#what-if-wind")).not_to_have_text(before[1], timeout=2000)
    expect(page.locator("#what-if-solar")).not_to_have_text(before[0], timeout=2000)
    expect(page.locator("#outlook-key-figures")).not_to_have_text(table, use_inner_text=True, timeout=2000)
    assert page.evaluate("window.stillTheSamePage")


def test_dashboard_fits_a_phone(promoted, browser):
    """At 390 pixels nothing is wider than the screen, and every part is there."""
    with opened(browser, promoted.settings.dashboard_url, 390, 844) as page:
        expect(page.locator("#outlook-figure .main-svg").first).to_be_visible()
        expect(page.locator("#what-if-wind")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_dashboard_asks_no_other_host(promoted, browser):
    """Everything that the page needs comes from the dashboard's own address."""
    page = browser.new_page()
    hosts = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if request.url.startswith("http") else None)
    try:
        page.goto(promoted.settings.dashboard_url, wait_until="networkidle")
    finally:
        page.close()
    assert hosts == {f"{promoted.settings.host}:{promoted.settings.dashboard_port}"}


# -- nothing to serve, and outages ------------------------------------------------------------------------------------
def test_dashboard_without_model_and_data_says_what_to_run(promoted, registry, browser, tmp_path):
    """With nothing in production and no data the page names both and the commands that make them."""
    (tmp_path / "4_pipeline").mkdir()
    registry.remove()
    with dashboard(promoted.environment, tmp_path, promoted.tracking_uri) as url, opened(browser, url) as page:
        message = page.locator("#message")
        expect(message).to_contain_text("No model is in production yet.", timeout=60_000)
        expect(message).to_contain_text("There is no data yet.")
        expect(message).to_contain_text("make run")
        expect(message).to_contain_text("dvc repro")
        expect(page.locator("#what-if-wind")).to_have_text("n/a")


def test_dashboard_without_servers_says_what_to_run(promoted, browser, tmp_path):
    """With no tracking server the page is there all the same, and says since when and what to type."""
    (tmp_path / "4_pipeline").mkdir()
    with (
        dashboard(promoted.environment, tmp_path, f"http://127.0.0.1:{free_port()}") as url,
        opened(browser, url) as page,
    ):
        message = page.locator("#message")
        expect(message).to_contain_text("does not answer", timeout=60_000)
        expect(message).to_contain_text("workshop up")


def test_dashboard_goes_on_answering_while_the_registry_is_down(promoted, registry, browser, tmp_path):
    """When the tracking server falls silent the model goes on; a banner says since when, until it is back."""
    data = tmp_path / "4_pipeline" / "data"
    data.mkdir(parents=True)
    shutil.copy(promoted.settings.pipeline / "data" / "germany.parquet", data)
    target = int(promoted.tracking_uri.rsplit(":", 1)[1])
    with (
        Forwarder(target) as forwarder,
        dashboard(promoted.environment, tmp_path, f"http://127.0.0.1:{forwarder.port}") as url,
    ):
        wait_for(url, lambda health: health["version"])
        with opened(browser, url) as page:
            forwarder.cut = True
            expect(page.locator("#message")).to_contain_text("does not answer", timeout=20_000)
            expect(page.locator("#message")).to_contain_text(f"Version {registry.version()} goes on answering")
            _, wind = numbers(page)
            page.get_by_label("Wind speed at 10 m").fill("9")
            expect(page.locator("#what-if-wind")).not_to_have_text(wind, timeout=2000)
            forwarder.cut = False
            expect(page.locator("#message")).to_be_empty(timeout=20_000)


class Forwarder:
    """A port that leads to another; ``cut`` closes each connection at once, as a dead server would."""

    def __init__(self, target_port: int) -> None:
        self.cut = False
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                if outer.cut:
                    return
                with socket.create_connection(("127.0.0.1", target_port)) as there:
                    back = threading.Thread(target=outer._copy, args=(there, self.request), daemon=True)
                    back.start()
                    outer._copy(self.request, there)
                    back.join()

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        source.settimeout(0.2)
        while not self.cut:
            try:
                data = source.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if not data:
                break
            with contextlib.suppress(OSError):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.cut = True
        self._server.shutdown()
        self._server.server_close()


# -- bad input --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1e308, -1e308, 0, 0, 99, 0], ["16.0 m/s", "-20.0 °C", "0 W/m²", "0 W/m²", "23:00", "01 January"]),
        (
            [None, "warm", [1], {"a": 1}, "noon", None],
            ["5.0 m/s", "12.0 °C", "250 W/m²", "120 W/m²", "12:00", "21 June"],
        ),
        (
            [float("nan"), float("inf"), True, "7", "8.4", 366],
            ["5.0 m/s", "40.0 °C", "1 W/m²", "7 W/m²", "08:00", "31 December"],
        ),
    ],
)
def test_dashboard_takes_slider_values_within_their_range(promoted, values, shown):
    """Values that no slider gives are brought into range or replaced, and the answer says which were used."""
    url = f"{promoted.settings.dashboard_url}/_dash-update-component"
    headers = {"Content-Type": "application/json"}
    answer = requests.post(url, data=json.dumps(what_if(values)), headers=headers, timeout=30)
    assert answer.status_code == 200
    response = answer.json()["response"]
    names = ["windspeed", "temperature", "rad-horizontal", "rad-diffuse", "hour", "day"]
    assert [response[f"what-if-{name}-value"]["children"] for name in names] == shown


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"output": 1}',
        b'{"output": "no.such"}',
        json.dumps(what_if([1, 2, 3, 4, 5, 6]) | {"inputs": None}).encode(),
        json.dumps(what_if([1, 2, 3, 4, 5, 6]) | {"inputs": [{}]}).encode(),
        json.dumps(what_if([1, 2, 3, 4, 5, 6]) | {"inputs": [[1]]}).encode(),
        json.dumps(what_if([1, 2, 3, 4, 5, 6]) | {"outputs": {"id": "x", "property": "y"}}).encode(),
        json.dumps(what_if([1, 2, 3, 4, 5, 6]) | {"changedPropIds": 7}).encode(),
        json.dumps(what_if([1, 2, 3, 4, 5, 6]) | {"changedPropIds": [{}]}).encode(),
        json.dumps(what_if([1, 2, 3, 4, 5, 6]) | {"state": "x"}).encode(),
    ],
)
def test_dashboard_refuses_malformed_requests_with_a_reason(promoted, body):
    """A callback request that no page would send is answered 400 with a reason and no traceback."""
    url = f"{promoted.settings.dashboard_url}/_dash-update-component"
    answer = requests.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=30)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


def test_dashboard_refuses_a_huge_body(promoted):
    """A body above a megabyte is refused without being read as a request."""
    url = f"{promoted.settings.dashboard_url}/_dash-update-component"
    assert requests.post(url, data=b" " * 2_000_000, timeout=30).status_code == 413
