"""JupyterLab in a browser: start page, tiles, Dask's panel, terminals, kernels, and a notebook of each chapter."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from forecast.problem import EXPERIMENT, REGISTERED_MODEL
from mlflow import MlflowClient
from nbformat import v4
from playwright.sync_api import Frame, Page, expect
from workplace import BIN, Program, Servers, free_port, running, wait_for

from workshop.exports import exports_of

pytestmark = pytest.mark.usefixtures("servers")  # in the process of the servers
# Each tile, and a text that only the running application shows.
TILES = {
    "MLflow": ("/mlflow/", "predicting_wind_solar"),
    "Dask": ("/dask-dashboard/status", "Data Transfer"),  # the tab of a figure; most other text is drawn on canvas
    "Dashboard": ("/dashboard/", "wind_solar version"),
    "Report": ("/report/", "Solar and wind power in Germany"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home folder with files of another installation: a kernel of the same name, and a shell file that sets PATH."""
    home = tmp_path_factory.mktemp("home")
    kernel = home / ".local" / "share" / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "stale", "language": "python"}')
    (home / ".bashrc").write_text("export PATH=/usr/bin:/bin MLFLOW_TRACKING_URI=http://127.0.0.1:1\n")
    return home


def jupyter(command: list, servers: Servers, home: Path, **variables: str):
    """Run JupyterLab until the block ends; it is ready when it prints its address."""
    environment = servers.environment | {"HOME": str(home), "PYTHONUNBUFFERED": "1"} | variables
    command += ["--no-browser", "--port", free_port()]
    return running(
        command, environment, servers.root, lambda output: re.search(r"http://127\.0\.0\.1:\S+token=\w+", output)
    )


@pytest.fixture(scope="module")
def lab(servers, home) -> Iterator[Program]:
    """JupyterLab, started by `workshop lab`."""
    with jupyter([BIN / "workshop", "lab"], servers, home) as lab:
        yield lab


@pytest.fixture(scope="module")
def page(lab, browser) -> Iterator[Page]:
    """A browser page with this JupyterLab."""
    with opened(browser, lab.ready[0]) as page:
        yield page


@pytest.fixture(scope="module")
def on_a_hub(servers, home, browser) -> Iterator[Page]:
    """A page of JupyterLab below a base URL, as started by a hub with JUPYTER_CONFIG_PATH."""
    command = [BIN / "jupyter-lab", "--ServerApp.base_url=/user/x/"]
    folder = str(servers.root / "server" / "jupyter")
    with jupyter(command, servers, home, JUPYTER_CONFIG_PATH=folder) as lab:
        assert urlsplit(lab.ready[0]).path == "/user/x/lab/tree/START.md"
        with opened(browser, lab.ready[0]) as page:
            yield page


