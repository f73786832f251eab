"""The weekly report: what its page says, how it looks and prints, and the command that makes many."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import dask
import pandas as pd
import pytest
from click.testing import CliRunner
from workplace import BIN, ROOT, environment_of, free_port, required

from workshop.cli import main
from workshop.data import schema, weeks
from workshop.models import registry
from workshop.models.history import Move
from workshop.models.lineage import Link
from workshop.models.report import misses, page, paper, usual
from workshop.models.report.evidence import Evidence, gather
from workshop.settings import Settings

TEMPLATE = (ROOT / "4_pipeline" / "notebooks" / "report.html.jinja").read_text(encoding="utf-8")
MOST_BYTES = 2_000_000
WEEK = "2016-W40"


@pytest.fixture(scope="module")
def evidence(promoted) -> Evidence:
    """What a report rests on in the clone: its data, and the model that it has in production."""
    with environment_of(promoted.environment):
        data = promoted.pipeline / "data"
        return gather(schema.read(data / "germany.parquet"), registry.production())


@pytest.fixture
def report(in_workplace, tmp_path):
    """Return what calls `workshop report` in the clone; its files go to a folder of the test."""

    def call(*words: str):
        return CliRunner().invoke(main, ["report", "--to", str(tmp_path / "reports"), *words])

    return call


def changed(evidence: Evidence, **columns: pd.Series) -> Evidence:
    """Return the evidence with other values in columns of its frame."""
    frame = evidence.frame.assign(**columns)
    frame.attrs = evidence.frame.attrs
    return dataclasses.replace(evidence, frame=frame)


def without(evidence: Evidence, rows: pd.Series) -> Evidence:
    """Return the evidence without some rows of its frame."""
    parts = {"frame": evidence.frame, "predicted": evidence.predicted}
    kept = {name: part[~rows].reset_index(drop=True) for name, part in parts.items()}
    band = tuple(end[~rows].reset_index(drop=True) for end in evidence.band)
    return dataclasses.replace(evidence, **kept, band=band)


def worst(evidence: Evidence, week: str = WEEK) -> list[misses.Miss]:
    """Return the worst misses of a week."""
    return misses.worst(evidence, evidence.of_week(week), usual.Shares.of(evidence.frame))


def words(html: str) -> str:
    """Return what a page says, without its figures and style."""
    text = re.sub(r"<(svg|style).*?</\1>|<[^>]+>", " ", html, flags=re.DOTALL)
    return " ".join(text.split())


# -- the page ----------------------------------------------------------------------------------------------------------
def test_page_is_one_small_file_without_program_or_address(evidence):
    """At most 2 MB, no script, nothing to fetch; model and week stand in its head, no id stands twice."""
    html = page.render(evidence, WEEK, TEMPLATE).html
    assert len(html.encode()) < MOST_BYTES
    assert "<script" not in html
    assert re.findall(r'<(?:link|img|object|iframe)|@import|\b(?:src|srcset)=|url\((?!#)|xlink:href="(?!#)', html) == []
    assert f'<meta name="workshop.model" content="wind_solar/{evidence.production.version}">' in html
    assert f'<meta name="workshop.week" content="{WEEK}">' in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_page_says_what_was_produced_and_how_well_it_was_predicted(evidence):
    """Its numbers are those of the frame and of the model's own predictions."""
    told = evidence.of_week(WEEK)
    text = words(page.render(evidence, WEEK, TEMPLATE).html)
    energy, predicted = told.hours[schema.TARGETS].sum(), told.predicted.sum()
    off = (told.predicted - told.hours[schema.TARGETS]).abs().mean()
    assert f"{energy.solar_GW:,.0f} GWh from the sun" in text
    assert f"{predicted.wind_GW:,.0f} GWh of wind power were predicted and {energy.wind_GW:,.0f} generated" in text
    assert f"off by {off.wind_GW:.2f} GW" in text
    assert f"{off.mean():.2f} GW is how far a prediction was off" in text
    inside = told.hours.wind_GW.between(told.band[0].wind_GW, told.band[1].wind_GW).mean()
    assert f"did so in {100 * inside:.0f} of 100 hours of wind power" in text
    assert re.search(rf"{100 * inside:.0f} and \d+ % of the hours of wind and of solar power", text)
    assert text.count(" m/s ") >= 7
    assert "modelled" in text
    assert "Deutscher Wetterdienst" in text
    assert "licence" in text


