"""Chapter 1 in a copy of the folder: its four notebooks in order, the report script and the dashboard."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import requests
from forecast.raw.prepare import prepare
from walk import execute
from workplace import ROOT, clean_environment, environment_of, is_near_wanted, run_program, running

from workshop.teaching.exercises import R2_OF_WEEK

CHAPTER = ROOT / "1_starting_point"
NOTEBOOKS = ["make_processed_data", "model_linreg", "model_rf", "model_keras"]
COLUMNS = ["utc_timestamp", "solar_GW", "wind_GW", "windspeed", "temperature", "rad_horizontal", "rad_diffuse"]
ENVIRONMENT = clean_environment()


@pytest.fixture(scope="module")
def chapter(tmp_path_factory) -> Path:
    """A copy of the chapter with all four notebooks solved and executed, as an attendee leaves it."""
    folder = tmp_path_factory.mktemp("chapter") / CHAPTER.name
    shutil.copytree(CHAPTER, folder, ignore=shutil.ignore_patterns("raw_data", "germany.csv", "report.html", ".ipynb*"))
    for name in NOTEBOOKS:
        execute(folder, name, ENVIRONMENT | {"WORKSHOP_STATE": str(folder.parent)}, solved=True)
    return folder


@pytest.mark.walk
@pytest.mark.parametrize(
    ("name", "figures", "lowest"),
    [("make_processed_data", 5, 0), ("model_linreg", 1, 0.80), ("model_rf", 1, 0.85), ("model_keras", 1, 0.84)],
)
def test_notebooks_show_the_figures_and_scores_of_their_texts(chapter, name, figures, lowest):
    """Each notebook has its figures, and each model's R2 is within the range of its text."""
    notebook = nbformat.read(chapter / f"{name}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= figures
    lines = "".join(output.get("text", "") for output in outputs).splitlines()
    scores = [float(line.split()[1]) for line in lines if line.startswith("R2")]
    assert len(scores) == (lowest > 0)
    assert all(lowest < score < 1 for score in scores)


@pytest.mark.walk
def test_exploration_writes_the_frame_of_the_package(chapter):
    """The table of the notebook equals that of the package: columns, timestamps, hours and values."""
    by_hand = pd.read_csv(chapter / "germany.csv")
    assert list(by_hand.columns) == COLUMNS
    assert len(by_hand) >= 35_000
    assert by_hand["utc_timestamp"].iloc[0] == "2013-01-01T00:00:00Z"
    by_rule, _ = prepare(chapter / "raw_data")
    by_hand["utc_timestamp"] = pd.to_datetime(by_hand["utc_timestamp"])
    pd.testing.assert_frame_equal(by_hand, by_rule[COLUMNS], check_dtype=False)


@pytest.mark.walk
def test_solutions_pass_their_checks(chapter):
    """Each notebook's solution passes its check, for any split."""
    assert json.loads((chapter.parent / "exercises.json").read_text()) == ["1a", "1b", "1c", "1d"]


@pytest.mark.parametrize("name", NOTEBOOKS[1:])
def test_models_name_the_notebook_that_creates_their_table(tmp_path, monkeypatch, name):
    """Without the table, the first cell of a model notebook names the notebook to run before it."""
    cells = nbformat.read(CHAPTER / f"{name}.ipynb", as_version=4).cells
    monkeypatch.chdir(tmp_path)
    with environment_of(ENVIRONMENT), pytest.raises(FileNotFoundError) as error:
        exec(next(cell.source for cell in cells if cell.cell_type == "code"), {})
    assert str(error.value).endswith("make_processed_data.ipynb writes it, run that first")


@pytest.mark.parametrize("script", ["dashboard/app.py", "report/make_report.py"])
def test_scripts_name_the_notebook_that_creates_their_table(tmp_path, script):
    """Without the table, report script and dashboard name the notebook, in one line."""
    folder = tmp_path / "copy"
    folder.mkdir()
    done = run_program(sys.executable, CHAPTER / script, cwd=folder, exit_code=1)
    assert done.stderr.strip().endswith("make_processed_data.ipynb writes it, run that notebook first")
    assert "Traceback" not in done.stderr


@pytest.mark.walk
def test_report_is_one_file_with_its_figures(chapter):
    """The script writes the report of the last week as one HTML file with figures, labelled as modelled."""
    command = [sys.executable, "make_report.py"]
    done = subprocess.run(
        command, cwd=chapter / "report", env=ENVIRONMENT, check=True, timeout=120, capture_output=True, text=True
    )
    scores = [float(r2) for r2 in re.findall(r"R2 ([\d.]+)", done.stdout)]
    assert scores == pytest.approx(R2_OF_WEEK["with"], abs=0.02)
    page = (chapter / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 2
    assert "31 December 2016" in page
    assert "modelled" in page
    assert "://" not in page


def started(chapter: Path):
    """Start the dashboard; it is ready when it prints its address."""
    command = [sys.executable, "-u", "app.py"]
    return running(command, ENVIRONMENT, chapter / "dashboard", lambda output: re.search(r"http://[\d.:]+", output))


@pytest.fixture(scope="module")
def dashboard(chapter) -> Iterator[str]:
    """The address of a dashboard, which trains its model first."""
    with started(chapter) as program:
        yield program.ready[0]


@pytest.mark.walk
def test_dashboards_print_their_address_when_they_listen(chapter):
    """Two dashboards in parallel respond at different addresses, on ports that `up` does not use."""
    with ExitStack() as both:
        addresses = [both.enter_context(started(chapter)).ready[0] for _ in range(2)]
        assert all("Solar and wind power" in requests.get(address, timeout=30).text for address in addresses)
        assert "modelled" in requests.get(f"{addresses[0]}/_dash-layout", timeout=30).text
    assert len(set(addresses)) == 2
    assert not any(is_near_wanted(int(address.split(":")[-1])) for address in addresses)


def what_if(address: str, **weather: float | None) -> str:
    """Return the sentence of the what-if panel for these inputs, requested as by the page."""
    inputs = [{"id": name, "property": "value", "value": value} for name, value in weather.items()]
    changed = {"inputs": inputs, "changedPropIds": [f"{name}.value" for name in weather], "state": []}
    body = {"output": "what-if.children", "outputs": {"id": "what-if", "property": "children"}} | changed
    answer = requests.post(f"{address}/_dash-update-component", json=body, timeout=30)
    return answer.json()["response"]["what-if"]["children"]


@pytest.mark.walk
def test_dashboard_predicts_for_a_weather(dashboard):
    """More wind gives another prediction in GW; for an empty field the sentence asks for a value."""
    weather = {"temperature": 10, "rad_horizontal": 200, "rad_diffuse": 100}
    calm, windy = what_if(dashboard, windspeed=2, **weather), what_if(dashboard, windspeed=8, **weather)
    assert calm.endswith("GW")
    assert windy.endswith("GW")
    assert calm != windy
    assert what_if(dashboard, windspeed=None, **weather) == "Fill in all four."


def test_readme_names_each_smell_with_its_chapter():
    """Each smell in the table has an existing place in this chapter, and a later chapter that fixes it."""
    table = (CHAPTER / "README.md").read_text(encoding="utf-8").split("| smell |")[1].split("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    assert len(rows) >= 14
    for smell, where, cure in rows:
        assert smell.strip()
        assert re.search(r"chapter [234]\b", cure)
        for name in re.findall(r"`([^`]+)`", where):
            assert list(CHAPTER.glob(name.rstrip("/"))), name
