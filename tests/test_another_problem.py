"""The page "Another problem", followed in clones: price, visitors and load, in production and on all pages."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from browsing import PAGES, opened
from playwright.sync_api import expect
from workplace import BIN, PERSON, ROOT, Servers, by_night, environment_for, new_workplace

PAGE = (ROOT / "4_pipeline" / "another_problem.md").read_text()
FIRST, SECOND, THIRD = re.split(r"\n## (?:Visitors|Load)\n", PAGE)


class Example(NamedTuple):
    """A problem of the page: its section, names and title, and inputs with a high and a low prediction."""

    part: str
    name: str
    target: str
    title: str
    much: dict[str, Any]
    little: dict[str, Any]

    def blocks(self, language: str) -> list[tuple[str, str]]:
        """Return the files or diffs to type, including those that the first example shares with the others."""
        first, part = (
            re.findall(rf"^```{language} (\S+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
            for text in (FIRST, self.part)
        )
        shared = [(name, text.replace("price", self.name)) for name, text in first if name.endswith(".yaml")]
        return shared + [block for block in part if block not in first or not shared]

    def edited(self, folder: Path) -> dict[str, str]:
        """Return the new text of each file that diffs change, by name."""
        texts: dict[str, str] = {}
        for name, diff in self.blocks("diff"):
            text = texts.get(name) or (folder / name).read_text()
            for part in diff.split("@@\n"):
                lines = part.splitlines(keepends=True)
                old, new = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
                assert text.count(old) == 1, f"{name}: {old}"
                text = text.replace(old, new)
            texts[name] = text
        return texts

    def commands(self) -> list[str]:
        """Return the shell commands."""
        blocks = re.findall(r"^```bash\n(.*?)^```", FIRST.replace("price", self.name), re.DOTALL | re.MULTILINE)
        typed = {"dvc repro": ["workshop down", "workshop up --repro"]}  # as the chapter's README says
        return [line for each in "".join(blocks).splitlines() for line in typed.get(each, [each])]


CALM = {"utc_timestamp": "2016-01-20T17:15:00Z", "load_GW": 62, "wind_GW": 2, "solar_GW": 0}
PRICE = Example(FIRST, "price", "price", "Price of electricity in Germany", CALM, CALM | {"wind_GW": 30})
DAY = {"utc_timestamp": "2016-06-21T00:00:00+02:00", "temperature": 5, "weekday": 5, "holiday": 0}
VISITORS = Example(SECOND, "visitors", "visitors", "Visitors in a museum", DAY, DAY | {"weekday": 0})
FROST = {"utc_timestamp": "2016-01-20T16:30:00Z", "temperature": -15}
LOAD = Example(
    THIRD, "load", "load_GW", "Load in Germany", FROST, {"utc_timestamp": "2016-07-03T02:30:00Z", "temperature": 20}
)


@pytest.fixture(scope="module", params=[*by_night(PRICE, LOAD), VISITORS], ids=["price", "load", "visitors"])
def example(request) -> Example:
    """A problem of the page."""
    return request.param


@pytest.fixture(scope="module")
def place(example, tmp_path_factory):
    """A clone in which the page was followed, with its servers up; they are stopped at the end."""
    root, environment = new_workplace(tmp_path_factory.mktemp(example.name))
    place = Servers(root, environment | PERSON)
    try:
        for name, text in example.blocks("python"):
            (place.pipeline / name).write_text(text)
        for name, text in example.edited(place.pipeline).items():
            (place.pipeline / name).write_text(text)
        for command in example.commands():
            run(place, command)
        yield place
    finally:
        run(place, "workshop down")


def run(place: Servers, command: str) -> str:
    """Run a command of the page in the pipeline's folder and return its output."""
    program, *words = shlex.split(command)
    done = place.run(program if program == "git" else BIN / program, *words, cwd=place.pipeline)
    return done.stdout


def test_few_lines_change(place):
    """At most five files and 150 lines change, and all changes are committed."""
    changed = place.run("git", "diff", "--numstat", "HEAD~1", "HEAD", ":!4_pipeline/dvc.lock").stdout.splitlines()
    lines = {name: int(added) for added, _, name in map(str.split, changed)}
    assert len(lines) <= 5
    assert sum(lines.values()) <= 150
    assert place.run("git", "status", "--porcelain").stdout == ""


def test_clone_of_a_colleague_runs(place, example, tmp_path):
    """From the commit alone, `make run` creates the data and puts a model of the new problem into production."""
    subprocess.run(["git", "clone", "--quiet", place.root, tmp_path / "clone"], check=True)
    clone = Servers(tmp_path / "clone", environment_for(tmp_path / "clone") | PERSON)
    try:
        done = clone.run("make", "-o", ".venv/installed", f"BIN={BIN}", "run")
        assert re.search(rf"Production  {example.name} 1, r2 0\.9", done.stdout)
    finally:
        run(clone, "workshop down")


def test_tests_of_the_project_pass(place, example, tmp_path):
    """The tests pass in less than a minute; those of the template are skipped."""
    subprocess.run(["git", "clone", "--quiet", place.root, tmp_path / "clone"], check=True)
    folder = tmp_path / "clone" / "4_pipeline"
    shutil.copy(place.pipeline / "own" / f"{example.name}.csv", folder / "own")
    before, environment = os.times(), place.environment | {"PYTHONPATH": str(folder)}
    output = place.run(BIN / "pytest", "tests", cwd=folder, env=environment).stdout
    after = os.times()
    assert re.search(r"\d passed, \d+ skipped in", output), output
    assert after.children_user + after.children_system - before.children_user - before.children_system < 60


def test_data_have_no_warning(place):
    """Checks that make no sense for a category or a count are skipped."""
    findings = json.loads((place.pipeline / "results" / "findings.json").read_text())
    assert [check for check in findings["checks"] if check["verdict"] == "warning"] == []


def test_all_pages_are_about_the_problem(place, example, browser):
    """Each page of the dashboard, `/predict` and the report work without an error."""
    url, other = (
        place.settings.dashboard_url,
        {"price": "weather", "load": "solar|wind"}.get(example.name, r"solar|GWh?"),
    )
    for path in PAGES:
        with opened(browser, url + path) as page:
            page.wait_for_load_state("networkidle")
            text = page.locator("body").inner_text()
            assert example.title.split()[0].casefold() in text.casefold()
            assert not re.search(other, text, re.IGNORECASE)
    with opened(browser, f"{url}/what-if") as page:
        second = page.locator("#what-if-curves path.js-line").nth(1).get_attribute("d")  # of visitors over weekdays
        assert bool(re.search("[HV]", second)) == (example is VISITORS)  # as steps
        for name, text in re.findall(r'^    "(.+?)": \{.*"date": "(.+?)"', example.part, re.MULTILINE):
            page.get_by_role("button", name=name).click()
            expect(page.locator("#slider-day-value")).to_have_text(f"{date.fromisoformat(text):%d %b %Y}")
            assert name.endswith(f"{date.fromisoformat(text):%A}")
    much, little = (
        requests.post(f"{url}/predict", json={"rows": [row]}, timeout=30).json()["rows"][0][example.target]
        for row in (example.much, example.little)
    )
    assert much > 1.5 * little
    report = (place.pipeline / "results" / "report.html").read_text()
    assert example.title in report
    report = re.sub(r"<style>.*?</style>|base64,[^\"]*", "", report, flags=re.DOTALL)
    assert not re.search(other, report, re.IGNORECASE)