def test_page_tells_weeks_that_the_model_learned_from_apart(evidence):
    """A week before the end of training is no fair test; weeks are compared with others on the same side of it."""
    new, old = (words(page.render(evidence, week, TEMPLATE).html) for week in (WEEK, "2014-W30"))
    assert "had never seen this week" in new
    assert "so from this very week" in old
    mondays = weeks.mondays(evidence.frame.utc_timestamp)
    unseen = evidence.frame.groupby(mondays).size()[lambda hours: hours >= 0.9 * 168].index > evidence.learned_until
    assert f"Of {unseen.sum() - 1} other weeks that it had not seen" in new
    unknown = words(page.render(dataclasses.replace(evidence, learned_until=None), WEEK, TEMPLATE).html)
    assert "is not known" in unknown


def test_report_knows_where_the_models_training_ended(promoted, evidence):
    """It is what the model's run says: the hour before the first that is held out."""
    trained = pd.read_parquet(promoted.pipeline / "data" / "train.parquet", columns=["utc_timestamp"])
    assert evidence.learned_until == trained["utc_timestamp"].max()


def test_page_counts_missing_hours_and_names_the_gaps(evidence):
    """Ten hours taken away in two places: said at the top, and the lines of the figure break."""
    stamps = evidence.frame.utc_timestamp
    start = pd.Timestamp(weeks.monday(WEEK))
    gone = stamps.between(start + pd.Timedelta("10h"), start + pd.Timedelta("18h")) | (
        stamps == start + pd.Timedelta("50h")
    )
    text = words(page.render(without(evidence, gone), WEEK, TEMPLATE).html)
    assert "10 of the week's 168 hours are missing" in text
    assert "Mon 3 Oct, 10:00 to Mon 3 Oct, 18:00; Wed 5 Oct, 02:00" in text
    assert "are missing" not in words(page.render(evidence, WEEK, TEMPLATE).html)


@pytest.mark.parametrize("rows", [1, 2, 30])
def test_page_of_hardly_any_data_says_that_there_is_no_outlook(evidence, rows):
    """One hour makes a page; nothing usual can be told of it."""
    few = evidence.frame.index < len(evidence.frame) - rows
    text = words(page.render(without(evidence, few), "2016-W52", TEMPLATE).html)
    assert f"{168 - rows} of the week's 168 hours are missing" in text
    assert "the data hold no other year" in text


def test_page_without_a_model_in_production_says_so(evidence):
    """Nothing is predicted, and nothing of a prediction is claimed; what was produced is there."""
    html = page.render(Evidence(evidence.frame), WEEK, TEMPLATE).html
    text = words(html)
    assert "No model is in production" in text
    assert "workshop.model" not in html
    assert "predicted worst" not in text
    assert "GWh from the wind" in text


def test_page_shows_lineage_and_history_as_they_were_recorded(evidence):
    """Each link, known or not, and the latest moves of the alias; what others wrote is text, never markup."""
    links = (
        Link("data", "germany.parquet", {"md5": "5b152ef6"}),
        Link("run", "<b>bold</b>", url="http://127.0.0.1:5000/#/runs/1", trouble="The run was deleted."),
        Link("notebook", "train.ipynb", known=False),
    )
    moves = tuple(Move(n, "promoted", str(n), "2026-11-21T04:54:36+00:00", replaced=str(n - 1)) for n in range(1, 9))
    html = page.render(dataclasses.replace(evidence, lineage=links, history=moves), WEEK, TEMPLATE).html
    text = words(html)
    for told in (
        "md5: 5b152ef6",
        "The run was deleted.",
        "not recorded",
        "version 8 promoted, in the place of version 7",
    ):
        assert told in text
    assert "version 3 promoted" not in text
    assert "&lt;b&gt;bold" in html


# -- the worst hours ---------------------------------------------------------------------------------------------------
def test_worst_hours_are_the_largest_misses_apart_from_each_other(evidence):
    """The first is the largest of the week; of each source three, more than six hours apart, by size."""
    told, found = evidence.of_week(WEEK), worst(evidence)
    errors = told.predicted[schema.TARGETS] - told.hours[schema.TARGETS]
    assert abs(found[0].error) == pytest.approx(errors.abs().max().max())
    assert [miss.number for miss in found] == list(range(1, len(found) + 1))
    assert [abs(miss.error) for miss in found] == sorted((abs(miss.error) for miss in found), reverse=True)
    for target in schema.TARGETS:
        times = sorted(miss.at for miss in found if miss.target == target)
        assert len(times) == 3
        assert all(later - earlier > pd.Timedelta("6h") for earlier, later in itertools.pairwise(times))
    assert all(miss.reasons for miss in found)


