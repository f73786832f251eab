"""The HTTP API: predictions of `/predict` are those of the model, and errors name what is allowed."""

from __future__ import annotations

import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from dashboard.follower import Fault, Snapshot
from dashboard.predictions import Champion
from dashboard.requests import MAX_ROWS
from forecast import problem
from forecast.learn.storage import LoadedModel
from forecast.show import monitoring
from forecast.table.schema import TARGETS
from places import wait_for
from request_bodies import URL, body_of, output_with

ROW = {
    "utc_timestamp": "2016-06-01T12:00:00Z", "windspeed": 5.2, "temperature": 18.5, "rad_horizontal": 410,
    "rad_diffuse": 120,
}  # fmt: skip
LATER = ROW | {"utc_timestamp": "2016-06-01T15:00:00+02:00", "windspeed": 9}


def test_predict_returns_the_predictions_of_the_model(made, model):
    """Rows are returned in order with prediction and band, and with name, version and run of the model."""
    answer = made()[1].post("/predict", json={"rows": [LATER, ROW]})
    assert answer.status_code == 200
    body = answer.get_json()
    identity = {"name": "wind_solar", "version": "7", "run_id": "a1", "learned_from": "modelled sample"}
    assert body["model"] == identity
    assert body["coverage"] == 0.8
    rows = pd.DataFrame([LATER | {"utc_timestamp": "2016-06-01T13:00:00Z"}, ROW])
    predicted, (low, high) = model.predict_with_band(rows)
    for number, row in enumerate(body["rows"]):
        assert row["utc_timestamp"] == rows["utc_timestamp"][number]
        for target in TARGETS:
            values = row[target], row[f"{target}_low"], row[f"{target}_high"]
            assert values == tuple(frame[target].iloc[number] for frame in (predicted, low, high))


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ({"json": {"rows": [ROW | {"temperature": 290.1}]}}, 422, ["row 1 (2016-", "between -40 and 50"]),
        ({"json": {"rows": ["x" * 1000] * 5000}}, 413, ["4,000,000 bytes are allowed"]),
        ({"json": [ROW]}, 400, ["rows"]),
        ({"json": {"rows": [ROW | {"humidity": 3}]}}, 422, ["Row 1 has unknown keys: humidity", "rad_diffuse"]),
        ({"data": '{"rows": [', "content_type": "application/json"}, 400, ["not valid JSON", "line 1 column 11"]),
        ({"data": b"\xff", "content_type": "application/json"}, 400, ["not valid JSON", '{"rows": [']),
        ({"data": "windspeed\n3", "content_type": "text/csv"}, 415, ["text/csv", "Content-Type: application/json"]),
        ({"data": "{}"}, 415, ["no Content-Type", "Content-Type: application/json"]),
    ],
)
def test_predict_rejects_invalid_requests(made, sent, status, words):
    """The error names the invalid rows and what is allowed, or the expected form of the body."""
    answer = made()[1].post("/predict", **sent)
    assert answer.status_code == status
    error = answer.get_json()
    assert status == 413 or error["next"]
    text = " ".join(error.values())
    assert [word for word in words if word not in text] == [], text


def test_predict_assumes_the_last_capacity_for_two_years_or_uses_the_given_one(made):
    """For hours of 2018 the capacity of the end of 2016 is assumed; a capacity in the request overrides it."""
    client = made()[1]

    def ask(**values):
        return client.post("/predict", json={"rows": [ROW | values]})

    known, assumed = ask(), ask(utc_timestamp="2018-06-01T12:00:00Z")
    assert [answer.get_json()["rows"][0]["capacity"] for answer in (known, assumed)] == ["known", "assumed"]
    capacities = {f"{target.key}_capacity_GW": problem.CAPACITY[target.name]["2016"] for target in problem.TARGETS}
    exact = ask(utc_timestamp="2018-06-01T12:00:00Z", **capacities)
    assert exact.get_json()["rows"][0] == assumed.get_json()["rows"][0] | {"capacity": "given"}
    rejected = ask(utc_timestamp="2019-01-01T00:00:00Z")
    assert rejected.status_code == 422
    assert "wind_capacity_GW" in rejected.get_json()["next"]
    doubled = ask(utc_timestamp="2018-06-01T12:00:00Z", **{name: 2 * value for name, value in capacities.items()})
    for target in TARGETS:
        row = doubled.get_json()["rows"][0]
        assert row[target] == pytest.approx(2 * assumed.get_json()["rows"][0][target])
    assert ask(utc_timestamp="2030-06-01T12:00:00Z", **capacities).status_code == 200


def test_metrics_are_those_of_the_page(made, served):
    """Prometheus gets the state and the errors by target; without a model, names without values."""
    lines = made()[1].get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values["model_state"] == str(monitoring.STATES.index(served.comparison.state))
    assert float(values['model_bias_percent{target="wind"}']) == pytest.approx(served.comparison.latest[1].bias_percent)
    assert all(line.startswith("#") for line in made(Snapshot())[1].get("/metrics").text.splitlines())


