"""The pages, made in this process: whatever stands in an address, each is made, and shows what is served."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urlencode

import pandas as pd
import pytest
from dashboard import layout
from dashboard.follower import Fault, Snapshot
from dashboard.pages import what_if
from dashboard.record import Record
from hypothesis import example, given
from hypothesis import strategies as st

NAMES = st.sampled_from(["from", "to", "windspeed", "temperature", "hour", "day", "x", "__class__"])
VALUES = st.text(max_size=12) | st.sampled_from(["nan", "inf", "-1e309", "2016-10-03", "9999-12-31", "0001-01-01", "7"])


@pytest.fixture(scope="module")
def made(served):
    """What makes the page of an address, as JSON."""
    return lambda url, **changes: layout.whole_page(replace(served, **changes), url).to_plotly_json()


FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=6).map(lambda fields: urlencode(fields, errors="surrogatepass"))
QUERIES = st.builds("{}?{}".format, st.sampled_from(["/", "/comparison", "/what-if"]), FIELDS)


@given(st.text(max_size=60) | QUERIES)
@example("http://[")
@example("//host/what-if?a=1")
@example("/comparison?" + "a=1&" * 100)
@example("?" * 3000)
def test_pages_are_made_of_any_address(made, url):
    """No text and no value in a query keeps a page from being made."""
    assert made(url)


@pytest.mark.parametrize("path", ["/", "/what-if", "/your-weather", "/model", "/data", "/no-such"])
@pytest.mark.parametrize("missing", ["frame", "model", "both", "all"])
def test_pages_are_made_of_what_there_is(made, path, missing):
    """Without data, without a model, and before anybody has looked, each page is there and says so."""
    without = {
        "frame": {"frame": None, "predicted": None, "band": None},
        "model": {"production": None, "model": None, "predicted": None, "band": None},
    }
    changes = without["frame"] | without["model"] if missing in ("both", "all") else without[missing]
    page = str(made(path, is_ready=missing != "all", **changes))
    assert ("Looking for the data" in page) == (missing == "all")
    if missing in ("frame", "both"):
        assert "There is no data yet." in page
    if missing in ("model", "both"):
        assert "No model is in production yet." in page


def test_report_is_said_to_be_on_a_week_that_is_nearly_whole(made):
    """The table begins with the latest week, the report is on the latest that has nine tenths of its hours."""
    assert "(the latest with 90% of its hours, unless params.yaml names another)" in str(made("/"))


@pytest.mark.parametrize(
    ("until", "said"),
    [
        ("2000-01-01T00:00:00Z", "The model was trained on hours up to 01 Jan 2000: all of these are new to it."),
        ("2100-01-01T00:00:00Z", "The model was trained on all of these hours"),
    ],
)
def test_comparison_says_which_hours_the_model_was_trained_on(made, served, until, said):
    """Errors are smaller on the hours that a model was trained on: the page says which hours are new to it."""
    production = replace(served.production, learned_until=until)
    assert said in str(made("/comparison", production=production))
    assert "trained" not in str(made("/comparison"))


def test_links_of_a_lineage_lead_to_pages_only(made):
    """What is recorded with a run could say anything: an address that is no page's is shown as a name, not linked."""
    from workshop.models.lineage import Link

    links = (Link("data", "harmless", url="javascript:alert(1)"), Link("run", "fit", url="http://127.0.0.1/run"))
    page = str(made("/model", record=Record(lineage=links)))
    assert "javascript" not in page
    assert "http://127.0.0.1/run" in page


def test_header_says_that_a_model_was_forced_and_that_mlflow_is_away(made, served):
    """A version that a person put there against the gate has a badge, and a registry that is away a mark."""
    from workshop.models.registry import Move

    assert "forced past" not in str(made("/model"))
    moves = (Move(1, "promoted", "6"), Move(2, "forced", served.production.version))
    assert "forced past the gate" in str(made("/model", record=Record(history=moves)))
    away = {"registry": Fault(datetime.now(UTC), "It does not answer.")}
    assert "className='registry'" in str(made("/model", faults=away))


def _snapshot(last):
    frame = None if last is None else pd.DataFrame({"utc_timestamp": [pd.Timestamp(last)]})
    return Snapshot(frame=frame)


@pytest.mark.parametrize("last", ["2017-01-01T00:00Z", "2018-06-01T00:00Z"])
def test_hour_has_a_known_capacity(last):
    """Data that goes on beyond the figures of installed capacity asks about the last year that has one."""
    moment = what_if.hour_of_year(_snapshot(last), 172, 12)
    assert moment == datetime(2016, 6, 21, 12, tzinfo=UTC)
    assert what_if.reading("day", 172) == "21 Jun"