def planted(evidence: Evidence, at: str, **factors: float) -> misses.Miss:
    """Return the worst miss after values of one hour were multiplied."""
    here = evidence.frame.utc_timestamp == pd.Timestamp(at, tz="UTC")
    columns = {name: evidence.frame[name].where(~here, evidence.frame[name] * by) for name, by in factors.items()}
    found = next(miss for miss in worst(changed(evidence, **columns)) if miss.at == pd.Timestamp(at, tz="UTC"))
    assert found.number == 1
    return found


def test_reasons_name_generation_that_the_weather_does_not_explain(evidence):
    """Five times the wind power of that wind: more than usual, far outside the band."""
    miss = planted(evidence, "2016-10-06T12:00", wind_GW=5)
    assert miss.beyond > 3
    assert any(reason.startswith("More was generated than is usual with so much wind") for reason in miss.reasons)


def test_reasons_name_a_fast_change_of_wind_and_of_light(evidence):
    """A gust, or light, in one hour alone is told with what is usual."""
    gust = planted(evidence, "2016-10-06T12:00", wind_GW=5, windspeed=2.5)
    assert any(reason.startswith("The wind changed fast") for reason in gust.reasons)
    flash = planted(evidence, "2016-10-06T10:00", solar_GW=4, rad_horizontal=9)
    assert any(reason.startswith("The light changed fast") for reason in flash.reasons)


def test_reasons_name_a_gap_beside_the_hour(evidence):
    """Readings beside missing hours may be incomplete."""
    at = pd.Timestamp("2016-10-06T12:00", tz="UTC")
    grown = changed(evidence, wind_GW=evidence.frame.wind_GW.where(evidence.frame.utc_timestamp != at, 40.0))
    gone = grown.frame.utc_timestamp == at + pd.Timedelta("2h")
    miss = worst(without(grown, gone))[0]
    assert miss.at == at
    assert any("missing from the data" in reason for reason in miss.reasons)


def test_reasons_guess_at_snow_only_where_there_can_be_some(evidence):
    """Below freezing and less solar power than predicted: a guess for measured data, none for modelled."""
    at = pd.Timestamp("2016-10-06T10:00", tz="UTC")
    here = evidence.frame.utc_timestamp == at
    cold = changed(
        evidence,
        temperature=evidence.frame.temperature.where(~here, -5.0),
        solar_GW=evidence.frame.solar_GW.where(~here, 0.0),
    )
    real = dataclasses.replace(cold, frame=cold.frame.copy())
    real.frame.attrs = {}
    guesses = [
        [reason for miss in worst(told) if miss.at == at for reason in miss.reasons if "snow" in reason]
        for told in (cold, real)
    ]
    assert guesses[0] == []
    assert len(guesses[1]) == 1
    assert "The data do not say" in guesses[1][0]


# -- the outlook -------------------------------------------------------------------------------------------------------
def test_outlook_is_of_other_years_alone_at_the_capacity_of_the_week(evidence):
    """What happens in the weeks themselves changes nothing; a year before counts, and twice the capacity is twice."""
    monday = pd.Timestamp(weeks.monday("2015-W30"))

    def told(frame: pd.DataFrame, capacity: float = 40.0) -> pd.DataFrame:
        return usual.usual(usual.weekly(frame, usual.Shares.of(frame)), monday, dict.fromkeys(schema.TARGETS, capacity))

    stamps, frame = evidence.frame.utc_timestamp, evidence.frame
    before = told(frame)
    assert (before["weeks"] == 9).all()
    assert (before.least < before.middle).all()
    assert (before.middle < before.most).all()
    same = frame.assign(wind_GW=frame.wind_GW.where(stamps.dt.year != 2015, 0.0))
    pd.testing.assert_frame_equal(told(same), before)
    other = frame.assign(wind_GW=frame.wind_GW.where(stamps.dt.year != 2014, 0.0))
    assert told(other).least.wind_GW == 0
    assert told(frame, 80.0).middle.wind_GW == pytest.approx(2 * before.middle.wind_GW)


