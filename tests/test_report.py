"""The weekly report: its content, its appearance, and the notebook that renders it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from forecast.learn.models import CapacityFactorRegressor
from forecast.learn.storage import LoadedModel
from forecast.raw.prepare import prepare
from forecast.raw.sources import fetch
from forecast.show import report
from forecast.show.report import ReportData, WorstHour
from forecast.table import processed, schema, split
from forecast.table.features import inputs, targets
from forecast.table.split import split_by_time
from forecast.terms.errors import ParameterError
from mlflow_gate import Link, Production
from sklearn.ensemble import HistGradientBoostingRegressor
from workplace import BIN

MAX_BYTES = 2_000_000
WEEK = "2016-W40"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ReportData:
    """The sample, and a small model trained on its first four fifths."""
    folder = tmp_path_factory.mktemp("raw")
    fetch("sample", folder / "raw")
    frame = prepare(folder / "raw")[0]
    train, _ = split_by_time(frame, 0.2)
    trees, hours = HistGradientBoostingRegressor(max_iter=20, random_state=0), train.tail(9000)
    model = LoadedModel.of(CapacityFactorRegressor(trees, band=trees, folds=2).fit(inputs(hours), targets(hours)))
    tags = {"pipeline.stage": "train_gradient_boosting"}
    production = Production("ab" * 16, "models:/wind_solar/3", tags, name="wind_solar", version="3")
    until = train["utc_timestamp"].max()
    return ReportData(frame, *model.predict_with_band(frame), model.coverage, production, until)


def without(data: ReportData, rows: pd.Series) -> ReportData:
    """Return the report data without some rows."""
    parts = {"frame": data.frame, "predicted": data.predicted}
    kept = {name: part[~rows].reset_index(drop=True) for name, part in parts.items()}
    band = tuple(end[~rows].reset_index(drop=True) for end in data.band)
    return dataclasses.replace(data, **kept, band=band)


def worst(data: ReportData, week: str = WEEK) -> list[WorstHour]:
    """Return the worst hours of a week."""
    return report.worst_hours(data, data.of_week(week))


def words(data: ReportData, week: str = WEEK) -> str:
    """Return the text of the report that varies with the week."""
    part = data.of_week(week)
    misses = report.worst_hours(data, part)
    tables = [report.totals(data, part), report.daily_table(part), report.worst_table(misses)]
    texts = [report.summary(data, part), report.describe_model(data), report.describe_origin(data.origin)]
    return " ".join(" ".join([*texts, *(table.to_html() for table in tables if table is not None)]).split())


def visible(page: str) -> str:
    """Return the text of a page without images and styles."""
    return " ".join(re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL).split())


# -- content -----------------------------------------------------------------------------------------------------------
def test_page_shows_totals_and_quality_of_the_predictions(data):
    """Its numbers are those of the frame and of the model's predictions."""
    week = data.of_week(WEEK)
    totals = report.totals(data, week)
    energy, predicted = week.hours[schema.TARGETS].sum(), week.predicted.sum()
    mae = (week.predicted - week.hours[schema.TARGETS]).abs().mean()
    inside = week.hours.wind_GW.between(week.band[0].wind_GW, week.band[1].wind_GW).mean()
    assert totals.loc["Solar power"].iloc[0] == f"{energy.solar_GW:,.0f} GWh"
    assert totals.loc["Wind power"].tolist() == [
        f"{energy.wind_GW:,.0f} GWh",
        f"{predicted.wind_GW:,.0f} GWh",
        f"{report.signed(100 * (predicted.wind_GW / energy.wind_GW - 1))} %",
        f"{mae.wind_GW:.2f} GW",
        f"{100 * inside:.0f} %",
    ]
    assert totals.loc["Solar power"].iloc[-1].endswith("% (by day)")
    text = words(data)
    for part in ("Wind speed, m/s", "modelled", "Deutscher Wetterdienst", "licence", "The state over these weeks: **"):
        assert part in text


def test_week_without_predictions_is_an_error(data):
    """A week outside the predicted rows is an error, not a table with gaps."""
    with pytest.raises(ParameterError, match="were not predicted"):
        dataclasses.replace(data, predicted=data.predicted.tail(2000), band=None).of_week("2016-W20")


def test_page_names_the_training_overlap(data):
    """The page says whether the week is in the training data."""
    assert "all of these hours are new to it" in words(data)
    assert "trained on all of these hours" in words(data, "2014-W30")
    assert "is not known" in words(dataclasses.replace(data, training_end=None))


