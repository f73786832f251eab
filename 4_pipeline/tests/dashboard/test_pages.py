"""The pages, made in this process: whatever stands in an address, each is made, and shows what is served."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import pytest
from dashboard import layout, parts
from dashboard.follower import Fault, Snapshot
from dashboard.pages import what_if
from dashboard.record import Record
from forecast.show import monitoring
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlflow_gate import Evidence
from places import PROJECT

NAMES = st.sampled_from(["from", "to", "windspeed", "temperature", "hour", "day", "x", "__class__"])
VALUES = st.text(max_size=12) | st.sampled_from(["nan", "inf", "-1e309", "2016-10-03", "9999-12-31", "0001-01-01", "7"])


@pytest.fixture(scope="module")
def made(served):
    """What makes the page of an address, as JSON."""
    return lambda url, **changes: layout.whole_page(replace(served, **changes), url).to_plotly_json()


FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=6).map(lambda fields: urlencode(fields, errors="surrogatepass"))
QUERIES = st.builds("{}?{}".format, st.sampled_from(["/", "/comparison", "/what-if"]), FIELDS)


@settings(max_examples=30)
@given(st.text(max_size=60) | QUERIES)
@example("http://[")
@example("//host/what-if?a=1")
@example("/comparison?" + "a=1&" * 100)
@example("?" * 3000)
def test_pages_are_made_of_any_address(made, url):
    """No text and no value in a query keeps a page from being made."""
    assert made(url)


@pytest.mark.parametrize("path", ["/", "/over-time", "/what-if", "/your-weather", "/model", "/data", "/no-such"])
@pytest.mark.parametrize("missing", ["frame", "model", "both", "all"])
def test_pages_are_made_of_what_there_is(made, path, missing):
    """Without data, without a model, and before anybody has looked, each page is there and says so."""
    without = {
        "frame": {"frame": None, "predictions": None},
        "model": {"champion": None, "predictions": None},
    }
    changes = without["frame"] | without["model"] if missing in ("both", "all") else without[missing]
    page = str(made(path, is_ready=missing != "all", **changes))
    assert ("Looking for the data" in page) == (missing == "all")
    if missing in ("frame", "both"):
        assert "There is no data yet." in page
    if missing in ("model", "both"):
        assert "No model is in production yet." in page


def test_report_is_linked_with_its_week(made):
    """The week that a report is on can be another than the latest: the link names it."""
    assert "There is no weekly report yet." in str(made("/"))
    assert "The report on week 2016-W51" in str(made("/", record=Record(report_week="2016-W51")))


def test_refused_candidate_is_shown_beside_the_model_in_production(made, served):
    """What the gate found of the last candidate is a plot of both; not for a decision on another version."""
    scores = {"metrics": {"r2": 0.9}, "blocks": {"week 1": 1.0, "week 3": 2.0}}
    decision = {
        "promoted": False, "reason": "refused: bias: -9 (allowed: -5 to 5)", "run_id": "b2",
        "production": {"version": "7"},
        "candidate": scores, "champion": scores | {"metrics": {"r2": 0.95}},
        "findings": [{"name": "bias", "value": -9.0, "limit": "-5 to 5", "passed": False}],
    }  # fmt: skip
    page = str(made("/model", record=Record(decision=decision)))
    assert "bias: -9 (allowed: -5 to 5). R²: version 7, in production 0.950, the last candidate 0.900." in page
    for other in ({"promoted": True}, {"production": {"version": "6"}}, {"run_id": "a1"}):
        assert "The last candidate" not in str(made("/model", record=Record(decision=decision | other)))


def test_what_if_says_how_often_such_weather_was_learned(made, served):
    """Beside each slider: seen, hardly seen or never; light at night is told, and so is whose capacity counts."""
    fastest = served.frame["windspeed"].max()
    said = [what_if.seen(replace(served), "windspeed", speed) for speed in (5, fastest, fastest + 1)]
    assert said == ["seen", f"hardly seen: so much in 1 of {len(served.frame):,} hours", "never seen"]
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


def test_over_time_marks_where_the_refit_predicts(made, served):
    """Months of the judged model and of its refit are told apart, in words and by a line."""
    stamps = served.frame["utc_timestamp"]
    until = [stamps.iloc[row].strftime("%Y-%m-%dT%H:%M:%SZ") for row in (100, 300)]
    tags = [{"mlflow_gate.learned": json.dumps({"first": "1999-01-01T00:00:00Z", "last": end})} for end in until]
    production = replace(served.champion.production, tags=tags[1], refit_of=Evidence("b2", "models:/m-b2", tags[0]))
    page = str(
        made("/over-time", champion=replace(served.champion, production=production, judged=served.champion.model))
    )
    assert f"Hours to {stamps.iloc[300]:%d %b %Y} are predicted by the judged model" in page
    assert "by its refit in production" in page


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


def _snapshot(last):
    frame = None if last is None else pd.DataFrame({"utc_timestamp": [pd.Timestamp(last)]})
    return Snapshot(frame=frame)


def test_what_if_draws_no_sun_where_there_cannot_be_any(served):
    """Light after sunset: no number and no line of solar power there; wind, and the hours of light, are drawn."""
    weather = what_if.FIRST | {"rad_horizontal": 650, "rad_diffuse": 180}
    for hour, is_known in ((0, False), (20, False), (11, True)):
        text = str(what_if.answers(replace(served), weather | {"hour": hour}))
        values = dict(re.findall(r"Span\(children='(\S+)', id='predicted-(\w+)'\)", text))
        numbers = {target: number for number, target in values.items()}
        assert ("n/a" not in numbers["solar_GW"], numbers["wind_GW"] != "n/a") == (is_known, True)
    figure = what_if.curves(replace(served), weather | {"hour": 0})
    lines = {(trace.name, trace.xaxis): np.array(trace.y, float) for trace in figure.data}
    by_hour = "x5"  # after four inputs
    assert np.isnan(lines["Solar", by_hour][[0, 23]]).all()
    assert not np.isnan(lines["Solar", by_hour][11:13]).any()
    assert np.isnan(lines["Solar", "x"]).all()
    assert not any(np.isnan(line).any() for (name, _), line in lines.items() if name == "Wind")


def test_what_if_marks_what_was_learned_in_such_weather(served):
    """The dark part of a curve ends where few hours like the chosen one were learned, though others had such wind."""
    bright = what_if.FIRST | {"rad_horizontal": 200, "rad_diffuse": 100, "temperature": 0}
    ends = what_if._learned_here(served.learned, "windspeed", bright)
    learned, spans = served.learned, {"rad_horizontal": 85, "rad_diffuse": 52, "temperature": 6}
    alike = learned[np.all([(learned[name] - bright[name]).abs() <= span for name, span in spans.items()], axis=0)]
    assert (alike["windspeed"] > ends[1]).sum() == (alike["windspeed"] < ends[0]).sum() == what_if.FEW
    assert ends[1] < learned["windspeed"].quantile(1 - what_if.SELDOM)
    assert what_if._learned_here(served.learned, "windspeed", bright | {"temperature": 40}) == []


NAMED = """
from forecast import problem
problem.INPUTS = tuple(
    dataclasses.replace(each, name=names.get(each.name, each.name)) for each in problem.INPUTS
)
from dashboard.pages import what_if
from dashboard.follower import Snapshot
page = str(what_if.page(Snapshot(), {"hour": "3", "day": "4", "value": "5"}))
print([*what_if.SLIDERS], [page.count(f"id='slider-{name}'") for name in what_if.SLIDERS])
print(what_if.within_range([3, 4, 5, 6, 7, 8]))
print(what_if.reading("hour", 3.0), what_if.reading("hour_utc", 3.0), what_if.reading("day_utc", 32.0))
"""


def test_inputs_may_have_the_names_of_the_sliders_of_time():
    """Inputs called `hour`, `day` and `value` have sliders of their own beside those of the time."""
    names = {"windspeed": "hour", "temperature": "day", "rad_diffuse": "value"}
    script = f"import dataclasses\nnames = {names}\n{NAMED}"
    # Drivers and computed columns name inputs, too, and play no part here.
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sliders, values, readings = done.stdout.splitlines()
    assert sliders == "['hour', 'day', 'rad_horizontal', 'value', 'hour_utc', 'day_utc'] [1, 1, 1, 1, 1, 1]"
    assert values == str(
        {"hour": 3.0, "day": 4.0, "rad_horizontal": 5.0, "value": 6.0, "hour_utc": 7.0, "day_utc": 8.0}
    )
    assert readings == "3.0 03:00 01 Feb"


def test_kind_of_a_model_is_a_label_of_its_own():
    """What the header shows is no sentence of the code's documentation."""
    assert parts.kind("train_keras", "keras") == "neural network"
    assert (parts.kind("train_other", "keras"), parts.kind(None, "keras")) == ("train_other", "keras")


@pytest.mark.parametrize("last", ["2017-01-01T00:00Z", "2018-06-01T00:00Z"])
def test_hour_has_a_known_capacity(last):
    """Data that continues beyond the figures of installed capacity asks about the last year that has one."""
    moment = what_if.hour_of_year(_snapshot(last), 172, 12)
    assert moment == datetime(2016, 6, 21, 12, tzinfo=UTC)
    assert what_if.reading("day", 172) == "21 Jun"
