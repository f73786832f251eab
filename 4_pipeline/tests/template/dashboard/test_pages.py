"""The pages, made in this process: whatever stands in an address, each is made, and shows what is served."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from dashboard import layout
from dashboard.follower import Fault
from dashboard.pages import PATHS, what_if
from dashboard.record import Record
from forecast.show import monitoring


@pytest.fixture(scope="module")
def made(served):
    """What makes the page of an address, as JSON."""
    return lambda url, **changes: layout.whole_page(replace(served, **changes), url).to_plotly_json()


@pytest.mark.parametrize(
    "url",
    [
        "", "http://[", "//host/what-if?a=1", "/comparison?" + "a=1&" * 100, "?" * 3000, "\x00", "/what-if?__class__=x",
        "/what-if?windspeed=nan&temperature=-1e309&hour=&day=inf&year=9999-12-31", "/what-if?windspeed=%ED%A0%80",
        "/comparison?from=9999-12-31&to=0001-01-01", "/comparison?from=2016-02-30&to=\u0667", "/?from=2016-12-03",
    ],
)  # fmt: skip
def test_pages_are_made_of_any_address(made, url):
    """No text and no value in a query keeps a page from being made."""
    assert made(url)


@pytest.mark.parametrize("path", [*PATHS, "/no-such"])
@pytest.mark.parametrize("missing", ["frame", "model", "both", "all"])
def test_pages_are_made_of_what_there_is(made, path, missing):
    """Without data, without a model, and before anybody has looked, each page is there and says so."""
    absent = {"frame": ["frame"], "model": ["champion"]}.get(missing, ["frame", "champion"])
    page = str(made(path, is_ready=missing != "all", predictions=None, **dict.fromkeys(absent)))
    assert ("Looking for the data" in page) == (missing == "all")
    assert ("There is no data yet." in page) == (missing in ("frame", "both"))
    assert ("No model is in production yet." in page) == (missing in ("model", "both"))


def test_report_is_linked_with_its_week(made):
    """The week that a report is on can be another than the latest: the link names it."""
    assert "There is no weekly report yet." in str(made("/"))
    assert "The report on week 2016-W51" in str(made("/", record=Record(report_week="2016-W51")))


def test_refused_candidate_is_shown_beside_the_model_in_production(made, served):
    """What the gate found of the last candidate is a plot of both; not for a decision on another version."""
    scores = {"metrics": {"r2": 0.9}, "blocks": {"week 1": 1.0, "week 3": 2.0}}
    decision = {
        "promoted": False, "reason": "refused: bias: -9 (allowed: -5 to 5)", "model_uri": "models:/m-b2",
        "production": {"version": "7"},
        "candidate": scores, "champion": scores | {"metrics": {"r2": 0.95}},
        "findings": [{"name": "bias", "value": -9.0, "limit": "-5 to 5", "passed": False}],
    }  # fmt: skip
    page = str(made("/model", record=Record(decision=decision)))
    assert "bias: -9 (allowed: -5 to 5). R²: version 7, in production 0.950, the last candidate 0.900." in page
    for other in ({"promoted": True}, {"production": {"version": "6"}}, {"model_uri": "models:/m-a1"}):
        assert "The last candidate" not in str(made("/model", record=Record(decision=decision | other)))


def test_what_if_says_how_often_such_weather_was_learned(made, served):
    """Each slider shows the training range and how rare its value is; light at night and the capacity are told."""
    slowest, fastest = served.frame["windspeed"].agg(["min", "max"])
    said = [what_if.seen(replace(served), "windspeed", speed) for speed in (5, fastest, fastest + 1)]
    within, outside = "within the training range", "outside the training range"
    assert said == [within, f"{within}, but this high in only 1 of {len(served.frame):,} hours", outside]
    ends = what_if.training_range(served, "windspeed")  # of a slider from 0 to 16 m/s
    assert ends == {"--from": f"{slowest / 16:.3f}", "--to": f"{fastest / 16:.3f}"}
    assert str(ends) in str(made("/what-if"))
    night = str(made("/what-if?rad_horizontal=800&hour=23"))
    assert "There is no such hour: 920 W/m² of light are set" in night
    assert "0.0 to 0.0" not in night
    noon = str(made("/what-if?windspeed=x"))
    assert "There is no such hour" not in noon
    assert "Not a number, and ignored: windspeed=x." in noon
    beyond = str(made("/what-if?temperature=9999&windspeed=5"))
    assert "Beyond the slider, and set to its end: temperature=9999 (" in beyond
    assert "windspeed=5 (" not in beyond
    assert "With the capacity installed on 21 Jun 2016: solar power 40.4 GW" in noon


def test_what_if_names_the_year_and_the_local_time(made):
    """The year is the data's last or that of the address; one without a figure of capacity has no prediction."""
    page, other = (str(made(f"/what-if?day=128{year}")) for year in ("", "&year=2015"))
    for words in ("'08 May 2016'", "Day of the year 2016", "'12:00 UTC, 14:00 in Europe/Berlin'"):
        assert words in page
    for words in ("'08 May 2015'", "The installed capacity of"):
        assert words in other