def test_page_counts_missing_hours_and_names_the_gaps(data):
    """Ten missing hours in two gaps are named at the top."""
    stamps = data.frame.utc_timestamp
    start = pd.Timestamp(split.monday(WEEK))
    missing = stamps.between(start + pd.Timedelta("10h"), start + pd.Timedelta("18h")) | (
        stamps == start + pd.Timedelta("50h")
    )
    text = words(without(data, missing))
    assert "10 of the week's 168 hours are missing" in text
    assert "Mon 3 Oct, 10:00 to Mon 3 Oct, 18:00; Wed 5 Oct, 02:00" in text
    assert "Mon 3 Oct (15 h)" in text
    assert "are missing" not in words(data)
    last_hour = without(data, data.frame.index < len(data.frame) - 1)
    assert "143 of the week's 144 hours so far are missing" in words(last_hour, "2016-W52")


def test_page_without_a_model_in_production_says_so(data):
    """Without predictions the page shows only measured values."""
    nothing = ReportData(data.frame)
    text = words(nothing)
    assert "No model is in production" in text
    assert "models:/" not in text
    assert "Predicted</th>" not in text
    assert "GWh" in text
    assert "Solar from" in report.draw(nothing, nothing.of_week(WEEK), []).alt


def test_page_shows_lineage_as_it_was_recorded(data):
    """Each link is shown, known or not; recorded text is escaped."""
    links = (
        Link("data", "germany.parquet", {"md5": "5b152ef6"}),
        Link("run", "<b>bold</b>", {"deleted": "yes"}, url="http://127.0.0.1:5000/#/runs/1"),
        Link("notebook", "train.ipynb", known=False),
    )
    text = words(dataclasses.replace(data, lineage=links))
    for part in ("md5: 5b152ef6", "deleted: yes", "not recorded", "&lt;b&gt;bold", "models:/wind_solar/3"):
        assert part in text
    frame = data.frame.copy()
    frame.attrs = {"origin": {"source": "csv", "attribution": "<script>alert(1)</script>"}}
    assert "<script" not in words(dataclasses.replace(data, frame=frame))


# -- worst hours -------------------------------------------------------------------------------------------------------
def test_worst_hours_are_the_largest_distant_errors(data):
    """Three per target, more than six hours apart, sorted by size; the first is the largest of the week."""
    week, misses = data.of_week(WEEK), worst(data)
    errors = week.predicted[schema.TARGETS] - week.hours[schema.TARGETS]
    assert abs(misses[0].error) == pytest.approx(errors.abs().max().max())
    assert [miss.number for miss in misses] == list(range(1, len(misses) + 1))
    assert [abs(miss.error) for miss in misses] == sorted((abs(miss.error) for miss in misses), reverse=True)
    for target in schema.TARGETS:
        times = sorted(miss.at for miss in misses if miss.target == target)
        assert len(times) == 3
        assert all(later - earlier > pd.Timedelta("6h") for earlier, later in itertools.pairwise(times))
    assert all(miss.reason for miss in misses)


def planted(data: ReportData, at: str, **factors: float) -> WorstHour:
    """Return the worst hour after multiplying values of one hour."""
    is_hour = data.frame.utc_timestamp == pd.Timestamp(at, tz="UTC")
    columns = {name: data.frame[name].where(~is_hour, data.frame[name] * by) for name, by in factors.items()}
    frame = data.frame.assign(**columns)
    frame.attrs = data.frame.attrs
    misses = worst(dataclasses.replace(data, frame=frame))
    miss = next(miss for miss in misses if miss.at == pd.Timestamp(at, tz="UTC"))
    assert miss.number == 1
    return miss


def test_cause_is_what_was_unusual_about_the_hour(data):
    """A gust, a flash of light, and generation that the weather does not explain each give their sentence."""
    miss = planted(data, "2016-10-06T12:00", wind_GW=5)
    assert miss.outside_band > 3
    assert miss.reason.startswith("The wind power was unusual at about this wind speed")
    assert "No input of the model explains it" in miss.reason
    gust = planted(data, "2016-10-06T12:00", wind_GW=5, windspeed=2.5)
    assert gust.reason.startswith("The wind speed changed by")
    flash = planted(data, "2016-10-06T10:00", solar_GW=4, rad_horizontal=9)
    assert flash.reason.startswith("The light changed by")


def test_cause_is_always_given(data):
    """Each worst hour of a year has a cause; a model that is biased for weeks has its own."""
    weeks = [f"2016-W{number}" for number in range(20, 52, 6)]
    assert [miss for week in weeks for miss in worst(data, week) if "No cause found" in miss.reason] == []
    predicted = data.predicted.assign(wind_GW=data.predicted["wind_GW"] * 0.6)
    reasons = [miss.reason for miss in worst(dataclasses.replace(data, predicted=predicted)) if miss.error < 0]
    assert any(
        re.match(r"Predictions of wind power were \d+ % too low on average over eight weeks", each) for each in reasons
    )
    high = dataclasses.replace(data, predicted=predicted * 4)
    assert not any("too low" in miss.reason for miss in worst(high))