def test_predict_takes_a_year_of_hours(made):
    """A year of hours is accepted, even with all digits and each value on its own line."""
    _, client = made()
    hours = pd.date_range("2016-01-01", periods=MAX_ROWS, freq="h").strftime("%Y-%m-%dT%H:%M:%S.000000+00:00")
    weather = dict.fromkeys(("windspeed", "temperature", "rad_horizontal", "rad_diffuse"), 1.2345678901234567e-05)
    rows = [{"utc_timestamp": hour} | weather for hour in hours]
    answer = client.post("/predict", data=json.dumps({"rows": rows}, indent=4), content_type="application/json")
    assert answer.status_code == 200, answer.get_json()
    assert len(answer.get_json()["rows"]) == MAX_ROWS
    assert client.post("/predict", data="[" * 5000, content_type="application/json").status_code == 400


@pytest.mark.parametrize("value", [math.nan, -math.inf, -1e6])
def test_implausible_predictions_are_errors(made, served, value):
    """A model that fails for some inputs only: `/predict` returns an error, and the page shows one at the sliders."""
    model = LoadedModel("sklearn", lambda rows: np.where(rows[["windspeed"]] > 9, value, [[1.0, 2.0]]))
    app, client = made(replace(served, champion=Champion(served.champion.production, model)))
    assert client.post("/predict", json={"rows": [ROW]}).status_code == 200
    answer = client.post("/predict", json={"rows": [ROW, ROW | {"windspeed": 9.5, "utc_timestamp": "2016-06-01T13Z"}]})
    assert answer.status_code == 500
    body = json.loads(answer.data, parse_constant=pytest.fail)
    assert body["found"] == f"solar_GW: {value:g} GW"
    output = output_with(app, "what-if-answers.children")
    for windspeed, words in ((5, "2.00"), (10, "not plausible")):
        page = client.post(URL, json=body_of(app, output, slider_windspeed=windspeed))
        assert words in page.text
    faulty = Snapshot(is_ready=True, faults={"model": Fault(datetime.now(UTC), "It is bad.")})
    answer = made(faulty)[1].post("/predict", json={"rows": [ROW]})
    assert (answer.status_code, answer.get_json()["error"]) == (503, "It is bad.")


def test_predict_without_a_model_says_what_to_run(made):
    """Without a version in production: 503 with the next step; `/health` still responds."""
    for is_ready, words in ((False, "retry"), (True, "dvc repro")):
        _, client = made(Snapshot(is_ready=is_ready))
        answer = client.post("/predict", json={"rows": [ROW]})
        assert answer.status_code == 503
        assert words in answer.get_json()["next"]
    health = client.get("/health").get_json()
    assert (health["version"], health["learned_from"]) == (None, None)
    assert made()[1].get("/health").get_json()["learned_from"] == "modelled sample"


def test_report_is_served_once_it_is_written(made, data_file):
    """The report has a link back and runs no scripts; before it exists, 404 with the command to run; no other file."""
    client = made()[1]
    assert "dvc repro" in client.get("/results/report.html").get_json()["error"]
    file = data_file.parents[1] / "results" / "report.html"
    file.parent.mkdir()
    file.write_text("<html><body><script>alert(1)</script></body></html>")
    answer = client.get("/results/report.html")
    assert answer.text.index("Dashboard") < answer.text.index("alert")
    assert "script" not in answer.headers["Content-Security-Policy"]
    assert b"alert" not in client.get("/results/other.html").data


def test_predict_batches_simultaneous_requests(made, served):
    """Requests that arrive while the model is busy are one batch; each gets its own rows or error."""
    may_return, calls = threading.Event(), []

    def slow(rows):
        calls.append(len(rows))
        may_return.wait(30)
        return np.where(rows[["windspeed"]] > 50, math.nan, rows[["windspeed", "temperature"]])

    champion = Champion(served.champion.production, LoadedModel("sklearn", slow))
    server = made(replace(served, champion=champion))[0].server

    def ask(speed):
        rows = [ROW | {"windspeed": 55 if speed == 5 else speed}]
        return server.test_client().post("/predict", json={"rows": rows})

    with ThreadPoolExecutor(13) as pool:
        futures = [pool.submit(ask, 1)]
        wait_for(lambda: calls)
        futures += [pool.submit(ask, speed) for speed in range(2, 14)]
        wait_for(lambda: len(champion.queue) == 12)
        may_return.set()
        answers = [future.result() for future in futures]
    assert [answer.status_code for answer in answers] == [200] * 4 + [500] + [200] * 8
    for speed, answer in enumerate(answers, 1):
        assert answer.status_code == 500 or answer.get_json()["rows"][0]["solar_GW"] == speed
    assert calls == [1, 12, *[1] * 12]  # one batch, then one by one since it failed