def test_outlook_says_that_it_is_no_forecast(evidence):
    """The four weeks to come are named with least, middle and most, and with how many weeks tell it."""
    text = words(page.render(evidence, "latest", TEMPLATE).html)
    assert "This is no forecast." in text
    assert re.search(r"2017-W01 2 Jan 2017 [\d,]+, [\d,]+ , [\d,]+ [\d,]+, [\d,]+ , [\d,]+ \d+", text)


# -- how it looks ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_looks_right_and_is_accessible(browser, evidence, tmp_path, scheme):
    """On desktop and phone: nothing is asked of any address, nothing is wider than the page, axe finds nothing."""
    from axe_playwright_python.sync_playwright import Axe

    file = tmp_path / "page.html"
    file.write_text(page.render(evidence, WEEK, TEMPLATE).html, encoding="utf-8")
    for width, shown in ((1280, ".wide"), (390, ".narrow")):
        view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        asked: list[str] = []
        view.on("request", lambda request, asked=asked: asked.append(request.url))
        view.on("console", lambda message, asked=asked: asked.append(message.text))
        view.goto(file.as_uri())
        assert asked == [file.as_uri()]
        assert view.evaluate("document.documentElement.scrollWidth") == width
        drawing = view.locator(f"{shown} svg").first
        assert drawing.is_visible()
        assert "Solar from" in drawing.get_attribute("aria-label")
        colour = view.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (colour == "rgb(255, 255, 255)") == (scheme == "light")
        # The policy of the page forbids scripts, so axe is taken to the same page without it.
        view.set_content(re.sub(r"<meta http-equiv[^>]+>", "", file.read_text(encoding="utf-8")))
        assert Axe().run(view).response["violations"] == []
        view.close()


# -- the command -------------------------------------------------------------------------------------------------------
def test_command_writes_and_prints_the_page(report, tmp_path, monkeypatch):
    """HTML and PDF; the PDF has few pages, and the browser leaves nothing behind."""
    required("Chromium", paper.browser())
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        done = report("--week", WEEK)
        left = list(Path(folder).glob("*"))
    assert left == []
    assert done.exit_code == 0, done.output
    html, pdf = (tmp_path / "reports" / f"{WEEK}{suffix}" for suffix in (".html", ".pdf"))
    assert done.stdout.splitlines() == [str(html), str(pdf)]
    assert f"week {WEEK}" in html.read_text(encoding="utf-8")
    printed = pdf.read_bytes()
    assert printed.startswith(b"%PDF-")
    assert printed.rstrip().endswith(b"%%EOF")
    assert 2 <= len(re.findall(rb"/Type /Page\b(?!s)", printed)) <= 5
    assert len(printed) < MOST_BYTES


def test_notebook_makes_the_page_that_the_command_makes(promoted, report, tmp_path):
    """To the byte: both call the same code."""
    folder = tmp_path / "pipeline"
    shutil.copytree(promoted.pipeline / "notebooks", folder / "notebooks")
    shutil.copy(promoted.pipeline / "dvc.yaml", folder)
    (folder / "data").symlink_to(promoted.pipeline / "data")
    command = ["papermill", "notebooks/report.ipynb", "executed.ipynb", "-p", "week", WEEK]
    done = promoted.run(sys.executable, "-m", *command, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert report("--week", WEEK, "--no-pdf").exit_code == 0
    made = (folder / "results" / "report.html").read_text(encoding="utf-8")
    assert made == (tmp_path / "reports" / f"{WEEK}.html").read_text(encoding="utf-8")


def test_command_makes_many_weeks_on_the_cluster_whatever_becomes_of_one(promoted, tmp_path):
    """Two weeks with hours are made, one without is told at the end; exit 1; the pipeline's own report stays."""
    own = (promoted.pipeline / "results" / "report.html").read_bytes()
    words = ("report", "--weeks", "2016-W51..2017-W01", "--to", tmp_path, "--json")
    done = promoted.run(BIN / "workshop", *words)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    rows = {row["week"]: row for row in json.loads(done.stdout)}
    assert [week for week, row in rows.items() if not row["error"]] == ["2016-W51", "2016-W52"]
    assert "There are no hours in the week 2017-W01" in rows["2017-W01"]["error"]
    assert "2017-W01: There are no hours" in done.stderr
    made = {file.name for file in tmp_path.iterdir()}
    assert {"2016-W51.html", "2016-W52.html"} <= made
    assert made == {Path(file).name for row in rows.values() for file in row["files"]}
    assert (promoted.pipeline / "results" / "report.html").read_bytes() == own


# -- bad input and faults ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--week", "2016-W60"), ["There is no such week", "2016-W60", "W53"]),
        (("--week", "40"), ["A week needs a name", "'40'", "2016-W40"]),
        (("--week", ""), ["A week needs a name", "latest"]),
        (("--week", "1999-W01"), ["no hours in the week 1999-W01", "2013-W01 to 2016-W52", "name a week within"]),
        (("--weeks", "2016-W40"), ["first and a last", "FROM..TO"]),
        (("--weeks", "2016-W40..2016-W38"), ["cannot be listed", "the earlier week first"]),
        (("--weeks", "2016-W01..2016-W99"), ["There is no such week", "2016-W99"]),
    ],
)
def test_command_tells_what_is_no_week(report, given, told):
    """Exit 1 with the value, what is allowed and the next step; nothing is written."""
    done = report(*given)
    assert done.exit_code == 1
    assert all(word in done.stderr for word in told), done.stderr