# -- page --------------------------------------------------------------------------------------------------------------
def test_page_is_one_small_file_without_program_or_address(in_workplace):
    """At most 2 MB, without scripts, external resources, code or duplicate ids; week and model are named."""
    page = (in_workplace.pipeline / "results" / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < MAX_BYTES
    assert "<script" not in page
    assert re.findall(r'<(?:link|object|iframe)|@import|(?:src|srcset)="(?!data:)|url\((?!#)', page) == []
    assert re.search(r"<title>Solar and wind power in Germany, week \d{4}-W\d\d</title>", page)
    assert "models:/wind_solar/" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    text = visible(page)
    for part in ("In this notebook you will", "import ", "Recap", "report."):
        assert part not in text.replace("report.html", "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_and_is_accessible(browser, in_workplace, scheme):
    """On desktop and phone: no requests, nothing wider than the page, no findings of axe."""
    from axe_playwright_python.sync_playwright import Axe

    file = in_workplace.pipeline / "results" / "report.html"
    for width in (1280, 390):
        view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        asked: list[str] = []
        view.on("request", lambda request, asked=asked: asked.append(request.url))
        view.on("console", lambda message, asked=asked: asked.append(message.text))
        view.goto(file.as_uri())
        assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
        assert view.evaluate("document.documentElement.scrollWidth") == width
        figure = view.locator("img")
        assert figure.evaluate("image => image.naturalWidth") > 0
        assert "Solar from" in figure.get_attribute("alt")
        colour = view.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (colour == "rgb(255, 255, 255)") == (scheme == "light")
        # The page's policy forbids scripts, so axe runs on the page without it.
        view.set_content(re.sub(r"<meta[^>]+http-equiv[^>]+>", "", file.read_text(encoding="utf-8")))
        assert Axe().run(view).response["violations"] == []
        view.close()


def test_stage_renders_the_page_of_any_week(servers, tmp_path):
    """The week is a parameter; the model in production was not trained on it, or cannot predict it."""
    folder = tmp_path / "pipeline"
    (folder / "results").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml", "report.ipynb", "results/decision.json"):
        shutil.copy(servers.pipeline / name, folder / name)
    for name in ("data", "forecast"):
        (folder / name).symlink_to(servers.pipeline / name)

    def page(week: str) -> str:
        for command in yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]["report"]["cmd"]:
            (folder / "executed").mkdir(exist_ok=True)
            program, *arguments = command.replace("${report.week}", week).split()
            servers.run(BIN / program, *arguments, cwd=folder)
        return (folder / "results" / "report.html").read_text(encoding="utf-8")

    text = visible(page(WEEK))
    assert f"week {WEEK}" in text
    assert "all of these hours are new to it" in text

    # Hours of years without a known capacity, as after the gate has refused the first model on a user's data.
    germany = processed.read(folder / "data" / "germany.parquet")
    germany = germany.drop(columns=list(schema.CAPACITIES.values()))
    germany["utc_timestamp"] += pd.DateOffset(years=8)
    (folder / "data").unlink()
    (folder / "data").mkdir()
    germany.to_parquet(folder / "data" / "germany.parquet")
    text = visible(page("latest"))
    assert "cannot predict these data: The installed capacity of" in text
    assert "No model is in production" not in text


@pytest.mark.parametrize("is_up", [True, False])
def test_line_of_crontab_sends_the_report_or_the_end_of_the_log(servers, tmp_path, is_up):
    """The line of the page works in cron's environment: a home, a bare PATH, `sh`, no terminal."""
    cells = json.loads((servers.pipeline / "report.ipynb").read_text())["cells"]
    [line] = re.findall(r"^0 6 \* \* 1  (.*)$", "".join("".join(cell["source"]) for cell in cells), re.MULTILINE)
    command = line.replace("/path/to/the/pipeline", str(servers.pipeline)).replace("$PWD/.venv/bin", str(BIN))
    command = command.replace("http://HOST:5000", servers.tracking_uri if is_up else "http://127.0.0.1:9")
    mail = tmp_path / "mail"
    mail.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>{tmp_path}/arguments\ncat >>{tmp_path}/body\n')
    mail.chmod(0o755)
    bare = {"HOME": os.environ["HOME"], "PATH": f"/usr/bin:/bin:{tmp_path}"}
    servers.run("/bin/sh", "-c", command, cwd=Path("/"), env=bare)
    arguments, body = ((tmp_path / name).read_text().splitlines() for name in ("arguments", "body"))
    if is_up:
        assert arguments == ["-s", "Weekly report", "-A", "results/report.html", "team@example.org"]
        assert body == ["The report is attached."]
    else:
        assert arguments == ["-s", "The weekly report failed", "team@example.org"]
        assert "tracking_store" in body[-1]
