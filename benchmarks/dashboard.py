"""The dashboard under many readers, against a static file, and against an app that loads its model for each request."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import requests

from benchmarks.load import run
from benchmarks.measure import Side
from benchmarks.place import Place
from benchmarks.rows import Figure, Ratio
from tests.workplace import free_port

TITLE = "The dashboard under many readers"
SECONDS = 5.0
CONNECTIONS = (50, 200)
# More would only wait longer: each answer keeps the program busy for most of a second.
USUAL_CONNECTIONS = 4
START_SECONDS = 60.0
PERIODS = [(f"2016-{month:02}-01", f"2016-{month:02}-14") for month in range(1, 13)]
CALLBACK = "outlook-figure.figure"

STATIC, INDEX, OUTLOOK, PREDICT = "a static file", "the first page", "a period's figure", "`POST /predict`"
USUAL = "model loaded for each request"


def _side(kind: str, connections: int) -> str:
    return f"{kind}, {connections} connections"


def _figure(side: str, what: str) -> str:
    return f"{side}, {what}"


AN_ANSWER = "an answer takes"

ROWS = (
    # Of a file that is read and sent by the same WSGI server, and of Dash the usual way.
    Ratio(f"{OUTLOOK}, 50 readers", _figure(USUAL, AN_ANSWER), _figure(_side(OUTLOOK, 50), AN_ANSWER), 20, unit="ms"),
    Ratio("a static file of that size", _figure(STATIC, AN_ANSWER), _figure(_side(OUTLOOK, 50), AN_ANSWER), unit="ms"),
    *(
        Figure(f"{_side(kind, connections)}: 95 % are answered within", _figure(_side(kind, connections), "p95"), "ms",
               at_most=most)
        for kind, connections, most in (
            (INDEX, 50, 100), (INDEX, 200, 150), (OUTLOOK, 50, 100), (OUTLOOK, 200, 150), (PREDICT, 50, 100),
            (PREDICT, 200, None),
        )
    ),
    Figure("requests that failed, 200 connections", "errors", "", at_most=0, digits=0),
)  # fmt: skip

STATIC_PROGRAM = """
import sys, waitress
from pathlib import Path

def app(environ, start_response):
    content = Path(sys.argv[2]).read_bytes()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
    return [content]

waitress.serve(app, host="127.0.0.1", port=int(sys.argv[1]), threads=16, connection_limit=1000)
"""

USUAL_PROGRAM = """
import sys, mlflow, pandas as pd, waitress
from dash import Dash, Input, Output, dcc, html
from workshop.data import figures, schema
from workshop.data.features import inputs
from pathlib import Path

frame = schema.read(Path(sys.argv[2]))
app = Dash(__name__)
app.layout = html.Div([dcc.Input(id="first"), dcc.Input(id="last"), dcc.Graph(id="figure")])

@app.callback(Output("figure", "figure"), Input("first", "value"), Input("last", "value"))
def show(first, last):
    model = mlflow.pyfunc.load_model("models:/wind_solar@production")
    ends = pd.Timestamp(first, tz="UTC"), pd.Timestamp(last, tz="UTC") + pd.Timedelta(days=1)
    chosen = frame.iloc[slice(*frame["utc_timestamp"].searchsorted(ends))]
    predicted = pd.DataFrame(model.predict(inputs(chosen)), chosen.index, schema.TARGETS)
    return figures.measured_and_predicted(chosen, predicted)

