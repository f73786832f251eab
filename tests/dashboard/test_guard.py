"""What no page would send is refused with a reason; what nobody foresaw is told in the log alone."""

from __future__ import annotations

import base64
import json
import logging
import re

import pytest
from dash import ALL, MATCH, Input, Output, State
from dashboard.bodies import URL, body_of, output_with

UPLOAD = "weather-answer.children"


@pytest.fixture
def client(made):
    """A client of the app with data and model."""
    return made()[1]


@pytest.mark.parametrize(
    ("method", "path", "accept", "status"),
    [
        ("GET", "/", "*/*", 200),
        ("GET", "/outlook?from=x", "text/html", 200),
        ("GET", "/nowhere", "*/*", 404),
        ("GET", "/nowhere", "text/html,*/*", 404),
        ("GET", "/predict", "*/*", 405),
        ("GET", URL, "text/html", 405),
        ("PUT", "/", "*/*", 405),
        ("DELETE", "/predict", "*/*", 405),
        ("POST", "/nowhere", "*/*", 405),
        ("POST", "/health", "*/*", 405),
        ("TRACE", "/health", "*/*", 405),
        ("GET", "/_dash-component-suites/nothing/there.js", "*/*", 404),
        ("GET", "/_dash-component-suites/dash/../../app.py", "*/*", 404),
        ("GET", "/assets/../app.py", "*/*", 404),
        ("GET", "/assets/%2e%2e/app.py", "*/*", 404),
    ],
)  # fmt: skip
def test_unknown_methods_and_paths_are_refused(client, method, path, accept, status):
    """A program is told in JSON; a browser, at a path that is no page, gets the page that says so."""
    answer = client.open(path, method=method, headers={"Accept": accept})
    assert answer.status_code == status
    if status >= 400 and "html" not in accept:
        assert answer.get_json()["error"]
    if "html" in accept and status != 405:
        assert b"_dash-config" in answer.data


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8050", 200),
        ("localhost:9000", 200),
        ("[::1]:8050", 200),
        ("192.168.1.7:8050", 200),
        ("10.0.0.7", 200),
        ("elsewhere.example", 403),
        ("10.elsewhere.example:8050", 403),
        ("127.0.0.1.elsewhere.example", 403),
        ("8.8.8.8", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_only_own_names_are_answered(client, host, status):
    """A page of another site whose name is made to mean this machine gets no answer, neither page nor data."""
    for path in ("/", "/health", "/_dash-layout"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == status, path
        assert status == 200 or set(answer.get_json()) == {"error"}


@pytest.mark.parametrize("path", ["/", "/_dash-layout", "/health", "/nowhere", "/assets/theme.js", "/openapi.json"])
def test_browsers_are_told_what_may_be_done_with_an_answer(client, path):
    """Nothing is loaded from elsewhere, no inline script runs but Dash's own, and no other site frames the page."""
    with client.get(path) as answer:
        policy = dict(rule.strip().split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == "'self'"
        assert re.fullmatch(r"'self' 'sha256-[^' ]+'", policy["script-src"])
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"


def test_refusal_is_one_line_in_the_log(client, caplog):
    """Whatever was sent, the log gets one line, without a traceback and without its line breaks."""
    with caplog.at_level(logging.INFO, "guard"):
        client.post("/nowhere%0aERROR%20all%20is%20lost" + "x" * 500)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "guard"]
    assert "\n" not in line
    assert len(line) < 200


def test_unforeseen_error_is_told_in_the_log_alone(made, caplog):
    """An error in a callback answers 500 with a short reason; its traceback is logged once, and the server goes on."""
    app, client = made()
    output = output_with(app, "outlook-figure.figure")

    def fail(*_args, **_kwargs):
        raise ZeroDivisionError("the secret of line 7")

    working, app.callback_map[output]["callback"] = app.callback_map[output]["callback"], fail
    answer = client.post(URL, json=body_of(app, output))
    assert answer.status_code == 500
    assert set(answer.get_json()) == {"error"}
    assert "secret" not in answer.get_data(as_text=True)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]
    app.callback_map[output]["callback"] = working
    assert client.post(URL, json=body_of(app, output)).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"output": "no.such"},
        {"inputs": None},
        {"inputs": [[1]]},
        {"outputs": {"id": "x", "property": "y"}},
        {"changedPropIds": [{}]},
        {"state": [{"id": "x", "property": "y"}]},
        {"more": [[[[]]] * 2] * 3, "deep": json.loads("[" * 60 + "]" * 60)},
        {"text": "\ud800"},
        {"number": 2**64},
    ],
)
def test_malformed_callbacks_are_refused(made, wrong):
    """What differs from what the callback declares is answered 400 with the reason."""
    app, client = made()
    body = body_of(app, output_with(app, "outlook-figure.figure")) | wrong
    answer = client.post(URL, json=body)
    assert answer.status_code == 400
    assert set(answer.get_json()) == {"error"}


