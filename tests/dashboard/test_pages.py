"""The pages, made in this process: whatever stands in an address, each is made, and shows what is served."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

NAMES = st.sampled_from(["from", "to", "windspeed", "temperature", "hour", "day", "x", "__class__"])
VALUES = st.text(max_size=12) | st.sampled_from(["nan", "inf", "-1e309", "2016-10-03", "9999-12-31", "0001-01-01", "7"])


@pytest.fixture(scope="module")
def made(served):
    """What makes the page of an address, as JSON."""
    import layout

    return lambda url, **changes: layout.whole(replace(served, **changes), url).to_plotly_json()


@given(st.text(max_size=60))
@example("http://[")
@example("//host/what-if?a=1")
@example("/outlook?" + "a=1&" * 100)
@example("?" * 3000)
def test_any_text_is_an_address(url):
    """A path is always found, and what is no query is none."""
    import address

    path, query = address.of(url)
    assert path
    assert len(query) <= address.MOST_FIELDS


@given(st.sampled_from(["/", "/outlook", "/what-if"]), st.lists(st.tuples(NAMES, VALUES), max_size=6))
def test_pages_are_made_of_any_query(made, path, fields):
    """No value in a query keeps a page from being made; sliders and days are those of a reader all the same."""
    from urllib.parse import urlencode

    assert made(f"{path}?{urlencode(fields, errors='surrogatepass')}")


@pytest.mark.parametrize("path", ["/", "/what-if", "/your-weather", "/model", "/data", "/no-such"])
@pytest.mark.parametrize("missing", ["frame", "model", "both", "all"])
def test_pages_are_made_of_what_there_is(made, path, missing):
    """Without data, without a model, and before anybody has looked, each page is there and says so."""
    without = {
        "frame": {"frame": None, "predicted": None, "band": None},
        "model": {"production": None, "model": None, "predicted": None, "band": None},
    }
    changes = without["frame"] | without["model"] if missing in ("both", "all") else without[missing]
    said = str(made(path, looked=missing != "all", **changes))
    assert ("Looking for the data" in said) == (missing == "all")
    if missing in ("frame", "both"):
        assert "There is no data yet." in said
    if missing in ("model", "both"):
        assert "No model is in production yet." in said


@pytest.mark.parametrize(
    ("until", "said"),
    [
        ("2000-01-01T00:00:00Z", "New to the model: it learned from hours up to 01 Jan 2000."),
        ("2100-01-01T00:00:00Z", "The model learned from all of these hours"),
    ],
)
def test_outlook_tells_what_the_model_has_learned_from(made, served, until, said):
    """Errors on hours that the model has learned from flatter it: the outlook says which hours are new to it."""
    from memo import Memo

    production = replace(served.production, learned_until=until)
    assert said in str(made("/outlook", production=production, memo=Memo()))
    assert "learned" not in str(made("/outlook", memo=Memo()))


def test_links_of_a_lineage_lead_to_pages_only(made):
    """What is recorded with a run could say anything: an address that is no page's is shown as a name, not linked."""
    from record import Record

    from workshop.models.lineage import Link

    links = (Link("data", "harmless", url="javascript:alert(1)"), Link("run", "fit", url="http://127.0.0.1/run"))
    said = str(made("/model", record=Record(lineage=links)))
    assert "javascript" not in said
    assert "http://127.0.0.1/run" in said