def test_what_if_draws_each_day(made, served):
    """No weekday is skipped: a curve over the day of the year has all days, and one over the hour all hours."""
    *_, hour, day = what_if.curves(served, what_if.FIRST).select_traces(selector={"legendgroup": "wind_GW"})
    assert [*hour.x] == [*range(24)]
    assert [*day.x] == [*range(1, 366)]


@pytest.mark.parametrize(
    ("until", "said"),
    [
        ("2000-01-01T00:00:00Z", "The model was trained on hours up to 01 Jan 2000: all of these are new to it."),
        ("2100-01-01T00:00:00Z", "The model was trained on all of these hours"),
    ],
)
def test_comparison_says_which_hours_the_model_was_trained_on(made, served, until, said):
    """Errors are smaller on the hours that a model was trained on: the page says which hours are new to it."""
    tags = {"mlflow_gate.learned": json.dumps({"first": "1999-01-01T00:00:00Z", "last": until})}
    champion = replace(served.champion, production=replace(served.champion.production, tags=tags))
    assert said in str(made("/comparison", champion=champion))
    assert "trained on these hours is not known" in str(made("/comparison"))


def test_r2_without_a_model_is_of_the_hours_that_the_gate_judged(made, served):
    """The figure in brackets is of the very hours of the first one; of other hours there is none."""
    first, last = served.frame["utc_timestamp"].iloc[[200, 600]]
    held_out = {"period": [first.isoformat(), last.isoformat()], "rows": 401}
    for rows, is_known in ((401, True), (400, False)):
        move = replace(served.champion.production.move, held_out=held_out | {"rows": rows})
        champion = replace(served.champion, production=replace(served.champion.production, move=move))
        comparison = replace(served, champion=champion).comparison
        assert bool(comparison.r2_without_model) is is_known
        assert (" without a model)" in str(made("/model", champion=champion))) is is_known
    expected = monitoring.baseline_r2(served.frame.loc[200:600], comparison.baselines)
    champion = replace(champion, production=replace(champion.production, move=replace(move, held_out=held_out)))
    assert replace(served, champion=champion).comparison.r2_without_model == expected


def test_links_of_a_lineage_lead_to_pages_only(made):
    """What is recorded with a run could say anything: an address that is no page's is shown as a name, not linked."""
    from mlflow_gate import Link

    links = (Link("data", "harmless", url="javascript:alert(1)"), Link("run", "fit", url="http://127.0.0.1/run"))
    page = str(made("/model", record=Record(lineage=links)))
    assert "javascript" not in page
    assert "http://127.0.0.1/run" in page


def test_header_says_that_a_model_was_forced_and_that_mlflow_is_away(made, served):
    """A version that a person put there against the gate has a badge, and a registry that is away a mark."""
    from mlflow_gate import Move

    assert "forced past" not in str(made("/model"))
    moves = (Move(1, "promoted", "6"), Move(2, "forced", served.champion.production.version))
    assert "forced past the gate" in str(made("/model", record=Record(history=moves)))
    away = {"registry": Fault(datetime.now(UTC), "It does not answer.")}
    assert "className='doubtful'" in str(made("/model", faults=away))
