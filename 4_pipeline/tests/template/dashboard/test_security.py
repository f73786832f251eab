"""Requests from elsewhere are rejected with a reason; unexpected errors are described only in the log."""

from __future__ import annotations

import re

import pytest
from dash import Input, Output
from request_bodies import URL, body_of, output_with


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/comparison?from=x", 200),
        ("GET", "/nowhere", 404),
        ("PUT", "/", 405),
        ("POST", "/nowhere", 405),
        ("GET", "/_dash-component-suites/nothing/there.js", 404),
        ("GET", "/_dash-component-suites/dash/../../app.py", 404),
        ("GET", "/assets/../app.py", 404),
        ("GET", "/assets/%2e%2e/app.py", 404),
    ],
)
def test_unknown_methods_and_paths_are_rejected(made, method, path, status):
    """An unknown path gives the page `Page not found` with status 404; other errors are JSON with a reason."""
    answer = made()[1].open(path, method=method)
    assert answer.status_code == status
    assert b"_dash-config" in answer.data or answer.get_json()["error"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8050", 200), ("[::1]:8050", 200), ("192.168.1.7:8050", 200), ("[::1", 403), ("", 403),
        ("elsewhere.example", 403), ("10.elsewhere.example:8050", 403), ("127.0.0.1.elsewhere.example", 403),
        ("dash.company.lan", 200), ("Other.lan:443", 200), ("company.lan", 403), ("x.dash.company.lan", 403),
    ],
)  # fmt: skip
def test_only_local_and_allowed_hosts_are_answered(made, monkeypatch, host, status):
    """A foreign host name that resolves to this machine is rejected; the error names the variable to allow it."""
    monkeypatch.setenv("DASHBOARD_ALLOWED_HOSTS", "dash.company.lan, other.lan")
    for path in ("/", "/health", "/_dash-layout"):
        answer = made()[1].get(path, headers={"Host": host})
        assert answer.status_code == status, path
        words = f"the host {host!r} is neither", "as in DASHBOARD_ALLOWED_HOSTS=dash.company.lan"
        assert status == 200 or all(word in answer.get_json()["error"] for word in words)


@pytest.mark.parametrize("path", ["/", "/_dash-layout", "/health", "/nowhere", "/assets/theme.js"])
def test_browsers_are_limited_in_what_they_load(made, path):
    """Nothing is loaded from other hosts, only Dash's inline scripts run, and no other site may frame the page."""
    with made()[1].get(path) as answer:
        policy = dict(rule.strip().split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == "'self'"
        assert re.fullmatch(r"'self' 'sha256-[^' ]+'", policy["script-src"])
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"


def test_every_callback_accepts_the_request_of_a_page(made):
    """Each server callback handles the request that a page sends."""
    app, client = made()
    for output, declared in app.callback_map.items():
        if "callback" in declared:
            answer = client.post(URL, json=body_of(app, output))
            assert answer.status_code in (200, 204), (output, answer.get_data(as_text=True))


def test_unexpected_error_is_described_only_in_the_log(made, caplog):
    """An error in a callback gives status 500 with a short reason; its traceback is logged once."""
    app, client = made()

    @app.callback(Output("notice", "children", allow_duplicate=True), Input("page", "title"), prevent_initial_call=True)
    def fail(_title):
        raise ZeroDivisionError("the secret of line 7")

    body = body_of(app, output_with(app, "notice.children@"))
    answer = client.post(URL, json=body)
    assert answer.status_code == 500
    assert set(answer.get_json()) == {"error"}
    assert "secret" not in answer.get_data(as_text=True)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]
    assert client.post(URL, json=body_of(app, output_with(app, "comparison-answer.data"))).status_code == 200