def test_command_takes_one_choice_of_weeks(report):
    """Two of them are misuse."""
    done = report("--all", "--week", "latest")
    assert done.exit_code == 2
    assert "Only one of" in done.stderr


def test_command_without_data_says_how_to_make_it(report, monkeypatch, tmp_path):
    """An empty repository: exit 1, and what to type."""
    (tmp_path / "4_pipeline").mkdir()
    monkeypatch.setenv("WORKSHOP_ROOT", str(tmp_path))
    done = report("--week", WEEK)
    assert done.exit_code == 1
    assert "There is no data to report on" in done.stderr
    assert "workshop start" in done.stderr


def test_command_says_which_server_does_not_answer(report, monkeypatch):
    """The tracking server, and for many weeks the cluster: the address and the next step, before anything is made."""
    dead = free_port()
    monkeypatch.setattr("papermill_dask.cluster.CONNECT_SECONDS", 1)
    with dask.config.set({"scheduler-address": f"tcp://127.0.0.1:{dead}"}):
        done = report("--all")
    assert done.exit_code == 1
    assert f"tcp://127.0.0.1:{dead}" in done.stderr
    assert "DASK_SCHEDULER_ADDRESS" in done.stderr
    monkeypatch.setattr(Settings, "tracking_uri", f"http://127.0.0.1:{dead}")
    done = report("--week", WEEK)
    assert done.exit_code == 1
    assert f"http://127.0.0.1:{dead} does not answer" in done.stderr


@pytest.mark.parametrize("fails", [False, True])
def test_command_writes_the_page_where_nothing_prints_it(report, monkeypatch, tmp_path, fails):
    """No browser: a word, exit 0. One that fails: exit 1. The page is there, and no PDF of an earlier time."""
    programs = tmp_path / "programs"
    programs.mkdir()
    if fails:
        (programs / "chromium").write_text("#!/bin/sh\nexit 3\n")
        (programs / "chromium").chmod(0o700)
    monkeypatch.setenv("PATH", str(programs))
    folder = tmp_path / "reports"
    folder.mkdir()
    (folder / f"{WEEK}.pdf").write_bytes(b"of an earlier time")
    done = report("--week", WEEK)
    assert done.exit_code == int(fails)
    assert ("did not print the page" if fails else "No PDF") in done.stderr
    assert [file.name for file in folder.iterdir()] == [f"{WEEK}.html"]


def test_browser_that_hangs_is_ended(monkeypatch, tmp_path):
    """A print that takes too long is an error in words, and leaves no folder."""
    (tmp_path / "chromium").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "chromium").chmod(0o700)
    monkeypatch.setattr(paper, "browser", lambda: str(tmp_path / "chromium"))
    monkeypatch.setattr(paper, "PRINT_SECONDS", 0.5)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(paper.ServiceError, match="did not print the page"):
        paper.pdf("<p>page</p>")
    assert list(tmp_path.glob("workshop-print-*")) == []
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).returncode == 1