@contextlib.contextmanager
def opened(browser, url: str) -> Iterator[Page]:
    """Open JupyterLab; wait until it shows a document or its launcher."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = context.new_page()
        page.goto(url)
        expect(page.locator(".jp-RenderedMarkdown:visible, .jp-Launcher:visible").first).to_be_visible()
        yield page
    finally:
        context.close()


def launch(page: Page, title: str) -> None:
    """Open the launcher by the menu (keys would go to the focused tile), and click on one of its cards."""
    page.get_by_role("menuitem", name="File", exact=True).click()
    page.get_by_role("menuitem", name="New Launcher").click()
    page.locator(".jp-LauncherCard:visible", has_text=title).first.click()


def open_tile(page: Page, title: str) -> Frame:
    """Open a tile of the launcher; return the frame of its tab."""
    path, _ = TILES[title]
    launch(page, title)
    tab = page.locator("iframe:visible")
    expect(tab).to_have_attribute("src", re.compile(re.escape(path)))
    return tab.element_handle().content_frame()


def test_lab_opens_at_the_start_page(lab, page):
    """The start page is rendered, and the output says that Ctrl-C does not stop the servers."""
    page.goto(lab.ready[0])
    expect(page).to_have_url(re.compile(r"/lab/tree/START\.md"))
    expect(page.locator(".jp-RenderedMarkdown h1")).to_have_text(re.compile("From a messy notebook"))
    for chapter in ("The starting point", "Tracking", "Projects", "pipeline"):
        expect(page.locator(".jp-RenderedMarkdown h2", has_text=chapter).first).to_be_visible()
    assert "`workshop down` stops the servers" in lab.log.read_text()
    expect(page.get_by_text("Build Recommended")).to_have_count(0)
    expect(page.get_by_text("Would you like to get notified")).to_have_count(0)


def test_link_scrolls_to_a_heading_and_code_has_a_margin(page):
    """A step's link scrolls its README to the heading; a code block in a list has a margin below."""
    page.locator(".lm-TabBar-tabLabel", has_text="START.md").click()
    page.locator(".jp-RenderedMarkdown:visible a", has_text="Data pushed to a remote").click()
    text = page.locator(".jp-RenderedMarkdown:visible", has_text="Share data")
    expect(text.locator("h3", has_text="Share data")).to_be_in_viewport()
    expect(text.locator("h1")).not_to_be_in_viewport()
    expect(text.locator("li > pre").first).to_have_css("margin-bottom", re.compile(r"1[0-9.]+px"))


@pytest.mark.parametrize("title", TILES)
def test_tile_shows_its_application(on_a_hub, title):
    """Each tile opens its application in a tab of JupyterLab, below a base URL and with non-default ports."""
    page = on_a_hub
    words = open_tile(page, title).get_by_text(TILES[title][1]).first
    words.wait_for(state="attached")
    # On a busy machine JupyterLab may bring the document of its start to the front after the tile.
    page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab", has_text=title).last.click()
    expect(words).to_be_visible()


def test_applications_can_be_used_within_jupyterlab(on_a_hub):
    """The dashboard's links and callbacks work, and its link to a run opens MLflow's page within JupyterLab."""
    page = on_a_hub
    frame = open_tile(page, "Dashboard")
    frame.get_by_role("link", name="What if").click()
    expect(frame.locator("#what-if-answers")).to_contain_text("GW")
    frame.get_by_role("link", name="Model", exact=True).click()
    frame.locator("#run-link").wait_for()
    with page.context.expect_page() as run:
        frame.locator("#run-link").click()
    expect(run.value).to_have_url(re.compile(r"/mlflow/#/experiments/\d+/runs/"))
    assert urlsplit(run.value.url).netloc == urlsplit(page.url).netloc
    expect(run.value.get_by_text("Registered models").first).to_be_visible()
    run.value.close()


