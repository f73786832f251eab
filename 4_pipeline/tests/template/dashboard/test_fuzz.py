"""Bodies that no page sends, to every callback there is: none of them ends in a 500."""

from __future__ import annotations

import base64
import copy
import json

import pytest
from dashboard.follower import Snapshot
from forecast.table.features import INPUTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from request_bodies import URL, USUAL, body_of

QUICKLY = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
}
JUNK = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
        st.sampled_from([
            10**400, -1, 0, 1e308, "NaN", "2016-12-31", "9999-12-31", "0001-01-01", "2016-02-30", "2016-13-01T00:00Z",
            "/what-if?windspeed=7.5", "/comparison?from=2016-12-03&to=x", "//[", "?" * 3000, "\x00", "\u202e",
            "<script>", "data:text/csv;base64,", "data:;base64,AAAA", "data:text/csv;base64,=", ";base64,\u00e9",
            "a" * 5000, *USUAL.values(),
        ]),
        st.binary(max_size=60).map(lambda content: f"data:x;base64,{base64.b64encode(content).decode()}"),
        st.text(max_size=60).map(
            lambda rows: "data:text/csv;base64," + base64.b64encode(f"{','.join(INPUTS)}\n{rows}".encode()).decode()
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(["id", "property", "value", "type", "index"]), st.text(max_size=5)),
                        inner, max_size=4),
    ),
    max_leaves=8,
)  # fmt: skip
KEYS = ["output", "outputs", "inputs", "state", "changedPropIds", "parsedChangedPropsIds"]


@st.composite
def _mangled(draw, body: dict) -> dict:
    """Return a body with some of its values replaced and, half of the time, up to three other things wrong."""
    body = copy.deepcopy(body)
    items = [item for key in ("inputs", "state") for item in body[key]]
    for item in items:
        if draw(st.booleans()):
            item["value"] = draw(JUNK)
    if body["inputs"] and draw(st.booleans()):
        changed = draw(st.sampled_from(body["inputs"]))
        body["changedPropIds"] = [f"{changed['id']}.{changed['property']}"]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2, 3]))):
        key = draw(st.sampled_from(KEYS))
        match draw(st.integers(0, 5)):
            case 0:
                body.pop(key, None)
            case 1:
                body[key] = draw(JUNK)
            case 2 if isinstance(body.get(key), list) and body[key]:
                body[key] = body[key] + body[key][:1]
            case 3 if isinstance(body.get(key), list) and body[key]:
                body[key] = body[key][1:]
            case 4 if items:
                draw(st.sampled_from(items))[draw(st.sampled_from(["id", "property"]))] = draw(JUNK)
            case 5 if isinstance(body.get(key), list) and body[key]:
                body[key] = [body[key]]
    return body


def _refused_politely(answer) -> bool:
    """Tell whether an answer is one, or a refusal in JSON that says why and shows no traceback."""
    if answer.status_code < 400:
        return True
    text = answer.get_data(as_text=True)
    return answer.status_code < 500 and bool(json.loads(text)["error"]) and "Traceback" not in text


@pytest.fixture(scope="module")
def apps():
    """What the tests of this file ask, by whether data and a model are there; made once."""
    return {}


@settings(max_examples=400, **QUICKLY)
@given(st.data())
def test_callbacks_never_fail(made, apps, data):
    """Whatever is sent to whichever callback, with a model and without: an answer, or 4xx with a reason."""
    if "nothing" not in apps:
        apps.update({"served": made(), "nothing": made(Snapshot(is_ready=True))})
    app, client = apps[data.draw(st.sampled_from(["served", "served", "served", "nothing"]))]
    output = data.draw(st.sampled_from(sorted(app.callback_map)))
    body = data.draw(_mangled(body_of(app, output)))
    answer = client.post(URL, data=json.dumps(body), content_type="application/json")
    assert _refused_politely(answer), (answer.status_code, body)


def test_every_callback_answers_a_page(made):
    """What the fuzz mangles are requests that are answered as they are: each callback on the server is reached."""
    app, client = made()
    for output in app.callback_map:
        answer = client.post(URL, json=body_of(app, output))
        expected = {200, 204} if "callback" in app.callback_map[output] else {400}
        assert answer.status_code in expected, (output, answer.get_data(as_text=True))