waitress.serve(app.server, host="127.0.0.1", port=int(sys.argv[1]), threads=16)
"""


def sides(place: Place) -> list[Side]:
    """Return the sides; the pipeline has run, so that a model is in production."""
    place.do("workshop", "repro", cwd=place.pipeline)
    dashboard, folder = place.settings.dashboard_url, place.new_folder("dashboard")
    _wait_for(f"{dashboard}/health", lambda answer: answer.json()["version"])
    bodies = {OUTLOOK: _outlook_bodies(dashboard), PREDICT: _weather_bodies(), USUAL: _usual_bodies()}
    files = {kind: folder / f"{number}.jsonl" for number, kind in enumerate(bodies)}
    for kind, file in files.items():
        file.write_text("\n".join(map(json.dumps, bodies[kind])))
    callbacks = f"{dashboard}/_dash-update-component"
    answer = folder / "answer.json"
    answer.write_bytes(requests.post(callbacks, json=bodies[OUTLOOK][0], timeout=30).content)
    data = Path(shutil.copy(place.settings.pipeline / "data" / "germany.parquet", folder))
    asked = {
        INDEX: (f"{dashboard}/", None),
        OUTLOOK: (callbacks, files[OUTLOOK]),
        PREDICT: (f"{dashboard}/predict", files[PREDICT]),
    }
    return [
        Side(USUAL, partial(_usual, place, data, files[USUAL])),
        Side(STATIC, partial(_static, place, answer)),
        *(
            Side(_side(kind, connections), partial(_ours, kind, connections, *asked[kind]))
            for kind in asked
            for connections in CONNECTIONS
        ),
    ]


def _ours(kind: str, connections: int, url: str, bodies: Path | None) -> Mapping[str, float]:
    found, side = run(url, connections, SECONDS, bodies), _side(kind, connections)
    told = {_figure(side, what): found[what] for what in ("p50", "p95")}
    failed = {"errors": found["errors"]} if connections == CONNECTIONS[-1] else {}
    return {_figure(side, AN_ANSWER): 1000 / found["per_second"]} | told | failed


def _usual(place: Place, data: Path, bodies: Path) -> Mapping[str, float]:
    with _started(place, USUAL_PROGRAM, data) as url:
        return _an_answer(USUAL, run(f"{url}/_dash-update-component", USUAL_CONNECTIONS, SECONDS, bodies))


def _static(place: Place, file: Path) -> Mapping[str, float]:
    with _started(place, STATIC_PROGRAM, file) as url:
        return _an_answer(STATIC, run(f"{url}/", CONNECTIONS[0], SECONDS))


def _an_answer(side: str, found: Mapping[str, float]) -> Mapping[str, float]:
    if found["errors"]:
        raise RuntimeError(f"{side}: {found['errors']} of {found['answers']} requests failed")
    return {_figure(side, AN_ANSWER): 1000 / found["per_second"]}


@contextlib.contextmanager
def _started(place: Place, program: str, argument: Path) -> Iterator[str]:
    port, environment = free_port(), place.environment | {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    command = [sys.executable, "-c", program, str(port), argument]
    with (
        argument.with_name("log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            _wait_for(f"http://127.0.0.1:{port}/", lambda answer: answer.ok)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait_for(url: str, wanted) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            if wanted(requests.get(url, timeout=5)):
                return
        time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer")


def _outlook_bodies(dashboard: str) -> list[dict]:
    """Return what a page sends for each of some periods, as the dashboard itself says it wants it."""
    declared = next(
        each for each in requests.get(f"{dashboard}/_dash-dependencies", timeout=30).json()
        if CALLBACK in each["output"] and not each["clientside_function"]
    )  # fmt: skip
    names = declared["output"].strip(".").split("...")
    fixed = {
        "output": declared["output"],
        "outputs": [dict(zip(("id", "property"), name.rsplit(".", 1), strict=True)) for name in names],
        "changedPropIds": [f"{item['id']}.{item['property']}" for item in declared["inputs"][:1]],
    }

    def values(items: list[dict], period: tuple[str, str]) -> list[dict]:
        days = dict(zip(("outlook-first-day", "outlook-last-day"), period, strict=True))
        return [{"id": item["id"], "property": item["property"], "value": days.get(item["id"])} for item in items]

    return [fixed | {key: values(declared[key], period) for key in ("inputs", "state")} for period in PERIODS]


def _usual_bodies() -> list[dict]:
    fixed = {"output": "figure.figure", "outputs": {"id": "figure", "property": "figure"}}
    days = ("first", "last")
    return [
        fixed
        | {
            "inputs": [{"id": name, "property": "value", "value": day} for name, day in zip(days, period, strict=True)],
            "changedPropIds": ["first.value"],
        }
        for period in PERIODS
    ]


def _weather_bodies() -> list[dict]:
    dice = random.Random(0)  # noqa: S311 - weather, and no secret

    def hour() -> str:
        return f"2016-{dice.randint(1, 12):02}-{dice.randint(1, 28):02}T{dice.randint(0, 23):02}:00:00Z"

    return [
        {
            "rows": [
                {
                    "utc_timestamp": hour(),
                    "windspeed": round(dice.uniform(0, 15), 1),
                    "temperature": round(dice.uniform(-10, 30), 1),
                    "rad_horizontal": dice.randint(0, 800),
                    "rad_diffuse": dice.randint(0, 400),
                }
            ]
        }
        for _ in range(500)
    ]