def test_patterns_and_doubled_outputs_are_understood(made):
    """Ids with wildcards reach the callback when they match, one by one or as a list, and are refused when not."""
    app, client = made()

    @app.callback(
        Output({"kind": "row", "number": MATCH}, "children"),
        Output("notice", "children", allow_duplicate=True),
        Input({"kind": "row", "number": MATCH}, "n_clicks"),
        State({"kind": "cell", "number": ALL}, "value"),
        prevent_initial_call=True,
    )
    def sum_up(_clicks, cells):
        return sum(cells), "done"

    name = output_with(app, '"row"')
    row = {"kind": "row", "number": 2}
    doubled = name.removesuffix("..").rsplit("notice.", 1)[1]
    body = {
        "output": name,
        "outputs": [{"id": row, "property": "children"}, {"id": "notice", "property": doubled}],
        "inputs": [{"id": row, "property": "n_clicks", "value": 1}],
        "state": [[{"id": {"kind": "cell", "number": n}, "property": "value", "value": n} for n in (1, 2)]],
        "changedPropIds": ['{"kind":"row","number":2}.n_clicks'],
    }
    answer = client.post(URL, json=body)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    assert answer.get_json()["response"]['{"kind":"row","number":2}'] == {"children": 3}
    for key, wrong in (
        ("inputs", [{"id": {"kind": "cell", "number": 2}, "property": "n_clicks"}]),
        ("inputs", [{"id": {"kind": "row"}, "property": "n_clicks"}]),
        ("inputs", [{"id": {"kind": "row", "number": [2]}, "property": "n_clicks"}]),
        ("state", [{"id": {"kind": "cell", "number": 1}, "property": "value"}]),
        ("state", []),
        ("changedPropIds", ['{"kind":"row","number":3}.n_clicks']),
    ):
        assert client.post(URL, json=body | {key: wrong}).status_code == 400, (key, wrong)


def test_large_bodies_are_refused(made):
    """Above four megabytes nothing is taken, whoever it is for; a file of two fits."""
    app, client = made()
    upload, other = output_with(app, UPLOAD), output_with(app, "outlook-figure.figure")

    def sent(output: str, size: int, path: str = URL) -> int:
        file = "data:text/csv;base64," + base64.b64encode(b"x" * size).decode()
        body = body_of(app, output, contents=file, outlook_first_day=file)
        return client.post(path, json=body).status_code

    assert sent(upload, 1_990_000) == 200
    assert sent(upload, 3_000_000) == 413
    assert sent(other, 2_900_000) == 200
    assert sent(other, 3_000_000) == 413
    assert sent(other, 3_000_000, "/predict") == 413


def test_answers_are_made_once_and_forgotten_with_what_was_served(served, data_file, monkeypatch):
    """The same request is answered from memory until another version speaks; a file that was handed in is not kept."""
    from dataclasses import replace

    import app
    import pages.outlook
    import pages.your_weather
    import serving

    drawn = []
    for module, function in ((pages.outlook, "_answers"), (pages.your_weather, "decoded")):
        original = getattr(module, function)
        monkeypatch.setattr(
            module, function, lambda *args, original=original: drawn.append(original.__name__) or original(*args)
        )
    followed = serving.Serving(data_file)
    followed._take(**{name: getattr(served, name) for name in ("production", "model", "frame", "predicted", "band")})
    made = app.make_app(followed)
    client = made.server.test_client()

    def ask(output: str) -> bytes:
        return client.post(URL, json=body_of(made, output_with(made, output))).data

    for output in ("outlook-figure.figure", UPLOAD):
        assert len({ask(output) for _ in range(3)}) == 1
    assert drawn == ["_answers", *["decoded"] * 3]
    followed._take(production=replace(served.production, version="8"))
    ask("outlook-figure.figure")
    assert drawn[4:] == ["_answers"]
