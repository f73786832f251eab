"""The page "Take it home", followed once: data of other years, on servers that are not the clone's own."""

from __future__ import annotations

import json
import re
import subprocess

import pandas as pd
import pytest
import yaml
from forecast.table import features, schema
from forecast.table.origin import origin_of
from walk import merge
from workplace import BIN, PERSON, ROOT, Servers, clean_environment, copy_tree

PAGE = (ROOT / "4_pipeline" / "take_it_home.md").read_text()
LINES = re.findall(r"^\d+\. \*\*(.+?)\*\*(.+(?:\n   .+)*)$", PAGE, flags=re.MULTILINE)
[CHANGES] = [
    yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
]
FIRST, LAST = (pd.Timestamp(f"{year}-01-01", tz="UTC") for year in (2022, 2024))
# Asked in a process of its own, in the folder of the pipeline: the dashboard reads its settings from the environment.
ASK = """
import json
from dashboard import app, follower, layout
from dashboard.pages import what_if
from pathlib import Path

following = follower.Follower(Path("data/germany.parquet").resolve())
following.poll()
client = app.make_app(following).server.test_client()
weather = {"windspeed": 8.0, "temperature": 15.0, "rad_horizontal": 500.0, "rad_diffuse": 200.0}
rows = [{"utc_timestamp": f"{year}-06-01T12:00:00Z", **weather} for year in (2023, 2016)]
snapshot = following.now
print(json.dumps({
    "predicted": client.post("/predict", json={"rows": rows[:1]}).get_json(),
    "refused": client.post("/predict", json={"rows": rows[1:]}).get_json(),
    "asked": what_if.hour_of_year(snapshot, 172, 12).isoformat(),
    "answers": str(what_if.answers(snapshot, weather | {"hour": 12, "day": 172})),
    "attribution": layout.attribution(snapshot),
    "faults": {name: fault.why for name, fault in snapshot.faults.items()},
}))
"""


def plants(file):
    """Write two years of plants with German headings: the sample's weather, re-dated, and a twentieth of its power."""
    from forecast.raw.prepare import load_or_make

    frame = load_or_make(file.with_name("sample.csv"))
    file.with_name("sample.csv").unlink()
    stamps = frame["utc_timestamp"] + pd.DateOffset(years=8)  # 2014 and 2015 become 2022 and 2023
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
def team(servers, tmp_path_factory):
    """A clone without servers of its own, in which the checklist was followed; production is put back afterwards."""
    root = copy_tree(tmp_path_factory.mktemp("team"))
    addresses = {  # line 7
        "MLFLOW_TRACKING_URI": servers.tracking_uri,
        "DASK_SCHEDULER_ADDRESS": servers.settings.scheduler_address,
        **servers.settings.dask_security(),
    }
    place = Servers(root, clean_environment() | PERSON | addresses)
    hours = plants(place.pipeline / CHANGES["fetch"]["csv"]["file"])  # lines 1 to 6
    merge(place.pipeline / "params.yaml", CHANGES)
    remote = tmp_path_factory.mktemp("remote")
    commands = [
        ["dvc", "remote", "add", "--default", "team", remote],  # line 8
        ["dvc", "repro"],  # line 9
        ["git", "commit", "--message", "Our plants", "params.yaml", "dvc.lock", "../.dvc/config"],
        ["dvc", "push"],
    ]
    try:
        for program, *words in commands:
            place.run(program if program == "git" else BIN / program, *words, cwd=place.pipeline)
        yield place, hours
    finally:
        history = json.loads(servers.run(BIN / "mlflow-gate", "history", "--json", cwd=servers.pipeline).stdout)
        if len(history) > 1 and history[-1]["why"] == "pipeline":
            servers.run(BIN / "mlflow-gate", "rollback", "--why", "the sample's model again", cwd=servers.pipeline)


