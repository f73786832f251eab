"""The page "Take it home", followed in a copy with a new environment: the sample first, then other data."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import requests
from forecast.raw.prepare import load_or_make
from forecast.table import processed
from machines import connect, machine
from places import health_of, running
from test_take_it_home import CHANGES, PAGE
from walk import merge
from workplace import BIN, PERSON, clean_environment, free_port, git, run_program, take_home

pytestmark = pytest.mark.timeout(3600)  # installs packages, and runs two pipelines

ADDRESS = "10.98.1.1"  # of the first machine on its link to the second
FIRST, LAST = (pd.Timestamp(f"{year}-01-01", tz="UTC") for year in (2022, 2024))
[CHECKLIST] = re.findall(r"^```bash\n(dvc add.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
ATTRIBUTION = CHANGES["fetch"]["csv"]["attribution"]
WEATHER = {"windspeed": 8.0, "temperature": 15.0, "rad_horizontal": 500.0, "rad_diffuse": 200.0}


class Home:
    """The copy, its environment, and the output of its first pipeline."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTEST_")
        ours = {name: value for name, value in clean_environment().items() if not name.startswith(hidden)}
        self.environment = ours | PERSON | {"PATH": f"{folder / '.venv' / 'bin'}:/usr/bin:/bin"}

    def types(self, *words: object) -> str:
        """Run a command; return its output."""
        done = run_program(*words, cwd=self.folder, env=self.environment, timeout=900)
        return done.stdout + done.stderr

    def result(self, name: str) -> dict:
        """Return the JSON written by a stage."""
        return json.loads((self.folder / "results" / f"{name}.json").read_text())


def write_plants(file: Path) -> int:
    """Write two years of a small park with German headings: the sample moved by years, with 1/20 of its power."""
    frame = load_or_make(file.with_name("sample.csv"))
    file.with_name("sample.csv").unlink()
    stamps = frame["utc_timestamp"] + pd.DateOffset(years=8)  # 2014 and 2015 to 2022 and 2023
    plants = frame[(stamps >= FIRST) & (stamps < LAST)].assign(utc_timestamp=stamps)
    local = plants["utc_timestamp"].dt.tz_convert("Europe/Berlin")
    table = pd.DataFrame(
        {
            "Zeit": local.dt.strftime("%d.%m.%Y %H:%M"), "PV": plants["solar_GW"] * 1000 / 20,
            "Wind": plants["wind_GW"] * 1000 / 20, "v10": plants["windspeed"] * 3.6, "T": plants["temperature"],
            "direkt": plants["rad_horizontal"], "diffus": plants["rad_diffuse"],
        }
    )  # fmt: skip
    table.to_csv(file, sep=";", decimal=",", index=False)
    return len(plants)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The copy with its own environment and no server, after `dvc repro` on the sample and the page's checklist."""
    place = Home(take_home(tmp_path_factory.mktemp("home")))
    place.types(BIN / "uv", "venv", "--quiet", "--python", BIN / "python", ".venv")
    place.types(BIN / "uv", "pip", "install", "--quiet", "--python", ".venv/bin/python", "-r", "requirements.txt")
    place.output, place.status = place.types("dvc", "repro"), place.types("mlflow-gate", "status")
    place.again = place.types("dvc-parallel", "repro")
    assert "own" not in place.types("dvc", "status")
    place.hours = write_plants(place.folder / CHANGES["fetch"]["csv"]["file"])
    merge(place.folder / "params.yaml", CHANGES)
    for line in CHECKLIST.replace("ADDRESS", str(tmp_path_factory.mktemp("remote"))).splitlines():
        place.types(*shlex.split(line))
    return place


def test_pipeline_of_the_copy_puts_a_model_into_production(home):
    """Notebooks run on a local Dask cluster, the gate's decision is printed, and all stages are up to date."""
    assert home.output.count("Running stage") == 10
    assert "promoted: all rules passed, and nothing was in production yet" in home.output
    assert not re.search(r"Styler|Warning|^\d+$", home.output.partition("Running stage 'promote'")[2], re.MULTILINE)
    assert re.search(r"wind_solar version 1 .* from commit \w{10} \(branch main\), r2", home.status), home.status
    assert home.again.count(": unchanged") == 9
    assert "production" in home.types("mlflow-gate", "lineage")