def test_clicks_of_chapter_2_register_a_model_and_set_an_alias(page, servers):
    """The labels in italics in the README exist in the tile, and have the described effect."""
    step = (servers.root / "2_tracking" / "README.md").read_text().partition("### 6. ")[2].partition("###")[0]
    names = re.findall(r"\*([^*]+)\*", " ".join(step.split()))
    _, tile, models, register, confirm, registry, version, closing, aliases, add, save = names
    client = MlflowClient(servers.tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    finished = client.search_runs([experiment], "attributes.status = 'FINISHED'")
    run = next(run for run in finished if run.outputs.model_outputs and "mlflow.parentRunId" not in run.data.tags)

    frame = open_tile(page, tile)
    frame.get_by_role("link", name=EXPERIMENT).click()
    frame.get_by_role("link", name=run.info.run_name, exact=True).first.click()
    expect(frame.get_by_text(re.compile(rf"^{models} \(1\)"))).to_be_visible()
    frame.get_by_role("link", name="model", exact=True).last.click()
    frame.get_by_role("button", name=register).click()
    dialog = frame.get_by_role("dialog")
    dialog.get_by_role("combobox").click()
    frame.get_by_title(REGISTERED_MODEL, exact=True).last.click()
    dialog.get_by_role("button", name=confirm, exact=True).click()
    expect(dialog).to_have_count(0)
    newest = client.search_model_versions(f"name = '{REGISTERED_MODEL}'", order_by=["version_number DESC"])[0]
    assert newest.run_id == run.info.run_id
    try:
        frame.get_by_role("link", name=registry).click()
        frame.get_by_role("button", name=closing).click()
        frame.get_by_role("link", name=REGISTERED_MODEL, exact=True).click()
        frame.get_by_role("link", name=version).first.click()
        expect(frame.get_by_text(aliases).first).to_be_visible()
        frame.get_by_role("button", name=add, exact=True).first.click()
        dialog.get_by_role("combobox").press_sequentially("tried")
        page.keyboard.press("Enter")
        dialog.get_by_role("button", name=save).click()
        expect(dialog).to_have_count(0)
        assert client.get_model_version_by_alias(REGISTERED_MODEL, "tried").version == newest.version
    finally:
        client.delete_model_version(REGISTERED_MODEL, newest.version)


def test_panel_of_dask_is_connected_to_the_running_cluster(on_a_hub):
    """Without any input, the panel's buttons work, and a live plot shows both workers."""
    page = on_a_hub
    page.locator(".jp-SideBar .lm-TabBar-tab[data-id='dask-dashboard-launcher']").click()
    button = page.locator("button[value='Workers']")
    expect(button).to_be_enabled()
    button.click()
    plot = page.locator("iframe:visible")
    expect(plot).to_have_attribute("src", re.compile("individual-workers"))
    expect(plot.element_handle().content_frame().get_by_text("Total (2)").first).to_be_visible()


def test_terminal_and_kernel_see_the_servers_and_this_environment(page, servers, tmp_path):
    """Both get the tracking URI and this Python, whatever is in the home folder; kernel messages are encrypted."""
    uri = exports_of(servers.settings)["MLFLOW_TRACKING_URI"]
    answer = tmp_path / "answer"
    launch(page, "Terminal")
    page.locator(".xterm-screen:visible").click()
    page.keyboard.type(f'echo "$(command -v python) $MLFLOW_TRACKING_URI" > {answer}\n')
    wait_for(lambda: answer.exists() and answer.read_text().strip())
    assert answer.read_text().split() == [str(BIN / "python"), uri]
    code = (
        "import os, sys\nfrom ipykernel import get_connection_info\n"
        "print(sys.executable, os.environ['MLFLOW_TRACKING_URI'], 'curve_publickey' in get_connection_info())"
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = v4.new_notebook(cells=[v4.new_code_cell(code)], metadata=kernel)
    with copied(servers.root, "environment.ipynb", notebook) as name:
        (cell,) = run_all(page, servers.root / name).cells
    assert cell.outputs[0].text.split() == [sys.executable, uri, "True"]


@contextlib.contextmanager
def copied(root: Path, name: str, notebook: nbformat.NotebookNode) -> Iterator[str]:
    """Write a copy of a notebook into its folder, since JupyterLab changes what it runs; remove it afterwards."""
    file = root / name
    nbformat.write(notebook, file)
    try:
        yield name
    finally:
        file.unlink()


def run_all(page: Page, file: Path) -> nbformat.NotebookNode:
    """Open a notebook, choose Run All Cells, and return it as JupyterLab saved it once all cells have run."""
    relative = file.relative_to(next(folder for folder in file.parents if (folder / "pyproject.toml").exists()))
    page, base = page.context.new_page(), page.url.partition("/lab")[0]
    page.goto(f"{base}/lab/tree/{relative}?reset")  # without the tabs of other tests
    expect(page.locator(".jp-Notebook:visible .jp-CodeCell").first).to_be_visible()
    expect(page.get_by_text("Python 3 (ipykernel) | Idle").first).to_be_visible()  # otherwise cells are dropped
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    def saved() -> bool:
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        return all(cell.execution_count for cell in code_cells(nbformat.read(file, as_version=4)))

    wait_for(saved)
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name="Shut Down Kernel", exact=True).click()
    page.close()
    return nbformat.read(file, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the code cells that are not empty."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
