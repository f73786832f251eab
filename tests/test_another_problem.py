"""The page "Another problem", followed once in a clone of its own: heat demand in production, on all pages."""

from __future__ import annotations

import json
import re
import shlex
import subprocess

import pytest
import requests
from browsing import PAGES, opened
from workplace import BIN, PERSON, ROOT, Servers, environment_for, new_workplace

PAGE = (ROOT / "4_pipeline" / "another_problem.md").read_text()
FILES = dict(re.findall(r"^```python (\S+)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))
DIFFS = dict(re.findall(r"^```diff (\S+)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) for line in block.splitlines()
]
DATA, PROBLEM = FILES

pytestmark = pytest.mark.walk


@pytest.fixture(scope="module")
def heat(tmp_path_factory):
    """A clone in which the page was followed, its servers up; they are stopped afterwards."""
    root, environment = new_workplace(tmp_path_factory.mktemp("heat"))
    place = Servers(root, environment | PERSON)
    try:
        (place.pipeline / DATA).write_text(FILES[DATA])
        (root / PROBLEM).write_text(FILES[PROBLEM])
        for name, diff in DIFFS.items():
            file = place.pipeline / name
            for part in diff.split("@@\n"):
                old, new = (
                    "".join(line[1:] for line in part.splitlines(True) if line[0] in signs) for signs in (" -", " +")
                )
                assert file.read_text().count(old) == 1
                file.write_text(file.read_text().replace(old, new))
        for command in COMMANDS:
            run(place, command)
        yield place
    finally:
        run(place, "workshop down")


def run(place: Servers, command: str) -> str:
    """Run a command of the page in the folder of the pipeline, and return what it prints."""
    program, *words = shlex.split(command)
    done = place.run(program if program == "git" else BIN / program, *words, cwd=place.pipeline)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_few_lines_change(heat):
    """At most five files and 150 lines, which are all committed, and nothing else of the clone."""
    changed = heat.run("git", "diff", "--numstat", "HEAD~1", "HEAD", ":!4_pipeline/dvc.lock").stdout.splitlines()
    lines = {name: int(added) for added, _, name in map(str.split, changed)}
    assert len(lines) <= 5
    assert sum(lines.values()) <= 150
    assert heat.run("git", "status", "--porcelain").stdout == ""


def test_clone_of_a_colleague_runs(heat, tmp_path):
    """From the commit alone `make run` makes the data, and puts a model of the new problem into production."""
    subprocess.run(["git", "clone", "--quiet", heat.root, tmp_path / "clone"], check=True)
    place = Servers(tmp_path / "clone", environment_for(tmp_path / "clone") | PERSON)
    try:
        done = place.run("make", "-o", ".venv/installed", f"BIN={BIN}", "run")
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"Production +heat version 1 is in production .* r2 0\.9", done.stdout)
    finally:
        run(place, "workshop down")


def test_best_model_is_in_production(heat):
    """The gate promoted it under the problem's own name, and it predicts heat demand well."""
    [move] = json.loads(heat.run(BIN / "mlflow-gate", "history", "--json", cwd=heat.pipeline).stdout)
    assert move["scores"]["r2_heat"] > 0.9
    assert '<meta name="workshop.model" content="heat/1">' in (heat.pipeline / "results" / "report.html").read_text()


def test_all_pages_speak_of_heat(heat, browser):
    """Each page of the dashboard is there without an error, and so are `/predict` and the report."""
    url = heat.settings.dashboard_url
    for path in PAGES:
        with opened(browser, url + path) as page:
            page.wait_for_load_state("networkidle")
            text = page.locator("body").inner_text()
            assert "heat" in text.casefold()
            assert "solar" not in text.casefold()
            assert "wind" not in text.casefold()
    row = {"utc_timestamp": "2016-01-20T07:00:00Z", "temperature": -8, "temperature_3d": -5}
    cold, warm = (
        requests.post(f"{url}/predict", json={"rows": [row | change]}, timeout=30).json()
        for change in ({}, {"temperature": 25, "temperature_3d": 24})
    )
    assert cold["rows"][0]["heat_GW"] > 2 * warm["rows"][0]["heat_GW"]
    report = (heat.pipeline / "results" / "report.html").read_text()
    assert "Heat demand in Germany" in report
    assert not re.search("solar|wind", re.sub(r"<style>.*?</style>", "", report, flags=re.DOTALL), re.IGNORECASE)
