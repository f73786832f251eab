"""The pages, rendered in this process for any address and any snapshot."""

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
    """A function that renders the page of an address as JSON."""
    return lambda url, **changes: layout.whole_page(replace(served, **changes), url).to_plotly_json()


@pytest.mark.parametrize(
    "url",
    [
        "", "http://[", "//host/what-if?a=1", "/comparison?" + "a=1&" * 100, "?" * 3000, "\x00", "/what-if?__class__=x",
        "/what-if?windspeed=nan&temperature=-1e309&hour=&day=inf&year=9999-12-31", "/what-if?windspeed=%ED%A0%80",
        "/comparison?from=9999-12-31&to=0001-01-01", "/comparison?from=2016-02-30&to=\u0667", "/?from=2016-12-03",
    ],
)  # fmt: skip
def test_pages_render_for_any_address(made, url):
    """No text in an address and no value in a query is an error."""
    assert made(url)


@pytest.mark.parametrize("path", [*PATHS, "/no-such"])
@pytest.mark.parametrize("missing", ["frame", "model", "both", "all"])
def test_pages_say_what_is_missing(made, path, missing):
    """Each page renders without data, without a model, and before the first poll, with a message."""
    absent = {"frame": ["frame"], "model": ["champion"]}.get(missing, ["frame", "champion"])
    page = str(made(path, is_ready=missing != "all", predictions=None, **dict.fromkeys(absent)))
    assert ("Loading the data" in page) == (missing == "all")
    assert ("There is no data yet." in page) == (missing in ("frame", "both"))
    assert ("No model is in production yet." in page) == (missing in ("model", "both"))


def test_link_to_the_report_names_its_week(made):
    """The week of the report may not be the latest one."""
    assert "There is no weekly report yet." in str(made("/"))
    assert "Weekly report: 2016-W51" in str(made("/", record=Record(report_week="2016-W51")))


def test_refused_candidate_is_shown_beside_the_model_in_production(made, served):
    """A refused candidate has a panel with a plot of both models, unless the decision is about another version."""
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


def test_what_if_shows_the_training_range(made, served):
    """Each slider shows the training range and rare values; notes name impossible light and the capacity."""
    slowest, fastest = served.frame["windspeed"].agg(["min", "max"])
    notes = [what_if.range_note(replace(served), "windspeed", speed) for speed in (5, fastest, fastest + 1)]
    within, outside = "within the training range", "outside the training range"
    assert notes == [within, f"{within}, but this high in only 1 of {len(served.frame):,} hours", outside]
    ends = what_if.training_range(served, "windspeed")  # of a slider from 0 to 16 m/s
    assert ends == {"--from": f"{slowest / 16:.3f}", "--to": f"{fastest / 16:.3f}"}
    assert str(ends) in str(made("/what-if"))
    night = str(made("/what-if?rad_horizontal=800&hour=23"))
    assert "Impossible hour: 920 W/m² of radiation are set" in night
    assert "0.0 to 0.0" not in night
    noon = str(made("/what-if?windspeed=x"))
    assert "Impossible hour" not in noon
    assert "Ignored, because not a number: windspeed=x." in noon
    beyond = str(made("/what-if?temperature=9999&windspeed=5"))
    assert "Set to the end of the slider's range: temperature=9999 (" in beyond
    assert "windspeed=5 (" not in beyond
    assert "Installed capacity on 21 Jun 2016: solar power 40.4 GW" in noon


def test_what_if_names_the_year_and_the_local_time(made):
    """The year is the last one of the data or that of the address; without a known capacity there is no prediction."""
    page, other = (str(made(f"/what-if?day=128{year}")) for year in ("", "&year=2015"))
    for words in ("'08 May 2016'", "Day of the year 2016", "'12:00 UTC, 14:00 in Europe/Berlin'"):
        assert words in page
    for words in ("'08 May 2015'", "The installed capacity of"):
        assert words in other


def test_what_if_draws_each_day(made, served):
    """The curve over the day of the year has all days, that over the hour all hours."""
    *_, hour, day = what_if.curves(served, what_if.DEFAULTS).select_traces(selector={"legendgroup": "wind_GW"})
    assert [*hour.x] == [*range(24)]
    assert [*day.x] == [*range(1, 366)]


@pytest.mark.parametrize(
    ("until", "text"),
    [
        ("2000-01-01T00:00:00Z", "The model was trained on hours up to 01 Jan 2000, so all of these hours are new"),
        ("2100-01-01T00:00:00Z", "The model was trained on all of these hours"),
    ],
)
def test_comparison_says_which_hours_the_model_was_trained_on(made, served, until, text):
    """Errors are smaller on training data: the page says which hours are new to the model."""
    tags = {"mlflow_gate.learned": json.dumps({"first": "1999-01-01T00:00:00Z", "last": until})}
    champion = replace(served.champion, production=replace(served.champion.production, tags=tags))
    assert text in str(made("/comparison", champion=champion))
    assert "not known whether the model was trained on these hours" in str(made("/comparison"))


def test_baseline_r2_is_on_the_held_out_rows_of_the_gate(made, served):
    """The baseline's R2 is shown only if its rows are those of the model's score."""
    first, last = served.frame["utc_timestamp"].iloc[[200, 600]]
    held_out = {"period": [first.isoformat(), last.isoformat()], "rows": 401}
    for rows, is_known in ((401, True), (400, False)):
        move = replace(served.champion.production.move, held_out=held_out | {"rows": rows})
        champion = replace(served.champion, production=replace(served.champion.production, move=move))
        comparison = replace(served, champion=champion).comparison
        assert bool(comparison.baseline_r2) is is_known
        assert (" without a model)" in str(made("/model", champion=champion))) is is_known
    expected = monitoring.baseline_r2(served.frame.loc[200:600], comparison.baselines)
    champion = replace(champion, production=replace(champion.production, move=replace(move, held_out=held_out)))
    assert replace(served, champion=champion).comparison.baseline_r2 == expected


def test_lineage_links_only_to_http_addresses(made):
    """Tags may hold any text: other addresses are not linked."""
    from mlflow_gate import Link

    links = (Link("data", "harmless", url="javascript:alert(1)"), Link("run", "fit", url="http://127.0.0.1/run"))
    page = str(made("/model", record=Record(lineage=links)))
    assert "javascript" not in page
    assert "http://127.0.0.1/run" in page


def test_header_shows_forced_versions_and_faults(made, served):
    """A version forced past the gate has a badge, and the version is marked while the registry is down."""
    from mlflow_gate import Move

    assert "forced past" not in str(made("/model"))
    moves = (Move(1, "promoted", "6"), Move(2, "forced", served.champion.production.version))
    assert "forced past the gate" in str(made("/model", record=Record(history=moves)))
    faults = {"registry": Fault(datetime.now(UTC), "It does not respond.")}
    assert "className='doubtful'" in str(made("/model", faults=faults))