def test_checklist_is_short_and_names_what_there_is():
    """At most ten lines, numbered; every parameter that it and its example name exists."""
    assert 5 <= len(LINES) <= 10
    parameters = yaml.safe_load((ROOT / "4_pipeline" / "params.yaml").read_text())
    for stage, values in CHANGES.items():
        assert set(values) - {"csv"} <= set(parameters[stage])
    text = " ".join(text for _, text in LINES)
    for name in re.findall(r"`(\w+)`", text):
        known = {key for values in parameters.values() for key in values} | set(parameters)
        assert name in known or name in ("MLFLOW_TRACKING_URI", "DASK_SCHEDULER_ADDRESS"), name


def test_other_data_gets_a_model_into_production(team):
    """Half the years, a twentieth of the power: their model is in production, and the sample's cannot predict them."""
    place, hours = team
    findings = json.loads((place.pipeline / "results" / "findings.json").read_text())
    assert (findings["source"], findings["first_year"], findings["last_year"]) == ("csv", 2022, 2023)
    # The hour that comes twice in autumn is in two rows of the file, which are distinguished.
    assert findings["hours_kept"] == hours
    decision = json.loads((place.pipeline / "results" / "decision.json").read_text())
    assert decision["promoted"], decision["reason"]
    assert "the champion is disqualified: The installed capacity is not known" in decision["reason"]
    assert json.loads((place.pipeline / "results" / "candidate.json").read_text())["r2"] > 0.7


def test_own_capacity_travels_to_the_training(team):
    """The held-out table carries the figures of params.yaml and the attribution, and its hours are the last ones."""
    place, _ = team
    test = schema.read(place.pipeline / "data" / "test.parquet")
    settings = CHANGES["fetch"]["csv"]
    ends = {str(year): ends["wind_GW"] for year, ends in settings["capacity"].items()}
    assert features.year_ends_of(test)["wind_GW"].items() <= ends.items()
    assert origin_of(test).attribution == settings["attribution"]
    assert test["utc_timestamp"].iloc[-1].year == 2023


def test_dashboard_speaks_of_the_other_years(team):
    """A program and the sliders are answered for 2023, within what stands there; 2016 is refused with the range."""
    place, _ = team
    done = place.run(BIN / "python", "-W", "ignore", "-c", ASK, cwd=place.pipeline)
    answers = json.loads(done.stdout.strip().splitlines()[-1])
    assert answers["faults"] == {}
    [row] = answers["predicted"]["rows"]
    assert 0.1 < row["solar_GW"] < 1.9
    assert 0.1 < row["wind_GW"] < 2.25
    assert answers["asked"].startswith("2023-06-21T12:00")
    assert "n/a" not in answers["answers"]
    assert "installed capacity is not known" in json.dumps(answers["refused"])
    assert answers["attribution"] == CHANGES["fetch"]["csv"]["attribution"]


def test_report_is_on_the_other_years(team):
    """The page names a week of 2023 and whose data it is."""
    place, _ = team
    page = (place.pipeline / "results" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"week 2023-W5\d", page)
    assert CHANGES["fetch"]["csv"]["attribution"] in page


def test_changed_code_is_seen(team):
    """The page's change of code makes stale what imports the file, the trainings among it; put back, it does not."""
    place, _ = team
    [(name, path)] = re.findall(r"change `(\w+)` in `(forecast/problem\.py)`", PAGE)
    file = place.pipeline / path
    text = file.read_text()

    def stale() -> set[str]:
        status = json.loads(place.run(BIN / "dvc", "status", "--json", cwd=place.pipeline).stdout)
        return {stage for stage, changes in status.items() if path in str(changes)}

    try:
        file.write_text(re.sub(rf"^{name} = .*$", f"{name} = (60.0, 25.0)", text, flags=re.MULTILINE))
        assert stale() >= {"prepare", "train_linreg", "train_rf", "train_keras", "train_gradient_boosting", "report"}
    finally:
        file.write_text(text)
    assert stale() == set()


def test_others_can_fetch_it(team, tmp_path):
    """The commit holds the settings, and a clone of it gets the data from the remote."""
    place, _ = team
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", place.root, clone], check=True)
    copy = Servers(clone, place.environment)
    copy.run(BIN / "dvc", "pull", "data/germany.parquet", cwd=copy.pipeline)
    assert len(schema.read(copy.pipeline / "data" / "germany.parquet")) == team[1]