def test_other_data_gets_a_model_into_production(home):
    """A model of two years and 1/20 of the power is in production; the sample's model cannot predict these data."""
    findings, decision = home.result("findings"), home.result("decision")
    assert (findings["source"], findings["first_year"], findings["last_year"]) == ("csv", 2022, 2023)
    # The file has both rows of the hour that occurs twice in autumn.
    assert findings["steps_kept"] == home.hours
    assert decision["promoted"], decision["reason"]
    assert "the champion is disqualified: The installed capacity of" in decision["reason"]
    assert home.result("candidate")["r2"] > 0.7
    page = (home.folder / "results" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"week 2023-W5\d", page)
    assert ATTRIBUTION in page


def test_dashboard_of_the_copy_serves_the_model(home):
    """`python -m dashboard` finds data, store and alias; `/predict` works for 2023 and is an error for 2016."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [home.folder / ".venv/bin/python", "-m", "dashboard", "--port", port]
    with running(command, home.environment, home.folder, lambda _: (health_of(url) or {}).get("version")):
        assert health_of(url)["faults"] == []
        answers = [
            requests.post(f"{url}/predict", json={"rows": [WEATHER | {"utc_timestamp": f"{year}-06-01T12:00Z"}]})
            for year in (2023, 2016)
        ]
        assert ATTRIBUTION in requests.get(f"{url}/_dash-layout").text
    [row] = answers[0].json()["rows"]
    assert 0.1 < row["solar_GW"] < 1.9
    assert 0.1 < row["wind_GW"] < 2.25
    assert "The installed capacity of" in answers[1].text


def test_colleagues_can_pull_the_data(home, tmp_path):
    """A clone has the settings and the remote has the file: in the weekly job `fetch` is up to date."""
    git(tmp_path, "clone", "--quiet", str(home.folder), "clone")
    clone = Home(tmp_path / "clone")
    (clone.folder / ".venv").symlink_to(home.folder / ".venv")
    assert "`dvc pull own/plants.csv` brings it" in clone.types("pytest", "-q", "tests/test_run.py")
    clone.types("dvc", "pull", "--allow-missing")
    assert "own" not in clone.types("dvc", "status", "fetch")
    output = clone.types("dvc", "repro", "prepare")  # runs again for another store
    assert "Stage 'fetch' didn't change" in output
    assert "Running stage 'prepare'" in output
    assert "own.csv" in clone.types("dvc", "repro", "--force", "--single-item", "fetch")
    assert len(processed.read(clone.folder / "data" / "observations.parquet")) == home.hours


@pytest.mark.privileged
def test_worker_on_another_machine_trains_with_the_requirements_alone(home, tmp_path):
    """The worker's environment has no package of the copy, and uses the servers of the other machine."""
    hosts = f"MLFLOW_TRACKING_URI=http://{ADDRESS}:5000 DASK_SCHEDULER_ADDRESS=tcp://{ADDRESS}:8786"
    path = f"export HOME=/tmp PATH={home.environment['PATH']}"
    with (
        machine("desk", tmp_path / "desk", home.folder) as desk,
        machine("node", tmp_path / "node", home.folder / ".venv") as node,
    ):
        connect(desk, [node])
        there = f"{path} {hosts}; cd {home.folder}"
        assert "No module" in node.run(f"{path}; cd /tmp; python -c 'import plants' 2>&1 || true")
        desk.run(f"{there}; mlflow server --host {ADDRESS} --workers 1 >/tmp/server 2>&1 &")
        desk.run(f"{there}; dask scheduler --host {ADDRESS} >/tmp/scheduler 2>&1 &")
        node.run(f"{path}; cd /tmp; dask worker tcp://{ADDRESS}:8786 --nthreads 1 >/tmp/worker 2>&1 &")
        desk.run(f"{there}; until curl -fs {ADDRESS}:5000/health; do sleep 1; done", timeout=120)
        output = desk.run(f"{there}; dvc repro --force --single-item train_rf 2>&1", timeout=300)
    assert "Running stage 'train_rf'" in output, output


@pytest.mark.parametrize("words", [("tests/template/table",), pytest.param((), marks=pytest.mark.soak)])
def test_tests_of_the_copy_pass(home, tmp_path, words):
    """The copied tests pass: on other data those of any problem, on the first commit all."""
    assert " passed" in home.types("pytest", "-q", "--ignore=tests/template")
    git(tmp_path, "clone", "--quiet", str(home.folder), "clone")
    git(tmp_path / "clone", "switch", "--quiet", "--detach", "HEAD~1")
    done = run_program("pytest", "-q", *words, cwd=tmp_path / "clone", env=home.environment, timeout=900)
    assert " passed" in done.stdout
